"""Image search: the nearest codes of the training split, half whitened.

The directions in which codes spread most are not the most telling, as distances
take them; whitened, the least would be. Half way is best (docs/uses.md).

Exact: scikit-learn computes all distances, blockwise, in a matrix product.
At 60,000 codes of 32 floats that is a few milliseconds a query and nothing to
build or tune; approximate indices pay from some millions on.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

K = 10
_MAX_QUERIES = 2_000


class HalfWhitening:
    """Codes as they are compared: each principal direction divided by the root of its spread."""

    def __init__(self, blocks: Iterable[np.ndarray]):
        """Looks at the indexed codes, which come in blocks float [m, d]."""
        count, total, products = 0, np.zeros(1), np.zeros(1)
        for block in blocks:
            codes = block.astype(np.float64)
            count += len(codes)
            total, products = total + codes.sum(axis=0), products + codes.T @ codes
        self._mean = total / count
        covariance = products / count - np.outer(self._mean, self._mean)
        variances, directions = np.linalg.eigh(covariance)
        # A direction without any spread among the indexed tells none of them from another.
        spread = variances > 1e-9 * max(variances[-1], 1e-12)
        self._map = directions * np.where(spread, np.maximum(variances, 1e-30) ** -0.25, 0)

    def __call__(self, codes: np.ndarray) -> np.ndarray:
        """Codes float [n, d] to what distances are taken between, float32 [n, d]."""
        return ((codes - self._mean) @ self._map).astype(np.float32)


def nearest(indexed: np.ndarray, codes: np.ndarray, k: int = K) -> tuple[np.ndarray, np.ndarray]:
    """The ``k`` nearest of the indexed codes, or all where there are fewer, nearest first.

    Args:
      indexed: Searched, float [m, d]; not copied.
      codes: Queries, float [n, d].

    Returns:
      Rows of the indexed codes, int64 [n, k], and Euclidean distances, float [n, k].
    """
    from sklearn.neighbors import NearestNeighbors

    search = NearestNeighbors(algorithm="brute", metric="euclidean").fit(indexed)
    distances, rows = search.kneighbors(codes, min(k, len(indexed)))
    return rows, distances


def nearest_in_blocks(
    blocks: Iterable[np.ndarray], codes: np.ndarray, k: int = K
) -> tuple[np.ndarray, np.ndarray]:
    """As :func:`nearest`, among codes that come in blocks float [m, d] and are not kept."""
    rows = np.zeros((len(codes), 0), np.int64)
    distances = np.zeros((len(codes), 0))
    start = 0
    for block in blocks:
        if len(block):
            new_rows, new_distances = nearest(block, codes, k)
            rows = np.hstack([rows, new_rows + start])
            distances = np.hstack([distances, new_distances])
            best = np.argsort(distances, axis=1, kind="stable")[:, :k]
            rows = np.take_along_axis(rows, best, axis=1)
            distances = np.take_along_axis(distances, best, axis=1)
            start += len(block)
    return rows, distances


def choose_queries(labels: np.ndarray) -> np.ndarray:
    """Rows of up to 2,000 labelled images, drawn at random, the same each time; ascending."""
    known = np.flatnonzero(labels >= 0)
    if len(known) > _MAX_QUERIES:
        known = np.random.default_rng(0).choice(known, _MAX_QUERIES, replace=False)
    return np.sort(known)


def agreement(found: np.ndarray, labels: np.ndarray) -> tuple[float, float]:
    """How often neighbours show the digit that was asked with.

    Args:
      found: Labels of each query's neighbours, int64 [n, k].
      labels: The queries' own, int64 [n].

    Returns:
      The fraction of neighbours with the query's label, and that of queries whose
      label most neighbours have.
    """
    votes = np.stack([np.sum(found == digit, axis=1) for digit in range(10)], axis=1)
    same = found == labels[:, np.newaxis]
    return float(np.mean(same)), float(np.mean(votes.argmax(axis=1) == labels))
