"""Muon: momentum whose update is made orthogonal (Jordan et al. 2024).

A gradient of a weight matrix is dominated by a few directions; Muon replaces
the update by the nearest orthogonal matrix, so that all directions move at the
same rate. A few Newton-Schulz iterations, matrix products only, do that
without a decomposition.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import tensorflow as tf

from trainer.models.keras_api import keras

# Quintic steps whose composition takes singular values in (.01, 1] to between .4 and 2.6.
# Fewer than the usual five, each with coefficients of its own (as in You Jiacheng's).
_STEPS = ((8.2872, -23.5959, 17.3004), (4.1070, -2.9478, 0.5448), (3.3184, -2.4885, 0.5100))


def orthogonalize(matrix: tf.Tensor) -> tf.Tensor:
    """The matrix with its singular values moved near 1: float [a, b] to [a, b].

    The steps are polynomials of the matrix's own Gram matrix, so their product is
    taken there, on the shorter side: half the work for a matrix that is long.
    """
    rows, columns = matrix.shape
    tall = rows > columns
    matrix /= tf.norm(matrix) + 1e-7
    gram = tf.matmul(matrix, matrix, transpose_a=tall, transpose_b=not tall)
    product = identity = tf.eye(min(rows, columns), dtype=matrix.dtype)
    for a, b, c in _STEPS:
        factor = a * identity + b * gram + c * tf.matmul(gram, gram)
        product = tf.matmul(factor, product)
        gram = tf.matmul(tf.matmul(factor, gram), factor)
    return tf.matmul(matrix, product) if tall else tf.matmul(product, matrix)


class Muon(keras.optimizers.Optimizer):
    """Muon for matrices and convolution kernels, Adam for biases.

    Args:
      learning_rate: Learning rate of matrices: the size of a step in every
        direction. A float or a schedule.
      momentum: Muon's momentum, with Nesterov's look-ahead.
      adam_ratio: Adam's rate relative to ``learning_rate``.
      beta_1: Adam's decay of the mean gradient.
      beta_2: Adam's decay of the mean squared gradient.
      epsilon: Adam's guard against a division by 0.
      name: The optimizer's name.
    """

    def __init__(
        self,
        learning_rate: float | Callable = 0.04,
        momentum: float = 0.95,
        adam_ratio: float = 0.05,
        beta_1: float = 0.9,
        beta_2: float = 0.999,
        epsilon: float = 1e-8,
        name: str = "muon",
    ):
        super().__init__(name=name)
        self._learning_rate = self._build_learning_rate(learning_rate)
        self.momentum = momentum
        self.adam_ratio = adam_ratio
        self.beta_1 = beta_1
        self.beta_2 = beta_2
        self.epsilon = epsilon

    def build(self, var_list: list[tf.Variable]) -> None:
        """Creates a momentum for each variable and a second moment for each bias."""
        super().build(var_list)
        if getattr(self, "_built", False):
            return
        self._moments = [self.add_variable_from_reference(v, "m") for v in var_list]
        self._squares = [
            self.add_variable_from_reference(v, "v", shape=v.shape if _is_bias(v) else ())
            for v in var_list
        ]
        self._built = True

    def update_step(self, gradient: tf.Tensor, variable: tf.Variable) -> None:
        """Changes one variable."""
        index = self._index_dict[self._var_key(variable)]
        moment, square = self._moments[index], self._squares[index]
        rate = tf.cast(self.learning_rate, variable.dtype)
        if _is_bias(variable):
            step = tf.cast(self.iterations + 1, variable.dtype)
            moment.assign(self.beta_1 * moment + (1 - self.beta_1) * gradient)
            square.assign(self.beta_2 * square + (1 - self.beta_2) * tf.square(gradient))
            mean = moment / (1 - tf.pow(self.beta_1, step))
            deviation = tf.sqrt(square / (1 - tf.pow(self.beta_2, step))) + self.epsilon
            variable.assign_sub(rate * self.adam_ratio * mean / deviation)
            return
        moment.assign(self.momentum * moment + gradient)
        # A convolution's kernel [h, w, in, out] is the matrix of what it does to a patch.
        outputs = variable.shape[-1]
        ahead = tf.reshape(gradient + self.momentum * moment, (-1, outputs))
        scale = max(1.0, outputs / ahead.shape[0]) ** 0.5
        variable.assign_sub(rate * scale * tf.reshape(orthogonalize(ahead), variable.shape))

    def get_config(self) -> dict[str, Any]:
        """The optimizer's parameters, for Keras."""
        return {
            "name": self.name,
            "learning_rate": self._serialize_hyperparameter(self._learning_rate),
            "momentum": self.momentum,
            "adam_ratio": self.adam_ratio,
            "beta_1": self.beta_1,
            "beta_2": self.beta_2,
            "epsilon": self.epsilon,
        }


def _is_bias(variable: tf.Variable) -> bool:
    return len(variable.shape) < 2
