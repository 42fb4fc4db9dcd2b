"""Warm start: the variables of a trained model as the start of another training.

A SavedModel cannot be asked for the variables of the Keras model that it came
from, so every training leaves them beside it, in the same artifact:
``<model>/Format-Weights/weights.npz``, numbered in the model's own order.
"""

from __future__ import annotations

import io
import json
import logging
import os

import numpy as np
import tensorflow as tf

from serving import contract
from serving.errors import Error
from trainer.job import TrainingJob
from trainer.models.base import Autoencoder

_logger = logging.getLogger(__name__)

_FOLDER = "Format-Weights"
_FILE = "weights.npz"
_MODEL = "model"


class WarmStartError(Error):
    """The base model is of another architecture, or has no weights beside it."""

    exit_code = 2


def weights_path(model_dir: str) -> str:
    """Where the weights of the SavedModel in ``<artifact>/Format-Serving`` are."""
    return os.path.join(os.path.dirname(model_dir.rstrip("/")), _FOLDER, _FILE)


def save(model: Autoencoder, name: str, model_dir: str) -> None:
    """Writes the variables of a model, called ``name`` in the catalogue, beside its SavedModel."""
    arrays = {f"{i:04d}": value for i, value in enumerate(model.get_weights())}
    buffer = io.BytesIO()
    np.savez(buffer, **{_MODEL: np.array(json.dumps(name))}, **arrays)
    path = weights_path(model_dir)
    tf.io.gfile.makedirs(os.path.dirname(path))
    with tf.io.gfile.GFile(path, "wb") as f:
        f.write(buffer.getvalue())


def with_trained_form(job: TrainingJob) -> TrainingJob:
    """The job with what a tuner had chosen for the model that the training starts from.

    Without it, the first training after a tuned one would find another
    architecture than the configuration's. A job that starts afresh, or from
    another model, stays as it is.
    """
    if not job.base_model:
        return job
    with tf.io.gfile.GFile(os.path.join(job.base_model, contract.METADATA_FILE)) as f:
        metadata = json.load(f)
    if metadata["name"] != job.model.name:
        return job
    tuned = {name: metadata["hyperparameters"][name] for name in job.model.spec.search_space}
    hyperparameters = job.model.hyperparameters.replaced(**tuned)
    return job.replaced(model=job.model.replaced(hyperparameters=hyperparameters))


def restore(model: Autoencoder, name: str, base_model_dir: str) -> int:
    """Gives a new model, called ``name`` in the catalogue, the variables of a trained SavedModel.

    Returns:
      How many variables were restored: all there are.

    Raises:
      WarmStartError: Another model or other shapes; nothing was restored.
    """
    path = weights_path(base_model_dir)
    advice = "start without it: --cold"
    if not tf.io.gfile.exists(path):
        raise WarmStartError(f"warm start: {path} is missing; {advice}")
    with tf.io.gfile.GFile(path, "rb") as f, np.load(io.BytesIO(f.read())) as saved:
        trained = json.loads(str(saved[_MODEL]))
        values = [saved[key] for key in sorted(saved.files) if key != _MODEL]
    if trained != name:
        raise WarmStartError(
            f"warm start: the model to start from is {trained!r}, not {name!r}; {advice}"
        )
    if [value.shape for value in values] != [tuple(v.shape) for v in model.weights]:
        raise WarmStartError(
            f"warm start: the variables in {path} are of other shapes than the model {name!r}: "
            f"its hyper-parameters changed; {advice}"
        )
    model.set_weights(values)
    numbers = sum(value.size for value in values)
    restored = f"{len(values)} of {len(values)} variables ({numbers:,} numbers)"
    _logger.info("warm start: restored %s from %s", restored, base_model_dir)
    return len(values)
