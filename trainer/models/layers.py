"""Pieces that several families share."""

from __future__ import annotations

import tensorflow as tf

from trainer.models.base import IMAGE_SHAPE, PIXELS, Autoencoder
from trainer.models.keras_api import keras


def dense_stack(
    model: Autoencoder,
    units: tuple[int, ...],
    *,
    activation: str = "relu",
    last_activation: str | None = "relu",
    kernel_initializer: str = "glorot_uniform",
    name: str,
) -> keras.Sequential:
    """Dense layers of the given widths.

    Args:
      model: Whose seed the weights follow.
      units: Widths, first to last.
      activation: Of every layer but the last.
      last_activation: Of the last layer; None is linear.
      kernel_initializer: Keras name.
      name: Of the stack.
    """
    layers = [
        keras.layers.Dense(
            width,
            activation=last_activation if i == len(units) - 1 else activation,
            kernel_initializer=model.initializer(kernel_initializer),
        )
        for i, width in enumerate(units)
    ]
    return keras.Sequential(layers, name=name)


def flatten_images(images: tf.Tensor) -> tf.Tensor:
    """[n, 28, 28] to [n, 784]."""
    return tf.reshape(images, (-1, PIXELS))


def unflatten_images(flat: tf.Tensor) -> tf.Tensor:
    """[n, 784] to [n, 28, 28]."""
    return tf.reshape(flat, (-1, *IMAGE_SHAPE))
