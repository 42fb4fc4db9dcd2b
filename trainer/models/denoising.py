"""Denoising autoencoders: corrupted images in, clean ones out, in training only."""

from __future__ import annotations

import tensorflow as tf

from trainer.models.base import Autoencoder
from trainer.models.conv import ConvAutoencoder
from trainer.models.hyperparameters import ConvDenoisingHyperparameters


class Denoising(Autoencoder):
    """Reconstructs the clean image from a corrupted one (Vincent et al. 2008).

    Subclasses say how to :meth:`corrupt`. Every step draws anew: corrupting the
    training set once, as the tutorials do, lets the model learn the noise.
    Evaluation and serving take the image as it is.
    """

    def corrupt(self, images: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
        """Images float [n, 28, 28] in [0, 1] and an int64 [2] seed to corrupted ones."""
        raise NotImplementedError

    def loss_terms(
        self, images: tf.Tensor, labels: tf.Tensor, training: bool
    ) -> dict[str, tf.Tensor]:
        """Losses of the corrupted image's reconstruction against the clean one."""
        seen = self.corrupt(images, self.step_seed()) if training else images
        output = self.decode_output(self.encode(seen, training), training)
        return {"loss": self.reconstruction_loss(images, output)}


class ConvDenoising(Denoising, ConvAutoencoder):
    """The convolutional models on images with normal noise, clipped (001, 003)."""

    hp: ConvDenoisingHyperparameters

    def corrupt(self, images: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
        """Adds normal noise, and clips."""
        noise = tf.random.stateless_normal(tf.shape(images), seed, alg="philox")
        return tf.clip_by_value(images + self.hp.noise * noise, 0.0, 1.0)
