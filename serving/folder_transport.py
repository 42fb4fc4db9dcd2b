"""A pushed version run in this process, without a server; imports TensorFlow."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from serving import errors, protos, wire
from serving.standin.predict import run_request
from serving.standin.servable import Servable
from serving.standin.status import StatusError
from serving.transport import Address, Arrays, Transport, VersionStatus, translate


class FolderTransport(Transport):
    """A pushed version, run in this process; no server needed.

    Args:
      model: The model's name, for messages.
      version: Its number, for messages.

    Raises:
      ModelFolderError: It does not load.
    """

    def __init__(self, path: str, model: str, version: int = 1) -> None:
        self.address = Address(path, model, version)
        try:
            self._servable = Servable(model, version, path)
        except StatusError as error:
            raise errors.ModelFolderError(f"{path} does not load: {error.one_line}") from None

    def predict(self, signature: str, inputs: Arrays, outputs: Sequence[str]) -> Arrays:
        """Calls a signature; see :class:`Transport`."""
        if signature not in self._servable.signatures:
            known = sorted(key for key in self._servable.signatures if key[0] != "_")
            raise errors.InvalidRequestError(
                f"{self.address.target}: the model has no signature {signature!r}; it has "
                f"{', '.join(known)}"
            )
        request = wire.predict_request(self.address.model, signature, inputs, outputs)
        try:
            return run_request(self._servable, request)
        except StatusError as error:
            raise translate(error.code.name, error.message, self.address) from None

    def status(self) -> list[VersionStatus]:
        """The one version, loaded."""
        return [VersionStatus(self._servable.version, "AVAILABLE")]

    def metadata(self) -> tuple[int, Any]:
        """The one version, and its ``SignatureDefMap``."""
        definitions = protos.SignatureDefMap.FromString(self._servable.signature_defs)
        return self._servable.version, definitions

    def close(self) -> None:
        """Unloads it."""
        self._servable.retire()
