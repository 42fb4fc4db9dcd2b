"""An autoencoder whose decoder is its encoder, transposed."""

from __future__ import annotations

import math

import tensorflow as tf

from trainer.models.base import PIXELS
from trainer.models.denoising import Denoising
from trainer.models.hyperparameters import TiedDenoisingHyperparameters
from trainer.models.keras_api import keras


class TiedDenoising(Denoising):
    """One matrix both ways, sigmoid units, masked pixels, squared error, SGD (004).

    The loss is the squared error summed over an image's pixels and averaged
    over images, so that the learning rate does not depend on the batch size:
    the tutorial's .02 on sums over 128 images is 2.56 here.
    """

    hp: TiedDenoisingHyperparameters

    def __init__(self, hyperparameters: TiedDenoisingHyperparameters, *, seed: int = 0):
        super().__init__(hyperparameters, seed=seed)
        units = hyperparameters.code_size
        # Glorot & Bengio's range for sigmoid units: four times that of tanh.
        bound = 4 * math.sqrt(6 / (PIXELS + units))
        self.kernel = self.add_weight(
            name="kernel",
            shape=(PIXELS, units),
            initializer=keras.initializers.RandomUniform(-bound, bound, seed=self.next_seed()),
        )
        self.code_bias = self.add_weight(name="code_bias", shape=(units,), initializer="zeros")
        self.pixel_bias = self.add_weight(name="pixel_bias", shape=(PIXELS,), initializer="zeros")

    def encode(self, images: tf.Tensor, training: bool = False) -> tf.Tensor:
        """Sigmoid codes of the one matrix."""
        return tf.sigmoid(tf.matmul(tf.reshape(images, (-1, PIXELS)), self.kernel) + self.code_bias)

    def decode_output(self, code: tf.Tensor, training: bool = False) -> tf.Tensor:
        """Logits of the matrix, transposed."""
        flat = tf.matmul(code, self.kernel, transpose_b=True) + self.pixel_bias
        return tf.reshape(flat, (-1, 28, 28))

    def corrupt(self, images: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
        """Blackens a fraction of the pixels."""
        kept = tf.random.stateless_uniform(tf.shape(images), seed, alg="philox") >= self.hp.masking
        return tf.where(kept, images, 0.0)

    def reconstruction_loss(self, images: tf.Tensor, output: tf.Tensor) -> tf.Tensor:
        """Squared error per image, summed over pixels: float [n]."""
        return tf.reduce_sum(tf.math.squared_difference(images, tf.sigmoid(output)), axis=(1, 2))

    def make_optimizer(self, learning_rate: float, total_steps: int) -> keras.optimizers.Optimizer:
        """Plain SGD, as the tutorial has it."""
        return keras.optimizers.SGD(learning_rate)
