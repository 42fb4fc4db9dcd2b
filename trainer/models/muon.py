"""Muon: momentum whose update is made orthogonal (Jordan et al. 2024).

A gradient of a weight matrix is dominated by a few directions; Muon replaces
the update by the nearest orthogonal matrix, so that all directions move at the
same rate. A few Newton-Schulz iterations, matrix products only, do that
without a decomposition.
"""

from __future__ import annotations

from collections.abc import Callable

import tensorflow as tf

from trainer.models.keras_api import keras

# Quintic steps whose composition takes singular values in (.01, 1] to between .4 and 2.6.
# Fewer than the usual five, each with coefficients of its own (as in You Jiacheng's).
_STEPS = ((8.2872, -23.5959, 17.3004), (4.1070, -2.9478, 0.5448), (3.3184, -2.4885, 0.5100))

# Muon's, with Nesterov's look-ahead; Adam's as usual.
_MOMENTUM = 0.95
_BETA_1, _BETA_2, _EPSILON = 0.9, 0.999, 1e-8


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
      adam_ratio: Adam's rate relative to ``learning_rate``.
    """

    def __init__(self, learning_rate: float | Callable, adam_ratio: float = 0.05):
        super().__init__(name="muon")
        self._learning_rate = self._build_learning_rate(learning_rate)
        self.adam_ratio = adam_ratio

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
            moment.assign(_BETA_1 * moment + (1 - _BETA_1) * gradient)
            square.assign(_BETA_2 * square + (1 - _BETA_2) * tf.square(gradient))
            mean = moment / (1 - tf.pow(_BETA_1, step))
            deviation = tf.sqrt(square / (1 - tf.pow(_BETA_2, step))) + _EPSILON
            variable.assign_sub(rate * self.adam_ratio * mean / deviation)
            return
        moment.assign(_MOMENTUM * moment + gradient)
        # A convolution's kernel [h, w, in, out] is the matrix of what it does to a patch.
        outputs = variable.shape[-1]
        ahead = tf.reshape(gradient + _MOMENTUM * moment, (-1, outputs))
        scale = max(1.0, outputs / ahead.shape[0]) ** 0.5
        variable.assign_sub(rate * scale * tf.reshape(orthogonalize(ahead), variable.shape))


def _is_bias(variable: tf.Variable) -> bool:
    return len(variable.shape) < 2
