"""Muon moves a matrix at one rate in all directions, and a bias as Adam does."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

from trainer.models.keras_api import keras
from trainer.models.muon import Muon, orthogonalize


def singular_values(matrix) -> np.ndarray:
    return np.linalg.svd(np.asarray(matrix), compute_uv=False)


@pytest.mark.parametrize("shape", [(20, 30), (30, 20), (16, 16)])
def test_singular_values_move_near_one_and_directions_stay(shape) -> None:
    matrix = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    result = orthogonalize(tf.constant(matrix)).numpy()
    assert singular_values(matrix).max() > 5 * singular_values(matrix).min()
    assert singular_values(result).min() > 0.4 and singular_values(result).max() < 2.7
    left, _, right = np.linalg.svd(matrix, full_matrices=False)
    inside = left.T @ result @ right.T
    assert np.abs(inside - np.diag(np.diag(inside))).max() < 1e-3


def test_a_step_is_no_shorter_in_a_weak_direction_than_in_a_strong_one() -> None:
    kernel = tf.Variable(tf.zeros((2, 2)))
    optimizer = Muon(0.1)
    optimizer.apply_gradients([(tf.constant([[100.0, 0.0], [0.0, 10.0]]), kernel)])
    strong, weak = -np.diag(kernel)
    assert 0.04 < strong < 2 * weak < 0.54
    assert np.abs(kernel.numpy() - np.diag(np.diag(kernel))).max() < 1e-3


def test_a_convolution_is_the_matrix_of_a_patch() -> None:
    shape = (3, 3, 2, 4)
    gradient = np.random.default_rng(1).normal(size=shape).astype(np.float32)
    kernel, flat = tf.Variable(tf.zeros(shape)), tf.Variable(tf.zeros((18, 4)))
    Muon(0.1).apply_gradients([(tf.constant(gradient), kernel)])
    Muon(0.1).apply_gradients([(tf.constant(gradient.reshape(18, 4)), flat)])
    np.testing.assert_allclose(kernel.numpy().reshape(18, 4), flat.numpy(), atol=1e-6)


def test_a_bias_follows_adam() -> None:
    ours, theirs = tf.Variable([1.0, -2.0, 3.0]), tf.Variable([1.0, -2.0, 3.0])
    muon = Muon(0.1, adam_ratio=0.5)
    adam = keras.optimizers.Adam(0.05, epsilon=1e-8)
    for gradient in ([1.0, 0.1, -3.0], [0.5, -0.2, 1.0], [2.0, 2.0, 2.0]):
        muon.apply_gradients([(tf.constant(gradient), ours)])
        adam.apply_gradients([(tf.constant(gradient), theirs)])
    np.testing.assert_allclose(ours.numpy(), theirs.numpy(), rtol=1e-4)


def test_a_falling_rate_ends_the_movement() -> None:
    falling = keras.optimizers.schedules.PolynomialDecay(0.1, decay_steps=2, end_learning_rate=0.0)
    kernel = tf.Variable(tf.eye(3))
    optimizer = Muon(falling)
    places = []
    for _ in range(4):
        optimizer.apply_gradients([(tf.eye(3), kernel)])
        places.append(kernel.numpy().copy())
    assert np.abs(places[1] - places[0]).max() > 0.01
    np.testing.assert_array_equal(places[3], places[2])
