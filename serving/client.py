"""A client of a served autoencoder: NumPy in, NumPy out.

    with ReconstructionClient("localhost:8500", model="simple") as client:
        answer = client.reconstruct(images)  # uint8 [n, 28, 28]
        answer.error  # float32 [n]

Works against TensorFlow Serving and against the embedded server, and imports
neither TensorFlow nor TFX.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from serving import contract, errors, sampling, wire
from serving.grpc_transport import GrpcTransport
from serving.rest_transport import RestTransport
from serving.transport import Address, Tls, Transport, VersionStatus

__all__ = [
    "Classification",
    "ReconstructionClient",
    "Reconstruction",
    "Score",
    "SignatureInfo",
    "TensorSpec",
    "Tls",
    "VersionStatus",
]

Array = npt.NDArray[Any]

_RECONSTRUCT = (
    contract.RECONSTRUCTION,
    contract.RECONSTRUCTION_ERROR,
    contract.CODE,
    contract.IS_ANOMALY,
)


class Reconstruction(NamedTuple):
    """What ``reconstruct`` gives.

    Attributes:
      images: float32 [n, 28, 28], grey levels in [0, 1].
      error: float32 [n], mean squared error per pixel.
      code: float32 [n, d].
      is_anomaly: bool [n].
    """

    images: Array
    error: Array
    code: Array
    is_anomaly: Array


class Score(NamedTuple):
    """What ``score`` gives: error float32 [n] and is_anomaly bool [n]."""

    error: Array
    is_anomaly: Array


class Classification(NamedTuple):
    """What ``classify`` gives: probabilities float32 [n, 10] and label int64 [n]."""

    probabilities: Array
    label: Array


class TensorSpec(NamedTuple):
    """A tensor of a signature: TensorFlow's type name and shape (-1: any; None: unknown)."""

    dtype: str
    shape: tuple[int, ...] | None


class SignatureInfo(NamedTuple):
    """A signature: its inputs and outputs by alias."""

    inputs: Mapping[str, TensorSpec]
    outputs: Mapping[str, TensorSpec]


