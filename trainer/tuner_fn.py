"""The Tuner component's entry point: KerasTuner over a model's search space.

Every trial is a training like the Trainer's, without export, in a process of
its own, judged by the best validation MSE of its epochs; there are as many at a
time as there are GPUs. Workers on other machines take no part. The values that
win reach the Trainer as TFX's HyperParameters artifact.
"""

from __future__ import annotations

import concurrent.futures
import itertools
import json
import os
from collections.abc import Iterator, Mapping
from typing import Any

import keras_tuner
from keras_tuner.engine.base_tuner import BaseTuner
from keras_tuner.engine.trial import TrialStatus
from tfx.components.tuner.component import TunerFnResult

from trainer import processes, run_fn, warm_start
from trainer.job import LEARNING_RATE, CustomConfig, TrainingJob
from trainer.processes import TrainingError

# Times the catalogue's learning rate.
_RATE_RANGE = (0.3, 3.0)
_OBJECTIVE = "val_mse"


class TrainingTuner(BaseTuner):
    """Random search whose trials are training jobs.

    KerasTuner's own trials build Keras 3 models; overriding ``search`` keeps it to
    what it is good at, choosing and remembering. It keeps no models.

    Attributes:
      job: What a trial starts from.
    """

    def __init__(self, job: TrainingJob, trials: int, directory: str):
        """Makes a tuner of so many trials; KerasTuner keeps its books in ``directory``."""
        self.job = job
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

    def search(self, *args: Any, **kwargs: Any) -> None:
        """Runs all trials, as many at a time as there are GPUs."""
        shares = processes.shares()
        with concurrent.futures.ThreadPoolExecutor(len(shares)) as pool:
            while trials := list(itertools.islice(self._trials(), len(shares))):
                errors = pool.map(self._try, trials, shares)
                # KerasTuner's oracle is for one thread.
                for trial, error in zip(trials, errors):
                    if error is None:
                        best = min(epoch["val_mse"] for epoch in run_fn.history(self._job(trial)))
                        self.oracle.update_trial(trial.trial_id, {_OBJECTIVE: best})
                        trial.status = TrialStatus.COMPLETED
                    else:
                        trial.status, trial.message = TrialStatus.INVALID, str(error)
                    self.on_trial_end(trial)

    def _trials(self) -> Iterator[Any]:
        for number in itertools.count():
            # Whoever asks under the same name is given the same trial until it has ended.
            trial = self.oracle.create_trial(f"{self.tuner_id}-{number}")
            if trial.status == TrialStatus.STOPPED:
                return
            yield trial

    def _job(self, trial: Any) -> TrainingJob:
        place = os.path.join(self.job.log_dir, trial.trial_id)
        job = self.job.tuned(trial.hyperparameters.values)
        return job.replaced(log_dir=place, checkpoint_root=place)

    def _try(self, trial: Any, devices: Mapping[str, str]) -> TrainingError | None:
        try:
            processes.run(self._job(trial), [{**devices, "TF_CONFIG": ""}])
        except TrainingError as error:
            return error
        return None


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
    """Called by TFX's Tuner, whose ``custom_config`` is a :class:`CustomConfig` with ``tuner``."""
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
    options = job.options.replaced(epochs=config.tuner.epochs)
    if options.strategy == "multi_worker":
        options = options.replaced(strategy="auto")
    job = job.replaced(options=options, facts={})
    return TunerFnResult(TrainingTuner(job, config.tuner.trials, fn_args.working_dir), {})
