"""Variational autoencoders (Kingma & Welling 2013)."""

from __future__ import annotations

import tensorflow as tf

from trainer.models.base import PIXELS
from trainer.models.generative import Generative
from trainer.models.hyperparameters import ConvVaeHyperparameters, VaeHyperparameters
from trainer.models.keras_api import keras
from trainer.models.layers import (
    ConvStack,
    conv,
    conv_decoder,
    conv_encoder_layers,
    dense_decoder,
    dense_layers,
)


class Variational(Generative):
    """Maximises the evidence bound: image and KL terms, both summed per image.

    A subclass sets ``trunk``, and ``mean_head`` and ``log_variance_head`` on top
    of it, and ``decoder``. The code that is served is the posterior's mean.
    """

    hp: VaeHyperparameters | ConvVaeHyperparameters
    term_names = ("loss", "reconstruction", "kl")

    def posterior(self, images: tf.Tensor, training: bool = False) -> tuple[tf.Tensor, tf.Tensor]:
        """Images float [n, 28, 28] to mean and log variance of the code, [n, d] each."""
        hidden = self.trunk(images, training=training)
        mean, log_variance = self.mean_head(hidden), self.log_variance_head(hidden)
        return tf.cast(mean, tf.float32), tf.cast(log_variance, tf.float32)

    def encode(self, images: tf.Tensor, training: bool = False) -> tf.Tensor:
        """Means of the posteriors."""
        return self.posterior(images, training)[0]

    @staticmethod
    def sample(mean: tf.Tensor, log_variance: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
        """Draws a code from each posterior, float [n, d]; the deviation is exp(log_variance/2)."""
        noise = tf.random.stateless_normal(tf.shape(mean), seed, alg="philox")
        return mean + tf.exp(0.5 * log_variance) * noise

    def loss_terms(
        self, images: tf.Tensor, labels: tf.Tensor, training: bool
    ) -> dict[str, tf.Tensor]:
        """The negative evidence bound, in nats an image, and its two terms."""
        mean, log_variance = self.posterior(images, training)
        code = self.sample(mean, log_variance, self.step_seed())
        output = self.decode_output(code, training)
        reconstruction = PIXELS * self.reconstruction_loss(images, output)
        kl = normal_kl(mean, log_variance)
        return {
            "loss": reconstruction + self.hp.beta * kl,
            "reconstruction": reconstruction,
            "kl": kl,
        }


def normal_kl(mean: tf.Tensor, log_variance: tf.Tensor) -> tf.Tensor:
    """KL divergence from N(0, 1), summed over the code: [n, d] each to float [n], in nats."""
    return 0.5 * tf.reduce_sum(tf.square(mean) + tf.exp(log_variance) - 1.0 - log_variance, axis=1)


class Vae(Variational):
    """784-64-2 and back (003)."""

    def __init__(self, hyperparameters: VaeHyperparameters, *, seed: int = 0):
        super().__init__(hyperparameters, seed=seed)
        hp = hyperparameters
        self.trunk = keras.Sequential(
            [keras.layers.Flatten(), *dense_layers(self, hp.hidden)], name="trunk"
        )
        (self.mean_head,) = dense_layers(self, (hp.code_size,), last_activation=None)
        (self.log_variance_head,) = dense_layers(self, (hp.code_size,), last_activation=None)
        self.decoder = dense_decoder(self, hp.hidden[::-1])


class ConvVae(Variational):
    """Convolutions to linear 4 x 4 heads, and back (001, with heads of its own)."""

    def __init__(self, hyperparameters: ConvVaeHyperparameters, *, seed: int = 0):
        super().__init__(hyperparameters, seed=seed)
        filters = hyperparameters.filters
        self.trunk = ConvStack(conv_encoder_layers(self, filters), name="trunk")
        self.mean_head = self._head(filters[-1], "mean")
        self.log_variance_head = self._head(filters[-1], "log_variance")
        self.decoder = conv_decoder(self, filters)

    def _head(self, filters: int, name: str) -> keras.Sequential:
        return ConvStack([conv(self, filters, activation=None), keras.layers.Flatten()], name=name)
