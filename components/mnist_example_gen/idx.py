"""Reading and checking MNIST's IDX files, plain or gzip-compressed.

The format (http://yann.lecun.com/exdb/mnist): two zero bytes, a type code, the
number of dimensions, each dimension as a big-endian int32, then the values.
Only standard library and NumPy, so that the command line can check a folder
before TFX is imported.
"""

from __future__ import annotations

import contextlib
import dataclasses
import gzip
import hashlib
import os
import struct
import zlib
from collections.abc import Iterator
from typing import BinaryIO

import numpy as np

from components.errors import DataError
from serving import files as files_lib

SIDE = 28
PIXELS = SIDE * SIDE
MAX_LABEL = 9
_UINT8 = 0x08
_IMAGES_MAGIC = (_UINT8 << 8) | 3
_LABELS_MAGIC = (_UINT8 << 8) | 1
CHUNK_IMAGES = 2_000
_BLOCK_BYTES = 1 << 20

IMAGES = "images-idx3-ubyte"
LABELS = "labels-idx1-ubyte"
# The names of the canonical files: <prefix>-images-idx3-ubyte[.gz].
SPLIT_PREFIXES = {"train": "train", "eval": "t10k"}


@dataclasses.dataclass(frozen=True)
class SplitFiles:
    """Where the images and labels of a split are.

    Attributes:
      labels: Path of the IDX file with the labels, or None where they are unknown.
    """

    images: str
    labels: str | None


@dataclasses.dataclass(frozen=True)
class SplitInfo:
    """What a checked split holds.

    Attributes:
      labelled: Whether there are labels.
      digest: SHA-256 of the decompressed files, images then labels.
      label_counts: Images by digit; empty without labels.
    """

    count: int
    labelled: bool
    digest: str
    label_counts: tuple[int, ...]


@contextlib.contextmanager
def opened(path: str) -> Iterator[BinaryIO]:
    """A file to read, decompressed where it is compressed; damage to that is a DataError."""
    # By content, not by name: mirrors serve gzip under both names.
    zipped = is_compressed(path)
    with files_lib.open_anywhere(path) as raw:
        try:
            yield gzip.GzipFile(fileobj=raw) if zipped else raw  # type: ignore[misc]
        except (EOFError, gzip.BadGzipFile, zlib.error) as e:
            raise DataError(
                f"{path}: broken or truncated gzip file ({e}); fetch it again"
            ) from None


def is_compressed(path: str) -> bool:
    """Whether the file is gzip-compressed: then it can only be read in order."""
    with files_lib.open_anywhere(path) as f:
        return f.read(2) == b"\x1f\x8b"


def _read_exactly(f: BinaryIO, size: int, path: str) -> bytes:
    """Reads ``size`` bytes, or says what is wrong with the file."""
    data = f.read(size)
    if len(data) != size:
        raise DataError(f"{path}: truncated, {size - len(data):,} bytes short; fetch it again")
    return data


def _read_header(f: BinaryIO, path: str, magic: int) -> int:
    """Reads to the first value, and returns how many images or labels there are."""
    (found,) = struct.unpack(">I", _read_exactly(f, 4, path))
    if found != magic:
        raise DataError(
            f"{path}: wrong magic number 0x{found:08x}, expected 0x{magic:08x} "
            f"(an IDX file of uint8 {'images' if magic == _IMAGES_MAGIC else 'labels'})"
        )
    dimensions = magic & 0xFF
    count, *sides = struct.unpack(f">{dimensions}I", _read_exactly(f, 4 * dimensions, path))
    if sides not in ([], [SIDE, SIDE]):
        raise DataError(
            f"{path}: images of {'x'.join(map(str, sides))} pixels; only {SIDE}x{SIDE} is supported"
        )
    return count


def count_images(path: str) -> int:
    """The number of images that the header of ``path`` announces.

    Raises:
      DataError: Not an IDX file of 28x28 uint8 images.
    """
    with opened(path) as f:
        return _read_header(f, path, _IMAGES_MAGIC)


def read_images(
    path: str, start: int = 0, stop: int | None = None, *, chunk: int = CHUNK_IMAGES
) -> Iterator[np.ndarray]:
    """Yields images ``start`` to ``stop`` in chunks, uint8 [<=chunk, 784].

    Raises:
      DataError: The file is damaged or shorter than its header says.
    """
    for values in _read_values(path, _IMAGES_MAGIC, PIXELS, start, stop, chunk):
        yield values.reshape(-1, PIXELS)


