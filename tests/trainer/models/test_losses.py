"""Losses, beside those of TensorFlow."""

import numpy as np
import tensorflow as tf

from trainer.models import base


def test_bce_from_logits_is_tensorflows_in_value_and_gradient() -> None:
    rng = np.random.default_rng(0)
    images = tf.constant(rng.random((4, 28, 28)), tf.float32)
    logits = tf.constant(rng.normal(0, 8, (4, 28, 28)), tf.float32)
    # Where a naive form overflows.
    logits = tf.concat([logits[:3], [tf.fill((28, 28), 200.0) * tf.sign(logits[3])]], axis=0)
    weights = tf.constant([0.5, 1.0, 2.0, 3.0])
    found = []
    for loss_of in (
        lambda: base.per_image_bce_from_logits(images, logits),
        lambda: tf.reduce_mean(
            tf.nn.sigmoid_cross_entropy_with_logits(labels=images, logits=logits), axis=(1, 2)
        ),
    ):
        with tf.GradientTape() as tape:
            tape.watch(logits)
            losses = loss_of()
            total = tf.reduce_sum(losses * weights)
        found.append((losses.numpy(), tape.gradient(total, logits).numpy()))
    np.testing.assert_allclose(found[0][0], found[1][0], rtol=1e-6)
    np.testing.assert_allclose(found[0][1], found[1][1], atol=1e-8)


def test_bce_from_logits_is_bce_of_the_probability() -> None:
    rng = np.random.default_rng(1)
    images = tf.constant(rng.random((3, 28, 28)), tf.float32)
    logits = tf.constant(rng.normal(0, 3, (3, 28, 28)), tf.float32)
    np.testing.assert_allclose(
        base.per_image_bce_from_logits(images, logits),
        base.per_image_bce(images, tf.sigmoid(logits)),
        rtol=1e-5,
    )
