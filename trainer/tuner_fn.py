"""The Tuner component's entry point: KerasTuner over a model's search space.

Every trial is a training like the Trainer's, without export, judged by the best
validation MSE of its epochs. The values that win reach the Trainer as TFX's
HyperParameters artifact.
"""

from __future__ import annotations

import json
import os
from typing import Any, NamedTuple

import keras_tuner

from trainer import run_fn, warm_start
from trainer.job import LEARNING_RATE, CustomConfig, TrainingJob

# Times the catalogue's learning rate.
_RATE_RANGE = (0.3, 3.0)
_OBJECTIVE = "val_mse"


class TunerFnResult(NamedTuple):
    """What TFX's Tuner wants back; as ``tfx.components.tuner``'s own."""

    tuner: keras_tuner.Tuner
    fit_kwargs: dict[str, Any]


class TrainingTuner(keras_tuner.Tuner):
    """Random search whose trials are training jobs.

    KerasTuner's own trials build Keras 3 models; overriding ``run_trial`` keeps
    it to what it is good at, choosing and remembering.
    """

    def __init__(self, job: TrainingJob, trials: int, directory: str):
        """Makes the tuner.

        Args:
          job: What a trial starts from.
          trials: How many to run.
          directory: Where KerasTuner keeps its books.
        """
        self._job = job
        super().__init__(
            oracle=keras_tuner.oracles.RandomSearchOracle(
                objective=keras_tuner.Objective(_OBJECTIVE, "min"),
                max_trials=trials,
                hyperparameters=search_space(job),
                allow_new_entries=False,
                tune_new_entries=False,
                seed=job.options.seed,
            ),
            directory=directory,
            project_name=job.model.name,
            overwrite=True,
        )

    def run_trial(self, trial: Any, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Trains with the trial's values and returns the best validation MSE."""
        place = os.path.join(self._job.log_dir, trial.trial_id)
        job = self._job.tuned(trial.hyperparameters.values)
        job = job.replaced(log_dir=place, checkpoint_root=place)
        return {_OBJECTIVE: min(epoch["val_mse"] for epoch in run_fn.train_only(job))}

    def load_model(self, trial: Any) -> None:
        """Nothing is kept of a trial but its values."""
        raise NotImplementedError("trials keep no models; train with the best values")


def search_space(job: TrainingJob) -> keras_tuner.HyperParameters:
    """The model's declared choices, and the learning rate around its default.

    Choices are JSON, so that a tuple can be one. A training that starts from a
    trained model keeps its architecture: only the learning rate is searched.
    """
    space = keras_tuner.HyperParameters()
    if not job.base_model:
        for name, values in job.model.spec.search_space.items():
            space.Choice(name, [json.dumps(value) for value in values])
    low, high = (factor * job.options.learning_rate for factor in _RATE_RANGE)
    space.Float(LEARNING_RATE, low, high, sampling="log", default=job.options.learning_rate)
    return space


def tuner_fn(fn_args: Any) -> TunerFnResult:
    """Called by TFX's Tuner.

    Args:
      fn_args: TFX's ``FnArgs``; ``custom_config`` is a :class:`CustomConfig` with
        ``tuner``.
    """
    config = CustomConfig.model_validate(fn_args.custom_config)
    assert config.tuner is not None
    job = config.job(
        fn_args,
        model_dir="",
        log_dir=os.path.join(fn_args.working_dir, "trials"),
        checkpoint_root="",
        base_model=fn_args.base_model or "",
    )
    job = warm_start.with_trained_form(job)
    job = job.replaced(options=job.options.replaced(epochs=config.tuner.epochs), facts={})
    return TunerFnResult(TrainingTuner(job, config.tuner.trials, fn_args.working_dir), {})
