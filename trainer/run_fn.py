"""The Trainer component's entry point: data, model, strategy, fit, export.

:func:`run_fn` is called by TFX. A :class:`TrainingJob` holds all it needs, as
plain data: its digest names the checkpoints, and a multi-worker training runs
it in processes of its own (``python -m trainer.run_fn JOB.json``), because
TensorFlow wants that strategy made before anything else.
"""

from __future__ import annotations

import dataclasses
import importlib
import itertools
import json
import logging
import os
import subprocess
import sys
import tempfile
import time
from typing import Any

import numpy as np
import tensorflow as tf

from trainer import data, monitoring, signatures, strategy, warm_start
from trainer.checkpoint import Checkpointer
from trainer.job import MULTI_WORKER, CustomConfig, TrainingJob
from trainer.models import build_model
from trainer.models.base import Autoencoder, per_image_mse
from trainer.models.keras_api import keras

_logger = logging.getLogger(__name__)

TRAINING_FILE = "training.json"


def run_fn(fn_args: Any) -> None:
    """Trains and exports the selected autoencoder.

    Args:
      fn_args: TFX's ``FnArgs``; ``custom_config`` is a :class:`CustomConfig`.
    """
    config = CustomConfig.model_validate(fn_args.custom_config)
    output_root = os.path.dirname(os.path.dirname(fn_args.model_run_dir.rstrip("/")))
    job = config.job(
        fn_args,
        base_model=fn_args.base_model or "",
        model_dir=fn_args.serving_model_dir,
        log_dir=fn_args.model_run_dir,
        checkpoint_root=os.path.join(output_root, "checkpoints"),
    )
    if fn_args.hyperparameters:
        job = warm_start.with_trained_form(job).tuned(fn_args.hyperparameters["values"])
    if config.workers:
        module, _, function = config.workers["launcher"].partition(":")
        getattr(importlib.import_module(module), function)(job, config.workers)
    elif job.options.strategy == MULTI_WORKER:
        _train_in_own_process(job)
    else:
        train(job)


@dataclasses.dataclass
class _Session:
    """A training in its surroundings, ready to be fitted."""

    model: Autoencoder
    training: data.Examples | data.Stream
    validation: data.Examples
    preprocess: data.Preprocessor
    distribution: tf.distribute.Strategy
    restored: int = 0


def _prepare(job: TrainingJob) -> _Session:
    options = job.options
    distribution = strategy.make_strategy(options.strategy)
    strategy.set_precision(options.mixed_precision)
    keras.utils.set_random_seed(options.seed)
    preprocess = data.Preprocessor(job.transform_savedmodel)
    with distribution.scope():
        model = build_model(job.model.name, job.model.hyperparameters, seed=options.seed)
        restored = 0
        if job.base_model:
            restored = warm_start.restore(model, job.model.name, job.base_model)
    training, validation = _load(job, model)
    return _Session(model, training, validation, preprocess, distribution, restored)


def _load(
    job: TrainingJob, model: Autoencoder
) -> tuple[data.Examples | data.Stream, data.Examples]:
    """Training and validation examples, with the labels that the model may see."""
    options = job.options
    if options.streaming:
        if model.uses_labels:
            raise ValueError(f"trainer.streaming: model {job.model.name!r} looks at labels")
        return data.open_stream(job.train_files, options.validation_fraction)
    training, validation = data.split_validation(
        data.read_examples(job.train_files), options.validation_fraction, options.seed
    )
    return _visible_labels(model, training, options.seed), validation


def _checkpointer(job: TrainingJob, model: Autoencoder, root: str) -> Checkpointer:
    return Checkpointer(
        os.path.join(root, job.digest()),
        monitor=model.monitor,
        patience=job.options.patience,
    )


def train_only(job: TrainingJob) -> list[dict[str, float]]:
    """Trains without exporting anything.

    Returns:
      The logs of every epoch.
    """
    session = _prepare(job)
    checkpointer = _checkpointer(job, session.model, job.checkpoint_root)
    _fit(session, job, checkpointer, log_dir=job.log_dir)
    checkpointer.discard()
    return checkpointer.history


def train(job: TrainingJob) -> None:
    """Trains and exports; every worker of a multi-worker training calls it."""
    session = _prepare(job)
    chief = strategy.is_chief()
    with tempfile.TemporaryDirectory() as scratch:
        # Every worker writes its share of a checkpoint; only the chief's counts.
        checkpointer = _checkpointer(job, session.model, job.checkpoint_root if chief else scratch)
        started = time.monotonic()
        epoch_seconds = _fit(session, job, checkpointer, log_dir=job.log_dir if chief else scratch)
        seconds = time.monotonic() - started
    if chief:
        timing = {"seconds": seconds, "epoch_seconds": epoch_seconds}
        _export(job, session, checkpointer.history, timing)
        checkpointer.discard()


