"""A training as plain data: the same classes from the configuration to ``run_fn``.

The section ``trainer:`` of a configuration is a :class:`TrainingOptions`. With
the chosen model it crosses to the Trainer in TFX's ``custom_config``, once, and
becomes part of a :class:`TrainingJob`. TensorFlow is not imported.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from typing import Any, Literal

import pydantic

from trainer.models.catalogue import ModelChoice, TrainingDefaults
from trainer.models.checked_values import Count, Fraction, ListOf, PositiveInt, Settings

# The name that a tuner gives the learning rate.
LEARNING_RATE = "learning_rate"

StrategyName = Literal["auto", "mirrored", "multi_worker", "none"]


class TrainingOptions(TrainingDefaults):
    """How to train.

    The first five, epochs to XLA, are the model's own where they are not given.

    Attributes:
      steps_per_execution: Steps a call of the training function.
      mixed_precision: float16 on GPUs, bfloat16 on CPUs.
      strategy: Name of the distribution strategy.
      seed: Seed of weights, noise, permutations and the validation part.
      validation_fraction: Part of the training split that is set aside for
        early stopping and the anomaly threshold.
      patience: Epochs without improvement before stopping; 0 never stops.
      streaming: Read from the files in every epoch instead of memory.
      anomaly_quantile: Share of images like the held-out ones that are to score
        below the threshold above which an image is an anomaly.
    """

    steps_per_execution: PositiveInt = 50
    mixed_precision: bool = False
    strategy: StrategyName = "auto"
    seed: Count = 0
    validation_fraction: Fraction = 0.05
    patience: Count = 10
    streaming: bool = False
    anomaly_quantile: Fraction = 0.99

    @pydantic.model_validator(mode="before")
    @classmethod
    def _null_is_not_given(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        return {
            key: value
            for key, value in values.items()
            if value is not None or key not in TrainingDefaults.model_fields
        }

    def resolved(self, defaults: TrainingDefaults) -> TrainingOptions:
        """These options, with ``defaults`` for what was not given, which is still known after."""
        own = {key: value for key, value in defaults if key not in self.model_fields_set}
        return self.model_construct(self.model_fields_set, **{**dict(self), **own})

    def given(self, name: str) -> Any:
        """The value that was given for an option, or None."""
        return getattr(self, name) if name in self.model_fields_set else None


class TunerOptions(Settings):
    """How to search for better hyper-parameters: so many trials, each of so many epochs."""

    trials: PositiveInt
    epochs: PositiveInt


class _Training(Settings):
    """What is trained, and how; ``facts`` is what else the model's metadata should say."""

    model: ModelChoice
    options: TrainingOptions
    facts: dict[str, Any] = pydantic.Field(default_factory=dict)


class CustomConfig(_Training):
    """What the pipeline says to the Trainer and the Tuner: TFX's ``custom_config``.

    Attributes:
      warm: Options that are others when a training starts from a trained model.
      workers: Who trains, where it is not the Trainer itself: ``launcher``, a
        ``module:function`` that takes the job and this mapping.
      tuner: How to search for better hyper-parameters; for the Tuner only.
    """

    warm: dict[str, Any] = pydantic.Field(default_factory=dict)
    workers: dict[str, Any] | None = None
    tuner: TunerOptions | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values; equal configurations give equal ones."""
        return self.model_dump(mode="json", round_trip=True)

    def job(self, fn_args: Any, *, base_model: str = "", **places: str) -> TrainingJob:
        """The training that TFX's ``fn_args`` ask for, with the places of a TrainingJob."""
        return TrainingJob(
            model=self.model,
            options=self.options.replaced(**self.warm) if base_model else self.options,
            facts=self.facts,
            train_files=fn_args.train_files,
            transform_savedmodel=os.path.join(fn_args.transform_graph_path, "transform_fn"),
            base_model=base_model,
            **places,
        )


class TrainingJob(_Training):
    """A training with all that it needs.

    Attributes:
      train_files: Patterns of the training examples.
      transform_savedmodel: Folder of Transform's graph.
      model_dir: Where the SavedModel goes.
      log_dir: Where TensorBoard logs and ``training.json`` go.
      checkpoint_root: Where checkpoints of interrupted trainings are kept.
      base_model: Folder of the SavedModel to start from; "" starts afresh.
    """

    train_files: ListOf[str]
    transform_savedmodel: str
    model_dir: str
    log_dir: str
    checkpoint_root: str
    base_model: str = ""

    def digest(self) -> str:
        """Tells trainings apart by all that decides their result."""
        places = {"model_dir", "log_dir", "checkpoint_root"}
        values = self.model_dump(mode="json", exclude=places)
        return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:16]

    def tuned(self, values: Mapping[str, Any]) -> TrainingJob:
        """The job with a tuner's learning rate and hyper-parameters in place of its own.

        The latter are JSON, so that a tuple can be one of a tuner's choices.
        """
        chosen = {name: json.loads(v) for name, v in values.items() if name != LEARNING_RATE}
        rate = values.get(LEARNING_RATE, self.options.learning_rate)
        hyperparameters = self.model.hyperparameters.replaced(**chosen)
        return self.replaced(
            model=self.model.replaced(hyperparameters=hyperparameters),
            options=self.options.replaced(learning_rate=rate),
        )

    def to_json(self) -> str:
        """The job as JSON."""
        return self.model_dump_json(round_trip=True)

    @classmethod
    def from_json(cls, text: str) -> TrainingJob:
        """The inverse of :meth:`to_json`."""
        return cls.model_validate_json(text)
