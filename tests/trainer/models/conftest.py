"""Real digits and briefly trained models, made once a session."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import pytest

from trainer.models import CATALOGUE, build_model
from trainer.models.base import Autoencoder
from trainer.models.catalogue import TrainingDefaults

LABELLED = 500
BATCH = 100


# Seconds of training each; a quicker one of their kind is left to every run of the tests.
LONG = "conv_mse conv_denoising conv_vae supervised_aae semi_supervised_aae lstm".split()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Leaves the models that take long to the slow tests, where they are trained."""
    for item in items:
        name = getattr(item, "callspec", None) and item.callspec.params.get("name")
        if name in LONG and {"trained", "fit"} & set(item.fixturenames):
            item.add_marker(pytest.mark.slow)


class Digits(NamedTuple):
    """Images float32 [n, 28, 28] in [0, 1] and labels int64 [n], for training and test."""

    images: np.ndarray
    labels: np.ndarray
    test_images: np.ndarray
    test_labels: np.ndarray


@pytest.fixture(scope="session")
def digits(digits) -> Digits:
    """The digits of all other tests as floats, shuffled, the last 1,000 for testing."""
    pixels, labels = (np.concatenate(arrays) for arrays in zip(*digits.values()))
    order = np.random.default_rng(0).permutation(len(labels))
    images = (pixels[order] / 255).astype(np.float32)
    labels = labels[order].astype(np.int64)
    return Digits(images[:-1_000], labels[:-1_000], images[-1_000:], labels[-1_000:])


def _batches(model: Autoencoder, digits: Digits, steps: int):
    """``steps`` batches as the Trainer makes them: labelled images at the end, if any.

    Labels are hidden as the Trainer hides them: all of them from a model that
    does not use them, all but 500 where only some are to be known.
    """
    import tensorflow as tf

    rng = np.random.default_rng(model.seed)
    labels = digits.labels.copy()
    appended = model.labelled_batch_size
    if not model.uses_labels:
        labels[:] = -1
    elif appended:
        labels[LABELLED:] = -1
    rows = rng.integers(0, len(labels), (steps, BATCH))
    known = rng.integers(0, LABELLED, (steps, appended))
    rows = np.concatenate([rows, known], axis=1).astype(np.int64)

    def batch(chosen: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        return tf.gather(digits.images, chosen), tf.gather(labels, chosen)

    return tf.data.Dataset.from_tensor_slices(rows).map(batch)


def _fit(model: Autoencoder, digits: Digits, steps: int, *, haste: float = 1.0) -> Autoencoder:
    """Trains every phase for ``steps`` optimizer steps at the catalogue's rate."""
    name = next(
        spec.name
        for spec in CATALOGUE.values()
        if model.hp == spec.hyperparameters
        and type(model).__name__ == spec.implementation.split(":")[1]
    )
    rate = CATALOGUE[name].training.learning_rate
    if rate == TrainingDefaults().learning_rate:
        rate *= haste
    for phase in model.phases(1):
        model.begin_phase(phase)
        model.configure(
            TrainingDefaults(learning_rate=rate, xla=False),
            total_steps=steps,
            steps_per_execution=10,
        )
        model.fit(_batches(model, digits, steps), epochs=1, verbose=0)
    return model


@pytest.fixture(scope="session")
def batches():
    """The function :func:`_batches`."""
    return _batches


@pytest.fixture(scope="session")
def fit():
    """The function :func:`_fit`."""
    return _fit


# Enough for each to learn something that a broken model cannot, and no more.
STEPS = {
    "best": 80,
    "lstm": 400,
    "denoising": 60,
    "mlp_2d": 120,
    "aae": 120,
    "supervised_aae": 100,
    "semi_supervised_aae": 80,
    "stacked": 100,
}
# Faster than a whole training bears, where the catalogue's rate is Keras's.
HASTE = 3


@pytest.fixture(scope="session")
def trained(digits: Digits) -> Callable[[str], Autoencoder]:
    """Gives a model by name, trained for some seconds the first time it is asked for."""

    @functools.cache
    def get(name: str) -> Autoencoder:
        return _fit(build_model(name, seed=3), digits, STEPS.get(name, 200), haste=HASTE)

    return get
