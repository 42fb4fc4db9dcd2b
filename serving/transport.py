"""What the ways to a served model share: address, certificates, statuses, errors.

The ways are :mod:`~serving.grpc_transport`, :mod:`~serving.rest_transport` and
:mod:`~serving.folder_transport`. Each takes arrays and gives arrays;
:mod:`serving.client` gives them meaning.
"""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from serving import errors, protos

Arrays = Mapping[str, np.ndarray[Any, Any]]


@dataclasses.dataclass(frozen=True)
class VersionStatus:
    """The state of one version on a server.

    Attributes:
      version: Its number.
      state: ``START``, ``LOADING``, ``AVAILABLE``, ``UNLOADING`` or ``END``.
      error: Why it failed; empty when all is well.
    """

    version: int
    state: str
    error: str = ""


@dataclasses.dataclass(frozen=True)
class Tls:
    """Certificates of a client, as PEM files.

    Attributes:
      ca: The authority that signed the server's certificate.
      certificate: The client's own chain, for mutual TLS.
      key: Its private key.
    """

    ca: str
    certificate: str | None = None
    key: str | None = None

    def read(self) -> tuple[bytes, bytes | None, bytes | None]:
        """The three files' contents.

        Raises:
          InputError: A file cannot be read.
        """
        try:
            return (
                pathlib.Path(self.ca).read_bytes(),
                pathlib.Path(self.certificate).read_bytes() if self.certificate else None,
                pathlib.Path(self.key).read_bytes() if self.key else None,
            )
        except OSError as error:
            raise errors.InputError(f"cannot read {error.filename}: {error.strerror}") from None


@dataclasses.dataclass(frozen=True)
class Address:
    """Which model of which server, and how patiently.

    Attributes:
      target: ``host:port``.
      model: The model's name.
      version: A version number; None for the latest.
      label: A version label; excludes ``version``.
      timeout: Seconds for one request, retries included.
      retries: Further tries when the server is not there or busy.
      tls: Certificates; None for plain text.
      max_message_bytes: The largest answer taken.
    """

    target: str
    model: str
    version: int | None = None
    label: str | None = None
    timeout: float = 10.0
    retries: int = 3
    tls: Tls | None = None
    max_message_bytes: int = 256 * 2**20


class Transport(Protocol):
    """What :class:`serving.client.ReconstructionClient` needs."""

    def predict(self, signature: str, inputs: Arrays, outputs: Sequence[str]) -> Arrays:
        """Calls a signature.

        Args:
          signature: Its key.
          inputs: Alias to array.
          outputs: The aliases wanted.
        """

    def predict_many(
        self, signature: str, batches: Iterable[Arrays], outputs: Sequence[str]
    ) -> Iterator[Arrays]:
        """Calls a signature for each batch; answers come in order."""

    def status(self) -> list[VersionStatus]:
        """The model's versions, highest first."""

    def signature_defs(self) -> Any:
        """The model's ``SignatureDefMap``."""

    def close(self) -> None:
        """Lets go of connections."""


def translate(code: str, details: str, address: Address) -> errors.ServingError:
    """The exception for a status code, with what to do about it.

    Args:
      code: gRPC's name of it.
      details: The server's message.
      address: What was asked.
    """
    where = f"{address.target}, model {address.model!r}"
    text = " ".join(details.split())[:600]
    if code in ("UNAVAILABLE", "CANCELLED"):
        hint = "start a server with `mnist-ae serve`, or correct host and port"
        if "full" in text and "queue" in text:
            return errors.ServerBusyError(f"{where}: {text}; send less at once", code=code)
        return errors.ServerUnavailableError(
            f"no server answers at {address.target} ({text}); {hint}", code=code
        )
    if code == "DEADLINE_EXCEEDED":
        return errors.DeadlineExceededError(
            f"{where}: no answer within {address.timeout:g} s; raise the timeout, or check that "
            "this is a gRPC port",
            code=code,
        )
    if code == "NOT_FOUND" or "Unrecognized servable version label" in text:
        return errors.ModelNotFoundError(
            f"{where}: {text}; `mnist-ae status` shows what is served", code=code
        )
    if code == "RESOURCE_EXHAUSTED":
        return errors.ServerBusyError(f"{where}: {text}; send smaller batches or wait", code=code)
    if code in (
        "INVALID_ARGUMENT",
        "FAILED_PRECONDITION",
        "OUT_OF_RANGE",
        "UNIMPLEMENTED",
    ):
        return errors.InvalidRequestError(f"{where}: the server refused: {text}", code=code)
    return errors.ServingError(f"{where}: {code}: {text}", code=code)


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