def read_labels(
    path: str, start: int = 0, stop: int | None = None, *, chunk: int = CHUNK_IMAGES
) -> Iterator[np.ndarray]:
    """Yields labels ``start`` to ``stop`` in chunks, uint8 [<=chunk].

    Raises:
      DataError: The file is damaged, or a label is over 9.
    """
    position = start
    for values in _read_values(path, _LABELS_MAGIC, 1, start, stop, chunk):
        if values.max() > MAX_LABEL:
            bad = int(np.argmax(values > MAX_LABEL))
            raise DataError(
                f"{path}: label {values[bad]} at position {position + bad}; "
                f"labels are digits 0 to {MAX_LABEL}"
            )
        position += len(values)
        yield values


def _read_values(
    path: str, magic: int, width: int, start: int, stop: int | None, chunk: int
) -> Iterator[np.ndarray]:
    """Yields ``chunk`` times ``width`` values at a time."""
    with opened(path) as f:
        count = _read_header(f, path, magic)
        stop = count if stop is None else min(stop, count)
        f.seek(start * width, os.SEEK_CUR)
        for first in range(start, stop, chunk):
            size = width * min(chunk, stop - first)
            yield np.frombuffer(_read_exactly(f, size, path), np.uint8)
        # For a compressed file this also reads, and so checks, the closing checksum.
        if stop == count and f.read(1):
            raise DataError(f"{path}: longer than its header says; fetch it again")


def check_split(files: SplitFiles) -> SplitInfo:
    """Reads a split to its end and checks all there is to check.

    Raises:
      DataError: Damaged or wrong files, no images, labels that do not match.
    """
    digest = hashlib.sha256()
    count = count_images(files.images)
    if count == 0:
        raise DataError(f"{files.images}: holds no images")
    digest.update(header((count, SIDE, SIDE)))
    for images in read_images(files.images):
        digest.update(images.data)
    counts = np.zeros(MAX_LABEL + 1, np.int64)
    if files.labels is not None:
        with opened(files.labels) as f:
            labels = _read_header(f, files.labels, _LABELS_MAGIC)
        if labels != count:
            raise DataError(
                f"{files.labels}: {labels:,} labels for the {count:,} images of {files.images}"
            )
        digest.update(header((count,)))
        for values in read_labels(files.labels):
            digest.update(values.data)
            counts += np.bincount(values, minlength=MAX_LABEL + 1)
    return SplitInfo(
        count=count,
        labelled=files.labels is not None,
        digest=digest.hexdigest(),
        label_counts=tuple(int(c) for c in counts) if files.labels is not None else (),
    )


def file_digest(path: str) -> str:
    """SHA-256 of a file's bytes, decompressed.

    Raises:
      DataError: A damaged gzip file.
    """
    digest = hashlib.sha256()
    with opened(path) as f:
        while block := f.read(_BLOCK_BYTES):
            digest.update(block)
    return digest.hexdigest()


def combine_digests(splits: dict[str, SplitInfo]) -> str:
    """One digest of a whole set: SHA-256 over the splits' names and digests."""
    digest = hashlib.sha256()
    for name in sorted(splits):
        digest.update(f"{name} {splits[name].digest}\n".encode())
    return digest.hexdigest()


def find_split_files(paths: list[str], where: str) -> SplitFiles:
    """Picks images and labels of a split out of a listing.

    Args:
      paths: Candidates, such as the matches of a split's pattern. Where both a
        plain and a compressed file are there, the plain one is taken.

    Raises:
      DataError: No images among them.
    """

    def pick(kind: str) -> str | None:
        matches = [
            p for p in sorted(paths) if os.path.basename(p).removesuffix(".gz").endswith(kind)
        ]
        return matches[0] if matches else None

    images = pick(IMAGES)
    if images is None:
        raise DataError(f"{where}: no file *-{IMAGES}[.gz]")
    return SplitFiles(images=images, labels=pick(LABELS))


def write_idx(path: str, values: np.ndarray) -> None:
    """Writes uint8 images [n, 28, 28] or labels [n] as a plain IDX file."""
    values = np.ascontiguousarray(values, np.uint8)
    with open(path, "wb") as f:
        f.write(header(values.shape))
        f.write(values.data)


def header(shape: tuple[int, ...]) -> bytes:
    """What stands before the bytes of images (n, 28, 28) or labels (n,) in an IDX file."""
    return struct.pack(f">{len(shape) + 1}I", (_UINT8 << 8) | len(shape), *shape)
