"""Canonical status codes, as TensorFlow Serving puts them on gRPC and REST."""

from __future__ import annotations

import enum

from serving.errors import Error


class Code(enum.IntEnum):
    """``google.rpc.Code``, which gRPC and TensorFlow share."""

    OK = 0
    CANCELLED = 1
    UNKNOWN = 2
    INVALID_ARGUMENT = 3
    DEADLINE_EXCEEDED = 4
    NOT_FOUND = 5
    ALREADY_EXISTS = 6
    PERMISSION_DENIED = 7
    RESOURCE_EXHAUSTED = 8
    FAILED_PRECONDITION = 9
    ABORTED = 10
    OUT_OF_RANGE = 11
    UNIMPLEMENTED = 12
    INTERNAL = 13
    UNAVAILABLE = 14
    DATA_LOSS = 15
    UNAUTHENTICATED = 16


# http_rest_api_util.cc; everything else is 500.
_HTTP = {
    Code.OK: 200,
    Code.INVALID_ARGUMENT: 400,
    Code.FAILED_PRECONDITION: 400,
    Code.OUT_OF_RANGE: 400,
    Code.NOT_FOUND: 404,
    Code.ALREADY_EXISTS: 409,
    Code.ABORTED: 409,
    Code.RESOURCE_EXHAUSTED: 429,
    Code.CANCELLED: 499,
    Code.UNIMPLEMENTED: 501,
    Code.UNAVAILABLE: 503,
    Code.DEADLINE_EXCEEDED: 504,
}
# grpc_status_util.cc cuts what goes into the HTTP/2 trailer.
_MAX_MESSAGE = 1024


class StatusError(Error):
    """A request or a load that ends with a status other than OK.

    Attributes:
      code: The canonical code.
      message: TensorFlow Serving's text where it has one.
    """

    def __init__(self, code: Code, message: str) -> None:
        super().__init__(f"{code.name}: {message}")
        self.code = code
        self.message = message

    @property
    def http_status(self) -> int:
        """The HTTP status that REST answers with."""
        return _HTTP.get(self.code, 500)

    @property
    def grpc_message(self) -> str:
        """The message as gRPC carries it: cut at 1024 characters."""
        if len(self.message) <= _MAX_MESSAGE:
            return self.message
        return self.message[:_MAX_MESSAGE] + "...TRUNCATED"

    @property
    def one_line(self) -> str:
        """The message on one line and not too long, for a log or a terminal."""
        return " ".join(self.message.split())[:500]


def invalid_argument(message: str) -> StatusError:
    """The commonest refusal."""
    return StatusError(Code.INVALID_ARGUMENT, message)


def from_exception(error: Exception) -> StatusError:
    """A status for whatever was raised: its own, or INTERNAL for the unforeseen."""
    if isinstance(error, StatusError):
        return error
    return StatusError(Code.INTERNAL, f"{type(error).__name__}: {error}")
