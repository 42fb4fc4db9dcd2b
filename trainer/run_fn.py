"""The Trainer component's entry point: data, model, strategy, fit, export.

TFX calls :func:`run_fn`, which trains a :class:`~trainer.job.TrainingJob`. A
multi-worker training runs it in processes of its own (``python -m
trainer.run_fn JOB.json``), because TensorFlow wants that strategy made before
anything else.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib
import itertools
import json
import logging
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf

from trainer import data, monitoring, signatures, strategy, warm_start
from trainer.checkpoint import Checkpointer
from trainer.job import CustomConfig, TrainingJob
from trainer.models import build_model
from trainer.models.base import Autoencoder, per_image_mse
from trainer.models.keras_api import keras

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
    elif job.options.strategy == "multi_worker":
        _train_in_own_process(job)
    else:
        train(job)


def train(job: TrainingJob) -> None:
    """Trains and exports; every worker of a multi-worker training calls it."""
    with tempfile.TemporaryDirectory() as scratch:
        chief = strategy.is_chief()
        # Every worker writes its part of a checkpoint; only the chief's counts.
        own = job if chief else job.replaced(checkpoint_root=scratch, log_dir=scratch)
        prepared = _prepare(own)
        fitted = _fit(own, prepared)
        if chief:
            _export(own, prepared, fitted)
            fitted.checkpoints.discard()


def train_only(job: TrainingJob) -> list[dict[str, float]]:
    """Trains without exporting anything.

    Returns:
      The logs of every epoch.
    """
    fitted = _fit(job, _prepare(job))
    fitted.checkpoints.discard()
    return fitted.checkpoints.history


@dataclasses.dataclass(frozen=True)
class _Prepared:
    """A training in its surroundings, ready to be fitted.

    Attributes:
      model: Built under the strategy, perhaps with the weights of another.
      restored: Variables that came from the model to start from.
      batches: Training batches of one replica; see :func:`data.training_batches`
        for the keyword arguments that are left.
      count: Number of training images.
      validation: Images that are set aside.
      preprocess: Transform's graph.
      distribution: The strategy.
    """

    model: Autoencoder
    restored: int
    batches: Callable[..., tf.data.Dataset]
    count: int
    validation: data.Examples
    preprocess: data.Preprocessor
    distribution: tf.distribute.Strategy


def _prepare(job: TrainingJob) -> _Prepared:
    """Data, model and strategy."""
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
    training: data.Examples | data.Stream
    if options.streaming:
        if model.uses_labels:
            raise ValueError(f"trainer.streaming: model {job.model.name!r} looks at labels")
        training, validation = data.open_stream(job.train_files, options.validation_fraction)
        batches = functools.partial(data.streamed_batches, training, preprocess)
    else:
        training, validation = data.split_validation(
            data.read_examples(job.train_files), options.validation_fraction, options.seed
        )
        training, validation = data.hide_labels(
            training, validation, model.hp.label_budget, options.seed
        )
        batches = functools.partial(
            data.training_batches,
            training,
            preprocess,
            labelled_batch_size=model.labelled_batch_size,
        )
    return _Prepared(model, restored, batches, len(training), validation, preprocess, distribution)


@dataclasses.dataclass(frozen=True)
class _Fitted:
    """What a training leaves beside the weights.

    Attributes:
      checkpoints: With the logs of every epoch.
      seconds: How long it took, from the first batch to the last validation.
      epoch_seconds: Seconds by epoch, of those that were trained now.
    """

    checkpoints: Checkpointer
    seconds: float
    epoch_seconds: list[float]


def _fit(job: TrainingJob, prepared: _Prepared) -> _Fitted:
    """Runs the model's phases, from where an interrupted training stood."""
    options, model, distribution = job.options, prepared.model, prepared.distribution
    replicas = distribution.num_replicas_in_sync
    batch_size = min(options.batch_size, max(1, prepared.count // replicas))
    steps = data.steps_per_epoch(prepared.count, batch_size, replicas)
    phases = model.phases(options.epochs)
    if job.base_model:
        # What comes before the model as a whole is trained is in its weights already.
        phases = tuple(itertools.dropwhile(lambda phase: not phase.main, phases))
    checkpoints = Checkpointer(
        os.path.join(job.checkpoint_root, job.digest()),
        monitor=model.monitor,
        patience=options.patience,
    )
    checkpoints.set_model(model)
    checkpoints.restore_progress()
    validation = data.evaluation_batches(prepared.validation, prepared.preprocess)
    pictures = next(iter(validation))[0]
    started = time.monotonic()
    epoch_seconds: list[float] = []
    for index in range(checkpoints.phase, len(phases)):
        phase = phases[index]
        with distribution.scope():
            model.begin_phase(phase)
            model.configure(
                options,
                total_steps=steps * phase.epochs,
                steps_per_execution=min(options.steps_per_execution, steps),
            )
            checkpoints.begin_phase(index, last=index == len(phases) - 1)
        if checkpoints.epoch == phase.epochs or checkpoints.stopped:
            # The training was interrupted at the very end of the phase.
            checkpoints.on_train_end()
            continue
        # Epochs are counted through all phases: each has its own permutation.
        before = sum(earlier.epochs for earlier in phases[:index])
        batches = functools.partial(
            prepared.batches,
            batch_size=batch_size,
            seed=options.seed,
            first_epoch=before + checkpoints.epoch,
            epochs=before + phase.epochs,
        )
        progress = monitoring.ProgressLog(phase.epochs, steps)
        log_dir = os.path.join(job.log_dir, phase.name)
        model.fit(
            distribution.distribute_datasets_from_function(
                lambda context, batches=batches: batches(context=context)
            ),
            epochs=phase.epochs,
            initial_epoch=checkpoints.epoch,
            steps_per_epoch=steps,
            validation_data=validation,
            callbacks=[
                checkpoints,
                progress,
                monitoring.tensorboard(log_dir),
                monitoring.Pictures(os.path.join(log_dir, "pictures"), pictures),
            ],
            verbose=0,
        )
        epoch_seconds += progress.epoch_seconds
    return _Fitted(checkpoints, time.monotonic() - started, epoch_seconds)


def _export(job: TrainingJob, prepared: _Prepared, fitted: _Fitted) -> None:
    """Writes the SavedModel and ``training.json``."""
    options, history = job.options, fitted.checkpoints.history
    # A model of its own, outside the strategy: plain variables, nothing left of
    # the training.
    strategy.set_precision(False)
    model = build_model(job.model.name, job.model.hyperparameters, seed=options.seed)
    model.set_weights(prepared.model.get_weights())
    threshold = anomaly_threshold(
        model, prepared.validation, prepared.preprocess, options.anomaly_quantile
    )
    facts = {
        **job.facts,
        "training": options.model_dump(),
        "training_images": prepared.count,
        "validation_images": len(prepared.validation),
    }
    if job.base_model:
        facts["warm_start"] = {"model": job.base_model, "restored": prepared.restored}
    served = signatures.ServedAutoencoder(model, prepared.preprocess, threshold)
    signatures.export(served, job.model.spec, job.model_dir, facts=facts)
    warm_start.save(model, job.model.name, job.model_dir)
    summary = {
        "seconds": fitted.seconds,
        "epoch_seconds": fitted.epoch_seconds,
        "epochs": len(history),
        "history": history,
        "anomaly_threshold": threshold,
        **facts,
    }
    with tf.io.gfile.GFile(os.path.join(job.log_dir, TRAINING_FILE), "w") as f:
        json.dump(summary, f, indent=2)


def anomaly_threshold(
    model: Autoencoder, validation: data.Examples, preprocess: data.Preprocessor, quantile: float
) -> float:
    """The ``quantile`` of the reconstruction errors of held-out training images."""
    error = tf.function(lambda images: per_image_mse(images, model(images)), autograph=False)
    batches = data.evaluation_batches(validation, preprocess)
    errors = np.concatenate([error(images).numpy() for images, _ in batches])
    return float(np.quantile(errors, quantile))


def _train_in_own_process(job: TrainingJob) -> None:
    """Trains as one worker of several; ``TF_CONFIG`` says which."""
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
