"""What the ways to a served model share: address, certificates, statuses, errors.

The ways are :mod:`~serving.grpc_transport`, :mod:`~serving.rest_transport` and
:mod:`~serving.folder_transport`. Each takes arrays and gives arrays;
:mod:`serving.client` gives them meaning.
"""

from __future__ import annotations

import abc
import copy
import dataclasses
import pathlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from serving import errors, protos

Arrays = Mapping[str, np.ndarray[Any, Any]]


@dataclasses.dataclass(frozen=True)
class VersionStatus:
    """The state of one version on a server.

    Attributes:
      state: ``START``, ``LOADING``, ``AVAILABLE``, ``UNLOADING`` or ``END``.
      error: Why it failed; empty when all is well.
    """

    version: int
    state: str
    error: str = ""


@dataclasses.dataclass(frozen=True)
class Tls:
    """Certificates of a client or a server, as PEM files.

    Attributes:
      ca: The authority that signed the other side's certificate.
      certificate: The own chain; a client's for mutual TLS.
      key: Its private key.
    """

    ca: str | None
    certificate: str | None = None
    key: str | None = None

    def read(self) -> tuple[bytes | None, bytes | None, bytes | None]:
        """The three files' contents.

        Raises:
          InputError: A file cannot be read.
        """
        try:
            ca, certificate, key = (
                pathlib.Path(path).read_bytes() if path else None
                for path in (self.ca, self.certificate, self.key)
            )
        except OSError as error:
            raise errors.InputError(f"cannot read {error.filename}: {error.strerror}") from None
        return ca, certificate, key


@dataclasses.dataclass(frozen=True)
class Address:
    """Which model of which server, and how patiently.

    Attributes:
      target: ``host:port``.
      version: A version number; None for the latest.
      label: A version label; excludes ``version``.
      timeout: Seconds for one request, retries included.
      retries: Further tries when the server is not there or busy.
      tls: Certificates; None for plain text.
    """

    target: str
    model: str
    version: int | None = None
    label: str | None = None
    timeout: float = 10.0
    retries: int = 3
    tls: Tls | None = None


class Transport(abc.ABC):
    """A way to one served model; every method raises ``ServingError``."""

    address: Address

    @abc.abstractmethod
    def predict(self, signature: str, inputs: Arrays, outputs: Sequence[str]) -> Arrays:
        """Calls a signature; gives the wanted outputs by alias."""

    def predict_many(
        self, signature: str, batches: Iterable[Arrays], outputs: Sequence[str]
    ) -> Iterator[Arrays]:
        """Calls a signature for each batch; answers come in order."""
        for batch in batches:
            yield self.predict(signature, batch, outputs)

    def pinned(self) -> Transport:
        """The same connections, to the version that answers now and no other."""
        if self.address.version is not None:
            return self
        pinned = copy.copy(self)
        pinned.address = dataclasses.replace(self.address, version=self.metadata()[0], label=None)
        return pinned

    @abc.abstractmethod
    def status(self) -> list[VersionStatus]:
        """The model's versions, highest first."""

    @abc.abstractmethod
    def metadata(self) -> tuple[int, Any]:
        """The version that answers now, and its ``SignatureDefMap``."""

    @abc.abstractmethod
    def close(self) -> None:
        """Lets go of connections."""


def translate(code: str, details: str, address: Address) -> errors.ServingError:
    """The exception for a status code, with what to do about it."""
    where = f"{address.target}, model {address.model!r}"
    text = " ".join(details.split())[:600]
    if code in ("UNAVAILABLE", "CANCELLED"):
        kind: type[errors.ServingError] = errors.ServerUnavailableError
        if "full" in text and "queue" in text:
            return errors.ServerBusyError(f"{where}: {text}; send less at once", code=code)
        message = (
            f"no server answers at {address.target} ({text}); start a server with `mnist-ae "
            "serve`, or correct host and port"
        )
    elif code == "DEADLINE_EXCEEDED":
        kind = errors.DeadlineExceededError
        message = (
            f"{where}: no answer within {address.timeout:g} s; raise the timeout, or check that "
            "this is a gRPC port"
        )
    elif code == "NOT_FOUND" or "Unrecognized servable version label" in text:
        kind = errors.ModelNotFoundError
        message = f"{where}: {text}; `mnist-ae status` shows what is served"
    elif code == "RESOURCE_EXHAUSTED":
        kind, message = errors.ServerBusyError, f"{where}: {text}; send smaller batches or wait"
    elif code in ("INVALID_ARGUMENT", "FAILED_PRECONDITION", "OUT_OF_RANGE", "UNIMPLEMENTED"):
        kind, message = errors.InvalidRequestError, f"{where}: the server refused: {text}"
    else:
        kind, message = errors.ServingError, f"{where}: {code}: {text}"
    return kind(message, code=code)


def statuses_of(response: Any) -> list[VersionStatus]:
    """The versions in a ``GetModelStatusResponse``, highest first."""
    state = protos.ModelVersionStatus.State
    found = [
        VersionStatus(
            item.version,
            state.Name(item.state) if item.state in state.values() else str(item.state),
            item.status.error_message,
        )
        for item in response.model_version_status
    ]
    return sorted(found, key=lambda item: item.version, reverse=True)
