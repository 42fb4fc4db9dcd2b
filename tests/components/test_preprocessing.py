"""Bytes to floats, as Transform traces it."""

import numpy as np
import pytest
import tensorflow as tf

from components import features
from components.preprocessing import preprocessing_fn


def transform(*images: bytes) -> tf.Tensor:
    function = tf.function(preprocessing_fn).get_concrete_function(
        {
            features.IMAGE: tf.TensorSpec([None], tf.string),
            features.LABEL: tf.TensorSpec([None], tf.int64),
        }
    )
    assert function.structured_outputs[features.IMAGE].shape.as_list() == [None, 28, 28]
    labels = tf.zeros(len(images), tf.int64)
    raw = {features.IMAGE: tf.constant(images, tf.string, (len(images),)), features.LABEL: labels}
    return function(raw)[features.IMAGE]


def test_grey_levels_become_floats_up_to_one():
    pixels = np.random.default_rng(0).integers(0, 256, (3, 28, 28), np.uint8)
    np.testing.assert_allclose(transform(*(p.tobytes() for p in pixels)), pixels / 255, atol=1e-7)
    assert transform().shape == (0, 28, 28)


@pytest.mark.parametrize("images", [[b"x" * 783], [b"x" * 785], [b"x" * 392] * 2, [b""]])
def test_another_length_is_an_error_not_a_picture(images):
    with pytest.raises(tf.errors.InvalidArgumentError):
        transform(*images)
