"""Compression: images as quantised codes in a file, and back.

Each float of a code is rounded to one of ``2**bits`` levels between the lowest
and the highest value that it takes in the file; levels are packed and deflated.
"""

from __future__ import annotations

import dataclasses
import hashlib
import io
import os
import pathlib
import zipfile
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.errors import UserError
from serving import contract

if TYPE_CHECKING:
    from serving.client import ReconstructionClient

FORMAT = "mnist-ae codes 1"
MAX_BITS = 16
_COMPARED = 5_000
_JPEG_MIN, _JPEG_MAX = 1, 95
_PNG_BITS = (1, 2, 4)


@dataclasses.dataclass(frozen=True)
class Compressed:
    """What a compressed file holds.

    Attributes:
      servable: The model that made the codes.
      version: Its version.
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
    from serving.images import to_bytes

    return to_bytes(client.decode(compressed.codes, compressed.digits))


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
      UserError: It cannot be written.
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
    partial = path.with_name(f".{path.name}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.write_bytes(buffer.getvalue())
        os.replace(partial, path)
    except OSError as e:
        raise UserError(f"{path}: cannot be written ({e.strerror})") from None
    return len(buffer.getvalue())


def load(path: pathlib.Path) -> Compressed:
    """Reads a file that :func:`save` wrote.

    Raises:
      UserError: It is not one.
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
        raise UserError(f"{path}: cannot be read ({e.strerror or e})") from None
    except (KeyError, ValueError, TypeError, EOFError, zipfile.BadZipFile) as e:
        raise UserError(
            f"{path}: is not a file that 'mnist-ae compress' wrote ({' '.join(str(e).split())})"
        ) from None
    return Compressed(servable, int(version), digest, bits, low, high, levels, digits)


@dataclasses.dataclass(frozen=True)
class Figures:
    """How well and how small a codec stores images.

    Attributes:
      codec: What it is.
      bytes: In all.
      bits_per_pixel: The same for a pixel.
      ratio: Raw bytes, one a pixel, to its.
      psnr: Peak signal to noise ratio of all pixels, in dB; None where nothing is lost.
      ssim: Mean structural similarity of the images.
    """

    codec: str
    bytes: int
    bits_per_pixel: float
    ratio: float
    psnr: float | None
    ssim: float


def figures(codec: str, size: int, images: np.ndarray, shown: np.ndarray) -> Figures:
    """Compares images uint8 [n, 28, 28] with what came back."""
    mse = float(np.mean(np.square((images.astype(np.float64) - shown) / 255)))
    return Figures(
        codec=codec,
        bytes=size,
        bits_per_pixel=8 * size / images.size,
        ratio=images.size / size,
        psnr=-10 * float(np.log10(mse)) if mse else None,
        ssim=_ssim(images, shown),
    )


def _ssim(images: np.ndarray, shown: np.ndarray) -> float:
    """Wang et al. 2004, with their Gaussian window, averaged over the images."""
    import tensorflow as tf

    values = [
        tf.image.ssim(
            images[i : i + 1_000, ..., np.newaxis], shown[i : i + 1_000, ..., np.newaxis], 255
        ).numpy()
        for i in range(0, len(images), 1_000)
    ]
    return float(np.mean(np.concatenate(values)))


def beside_others(compressed: Figures, images: np.ndarray, shown: np.ndarray) -> list[Figures]:
    """The codec's figures, and JPEG's and PNG's at the nearest size.

    JPEG and PNG store all images as one sheet: 28 x 28 pixels alone would be
    less than a JPEG's header. More than 5,000 images are compared by the first
    5,000, their share of the file counted.
    """
    sample = images[:_COMPARED]
    target = round(compressed.bytes * len(sample) / len(images))
    found = [figures(compressed.codec, target, sample, shown[:_COMPARED])]
    sheet, cut = _sheet(sample)
    jpeg = {}
    low, high = _JPEG_MIN, _JPEG_MAX
    # The size grows with the quality.
    while low <= high:
        quality = (low + high) // 2
        jpeg[quality] = data = _encoded(sheet, "JPEG", quality=quality)
        if len(data) < target:
            low = quality + 1
        else:
            high = quality - 1
    quality = min(jpeg, key=lambda q: abs(len(jpeg[q]) - target))
    found.append(_sheet_figures(f"JPEG, quality {quality}", jpeg[quality], sample, cut))
    png = {bits: _png(sheet, bits) for bits in _PNG_BITS}
    bits = min(png, key=lambda b: abs(len(png[b]) - target))
    found.append(_sheet_figures(f"PNG, {2**bits} grey levels", png[bits], sample, cut))
    lossless = _encoded(sheet, "PNG", optimize=True)
    found.append(_sheet_figures("PNG, lossless", lossless, sample, cut))
    return found


def _sheet(images: np.ndarray) -> tuple[np.ndarray, Any]:
    """All images in one picture, and the function that cuts it up again."""
    count, height, width = images.shape
    columns = int(np.ceil(np.sqrt(count)))
    rows = -(-count // columns)
    cells = np.zeros((rows * columns, height, width), np.uint8)
    cells[:count] = images
    grid = cells.reshape(rows, columns, height, width).swapaxes(1, 2)

    def cut(sheet: np.ndarray) -> np.ndarray:
        back = sheet.reshape(rows, height, columns, width).swapaxes(1, 2)
        return back.reshape(-1, height, width)[:count]

    return grid.reshape(rows * height, columns * width), cut


def _encoded(sheet: np.ndarray, form: str, **options: Any) -> bytes:
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(sheet).save(buffer, format=form, **options)
    return buffer.getvalue()


def _png(sheet: np.ndarray, bits: int) -> bytes:
    """A PNG of ``2**bits`` evenly spaced grey levels."""
    from PIL import Image

    top = 2**bits - 1
    levels = np.rint(sheet.astype(np.float32) * (top / 255)).astype(np.uint8)
    picture = Image.fromarray(levels)
    grey = [round(i * 255 / top) for i in range(top + 1)]
    picture.putpalette([value for value in grey for _ in range(3)])
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG", bits=bits, optimize=True)
    return buffer.getvalue()


def _sheet_figures(codec: str, data: bytes, images: np.ndarray, cut: Any) -> Figures:
    from PIL import Image

    with Image.open(io.BytesIO(data)) as picture:
        shown = cut(np.asarray(picture.convert("L")))
    return figures(codec, len(data), images, shown)
