"""The project's own autoencoder, chosen by measurement."""

from __future__ import annotations

import tensorflow as tf

from trainer.models.base import IMAGE_SHAPE, Autoencoder
from trainer.models.hyperparameters import BestHyperparameters
from trainer.models.keras_api import keras
from trainer.models.layers import ConvStack, conv, dense_layers
from trainer.models.muon import Muon


class DepthToSpace(keras.layers.Layer):
    """Maps [n, h, w, 4 c] to [n, 2 h, 2 w, c]: four channels become a square of pixels."""

    def call(self, inputs: tf.Tensor) -> tf.Tensor:
        """Rearranges channels as pixels."""
        return tf.nn.depth_to_space(inputs, 2)


class Best(Autoencoder):
    """Strided convolutions into dense layers, trained by Muon.

    What made the difference, each against the same CPU time (docs/models.md):

    * Muon instead of Adam: a plain dense network needs a quarter of the epochs.
    * Convolutions at both ends of the dense layers: shared weights generalise,
      the gap between training and test error halves. Strides of 2 and
      depth-to-space keep them as cheap as the dense layers they replace.
    * A learning rate that falls linearly to 0.
    """

    hp: BestHyperparameters

    def __init__(self, hyperparameters: BestHyperparameters, *, seed: int = 0):
        super().__init__(hyperparameters, seed=seed)
        hp = hyperparameters
        first, second = hp.filters
        side = IMAGE_SHAPE[0] // 4
        self.encoder = ConvStack(
            [
                keras.layers.Reshape((*IMAGE_SHAPE, 1)),
                conv(self, first, activation=hp.activation, strides=2),
                conv(self, second, activation=hp.activation, strides=2),
                keras.layers.Flatten(),
                *dense_layers(
                    self,
                    (*hp.hidden, hp.code_size),
                    activation=hp.activation,
                    last_activation=None,
                ),
            ],
            name="encoder",
        )
        self.decoder = ConvStack(
            [
                *dense_layers(
                    self,
                    (*hp.hidden[::-1], side * side * second),
                    activation=hp.activation,
                    last_activation=hp.activation,
                ),
                keras.layers.Reshape((side, side, second)),
                conv(self, 4 * first, activation=hp.activation, size=1),
                DepthToSpace(),
                conv(self, 4, activation=None),
                DepthToSpace(),
                keras.layers.Reshape(IMAGE_SHAPE),
            ],
            name="decoder",
        )

    def make_optimizer(self, learning_rate: float, total_steps: int) -> keras.optimizers.Optimizer:
        """Muon with a rate that falls linearly to 0."""
        falling = keras.optimizers.schedules.PolynomialDecay(
            learning_rate, decay_steps=total_steps, end_learning_rate=0.0
        )
        return Muon(falling)
