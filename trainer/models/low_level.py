"""An autoencoder from plain variables, as TensorFlow's low-level API has it."""

from __future__ import annotations

import math

import tensorflow as tf

from trainer.models.base import PIXELS, Autoencoder
from trainer.models.hyperparameters import LowLevelHyperparameters
from trainer.models.keras_api import keras


class Affine(tf.Module):
    """``x W + b`` with variables of its own; no Keras layer."""

    def __init__(self, inputs: int, outputs: int, *, stddev: float, seed: int, name: str):
        """Makes the variables; ``stddev`` is of normal weights, 0 for Glorot's uniform."""
        super().__init__(name=name)
        shape, key = (inputs, outputs), (seed, 0)
        bound = math.sqrt(6 / (inputs + outputs))
        if stddev:
            weights = tf.random.stateless_normal(shape, key, stddev=stddev)
        else:
            weights = tf.random.stateless_uniform(shape, key, minval=-bound, maxval=bound)
        self.weights = tf.Variable(weights, name="weights")
        self.bias = tf.Variable(tf.zeros(outputs), name="bias")

    def __call__(self, inputs: tf.Tensor) -> tf.Tensor:
        """Float [n, inputs] to [n, outputs], in the precision of the inputs."""
        kind = inputs.dtype
        return tf.matmul(inputs, tf.cast(self.weights, kind)) + tf.cast(self.bias, kind)


class LowLevel(Autoencoder):
    """784-128 relu-784 sigmoid (000)."""

    def __init__(self, hyperparameters: LowLevelHyperparameters, *, seed: int = 0):
        super().__init__(hyperparameters, seed=seed)
        units, stddev = hyperparameters.code_size, hyperparameters.initial_stddev
        self.hidden = Affine(PIXELS, units, stddev=stddev, seed=self.next_seed(), name="hidden")
        self.output_layer = Affine(
            units, PIXELS, stddev=stddev, seed=self.next_seed(), name="output"
        )

    def encode(self, images: tf.Tensor, training: bool = False) -> tf.Tensor:
        """Codes of the hidden layer."""
        flat = tf.cast(tf.reshape(images, (-1, PIXELS)), self.compute_dtype)
        return tf.nn.relu(self.hidden(flat))

    def decode_output(self, code: tf.Tensor, training: bool = False) -> tf.Tensor:
        """Logits of the output layer."""
        return tf.reshape(self.output_layer(code), (-1, 28, 28))

    def make_optimizer(self, learning_rate: float, total_steps: int) -> keras.optimizers.Optimizer:
        """RMSProp, as the tutorial has it."""
        return keras.optimizers.RMSprop(learning_rate)
