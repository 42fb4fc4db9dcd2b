"""Image search: the training images whose codes are nearest to an image's."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from serving import contract
from serving.client import ReconstructionClient
from serving.uses.columns import IMAGE, LABEL, read_columns
from serving.uses.neighbours import HalfWhitening, nearest


def search(
    model_path: str, index_paths: Sequence[str], queries: np.ndarray, k: int
) -> tuple[list[list[dict[str, Any]]], np.ndarray]:
    """The ``k`` nearest training images of each image, nearest first.

    Args:
      model_path: The version's folder whose codes are in the index.
      index_paths: The index of the training split: Parquet files with ``image``,
        ``label`` and ``code``.
      queries: uint8 [n, 28, 28].
      k: How many; fewer where the training split has fewer.

    Returns:
      Of each query's hits the ``row`` in the training split, the ``label`` (None where
      unknown) and the ``distance`` between the half-whitened codes; and their images,
      uint8 [n, k, 28, 28].
    """
    indexed = read_columns(index_paths, (IMAGE, LABEL, contract.CODE))
    with ReconstructionClient.from_folder(model_path) as client:
        whiten = HalfWhitening([indexed[contract.CODE]])
        codes = whiten(indexed[contract.CODE])
        found, distances = nearest(codes, whiten(client.encode(queries)), k)
    hits = [
        [
            {
                "row": int(row),
                "label": int(label) if (label := indexed[LABEL][row]) >= 0 else None,
                "distance": round(float(distance), 6),
            }
            for row, distance in zip(*of_query)
        ]
        for of_query in zip(found, distances)
    ]
    return hits, indexed[IMAGE][found]
