"""Layers, beside those of Keras."""

import numpy as np
import tensorflow as tf

from trainer.models.keras_api import keras
from trainer.models.layers import Doubling


def test_doubling_is_up_sampling_in_value_and_gradient() -> None:
    rng = np.random.default_rng(0)
    maps = tf.constant(rng.normal(size=(2, 4, 5, 3)), tf.float32)
    weights = tf.constant(rng.normal(size=(2, 8, 10, 3)), tf.float32)
    found = []
    for layer in (Doubling(), keras.layers.UpSampling2D(2)):
        with tf.GradientTape() as tape:
            tape.watch(maps)
            doubled = layer(maps)
            total = tf.reduce_sum(doubled * weights)
        found.append((doubled.numpy(), tape.gradient(total, maps).numpy()))
    np.testing.assert_array_equal(found[0][0], found[1][0])
    np.testing.assert_allclose(found[0][1], found[1][1], rtol=1e-5, atol=1e-6)
