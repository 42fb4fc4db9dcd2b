"""Adversarial autoencoders (Makhzani et al. 2015): codes matched to a prior."""

from __future__ import annotations

from typing import NamedTuple

import tensorflow as tf

from trainer.models.base import PIXELS
from trainer.models.catalogue import TrainingDefaults
from trainer.models.generative import DIGITS, Generative, digits_of_seeds
from trainer.models.hyperparameters import AdversarialHyperparameters
from trainer.models.keras_api import keras
from trainer.models.layers import dense_decoder, dense_encoder, dense_layers

_PRIOR_STREAM = 1


class AdversarialLoss(NamedTuple):
    """The losses of encoder and discriminator, float [n] each.

    Attributes:
      generator: Loss of the encoder, from codes that do not pass for the prior's.
      discriminator: Loss of the discriminator, the mean over codes and prior samples.
      accuracy: Accuracy of the discriminator; one half when the codes match the prior.
    """

    generator: tf.Tensor
    discriminator: tf.Tensor
    accuracy: tf.Tensor


def adversarial_loss(
    discriminator: keras.Model, codes: tf.Tensor, samples: tf.Tensor
) -> AdversarialLoss:
    """Cross-entropies of a discriminator that tells codes from samples of the prior.

    Args:
      discriminator: Codes [n, d] to logits [n, 1], above 0 for the prior's.
      codes: Float [n, d].
      samples: Float [n, d].
    """
    fake = tf.cast(discriminator(codes)[:, 0], tf.float32)
    real = tf.cast(discriminator(samples)[:, 0], tf.float32)
    right = tf.cast(fake < 0, tf.float32) + tf.cast(real >= 0, tf.float32)
    # -log sigmoid(x) is softplus(-x), the cross-entropy of a logit with 1.
    return AdversarialLoss(
        generator=tf.nn.softplus(-fake),
        discriminator=0.5 * (tf.nn.softplus(fake) + tf.nn.softplus(-real)),
        accuracy=0.5 * right,
    )


class Adversarial(Generative):
    """Trains an autoencoder and its discriminators together, each with an Adam of its own.

    Encoder and decoder minimise one sum, BCE summed over pixels plus
    ``adversarial_weight`` times the generator's loss, with one optimizer: with
    an optimizer a loss, as the tutorial has it, Adam rescales each and the rates
    alone decide who wins.

    ``loss_terms`` must have the keys ``loss`` (the autoencoder's) and
    ``discriminator``.
    """

    hp: AdversarialHyperparameters
    term_names: tuple[str, ...] = (
        "loss",
        "reconstruction",
        "generator",
        "discriminator",
        "discriminator_accuracy",
        "code_mean",
        "code_stddev",
    )

    def __init__(self, hyperparameters: AdversarialHyperparameters, *, seed: int = 0):
        super().__init__(hyperparameters, seed=seed)
        hp = hyperparameters
        self.prior_stddev = hp.prior_stddev
        self.encoder = dense_encoder(self, hp.hidden, hp.code_size, code_activation=None)
        self.decoder = dense_decoder(self, hp.hidden[::-1])
        # As deep as the encoder, each from its part of the code to a logit.
        self.discriminators = [
            keras.Sequential(dense_layers(self, (*hp.hidden, 1), last_activation=None), name=name)
            for name in self.matched
        ]

    @property
    def matched(self) -> dict[str, int]:
        """The parts of a code that are matched to a prior: size by name of the discriminator."""
        return {"discriminator": self.hp.code_size}

    def build_variables(self) -> None:
        """Creates the discriminators' variables, too."""
        super().build_variables()
        for discriminator, size in zip(self.discriminators, self.matched.values()):
            discriminator(tf.zeros((1, size)))

    def configure(
        self, training: TrainingDefaults, *, total_steps: int, steps_per_execution: int = 1
    ) -> None:
        """Compiles, and gives the discriminators an Adam of their own."""
        super().configure(
            training, total_steps=total_steps, steps_per_execution=steps_per_execution
        )
        optimizer = keras.optimizers.Adam(self.hp.discriminator_learning_rate)
        if self.dtype_policy.name == "mixed_float16":
            # As Keras does for the optimizer that it is given.
            optimizer = keras.mixed_precision.LossScaleOptimizer(optimizer)
        self.discriminator_optimizer = optimizer
        self.discriminator_optimizer.build(self._discriminator_variables())

    def phase_variables(self) -> list[tf.Variable]:
        """Everything but the discriminators' variables."""
        theirs = {id(v) for v in self._discriminator_variables()}
        return [v for v in self.trainable_variables if id(v) not in theirs]

    def _discriminator_variables(self) -> list[tf.Variable]:
        return [v for d in self.discriminators for v in d.trainable_variables]

    def train_step(self, data: tuple[tf.Tensor, tf.Tensor]) -> dict[str, tf.Tensor]:
        """One step of the autoencoder and one of the discriminators, from one forward pass."""
        images, labels = data
        with tf.GradientTape(persistent=True) as tape:
            terms = self.loss_terms(images, labels, training=True)
            loss = self.replica_mean(terms["loss"])
            discriminator_loss = self.replica_mean(terms["discriminator"])
        self.optimizer.minimize(loss, self.phase_variables(), tape=tape)
        self.discriminator_optimizer.minimize(
            discriminator_loss, self._discriminator_variables(), tape=tape
        )
        return self.track(terms)

    def prior_samples(self, count: tf.Tensor, size: int) -> tf.Tensor:
        """Codes to match in this step, float [count, size]."""
        return tf.random.stateless_normal(
            (count, size), self.step_seed(_PRIOR_STREAM), stddev=self.prior_stddev, alg="philox"
        )


