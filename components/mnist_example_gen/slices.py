"""The unit in which IDX files are read in parallel."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator
from typing import Any

import numpy as np

from components.mnist_example_gen import idx

# Images a slice: the unit of parallel reading and one output shard.
SLICE_IMAGES = 10_000
# A compressed file has no random access: each slice decompresses all that
# comes before it, so there are few of them whatever the size.
_MAX_COMPRESSED_SLICES = 4


@dataclasses.dataclass(frozen=True)
class Slice:
    """A range of a split's images, and which of them are wanted.

    Attributes:
      stop: One after the last.
      keep: The labels to keep; None keeps all, labelled or not.
    """

    files: idx.SplitFiles
    start: int
    stop: int
    keep: tuple[int, ...] | None = None

    def read(self, chunk: int = idx.CHUNK_IMAGES) -> Iterator[tuple[np.ndarray, Any]]:
        """Yields the images that are wanted, uint8 [<=chunk, 784], and their labels.

        Labels are uint8 [<=chunk], or None where unknown.
        """
        images = idx.read_images(self.files.images, self.start, self.stop, chunk=chunk)
        if self.files.labels is None:
            yield from ((values, None) for values in images)
            return
        labels = idx.read_labels(self.files.labels, self.start, self.stop, chunk=chunk)
        for values, digits in zip(images, labels):
            wanted = slice(None) if self.keep is None else np.isin(digits, self.keep)
            yield values[wanted], digits[wanted]


def cut(files: idx.SplitFiles, keep: tuple[int, ...] | None = None) -> list[Slice]:
    """Cuts a split into slices to be read in parallel."""
    count = idx.count_images(files.images)
    slices = max(1, -(-count // SLICE_IMAGES))
    if idx.is_compressed(files.images):
        slices = min(slices, _MAX_COMPRESSED_SLICES)
    bounds = [int(b) for b in np.linspace(0, count, slices + 1)]
    return [Slice(files, a, b, keep) for a, b in itertools.pairwise(bounds)]
