"""The unit in which IDX files are read in parallel."""

from __future__ import annotations

import dataclasses
import itertools
from typing import Any

import numpy as np
from tfx.dsl.io import fileio

from components.mnist_example_gen import idx

# Images a slice: the unit of parallel reading and one output shard.
SLICE_IMAGES = 10_000
# A compressed file has no random access: each slice decompresses all that
# comes before it, so there are few of them whatever the size.
_MAX_COMPRESSED_SLICES = 4


def open_remote(path: str) -> Any:
    """Opens a local or remote file for reading."""
    return fileio.open(path, "rb")


@dataclasses.dataclass(frozen=True)
class Slice:
    """A range of a split's images, and which of them are wanted.

    Attributes:
      files: Where the split is.
      start: First image.
      stop: One after the last.
      keep: The labels to keep; None keeps all, labelled or not.
    """

    files: idx.SplitFiles
    start: int
    stop: int
    keep: tuple[int, ...] | None = None


def cut(files: idx.SplitFiles, keep: tuple[int, ...] | None = None) -> list[Slice]:
    """Cuts a split into slices to be read in parallel."""
    count = idx.count_images(files.images, open_remote)
    slices = max(1, -(-count // SLICE_IMAGES))
    if idx.is_compressed(files.images, open_remote):
        slices = min(slices, _MAX_COMPRESSED_SLICES)
    bounds = [int(b) for b in np.linspace(0, count, slices + 1)]
    return [Slice(files, a, b, keep) for a, b in itertools.pairwise(bounds)]
