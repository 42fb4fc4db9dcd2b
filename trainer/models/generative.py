"""Drawing codes from a prior, one seed an image."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import tensorflow as tf

from trainer.models.base import Autoencoder

DIGITS = 10
# Streams of the draws from one seed.
_CODE, _DIGIT = 0, 1


def normal_of_seeds(seeds: tf.Tensor, size: int, stddev: float) -> tf.Tensor:
    """A normal vector for each seed: int64 [n] to float [n, size].

    A row depends on its seed alone, not on the batch that it came in.
    """
    return _row_by_row(
        seeds,
        lambda seed: tf.random.stateless_normal(
            (size,), tf.stack([seed, _CODE]), stddev=stddev, alg="philox"
        ),
        tf.TensorSpec((size,), tf.float32),
    )


def digits_of_seeds(seeds: tf.Tensor) -> tf.Tensor:
    """A digit for each seed, uniform, independent of :func:`normal_of_seeds`: int64 [n]."""
    return _row_by_row(
        seeds,
        lambda seed: tf.random.stateless_uniform(
            (), tf.stack([seed, _DIGIT]), maxval=DIGITS, dtype=tf.int64, alg="philox"
        ),
        tf.TensorSpec((), tf.int64),
    )


def _row_by_row(
    seeds: tf.Tensor, draw: Callable[[tf.Tensor], tf.Tensor], row: tf.TensorSpec
) -> tf.Tensor:
    return tf.map_fn(draw, tf.cast(seeds, tf.int64), fn_output_signature=row)


class Generative(Autoencoder):
    """An autoencoder whose codes follow a known prior, so that it can make images."""

    prior_stddev: float = 1.0

    @property
    def prior(self) -> dict[str, Any]:
        """What codes are drawn from, as plain values for the metadata."""
        return {"distribution": "normal", "mean": 0.0, "stddev": self.prior_stddev}

    def sample_prior(self, seeds: tf.Tensor) -> tf.Tensor:
        """Seeds int64 [n] to codes float [n, d], each row from its own seed."""
        return normal_of_seeds(seeds, self.hp.code_size, self.prior_stddev)

    def generate(self, seeds: tf.Tensor) -> tf.Tensor:
        """Seeds int64 [n] to images float [n, 28, 28] in [0, 1]."""
        return self.decode(self.sample_prior(seeds))
