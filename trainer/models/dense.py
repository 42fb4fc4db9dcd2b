"""Dense autoencoders: one or more fully connected layers to a code and back."""

from __future__ import annotations

import tensorflow as tf

from trainer.models.base import PIXELS, Autoencoder
from trainer.models.catalogue import SimpleHyperparameters
from trainer.models.layers import dense_stack, flatten_images, unflatten_images


class DenseAutoencoder(Autoencoder):
    """Base of the dense models: flattened images through two stacks."""

    def encode(self, images: tf.Tensor, training: bool = False) -> tf.Tensor:
        """See the base class."""
        return self.encoder(flatten_images(images), training=training)

    def decode_output(self, code: tf.Tensor, training: bool = False) -> tf.Tensor:
        """See the base class."""
        return unflatten_images(self.decoder(code, training=training))


class Simple(DenseAutoencoder):
    """784-32-784, the smallest autoencoder (003)."""

    def __init__(self, hyperparameters: SimpleHyperparameters, *, seed: int = 0):
        super().__init__(hyperparameters, seed=seed)
        self.encoder = dense_stack(self, (hyperparameters.code_size,), name="encoder")
        self.decoder = dense_stack(self, (PIXELS,), last_activation=None, name="decoder")
