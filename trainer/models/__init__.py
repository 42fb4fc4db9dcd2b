"""The catalogue of autoencoders.

:mod:`~trainer.models.catalogue` says what there is and imports no TensorFlow;
:func:`build_model` makes one. The families live in one file each.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from trainer.models.catalogue import CATALOGUE, ModelChoice, UnknownModelError, get_model_spec
from trainer.models.hyperparameters import Hyperparameters

if TYPE_CHECKING:
    from trainer.models.base import Autoencoder

__all__ = ["CATALOGUE", "ModelChoice", "UnknownModelError", "build_model", "get_model_spec"]


def build_model(
    name: str, hyperparameters: Hyperparameters | None = None, *, seed: int = 0
) -> Autoencoder:
    """Makes an untrained autoencoder with its variables created.

    Args:
      name: A name of the catalogue.
      hyperparameters: As the entry's; the reference form when None.
      seed: Fixes the initial weights and every random draw of the training.

    Returns:
      The model, built for images of float32 [n, 28, 28] in [0, 1].

    Raises:
      UnknownModelError: No such name.
      TypeError: ``hyperparameters`` belong to another model.
    """
    spec = get_model_spec(name)
    if hyperparameters is None:
        hyperparameters = spec.hyperparameters
    if not isinstance(hyperparameters, type(spec.hyperparameters)):
        raise TypeError(
            f"model {name!r} takes {type(spec.hyperparameters).__name__}, "
            f"not {type(hyperparameters).__name__}"
        )
    module_name, class_name = spec.implementation.split(":")
    model_class = getattr(importlib.import_module(module_name), class_name)
    model = model_class(hyperparameters, seed=seed)
    model.build_variables()
    return model
