"""Image search: the training images whose codes are nearest to an image's."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Sequence

import numpy as np

from pipeline.errors import UserError
from pipeline.runs import Outputs

_TRAIN = "train"


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


def search(outputs: Outputs, images: np.ndarray, k: int) -> list[list[Hit]]:
    """The ``k`` nearest training images of each image, nearest first.

    Args:
      outputs: Of the run whose model and index are used.
      images: uint8 [n, 28, 28].
      k: How many; fewer where the training split has fewer.

    Raises:
      UserError: The index has no files.
    """
    from components.columns import IMAGE, LABEL, read_columns
    from components.image_index.neighbours import Index
    from serving import contract
    from serving.client import ReconstructionClient

    paths = sorted(str(path) for path in (outputs.index / f"Split-{_TRAIN}").glob("*.parquet"))
    if not paths:
        raise UserError(f"{outputs.index}: holds no index; run the same model again")
    indexed = read_columns(paths, (IMAGE, LABEL, contract.CODE))
    with ReconstructionClient.from_folder(str(outputs.model)) as client:
        codes = client.encode(images)
    found = Index(indexed[contract.CODE]).query(codes, k)
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
        for rows, distances in zip(found.rows, found.distances)
    ]


def write_sheet(path: pathlib.Path, images: np.ndarray, hits: Sequence[Sequence[Hit]]) -> None:
    """Writes each image in front of what was found, as PNG."""
    from serving.images import write_sheet as write

    black = np.zeros((28, 28), np.uint8)
    rows = [
        # A gap tells the question from the answers.
        [image, black + 96, *(hit.image for hit in found)]
        for image, found in zip(images, hits)
    ]
    write(path, rows)
