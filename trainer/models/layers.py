"""Pieces that several families share: stacks of layers from images to codes and back."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import tensorflow as tf

from trainer.models.base import IMAGE_SHAPE, PIXELS, Autoencoder
from trainer.models.keras_api import keras

_MAX_STRETCH, _MAX_SHIFT = 0.2, 2.0


def dense_layers(
    model: Autoencoder,
    units: Sequence[int],
    *,
    activation: str = "relu",
    last_activation: str | None = "relu",
) -> list[keras.layers.Layer]:
    """Dense layers of the given widths.

    Args:
      model: The model whose seed the weights follow.
      units: Widths, first to last.
      activation: Activation of every layer but the last.
      last_activation: Activation of the last layer; None is linear.
    """
    return [
        keras.layers.Dense(
            width,
            activation=last_activation if i == len(units) - 1 else activation,
            kernel_initializer=model.initializer(),
        )
        for i, width in enumerate(units)
    ]


def dense_encoder(
    model: Autoencoder,
    hidden: Sequence[int],
    code_size: int,
    *,
    activation: str = "relu",
    code_activation: str | None = "relu",
) -> keras.Sequential:
    """Images [n, 28, 28] through ``hidden`` to codes [n, code_size]."""
    layers = dense_layers(
        model, (*hidden, code_size), activation=activation, last_activation=code_activation
    )
    return keras.Sequential([keras.layers.Flatten(), *layers], name="encoder")


def dense_decoder(
    model: Autoencoder, hidden: Sequence[int], *, activation: str = "relu"
) -> keras.Sequential:
    """Codes [n, d] through ``hidden`` to raw outputs [n, 28, 28]."""
    layers = dense_layers(model, (*hidden, PIXELS), activation=activation, last_activation=None)
    return keras.Sequential([*layers, keras.layers.Reshape(IMAGE_SHAPE)], name="decoder")


class ConvStack(keras.Sequential):
    """Layers with convolutions, which also take an empty batch.

    A server may be asked for no image at all; TensorFlow's convolutions on a
    CPU (oneDNN) then fail with a wrong shape, so they are given a black one.
    """

    def call(
        self, inputs: tf.Tensor, training: bool | None = None, mask: tf.Tensor | None = None
    ) -> tf.Tensor:
        """Runs the layers, on one black image where there is none."""
        if inputs.shape[0]:
            return super().call(inputs, training=training, mask=mask)
        rows = tf.shape(inputs)[0]
        extra = tf.cast(rows == 0, tf.int32)
        padding = tf.pad([[extra]], [[0, inputs.shape.rank - 1], [1, 0]])
        return super().call(tf.pad(inputs, padding), training=training, mask=mask)[:rows]


def conv(model: Autoencoder, filters: int, *, size: int = 3, **options: Any) -> keras.layers.Layer:
    """A convolution that follows the model's seed, padded and relu unless ``options`` say else."""
    options = {"activation": "relu", "padding": "same", **options}
    return keras.layers.Conv2D(filters, size, kernel_initializer=model.initializer(), **options)


def conv_encoder_layers(model: Autoencoder, filters: Sequence[int]) -> list[keras.layers.Layer]:
    """Images [n, 28, 28] to maps halved (rounded up) for each of ``filters``."""
    layers: list[keras.layers.Layer] = [keras.layers.Reshape((*IMAGE_SHAPE, 1))]
    for count in filters:
        layers += [conv(model, count), keras.layers.MaxPooling2D(2, padding="same")]
    return layers


def conv_encoder(model: Autoencoder, filters: Sequence[int]) -> keras.Sequential:
    """Images [n, 28, 28] to codes, the flattened maps of the last stage."""
    layers = conv_encoder_layers(model, filters)
    return ConvStack([*layers, keras.layers.Flatten()], name="encoder")


class Doubling(keras.layers.Layer):
    """Maps [n, h, w, c] to [n, 2h, 2w, c], every value four times.

    The numbers of ``UpSampling2D(2)``; on a CPU, copying memory twice is faster
    than resizing a picture, forward and backward.
    """

    def call(self, maps: tf.Tensor) -> tf.Tensor:
        """Puts copies beside and below each value."""
        _, height, width, channels = maps.shape
        wide = tf.reshape(tf.concat([maps, maps], axis=3), (-1, height, 2 * width, channels))
        rows = tf.concat([wide, wide], axis=2)
        return tf.reshape(rows, (-1, 2 * height, 2 * width, channels))


def conv_decoder(model: Autoencoder, filters: Sequence[int]) -> keras.Sequential:
    """The mirror of :func:`conv_encoder`: codes to raw outputs [n, 28, 28]."""
    side = -(-IMAGE_SHAPE[0] // 2 ** len(filters))
    layers: list[keras.layers.Layer] = [keras.layers.Reshape((side, side, filters[-1]))]
    for i, count in enumerate(reversed(filters)):
        # Doubling 4 thrice gives 32. The tutorials' way to 28 is to leave the
        # last stage unpadded: 16 becomes 14, and its double 28.
        unpadded = i == len(filters) - 1 and side * 2 ** len(filters) != IMAGE_SHAPE[0]
        layers += [conv(model, count, padding="valid" if unpadded else "same"), Doubling()]
    layers += [conv(model, 1, activation=None), keras.layers.Reshape(IMAGE_SHAPE)]
    return ConvStack(layers, name="decoder")


def distort_images(images: tf.Tensor, seed: tf.Tensor, amount: float) -> tf.Tensor:
    """Turns, scales, shears and moves each image at random, about its middle.

    Args:
      images: Float [n, 28, 28].
      seed: int64 [2].
      amount: 1 changes each entry of the 2 x 2 matrix by up to .2 and moves by up
        to two pixels each way; 0 changes nothing.

    Returns:
      Float [n, 28, 28], interpolated; black comes in at the borders.
    """
    if not amount:
        return images
    count, side = tf.shape(images)[0], IMAGE_SHAPE[0]
    draws = tf.random.stateless_uniform((count, 2, 3), seed, minval=-amount, maxval=amount)
    matrices = tf.eye(2) + _MAX_STRETCH * draws[:, :, :2]
    axis = tf.range(side, dtype=tf.float32) - (side - 1) / 2
    grid = tf.reshape(tf.stack(tf.meshgrid(axis, axis, indexing="ij"), axis=-1), (-1, 2))
    # Where each pixel of the result comes from, in coordinates of the padded image.
    places = tf.einsum("nij,pj->npi", matrices, grid) + _MAX_SHIFT * draws[:, tf.newaxis, :, 2]
    places = tf.clip_by_value(places + (side - 1) / 2, -1.0, float(side)) + 1.0
    flat = tf.reshape(tf.pad(images, ((0, 0), (1, 2), (1, 2))), (count, (side + 3) ** 2))
    corners = tf.floor(places)
    fractions = places - corners
    result = tf.zeros((count, side * side))
    for down in (0, 1):
        for right in (0, 1):
            index = (corners[..., 0] + down) * (side + 3) + corners[..., 1] + right
            rows = fractions[..., 0] if down else 1 - fractions[..., 0]
            columns = fractions[..., 1] if right else 1 - fractions[..., 1]
            corner = tf.gather(flat, tf.cast(index, tf.int32), batch_dims=1)
            result += rows * columns * corner
    return tf.reshape(result, (count, side, side))
