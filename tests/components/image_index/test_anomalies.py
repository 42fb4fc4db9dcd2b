"""Corruptions, and areas under curves."""

import numpy as np
import pytest

from components.image_index import anomalies


@pytest.fixture
def images(digits):
    return digits["eval"][0][:40]


@pytest.mark.parametrize("kind", anomalies.KINDS)
def test_a_corruption_changes_every_image_and_is_the_same_again(images, kind):
    corrupted = anomalies.corrupt(images, kind)
    assert corrupted.shape == images.shape and corrupted.dtype == np.uint8
    assert np.all(np.any(corrupted != images, axis=(1, 2)))
    np.testing.assert_array_equal(corrupted, anomalies.corrupt(images, kind))


def test_corruptions_do_what_they_say(images):
    np.testing.assert_array_equal(anomalies.corrupt(images, "inversion"), 255 - images)
    ink = images.sum(axis=(1, 2), dtype=float)
    blurred = anomalies.corrupt(images, "blur")
    # A blur moves ink about; an occlusion takes some away.
    np.testing.assert_allclose(blurred.sum(axis=(1, 2)), ink, rtol=0.05)
    assert blurred.max() < images.max()
    occluded = anomalies.corrupt(images, "occlusion")
    assert np.all(occluded <= images)
    assert (occluded.sum(axis=(1, 2)) / ink).mean() < 0.8
    image = np.zeros((1, 28, 28), np.uint8)
    image[0, 14, 14] = 255
    ((_, y, x),) = np.argwhere(anomalies.corrupt(image, "shift"))
    assert abs(y - 14) == abs(x - 14) == 6


def test_areas_by_hand():
    found = anomalies.separation(np.array([1.0, 2.0, 3.0]), np.array([2.5, 4.0]))
    # Of six pairs, five are in order.
    assert found["auroc"] == pytest.approx(5 / 6)
    assert found["base_rate"] == 2 / 5
    # Precision 1 at the first anomaly, 2/3 at the second.
    assert found["aupr"] == pytest.approx((1 + 2 / 3) / 2)


def test_held_out_digits_are_told_apart():
    found = anomalies.on_held_out(
        np.array([1.0, 2.0]), np.array([3.0, 4.0, 1.5]), np.array([7, 7, 9])
    )
    assert found["against"] == "held_out" and found["anomalies"] == 3
    assert found["by_kind"]["7"]["auroc"] == 1.0
    assert found["by_kind"]["9"]["auroc"] == 0.5
