"""Image search: the training images whose codes are nearest to an image's."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Sequence

import numpy as np

from serving import contract, images
from serving.client import ReconstructionClient
from serving.uses.columns import IMAGE, LABEL, read_columns
from serving.uses.neighbours import nearest


@dataclasses.dataclass(frozen=True)
class Hit:
    """A training image that was found.

    Attributes:
      row: Its number in the training split.
      label: Its digit, None where unknown.
      distance: Euclidean, between the codes.
      image: uint8 [28, 28].
    """

    row: int
    label: int | None
    distance: float
    image: np.ndarray

    def as_dict(self) -> dict:
        """Without the image."""
        return {"row": self.row, "label": self.label, "distance": round(self.distance, 6)}


def search(
    model_path: str, index_paths: Sequence[str], queries: np.ndarray, k: int
) -> list[list[Hit]]:
    """The ``k`` nearest training images of each image, nearest first.

    Args:
      model_path: The version's folder whose codes are in the index.
      index_paths: The index of the training split: Parquet files with ``image``,
        ``label`` and ``code``.
      queries: uint8 [n, 28, 28].
      k: How many; fewer where the training split has fewer.
    """
    indexed = read_columns(index_paths, (IMAGE, LABEL, contract.CODE))
    with ReconstructionClient.from_folder(model_path) as client:
        codes = client.encode(queries)
    found = nearest(indexed[contract.CODE], codes, k)
    return [
        [
            Hit(
                row=int(row),
                label=int(label) if (label := indexed[LABEL][row]) >= 0 else None,
                distance=float(distance),
                image=indexed[IMAGE][row],
            )
            for row, distance in zip(rows, distances)
        ]
        for rows, distances in zip(*found)
    ]


def write_sheet(path: pathlib.Path, queries: np.ndarray, hits: Sequence[Sequence[Hit]]) -> None:
    """Writes each image in front of what was found, as PNG."""
    # A gap tells the question from the answers.
    gap = np.full(queries.shape[1:], 96, np.uint8)
    rows = [[query, gap, *(hit.image for hit in found)] for query, found in zip(queries, hits)]
    images.write_sheet(path, rows)
