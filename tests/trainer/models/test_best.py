"""The pieces of ``best``, beside convolutions."""

import numpy as np
import tensorflow as tf

from trainer.models.best import Squares, SumOfSquares


def test_squares_are_what_a_strided_convolution_sees() -> None:
    rng = np.random.default_rng(0)
    images = tf.constant(rng.random((3, 28, 28)), tf.float32)
    kernel = tf.constant(rng.normal(size=(8, 8, 1, 5)), tf.float32)
    expected = tf.nn.conv2d(images[..., tf.newaxis], kernel, strides=4, padding="SAME")
    found = tf.tensordot(Squares()(images), tf.reshape(kernel, (64, 5)), 1)
    np.testing.assert_allclose(found, expected, atol=1e-4)


def test_a_sum_of_squares_is_a_transposed_convolution() -> None:
    rng = np.random.default_rng(1)
    maps = tf.constant(rng.normal(size=(3, 7, 7, 5)), tf.float32)
    kernel = rng.normal(size=(8, 8, 5)).astype(np.float32)
    expected = tf.nn.conv2d_transpose(
        maps, kernel[:, :, np.newaxis], (3, 28, 28, 1), strides=4, padding="SAME"
    )
    # Its four blocks of 4 x 4 pixels, one after the other.
    blocks = kernel.reshape(2, 4, 2, 4, 5).transpose(4, 0, 2, 1, 3).reshape(5, 64)
    found = SumOfSquares()(tf.tensordot(maps, blocks, 1))
    np.testing.assert_allclose(found, expected[..., 0], atol=1e-4)