def _export(
    job: TrainingJob,
    session: _Session,
    history: list[dict[str, float]],
    timing: dict[str, Any],
) -> None:
    """Writes the SavedModel and ``training.json``."""
    options = job.options
    # A model of its own, outside the strategy: plain variables, nothing left of
    # the training.
    strategy.set_precision(False)
    model = build_model(job.model.name, job.model.hyperparameters, seed=options.seed)
    model.set_weights(session.model.get_weights())
    threshold = anomaly_threshold(
        model, session.validation, session.preprocess, options.anomaly_quantile
    )
    facts = {
        **job.facts,
        "training": options.model_dump(),
        "training_images": len(session.training),
        "validation_images": len(session.validation),
    }
    if job.base_model:
        facts["warm_start"] = {"model": job.base_model, "restored": session.restored}
    served = signatures.ServedAutoencoder(model, session.preprocess, threshold)
    signatures.export(served, job.model.spec, job.model_dir, facts=facts)
    warm_start.save(model, job.model.name, job.model_dir)
    summary = {
        **timing,
        "epochs": len(history),
        "history": history,
        "anomaly_threshold": threshold,
        **facts,
    }
    with tf.io.gfile.GFile(os.path.join(job.log_dir, TRAINING_FILE), "w") as f:
        json.dump(summary, f, indent=2)


def _fit(
    session: _Session, job: TrainingJob, checkpointer: Checkpointer, *, log_dir: str
) -> list[float]:
    """Runs the model's phases, from where an interrupted training stood.

    Returns:
      Seconds by epoch, of those that were trained now.
    """
    options = job.options
    model, distribution = session.model, session.distribution
    training, validation, preprocess = session.training, session.validation, session.preprocess
    replicas = distribution.num_replicas_in_sync
    batch_size = min(options.batch_size, max(1, len(training) // replicas))
    steps = data.steps_per_epoch(len(training), batch_size, replicas)
    phases = model.phases(options.epochs)
    if job.base_model:
        # What comes before the model as a whole is trained is in its weights already.
        phases = tuple(itertools.dropwhile(lambda phase: not phase.main, phases))
    pictures = next(iter(data.evaluation_batches(validation, preprocess)))[0]
    checkpointer.set_model(model)
    checkpointer.restore_progress()
    done = sum(phase.epochs for phase in phases[: checkpointer.phase])
    seconds: list[float] = []
    for index in range(checkpointer.phase, len(phases)):
        phase = phases[index]
        with distribution.scope():
            model.begin_phase(phase)
            model.configure(
                options,
                total_steps=steps * phase.epochs,
                steps_per_execution=min(options.steps_per_execution, steps),
            )
            checkpointer.begin_phase(index, last=index == len(phases) - 1)
        first = checkpointer.epoch

        def batches(context, first=first, done=done, epochs=phase.epochs):
            arguments = {
                "batch_size": batch_size,
                "seed": options.seed,
                "first_epoch": done + first,
                "epochs": done + epochs,
                "context": context,
            }
            if isinstance(training, data.Stream):
                return data.streamed_batches(training, preprocess, **arguments)
            return data.training_batches(
                training,
                preprocess,
                labelled_batch_size=model.labelled_batch_size,
                **arguments,
            )

        progress = monitoring.Progress(phase.epochs, steps)
        callbacks = [
            checkpointer,
            progress,
            monitoring.tensorboard(os.path.join(log_dir, phase.name)),
            monitoring.Pictures(os.path.join(log_dir, phase.name, "pictures"), pictures),
        ]
        if first < phase.epochs and not checkpointer.stopped:
            model.fit(
                distribution.distribute_datasets_from_function(batches),
                epochs=phase.epochs,
                initial_epoch=first,
                steps_per_epoch=steps,
                validation_data=data.evaluation_batches(validation, preprocess),
                callbacks=callbacks,
                verbose=0,
            )
        else:
            checkpointer.on_train_end()
        done += phase.epochs
        seconds += progress.epoch_seconds
    return seconds


def anomaly_threshold(
    model: Autoencoder, validation: data.Examples, preprocess: data.Preprocessor, quantile: float
) -> float:
    """The ``quantile`` of the reconstruction errors of held-out training images."""
    error = tf.function(lambda images: per_image_mse(images, model(images)), autograph=False)
    batches = data.evaluation_batches(validation, preprocess)
    errors = np.concatenate([error(images).numpy() for images, _ in batches])
    return float(np.quantile(errors, quantile))


def _visible_labels(model: Autoencoder, examples: data.Examples, seed: int) -> data.Examples:
    """Hides from the model what it must not see."""
    if not model.uses_labels:
        return examples.without_labels()
    if model.hp.label_budget is None:
        return examples
    return examples.with_labels(data.mask_labels(examples.labels, model.hp.label_budget, seed))


def _train_in_own_process(job: TrainingJob) -> None:
    with tempfile.NamedTemporaryFile("w", suffix=".json") as f:
        f.write(job.to_json())
        f.flush()
        result = subprocess.run([sys.executable, "-m", "trainer.run_fn", f.name], check=False)
    if result.returncode:
        raise RuntimeError(
            f"the multi-worker training failed (exit code {result.returncode}); its log is above"
        )


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO)
    with tf.io.gfile.GFile(sys.argv[1]) as job_file:
        train(TrainingJob.from_json(job_file.read()))
