"""Compression: images as quantised codes in a file, and back.

Each float of a code is rounded to one of ``2**bits`` levels between the lowest
and the highest value that it takes in the file; levels are packed and deflated.
"""

from __future__ import annotations

import dataclasses
import hashlib
import io
import pathlib
import zipfile
from typing import TYPE_CHECKING, Any

import numpy as np

from serving import contract, files
from serving import images as images_lib
from serving.errors import InputError

if TYPE_CHECKING:
    from serving.client import ReconstructionClient

FORMAT = "mnist-ae codes 1"


@dataclasses.dataclass(frozen=True)
class Compressed:
    """What a compressed file holds.

    Attributes:
      servable: The model that made the codes.
      digest: Of its weights; other weights would decode to other images.
      bits: A float.
      low: Lowest value of each float of the code, float32 [d].
      high: Highest value, float32 [d].
      levels: uint16 [n, d].
      digits: int64 [n], where the decoder needs them.
    """

    servable: str
    version: int
    digest: str
    bits: int
    low: np.ndarray
    high: np.ndarray
    levels: np.ndarray
    digits: np.ndarray | None = None

    @property
    def codes(self) -> np.ndarray:
        """The codes, float32 [n, d], as near as the bits allow."""
        step = (self.high - self.low) / (2**self.bits - 1)
        return (self.low + self.levels * step).astype(np.float32)


def digest_of(folder: pathlib.Path) -> str:
    """Tells the weights of SavedModels apart."""
    digest = hashlib.sha256()
    for path in sorted((folder / "variables").glob("*.data-*")):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def quantise(codes: np.ndarray, bits: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Codes float [n, d] to levels uint16 [n, d], and their ranges [d] and [d]."""
    low, high = codes.min(axis=0), codes.max(axis=0)
    step = np.maximum((high - low) / (2**bits - 1), np.finfo(np.float32).tiny)
    return np.rint((codes - low) / step).astype(np.uint16), low, high


def pack(levels: np.ndarray, bits: int) -> np.ndarray:
    """Levels uint16 of ``bits`` bits each to bytes uint8, most significant bit first."""
    wide = levels.astype(">u2").view(np.uint8).reshape(*levels.shape, 2)
    unpacked = np.unpackbits(wide, axis=-1)[..., 16 - bits :]
    return np.packbits(unpacked)


def unpack(packed: np.ndarray, bits: int, shape: tuple[int, int]) -> np.ndarray:
    """The inverse of :func:`pack`."""
    count = int(np.prod(shape)) * bits
    unpacked = np.unpackbits(packed, count=count).reshape(*shape, bits)
    wide = np.zeros((*shape, 16), np.uint8)
    wide[..., 16 - bits :] = unpacked
    return np.packbits(wide, axis=-1).view(">u2").reshape(shape).astype(np.uint16)


def compress(
    client: ReconstructionClient,
    images: np.ndarray,
    *,
    bits: int,
    servable: str,
    version: int,
    digest: str,
) -> Compressed:
    """Encodes images uint8 [n, 28, 28] and quantises the codes."""
    codes = client.encode(images)
    levels, low, high = quantise(codes, bits)
    compressed = Compressed(servable, version, digest, bits, low, high, levels)
    if needs_digit(client):
        digits = _best_digits(client, images, compressed.codes)
        compressed = dataclasses.replace(compressed, digits=digits)
    return compressed


def decompress(client: ReconstructionClient, compressed: Compressed) -> np.ndarray:
    """The images again, uint8 [n, 28, 28]."""
    return images_lib.to_bytes(client.decode(compressed.codes, compressed.digits))


def needs_digit(client: ReconstructionClient) -> bool:
    """Whether the model's decoder is told the digit."""
    return contract.LABEL in client.metadata()[contract.DECODE].inputs


def _best_digits(client: ReconstructionClient, images: np.ndarray, codes: np.ndarray) -> np.ndarray:
    """The digit with which each code gives its image back best."""
    errors = []
    target = images.astype(np.float32) / 255
    for digit in range(contract.NUM_CLASSES):
        shown = client.decode(codes, np.full(len(codes), digit))
        errors.append(np.mean(np.square(shown - target), axis=(1, 2)))
    return np.argmin(errors, axis=0).astype(np.int64)


def save(path: pathlib.Path, compressed: Compressed) -> int:
    """Writes a file, whole or not at all.

    Returns:
      Its size in bytes.

    Raises:
      InputError: It cannot be written.
    """
    buffer = io.BytesIO()
    arrays: dict[str, Any] = {
        "format": FORMAT,
        "model": f"{compressed.servable}/{compressed.version}/{compressed.digest}",
        "bits": np.uint8(compressed.bits),
        "count": np.uint32(len(compressed.levels)),
        "range": np.stack([compressed.low, compressed.high]).astype(np.float32),
        "codes": pack(compressed.levels, compressed.bits),
    }
    if compressed.digits is not None:
        arrays["digits"] = pack(compressed.digits[:, np.newaxis].astype(np.uint16), 4)
    np.savez_compressed(buffer, **arrays)
    try:
        files.write_atomically(path, buffer.getvalue())
    except OSError as e:
        raise InputError(f"{path}: cannot be written ({e.strerror})") from None
    return len(buffer.getvalue())


def load(path: pathlib.Path) -> Compressed:
    """Reads a file that :func:`save` wrote.

    Raises:
      InputError: It is not one.
    """
    try:
        with np.load(path, allow_pickle=False) as stored:
            if str(stored["format"]) != FORMAT:
                raise ValueError(f"format {stored['format']}")
            servable, version, digest = str(stored["model"]).split("/")
            bits, count = int(stored["bits"]), int(stored["count"])
            low, high = stored["range"]
            digits = None
            if "digits" in stored:
                digits = unpack(stored["digits"], 4, (count, 1))[:, 0].astype(np.int64)
            levels = unpack(stored["codes"], bits, (count, len(low)))
    except OSError as e:
        raise InputError(f"{path}: cannot be read ({e.strerror or e})") from None
    except (KeyError, ValueError, TypeError, EOFError, zipfile.BadZipFile) as e:
        raise InputError(
            f"{path}: is not a file that 'mnist-ae compress' wrote ({' '.join(str(e).split())})"
        ) from None
    return Compressed(servable, int(version), digest, bits, low, high, levels, digits)