class ReconstructionClient:
    """Calls one model on one server. Usable from many threads.

    Requests go out with a deadline. They are tried again, with growing pauses
    and within that deadline, only where the server did not answer at all or
    was too busy to begin.

    Args:
      target: ``host:port``, of gRPC or, with ``rest``, of REST.
      model: The model's name on the server.
      version: A version number; the latest by default.
      label: A version label such as ``stable``; excludes ``version``.
      timeout: Seconds for each request, retries included.
      rest: Whether to use REST instead of gRPC; slower, passes HTTP proxies.
      tls: Certificates; plain text by default.
      retries: Further tries where that is safe; gRPC makes at most four.
      batch_size: Images in one request; more are split and streamed in order.
      sample_dir: Where a sample of the images sent is kept for retraining, as
        ``<root>/samples``, where ``mnist-ae watch`` looks; None keeps none.
      sample_fraction: Of the images, 0 to 1.
      sample_max_bytes: Of that folder; beyond, nothing is kept.
      transport: Replaces target, model, version, label and all that is about
        calling; for folders and tests.

    Raises:
      InputError: Arguments that exclude each other or make no sense.
    """

    def __init__(
        self,
        target: str = "localhost:8500",
        *,
        model: str = "",
        version: int | None = None,
        label: str | None = None,
        timeout: float = 10.0,
        rest: bool = False,
        tls: Tls | None = None,
        retries: int = 3,
        batch_size: int = 256,
        sample_dir: str | None = None,
        sample_fraction: float = 0.0,
        sample_max_bytes: int = sampling.DEFAULT_MAX_BYTES,
        transport: Transport | None = None,
    ) -> None:
        if version is not None and (label is not None or not 0 <= version < 2**63):
            raise errors.InputError("give a version, 0 to 2**63 - 1, or a label")
        if batch_size < 1 or not timeout > 0 or retries < 0:
            raise errors.InputError("batch_size and timeout must be positive, retries not negative")
        if transport is None:
            if not model:
                raise errors.InputError("which model? give model=NAME")
            address = Address(_checked_target(target), model, version, label, timeout, retries, tls)
            transport = RestTransport(address) if rest else GrpcTransport(address)
        self._transport = transport
        self._batch_size = batch_size
        self._sampler = None
        if sample_dir is not None and sample_fraction:
            self._sampler = sampling.Sampler(sample_dir, sample_fraction, sample_max_bytes)

    @classmethod
    def from_folder(
        cls, path: str, *, model: str = "model", version: int = 1, **options: Any
    ) -> ReconstructionClient:
        """A client of a pushed version without a server; imports TensorFlow.

        Args:
          **options: ``batch_size`` and ``sample_...``, as for the class.

        Raises:
          ModelFolderError: It does not load.
        """
        from serving.folder_transport import FolderTransport

        return cls(transport=FolderTransport(path, model, version), **options)

    def reconstruct(self, images: npt.ArrayLike) -> Reconstruction:
        """Sends images through the autoencoder.

        Args:
          images: uint8 [n, 28, 28], or [28, 28] or [n, 784]; 0 is the ground.

        Raises:
          InputError: Not of that form.
          ServingError: See :mod:`serving.errors`.
        """
        return Reconstruction(
            *self._rows(contract.RECONSTRUCT, {contract.IMAGES: _images(images)}, _RECONSTRUCT)
        )

    def reconstruct_stream(self, batches: Iterable[npt.ArrayLike]) -> Iterator[Reconstruction]:
        """Reconstructs batch after batch, several under way, answers in order.

        Args:
          batches: Each as for :meth:`reconstruct`.
        """
        inputs = ({contract.IMAGES: _images(batch)} for batch in batches)
        for outputs in self._many(contract.RECONSTRUCT, inputs, _RECONSTRUCT):
            yield Reconstruction(*_typed(outputs, _RECONSTRUCT))

    def encode(self, images: npt.ArrayLike) -> Array:
        """Encodes images; returns the code, float32 [n, d]."""
        inputs = {contract.IMAGES: _images(images)}
        return self._rows(contract.ENCODE, inputs, (contract.CODE,))[0]

    def decode(self, code: npt.ArrayLike, label: npt.ArrayLike | None = None) -> Array:
        """Decodes codes into images, float32 [n, 28, 28].

        Args:
          code: float [n, d].
          label: int [n], where the model's decoder needs the digit.
        """
        codes = np.asarray(code, np.float32)
        if codes.ndim != 2:
            raise errors.InputError(f"codes must have the shape [n, d], not {list(codes.shape)}")
        inputs: dict[str, Array] = {contract.CODE: codes}
        if label is not None:
            labels = np.asarray(label, np.int64)
            if labels.shape != codes.shape[:1]:
                raise errors.InputError(
                    f"{len(codes)} codes need as many labels, not {list(labels.shape)}"
                )
            inputs[contract.LABEL] = labels
        return self._rows(contract.DECODE, inputs, (contract.RECONSTRUCTION,))[0]

    def score(self, images: npt.ArrayLike) -> Score:
        """Says how badly images are reconstructed, and which are anomalies."""
        inputs = {contract.IMAGES: _images(images)}
        outputs = (contract.RECONSTRUCTION_ERROR, contract.IS_ANOMALY)
        return Score(*self._rows(contract.SCORE, inputs, outputs))

    def generate(self, n: int = 16, *, seed: int = 0) -> Array:
        """Draws new images, float32 [n, 28, 28]; the same for the same seed.

        Args:
          seed: Image i is drawn with ``seed + i``.
        """
        if n < 0:
            raise errors.InputError(f"cannot generate {n} images")
        seeds = np.arange(seed, seed + n, dtype=np.int64)
        return self._rows(contract.GENERATE, {contract.SEED: seeds}, (contract.IMAGES,))[0]

    def classify(self, images: npt.ArrayLike) -> Classification:
        """Says which digits images show, for models that can."""
        inputs = {contract.IMAGES: _images(images)}
        outputs = (contract.PROBABILITIES, contract.LABEL)
        return Classification(*self._rows(contract.CLASSIFY, inputs, outputs))

    @property
    def model(self) -> str:
        """The model's name on the server."""
        return self._transport.address.model

    def answering(self) -> int:
        """The version that answers now."""
        return self._transport.metadata()[0]

    def status(self) -> list[VersionStatus]:
        """The model's versions on the server, highest first."""
        return self._transport.status()

    def metadata(self) -> dict[str, SignatureInfo]:
        """The model's signatures by name."""
        _, definitions = self._transport.metadata()
        return {
            key: SignatureInfo(_tensor_specs(item.inputs), _tensor_specs(item.outputs))
            for key, item in sorted(definitions.signature_def.items())
            if not key.startswith("__")
        }

    def call(
        self, signature: str, inputs: Mapping[str, Array], outputs: Sequence[str] = ()
    ) -> Mapping[str, Array]:
        """Calls any signature of any model in one request.

        Args:
          inputs: Alias to array, of the signature's types.
          outputs: Aliases wanted; all when empty (over REST they must be named).
        """
        answer = self._transport.predict(signature, inputs, outputs)
        if self._sampler is not None:
            self._sampler.offer(signature, inputs)
        return answer

    def close(self) -> None:
        """Lets go of connections, and writes what is left of the sample."""
        self._transport.close()
        if self._sampler is not None:
            self._sampler.close()

    def __enter__(self) -> ReconstructionClient:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _rows(
        self, signature: str, inputs: Mapping[str, Array], outputs: Sequence[str]
    ) -> list[Array]:
        total = len(next(iter(inputs.values())))
        if total <= self._batch_size:
            return _typed(self.call(signature, inputs, outputs), outputs)
        batches = [
            {alias: array[start : start + self._batch_size] for alias, array in inputs.items()}
            for start in range(0, total, self._batch_size)
        ]
        try:
            answers = list(self._many(signature, batches, outputs, self._of_one_version()))
        except errors.ModelNotFoundError:
            # The version that began has gone: all of it again, by the one that came.
            answers = list(self._many(signature, batches, outputs, self._of_one_version()))
        parts = [_typed(answer, outputs) for answer in answers]
        return [np.concatenate(column) for column in zip(*parts, strict=True)]

    def _of_one_version(self) -> Transport:
        try:
            return self._transport.pinned()
        except errors.InvalidRequestError:
            # A server that does not tell its versions.
            return self._transport

    def _many(
        self,
        signature: str,
        batches: Iterable[Mapping[str, Array]],
        outputs: Sequence[str],
        transport: Transport | None = None,
    ) -> Iterator[Mapping[str, Array]]:
        """Calls a signature for each batch, several under way, answers in order."""
        sent, batches = itertools.tee(batches)
        answers = (transport or self._transport).predict_many(signature, batches, outputs)
        for answer, batch in zip(answers, sent):
            if self._sampler is not None:
                self._sampler.offer(signature, batch)
            yield answer


