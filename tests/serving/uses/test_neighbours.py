"""The nearest codes."""

import numpy as np
import pytest

from serving.uses import neighbours


def test_blocks_give_what_the_whole_gives():
    rng = np.random.default_rng(0)
    indexed, codes = rng.normal(size=(503, 8)), rng.normal(size=(7, 8))
    rows, distances = neighbours.nearest(indexed, codes)
    blocks = np.split(indexed, [0, 3, 200, 200, 480])
    found = neighbours.nearest_in_blocks(iter(blocks), codes)
    np.testing.assert_array_equal(found[0], rows)
    np.testing.assert_allclose(found[1], distances, atol=1e-9)


@pytest.mark.parametrize("count", [1, 4])
def test_fewer_than_k_are_all_found(count):
    rows, _ = neighbours.nearest_in_blocks(np.eye(4)[:count, np.newaxis], np.eye(4)[:2])
    assert rows.shape == (2, count) and set(rows[1]) == set(range(count))


def test_queries_are_drawn_from_labelled_images_the_same_each_time():
    labels = np.where(np.arange(9_000) % 3, 5, -1)
    rows = neighbours.choose_queries(labels)
    assert len(rows) == 2_000 and np.all(labels[rows] == 5) and np.all(np.diff(rows) > 0)
    np.testing.assert_array_equal(rows, neighbours.choose_queries(labels))
