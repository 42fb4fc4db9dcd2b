"""Image search: the nearest codes of the training split.

Exact: scikit-learn computes all distances, blockwise, in a matrix product.
At 60,000 codes of 32 floats that is a few milliseconds a query and nothing to
build or tune; approximate indices pay from some millions on.
"""

from __future__ import annotations

import dataclasses

import numpy as np

K = 10
_MAX_QUERIES = 2_000


@dataclasses.dataclass(frozen=True)
class Neighbours:
    """The answers to some queries, nearest first.

    Attributes:
      rows: Of the index, int64 [n, k].
      distances: Euclidean, between codes, float [n, k].
    """

    rows: np.ndarray
    distances: np.ndarray


class Index:
    """Searches codes by Euclidean distance."""

    def __init__(self, codes: np.ndarray):
        """Makes the index of ``codes``, float [m, d], not copied."""
        from sklearn.neighbors import NearestNeighbors

        self._size = len(codes)
        self._search = NearestNeighbors(algorithm="brute", metric="euclidean").fit(codes)

    def query(self, codes: np.ndarray, k: int = K) -> Neighbours:
        """The ``k`` nearest of the index, or all where it has fewer, for codes float [n, d]."""
        distances, rows = self._search.kneighbors(codes, min(k, self._size))
        return Neighbours(rows, distances)


@dataclasses.dataclass(frozen=True)
class Agreement:
    """How often neighbours show the digit that was asked with.

    Attributes:
      precision: Fraction of the neighbours with the query's label, averaged.
      accuracy: Fraction of the queries whose label most neighbours have.
      queries: How many there were.
    """

    precision: float
    accuracy: float
    queries: int


def choose_queries(labels: np.ndarray, seed: int = 0) -> np.ndarray:
    """Rows of up to 2,000 labelled images, drawn at random from ``seed``, ascending."""
    known = np.flatnonzero(labels >= 0)
    if len(known) > _MAX_QUERIES:
        known = np.random.default_rng(seed).choice(known, _MAX_QUERIES, replace=False)
    return np.sort(known)


def measure(
    index: Index, index_labels: np.ndarray, codes: np.ndarray, labels: np.ndarray, k: int = K
) -> Agreement:
    """Asks the index with every code.

    Args:
      index: Searched.
      index_labels: int64 [m], of what is in it.
      codes: Queries, float [n, d].
      labels: int64 [n], theirs.
      k: Neighbours a query.
    """
    found = index_labels[index.query(codes, k).rows]
    votes = np.stack([np.sum(found == digit, axis=1) for digit in range(10)], axis=1)
    return Agreement(
        precision=float(np.mean(found == labels[:, np.newaxis])),
        accuracy=float(np.mean(votes.argmax(axis=1) == labels)),
        queries=len(labels),
    )