_OUTPUT_TYPES = {
    contract.LABEL: np.int64,
    contract.IS_ANOMALY: np.bool_,
}


def _typed(outputs: Mapping[str, Array], names: Sequence[str]) -> list[Array]:
    """The outputs in order, with the contract's types (REST knows none)."""
    return [
        np.asarray(outputs[name]).astype(_OUTPUT_TYPES.get(name, np.float32), copy=False)
        for name in names
    ]


def _checked_target(target: str) -> str:
    host, separator, port = target.rpartition(":")
    if not separator or not host or not port.isdecimal() or not 0 < int(port) < 65536:
        raise errors.InputError(f"{target!r} is not host:port, such as localhost:8500")
    return target


def _images(images: npt.ArrayLike) -> Array:
    array = np.asarray(images)
    height, width = contract.IMAGE_HEIGHT, contract.IMAGE_WIDTH
    if array.shape == (height, width):
        array = array[None]
    if array.ndim == 2 and array.shape[1] == contract.IMAGE_PIXELS:
        array = array.reshape(-1, height, width)
    if array.ndim != 3 or array.shape[1:] != (height, width):
        raise errors.InputError(
            f"images must have the shape [n, {height}, {width}], not {list(array.shape)}; "
            "serving.images.load brings any picture into it"
        )
    if array.dtype != np.uint8:
        raise errors.InputError(
            f"images must be uint8 grey levels 0 to 255, not {array.dtype}; scale floats by 255"
        )
    return array


def _tensor_specs(infos: Any) -> dict[str, TensorSpec]:
    return {
        alias: TensorSpec(wire.type_name(info.dtype), wire.shape_of(info.tensor_shape))
        for alias, info in sorted(infos.items())
    }
