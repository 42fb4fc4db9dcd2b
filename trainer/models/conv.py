"""Convolutional autoencoders."""

from __future__ import annotations

import tensorflow as tf

from trainer.models.base import Autoencoder
from trainer.models.catalogue import ConvHyperparameters
from trainer.models.keras_api import keras


class Conv(Autoencoder):
    """16-8-8 filters with max-pooling, code 4x4x8, up-sampling back (003)."""

    def __init__(self, hyperparameters: ConvHyperparameters, *, seed: int = 0):
        super().__init__(hyperparameters, seed=seed)
        first, second, last = hyperparameters.filters

        def conv(filters: int, *, activation: str | None = "relu", padding: str = "same"):
            return keras.layers.Conv2D(
                filters,
                3,
                activation=activation,
                padding=padding,
                kernel_initializer=self.initializer(),
            )

        def pool():
            return keras.layers.MaxPooling2D(2, padding="same")

        def up():
            return keras.layers.UpSampling2D(2)

        self.encoder = keras.Sequential(
            [conv(first), pool(), conv(second), pool(), conv(last), pool(), keras.layers.Flatten()],
            name="encoder",
        )
        self.decoder = keras.Sequential(
            [
                keras.layers.Reshape((4, 4, last)),
                conv(last),
                up(),
                conv(second),
                up(),
                # Unpadded: 16x16 becomes 14x14, so that the last doubling gives 28x28.
                conv(first, padding="valid"),
                up(),
                conv(1, activation=None),
            ],
            name="decoder",
        )

    def encode(self, images: tf.Tensor, training: bool = False) -> tf.Tensor:
        """See the base class."""
        return self.encoder(images[..., tf.newaxis], training=training)

    def decode_output(self, code: tf.Tensor, training: bool = False) -> tf.Tensor:
        """See the base class."""
        return tf.squeeze(self.decoder(code, training=training), axis=-1)
