"""What can go wrong between a caller and a served model, as exceptions.

Every message is one line that says what, where and what to do. ``exit_code``
is what the command line exits with: 2 when the caller gave something
unusable, 3 when a server is missing or answered with an error.
"""

from __future__ import annotations


class Error(Exception):
    """Root of everything that this project raises on purpose, for a person to read.

    Attributes:
      exit_code: What a command exits with.
    """

    exit_code = 1


class ServingError(Error):
    """Something went wrong between a caller and a served model.

    Attributes:
      code: gRPC's status code by name, such as ``"NOT_FOUND"``; empty when no
        server was involved.
    """

    exit_code = 3

    def __init__(self, message: str, *, code: str = "") -> None:
        super().__init__(message)
        self.code = code


class InputError(ServingError):
    """A file, an argument or an array that cannot be used as it is."""

    exit_code = 2


class ModelFolderError(InputError):
    """A folder that holds no servable model."""


class ServerUnavailableError(ServingError):
    """Nobody listens there, or the server is going away."""


class DeadlineExceededError(ServingError):
    """No answer within the time allowed."""


class ModelNotFoundError(ServingError):
    """The server is up and does not serve that model, version or label."""


class InvalidRequestError(ServingError):
    """The server refused what was sent: a shape, a type, a missing signature."""


class ServerBusyError(ServingError):
    """The server refused for lack of resources, or the message is too large."""


class ServerStartError(ServingError):
    """A server could not be started: port taken, backend missing, load failed."""


class RolloutError(ServingError):
    """A version label cannot be moved as ordered."""

    exit_code = 2
