"""Images of examples and IDX files as sources of batch inference, and which a path holds."""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Iterator

import numpy as np
import tensorflow as tf

from components import features
from components.errors import DataError
from components.mnist_example_gen import idx
from components.mnist_example_gen.slices import Slice, cut
from serving.errors import InputError
from serving.images import Invert
from serving.uses.infer import PICTURES_A_SHARD, PictureSource, file_identity
from serving.uses.shards import CHUNK, SHAPE, Batch, Source

_PICTURE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp")
_RECORDS_HINT = "tfrecord"
_IDX_MAGIC = b"\x00\x00\x08\x03"


@dataclasses.dataclass(frozen=True)
class RecordSource:
    """A TFRecord file of tf.Examples with ``image`` and, where known, ``label``.

    Attributes:
      start: Always 0: a compressed file has no random access.
    """

    path: str
    start: int = 0

    @property
    def name(self) -> str:
        """Where the images come from."""
        return self.path

    def batches(self) -> Iterator[Batch]:
        """All images, in order.

        Raises:
          DataError: Not such a file.
        """
        compression = "GZIP" if idx.is_compressed(self.path) else ""
        records = tf.data.TFRecordDataset(self.path, compression)
        parsed = records.batch(CHUNK).map(
            lambda serialized: tf.io.parse_example(serialized, features.feature_spec())
        )
        row = 0
        try:
            for batch in parsed.prefetch(2):
                pixels = [bytes(image) for image in batch[features.IMAGE].numpy()]
                if any(len(image) != features.IMAGE_BYTES for image in pixels):
                    raise DataError(
                        f"{self.path}: an image after record {row} has not "
                        f"{features.IMAGE_BYTES} bytes"
                    )
                images = np.frombuffer(b"".join(pixels), np.uint8).reshape(SHAPE)
                row += len(images)
                yield Batch(images, batch[features.LABEL].numpy())
        except (tf.errors.DataLossError, tf.errors.InvalidArgumentError) as e:
            # Without TensorFlow's word on where in its graph it was.
            reason = " ".join(re.sub(r"\{\{.*?\}\}|\[Op:.*", "", e.message).split())[:200]
            raise DataError(f"{self.path}: no TFRecord file of images ({reason})") from None

    def identity(self) -> str:
        """What the file holds, by its size and time."""
        return file_identity(self.path, self.start, None)


class IdxSource(Slice):
    """A range of the images of an IDX file."""

    @property
    def name(self) -> str:
        """Where the images come from."""
        return self.files.images

    def batches(self) -> Iterator[Batch]:
        """The images of the range, in order."""
        for images, digits in self.read(CHUNK):
            if digits is None:
                digits = np.full(len(images), features.NO_LABEL)
            yield Batch(images.reshape(SHAPE), digits.astype(np.int64))

    def identity(self) -> str:
        """What the range holds, by the file's size and time."""
        return file_identity(self.files.images, self.start, self.stop)


def find_sources(path: str, invert: Invert = "auto") -> list[Source]:
    """Cuts a file, or all image files below a folder, into shards, in a fixed order.

    IDX files, gzipped or not, are found by their first bytes, with the labels
    beside them; pictures by their names' endings; TFRecord files by ``tfrecord``
    in their names.

    Raises:
      InputError: Nothing there, or nothing of that kind.
      DataError: A damaged IDX file.
    """
    if os.path.isfile(path):
        folder, files = os.path.dirname(path) or ".", [os.path.basename(path)]
    elif os.path.isdir(path):
        folder = path
        files = sorted(
            os.path.relpath(os.path.join(parent, name), folder)
            for parent, _, names in os.walk(folder)
            for name in names
            if not name.startswith(".")
        )
    else:
        raise InputError(f"{path}: no such file or folder")
    sources: list[Source] = []
    pictures = []
    for name in files:
        full = os.path.join(folder, name)
        if name.lower().endswith(_PICTURE_SUFFIXES):
            pictures.append(name)
        elif _is_idx_images(full):
            sources += _idx_sources(full)
        elif _RECORDS_HINT in name.lower():
            sources.append(RecordSource(full))
    for start in range(0, len(pictures), PICTURES_A_SHARD):
        names = tuple(pictures[start : start + PICTURES_A_SHARD])
        sources.append(PictureSource(folder, names, invert))
    if not sources:
        raise InputError(
            f"{path}: no images; wanted are IDX files, pictures such as PNG, or TFRecord files "
            "with 'tfrecord' in their names"
        )
    return sources


def _is_idx_images(path: str) -> bool:
    try:
        with idx.opened(path) as f:
            return f.read(4) == _IDX_MAGIC
    except DataError:
        return False


def _idx_sources(path: str) -> list[Source]:
    # The labels are called as the images are.
    stem = path.removesuffix(".gz")
    candidates = [path]
    if stem.endswith(idx.IMAGES):
        labels = stem.removesuffix(idx.IMAGES) + idx.LABELS
        candidates += [p for p in (labels, labels + ".gz") if os.path.isfile(p)]
        files = idx.find_split_files(candidates, path)
    else:
        files = idx.SplitFiles(images=path, labels=None)
    return [IdxSource(s.files, s.start, s.stop) for s in cut(files)]