class AdversarialAutoencoder(Adversarial):
    """784-1000-1000-2 and back, matched to a normal prior (002)."""

    def decode_training(self, code: tf.Tensor, labels: tf.Tensor, training: bool) -> tf.Tensor:
        """The decoder's raw output [n, 28, 28] for images of these labels."""
        return self.decode_output(code, training)

    def loss_terms(
        self, images: tf.Tensor, labels: tf.Tensor, training: bool
    ) -> dict[str, tf.Tensor]:
        """Reconstruction plus the generator's loss, and the discriminator's beside it."""
        code = tf.cast(self.encode(images, training), tf.float32)
        output = self.decode_training(code, labels, training)
        reconstruction = PIXELS * self.reconstruction_loss(images, output)
        samples = self.prior_samples(tf.shape(code)[0], self.hp.code_size)
        adversarial = adversarial_loss(self.discriminators[0], code, samples)
        return {
            "loss": reconstruction + self.hp.adversarial_weight * adversarial.generator,
            "reconstruction": reconstruction,
            "generator": adversarial.generator,
            "discriminator": adversarial.discriminator,
            "discriminator_accuracy": adversarial.accuracy,
            "code_mean": tf.reduce_mean(code, axis=1),
            "code_stddev": tf.math.reduce_std(code),
        }


class SupervisedAae(AdversarialAutoencoder):
    """The decoder is told the digit, so the code holds the style alone (002).

    An image that comes without a label, as in serving, is reconstructed with
    the digit that does it best: all ten are tried, so nothing but the
    autoencoder itself has to recognise digits. In training an unlabelled image
    is decoded with no digit at all.
    """

    decoder_uses_labels = True

    def decode_digit(self, code: tf.Tensor, labels: tf.Tensor, training: bool = False) -> tf.Tensor:
        """Style float [n, d] and digits int64 [n] (-1: none) to raw output [n, 28, 28]."""
        digit = tf.one_hot(labels, DIGITS, dtype=code.dtype)
        return self.decoder(tf.concat([digit, code], axis=1), training=training)

    def decode_training(self, code: tf.Tensor, labels: tf.Tensor, training: bool) -> tf.Tensor:
        """Raw output for images whose digit is known."""
        return self.decode_digit(code, labels, training)

    def decode(self, code: tf.Tensor, labels: tf.Tensor) -> tf.Tensor:  # type: ignore[override]
        """Style float [n, d] and digits int64 [n] to images float [n, 28, 28] in [0, 1]."""
        return self.to_image(self.decode_digit(code, labels))

    def call(self, images: tf.Tensor, training: bool = False) -> tf.Tensor:
        """The reconstruction with the one of the ten digits that does it best."""
        return self.reconstruct_with_best_digit(images)[0]

    def reconstruct_with_best_digit(self, images: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Images float [n, 28, 28] to reconstructions, and to digits int64 [n]."""
        code = self.encode(images)
        candidates = tf.stack(
            [
                self.decode(code, tf.fill(tf.shape(code)[:1], tf.constant(digit, tf.int64)))
                for digit in range(DIGITS)
            ],
            axis=1,
        )
        errors = tf.reduce_mean(
            tf.math.squared_difference(tf.cast(images, tf.float32)[:, tf.newaxis], candidates),
            axis=(2, 3),
        )
        best = tf.argmin(errors, axis=1)
        return tf.gather(candidates, best, axis=1, batch_dims=1), best

    def generate(self, seeds: tf.Tensor) -> tf.Tensor:
        """Images of random styles and digits; a seed gives both."""
        return self.decode(self.sample_prior(seeds), digits_of_seeds(seeds))

    @property
    def prior(self) -> dict[str, object]:
        """The prior of the style; the digit is uniform."""
        return {**super().prior, "label": "uniform"}
