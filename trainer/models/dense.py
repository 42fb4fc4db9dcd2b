"""Dense autoencoders: one or more fully connected layers to a code and back."""

from __future__ import annotations

import tensorflow as tf

from trainer.models.base import Autoencoder
from trainer.models.hyperparameters import DenseHyperparameters, SparseHyperparameters
from trainer.models.layers import dense_decoder, dense_encoder


class DenseAutoencoder(Autoencoder):
    """784-hidden-code-hidden-784; its hyper-parameters make it one tutorial's or another's.

    ``simple`` and ``deep`` (003), ``fully_connected`` (001) and ``mlp_2d`` (002)
    are this class with other values.

    Attributes:
      mirrored: Whether the decoder has the encoder's hidden layers, reversed.
    """

    mirrored: bool = True

    def __init__(self, hyperparameters: DenseHyperparameters, *, seed: int = 0):
        super().__init__(hyperparameters, seed=seed)
        hp = hyperparameters
        self.loss_kind = hp.loss
        self.sigmoid_output = hp.output == "sigmoid"
        self.encoder = dense_encoder(
            self,
            hp.hidden,
            hp.code_size,
            activation=hp.activation,
            code_activation=hp.code_activation,
        )
        widths = hp.hidden[::-1] if self.mirrored else ()
        self.decoder = dense_decoder(self, widths, activation=hp.activation)


class SequentialAutoencoder(DenseAutoencoder):
    """A dense autoencoder whose decoder is one layer, whatever the encoder (000)."""

    mirrored = False


class SparseAutoencoder(DenseAutoencoder):
    """A dense autoencoder whose code pays for its absolute sum (003).

    The penalty is taken per image and averaged like the rest of the loss, so it
    does not depend on the batch size. It mostly rescales the code, so the share
    of active units (above zero) is logged beside the mean.
    """

    hp: SparseHyperparameters
    term_names = ("loss", "reconstruction", "code_mean", "active_share")

    def loss_terms(
        self, images: tf.Tensor, labels: tf.Tensor, training: bool
    ) -> dict[str, tf.Tensor]:
        """Reconstruction plus the penalty, and two figures of the code."""
        code = self.encode(images, training)
        reconstruction = self.reconstruction_loss(images, self.decode_output(code, training))
        magnitude = tf.abs(tf.cast(code, tf.float32))
        return {
            "loss": reconstruction + self.hp.l1 * tf.reduce_sum(magnitude, axis=1),
            "reconstruction": reconstruction,
            "code_mean": tf.reduce_mean(magnitude, axis=1),
            "active_share": tf.reduce_mean(tf.cast(magnitude > 0, tf.float32), axis=1),
        }
