"""Canonical status codes, as TensorFlow Serving puts them on gRPC and REST."""

from __future__ import annotations

from grpc import StatusCode as Code

from serving.errors import Error

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
_BY_NUMBER = {code.value[0]: code for code in Code}


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
    def one_line(self) -> str:
        """The message on one line and not too long, for a log or a terminal."""
        return " ".join(self.message.split())[:500]


def invalid_argument(message: str) -> StatusError:
    """The commonest refusal."""
    return StatusError(Code.INVALID_ARGUMENT, message)


def from_exception(error: Exception) -> StatusError:
    """A status for whatever was raised: its own, TensorFlow's, or INTERNAL."""
    if isinstance(error, StatusError):
        return error
    number = getattr(error, "error_code", None)  # of a tf.errors.OpError
    if number in _BY_NUMBER:
        return StatusError(_BY_NUMBER[number], getattr(error, "message", str(error)))
    return StatusError(Code.INTERNAL, f"{type(error).__name__}: {error}")
