"""The semi-supervised adversarial autoencoder: style and digit, from few labels."""

from __future__ import annotations

from typing import Any

import tensorflow as tf

from trainer.models.adversarial import Adversarial, adversarial_loss
from trainer.models.base import PIXELS
from trainer.models.generative import DIGITS, digits_of_seeds, normal_of_seeds
from trainer.models.hyperparameters import SemiSupervisedAaeHyperparameters
from trainer.models.layers import distort_images

_LABELLED_STREAM, _DISTORTED_STREAM, _DIGIT_STREAM = 2, 3, 4
# A prediction is taken for a label above this probability (FixMatch, Sohn et al. 2020).
_CONFIDENT = 0.95


def classification_terms(logits: tf.Tensor, labels: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Mean cross-entropy and accuracy, scalars, over the rows whose label is not -1.

    Args:
      logits: Float [n, 10].
      labels: int64 [n].
    """
    known = tf.cast(labels >= 0, tf.float32)
    cross_entropy = tf.nn.sparse_softmax_cross_entropy_with_logits(
        labels=tf.maximum(labels, 0), logits=logits
    )
    right = tf.cast(tf.argmax(logits, axis=1) == labels, tf.float32)
    total = tf.maximum(tf.reduce_sum(known), 1.0)
    return tf.reduce_sum(known * cross_entropy) / total, tf.reduce_sum(known * right) / total


def consistency_loss(digits: tf.Tensor, distorted_logits: tf.Tensor) -> tf.Tensor:
    """Cross-entropy [n] of distorted images' logits with the images' confident digits.

    Args:
      digits: Probabilities float [n, 10] of the images as they are; no gradient
        flows into them.
      distorted_logits: Float [n, 10].
    """
    digits = tf.stop_gradient(digits)
    sure = tf.cast(tf.reduce_max(digits, axis=1) > _CONFIDENT, tf.float32)
    return sure * tf.nn.sparse_softmax_cross_entropy_with_logits(
        labels=tf.argmax(digits, axis=1), logits=distorted_logits
    )


class SemiSupervisedAae(Adversarial):
    """An encoder with a head for style and one for the digit (002).

    Two discriminators match styles to a normal and digits to a one-hot prior;
    the labelled images that end every training batch train the digit head by
    cross-entropy. On its own that reaches about 95 % with 1,000 labels. What
    goes beyond: labelled images are distorted a little, and an unlabelled image
    and its distorted copy have to get the same digit (``consistency``).

    A code is the style followed by the ten probabilities.
    """

    hp: SemiSupervisedAaeHyperparameters
    # Without labels the sum of the losses follows the generator's, which rises and falls.
    monitor = "val_reconstruction"
    term_names = (
        *Adversarial.term_names,
        "digit_discriminator_accuracy",
        "classification",
        "consistency",
        "accuracy",
    )

    def __init__(self, hyperparameters: SemiSupervisedAaeHyperparameters, *, seed: int = 0):
        super().__init__(hyperparameters, seed=seed)
        self.labelled_batch_size = hyperparameters.labelled_batch_size

    @property
    def matched(self) -> dict[str, int]:
        """The style and the digit."""
        return {"style_discriminator": self.hp.style_size, "digit_discriminator": DIGITS}

    def heads(self, images: tf.Tensor, training: bool = False) -> tuple[tf.Tensor, tf.Tensor]:
        """Images float [n, 28, 28] to style [n, s] and the digit's logits [n, 10]."""
        outputs = tf.cast(self.encoder(images, training=training), tf.float32)
        return outputs[:, : self.hp.style_size], outputs[:, self.hp.style_size :]

    def encode(self, images: tf.Tensor, training: bool = False) -> tf.Tensor:
        """Style and the digits' probabilities, side by side."""
        style, logits = self.heads(images, training)
        return tf.concat([style, tf.nn.softmax(logits)], axis=1)

    def classify_probabilities(self, images: tf.Tensor) -> tf.Tensor:
        """Images float [n, 28, 28] to the digits' probabilities [n, 10]."""
        return tf.nn.softmax(self.heads(images)[1])

    def loss_terms(
        self, images: tf.Tensor, labels: tf.Tensor, training: bool
    ) -> dict[str, tf.Tensor]:
        """The autoencoder's sum of losses, the discriminators', and what they are made of."""
        hp = self.hp
        count = tf.shape(images)[0]
        labelled, known, distorted = images[:0], labels[:0], images
        if training:
            appended = self.labelled_batch_size
            count -= appended
            labelled, known, images = images[-appended:], labels[-appended:], images[:count]
            labelled = distort_images(labelled, self.step_seed(_LABELLED_STREAM), hp.distortion)
            distorted = distort_images(images, self.step_seed(_DISTORTED_STREAM), hp.distortion)
        # One pass for all three is faster than three.
        style, logits = self.heads(tf.concat([images, distorted, labelled], axis=0), training)
        style, digits = style[:count], tf.nn.softmax(logits[:count])
        output = self.decode_output(tf.concat([style, digits], axis=1), training)
        reconstruction = PIXELS * self.reconstruction_loss(images, output)
        judge_of_style, judge_of_digit = self.discriminators
        of_style = adversarial_loss(judge_of_style, style, self.prior_samples(count, hp.style_size))
        of_digit = adversarial_loss(judge_of_digit, digits, self._digit_samples(count))
        generator = of_style.generator + of_digit.generator
        classification, accuracy = classification_terms(logits[2 * count :], known)
        consistency = consistency_loss(digits, logits[count : 2 * count])
        terms = {
            "loss": reconstruction
            + hp.adversarial_weight * generator
            + hp.classification_weight * (classification + hp.consistency * consistency),
            "reconstruction": reconstruction,
            "generator": generator,
            "discriminator": of_style.discriminator + of_digit.discriminator,
            "discriminator_accuracy": of_style.accuracy,
            "digit_discriminator_accuracy": of_digit.accuracy,
            "code_mean": tf.reduce_mean(style, axis=1),
            "code_stddev": tf.math.reduce_std(style),
            "consistency": consistency,
        }
        if training:
            # Held-out images have no labels: there is nothing to report of them.
            terms |= {"classification": classification, "accuracy": accuracy}
        return terms

    def _digit_samples(self, count: tf.Tensor) -> tf.Tensor:
        digits = tf.random.stateless_uniform(
            (count,), self.step_seed(_DIGIT_STREAM), maxval=DIGITS, dtype=tf.int32, alg="philox"
        )
        return tf.one_hot(digits, DIGITS)

    def sample_prior(self, seeds: tf.Tensor) -> tf.Tensor:
        """A normal style and a one-hot digit for each seed."""
        style = normal_of_seeds(seeds, self.hp.style_size, self.prior_stddev)
        return tf.concat([style, tf.one_hot(digits_of_seeds(seeds), DIGITS)], axis=1)

    @property
    def prior(self) -> dict[str, Any]:
        """The prior of the style, followed by that of the digit."""
        return {**super().prior, "style_size": self.hp.style_size, "digit": "uniform one-hot"}
