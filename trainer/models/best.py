"""The project's own autoencoder, chosen by measurement."""

from __future__ import annotations

import tensorflow as tf

from trainer.models.base import IMAGE_SHAPE, Autoencoder, per_image_mse
from trainer.models.hyperparameters import BestHyperparameters
from trainer.models.keras_api import keras
from trainer.models.layers import dense_layers, distort_images
from trainer.models.muon import Muon

# Squares of twice a block's side, one around each block: neighbours share half of their pixels.
_BLOCK = 4
_SQUARE = 2 * _BLOCK
_BLOCKS = IMAGE_SHAPE[0] // _BLOCK
_MARGIN = _BLOCK // 2
# Part of a training that sees distorted images; the rest learns what digits are really like.
_DISTORTED_PART = 0.7
# About what the squared error has to be multiplied by to weigh as much as the cross-entropy.
_MSE_WEIGHT = 30.0


class Squares(keras.layers.Layer):
    """Maps images [n, 28, 28] to the squares of 8 x 8 pixels around their blocks: [n, 7, 7, 64]."""

    def call(self, images: tf.Tensor) -> tf.Tensor:
        """Cuts the squares out; what lies outside of an image is 0."""
        margins = (_MARGIN, _MARGIN)
        return tf.image.extract_patches(
            tf.pad(images, ((0, 0), margins, margins))[..., tf.newaxis],
            sizes=(1, _SQUARE, _SQUARE, 1),
            strides=(1, _BLOCK, _BLOCK, 1),
            rates=(1, 1, 1, 1),
            padding="VALID",
        )


class SumOfSquares(keras.layers.Layer):
    """Maps squares [n, 7, 7, 64] to images [n, 28, 28]: where they overlap they are added.

    What a transposed convolution does, in products of large matrices: a dense layer
    before it, then blocks that are moved and added. The 64 values are four blocks
    (above left, above right, below left, below right) of 4 x 4 pixels.
    """

    def call(self, squares: tf.Tensor) -> tf.Tensor:
        """Puts the squares on the canvas."""
        corners = ((0, 0), (0, 1), (1, 0), (1, 1))
        blocks = tf.add_n(
            [
                tf.pad(block, ((0, 0), (down, 1 - down), (right, 1 - right), (0, 0)))
                for (down, right), block in zip(corners, tf.split(squares, len(corners), axis=3))
            ]
        )
        side = _BLOCKS + 1
        rows = tf.reshape(blocks, (-1, side, side, _BLOCK, _BLOCK))
        canvas = tf.reshape(tf.transpose(rows, (0, 1, 3, 2, 4)), (-1, side * _BLOCK, side * _BLOCK))
        return canvas[:, _MARGIN:-_MARGIN, _MARGIN:-_MARGIN]


class Best(Autoencoder):
    """Dense layers on overlapping squares, and over all of them, trained by Muon.

    What made the difference, each against the same CPU time (docs/models.md):

    * Muon instead of Adam: a plain dense network needs a quarter of the epochs.
    * Shared weights at both ends, which generalise. As products of matrices over
      squares that overlap they take half a convolution's time.
    * Small batches, a high learning rate, and that it falls linearly to 0.
    * Images that are turned, scaled and moved for most of the training: the
      error on training images stays, that on others falls.
    * A loss that goes from the cross-entropy, which learns faster, to the
      squared error, which is what counts.
    """

    hp: BestHyperparameters

    def __init__(self, hyperparameters: BestHyperparameters, *, seed: int = 0):
        super().__init__(hyperparameters, seed=seed)
        hp = hyperparameters
        first, second = hp.filters
        maps = (_BLOCKS, _BLOCKS, second)

        def dense(*units: int, last: str | None = hp.activation) -> list[keras.layers.Layer]:
            return dense_layers(self, units, activation=hp.activation, last_activation=last)

        self.encoder = keras.Sequential(
            [
                Squares(),
                *dense(second),
                keras.layers.Flatten(),
                *dense(*hp.hidden, hp.code_size, last=None),
            ],
            name="encoder",
        )
        self.decoder = keras.Sequential(
            [
                *dense(*hp.hidden[::-1], _BLOCKS * _BLOCKS * second),
                keras.layers.Reshape(maps),
                *dense(first, _SQUARE * _SQUARE, last=None),
                SumOfSquares(),
            ],
            name="decoder",
        )

    def loss_terms(
        self, images: tf.Tensor, labels: tf.Tensor, training: bool
    ) -> dict[str, tf.Tensor]:
        """Cross-entropy; in training turning into squared error, and of distorted images."""
        if not training:
            return super().loss_terms(images, labels, training)
        done = tf.cast(self.optimizer.iterations, tf.float32) / self._total_steps
        images = tf.cond(
            done < _DISTORTED_PART,
            lambda: distort_images(images, self.step_seed(), self.hp.distortion),
            lambda: images,
        )
        output = self.decode_output(self.encode(images, training), training)
        cross_entropy = self.reconstruction_loss(images, output)
        squares = _MSE_WEIGHT * per_image_mse(images, self.to_image(output))
        return {"loss": (1 - done) * cross_entropy + done * squares}

    def make_optimizer(self, learning_rate: float, total_steps: int) -> keras.optimizers.Optimizer:
        """Muon with a rate that falls linearly to 0."""
        self._total_steps = total_steps
        falling = keras.optimizers.schedules.PolynomialDecay(
            learning_rate, decay_steps=total_steps, end_learning_rate=0.0
        )
        return Muon(falling)
