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


def test_half_whitening_takes_each_direction_by_the_root_of_its_spread():
    rng = np.random.default_rng(1)
    turn, _ = np.linalg.qr(rng.normal(size=(3, 3)))
    spread = np.array([16.0, 1.0, 0.01])
    codes = (rng.normal(size=(5_000, 3)) * spread + 7) @ turn
    compared = neighbours.HalfWhitening(np.array_split(codes, 3))(codes)
    found = np.sort(np.linalg.eigvalsh(np.cov(compared.T)))[::-1]
    np.testing.assert_allclose(found, spread, rtol=0.1)
    assert np.abs(compared.mean(axis=0)).max() < 0.01


def test_half_whitening_leaves_out_what_never_changes():
    codes = np.pad(np.eye(3), ((0, 0), (0, 2)))
    whiten = neighbours.HalfWhitening([codes])
    assert np.all(np.isfinite(whiten(codes + 1)))
    rows, _ = neighbours.nearest(whiten(codes), whiten(codes))
    np.testing.assert_array_equal(rows[:, 0], range(3))
    np.testing.assert_allclose(whiten(codes + [0, 0, 0, 5, 9]), whiten(codes), atol=1e-6)
    assert not neighbours.HalfWhitening([np.ones((4, 2))])(np.eye(2)).any()
