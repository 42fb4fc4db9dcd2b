"""The Trainer component's entry point: data, model, strategy, fit, export.

TFX calls :func:`run_fn`, which trains a :class:`~trainer.job.TrainingJob`. A
training of several workers runs in processes of their own, of which this module
is the main program::

    python -m trainer.run_fn [JOB.json [REASON]]

``TF_CONFIG`` says which worker it is. Only the chief needs the job; it tells the
others. Why it failed is the last line on stderr, and what the file REASON holds.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib
import itertools
import json
import logging
import os
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import tensorflow as tf

from serving import quiet
from serving.errors import Error
from trainer import anomaly_score, data, monitoring, processes, signatures, strategy, warm_start
from trainer.checkpoint import Checkpointer
from trainer.job import CustomConfig, TrainingJob
from trainer.models import build_model
from trainer.models.base import Autoencoder
from trainer.models.keras_api import keras

_logger = logging.getLogger(__name__)

TRAINING_FILE = "training.json"
# Images that are encoded at once for the anomaly score.
_FITTED_BATCH = 1_000
# What TensorFlow raises where another worker died, hangs or was started anew.
_LOST = (
    tf.errors.AbortedError,
    tf.errors.CancelledError,
    tf.errors.DeadlineExceededError,
    tf.errors.FailedPreconditionError,
    tf.errors.InternalError,
    tf.errors.UnavailableError,
)


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
        processes.run(job)
    else:
        train(job)


def train(job: TrainingJob | None) -> None:
    """Trains and exports; every worker of a multi-worker training calls it.

    Args:
      job: Of the chief, the other workers' does not matter. Without a
        ``model_dir``, nothing is left of it but ``training.json``.
    """
    distribution = strategy.make_strategy(job.options.strategy if job else "multi_worker")
    own = job.to_json().encode() if job else b""
    job = TrainingJob.from_json(strategy.of_chief(distribution, own).decode())
    prepared = _prepare(job, distribution)
    fitted = _fit(job, prepared)
    if strategy.is_chief():
        exported = _export(job, prepared) if job.model_dir else {}
        _summarize(job, fitted, exported)
        fitted.checkpoints.discard()
    # No worker says that all is well before the model is there.
    strategy.of_chief(distribution, b"")


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


def _prepare(job: TrainingJob, distribution: tf.distribute.Strategy) -> _Prepared:
    """Data and model."""
    options = job.options
    strategy.set_precision(options.mixed_precision)
    keras.utils.set_random_seed(options.seed)
    preprocess = data.Preprocessor(job.transform_savedmodel)
    replicas = distribution.num_replicas_in_sync
    with distribution.scope():
        model = build_model(job.model.name, job.model.hyperparameters, seed=options.seed)
        model.labelled_batch_size = -(-model.labelled_batch_size // replicas)
        restored = 0
        if job.base_model:
            restored = warm_start.restore(model, job.model.name, job.base_model)
    training: data.Examples | data.Stream
    fraction, budget = options.validation_fraction, model.hp.label_budget
    if options.streaming:
        training, validation = data.open_stream(job.train_files, fraction, budget, options.seed)
    else:
        training, validation = data.split_validation(
            data.read_examples(job.train_files), fraction, options.seed
        )
        training, validation = data.hide_labels(training, validation, budget, options.seed)
    batches = functools.partial(data.training_batches, training, preprocess)
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
    # A training takes the same steps on any number of replicas: with more images a
    # step it would take fewer, and no learning rate makes up for that (docs/configuration.md).
    batch_size = max(1, options.batch_for(prepared.count) // replicas)
    steps = data.steps_per_epoch(prepared.count, batch_size, replicas)
    phases = model.phases(options.epochs)
    if job.base_model:
        # What comes before the model as a whole is trained is in its weights already.
        phases = tuple(itertools.dropwhile(lambda phase: not phase.main, phases))
    checkpoints = Checkpointer(
        # Another number of replicas takes other steps: it starts anew.
        os.path.join(job.checkpoint_root, f"{job.digest()}-{replicas}.npz"),
        monitor=model.monitor,
        patience=options.patience,
    )
    checkpoints.set_model(model)
    checkpoints.restore_progress(distribution)
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
            labelled_batch_size=model.labelled_batch_size,
            seed=options.seed,
            first_epoch=before + checkpoints.epoch,
            epochs=before + phase.epochs,
        )
        progress = monitoring.ProgressLog(phase.epochs, steps)
        callbacks = [checkpoints, progress]
        if strategy.is_chief():
            log_dir = os.path.join(job.log_dir, phase.name)
            callbacks += [
                monitoring.tensorboard(log_dir),
                monitoring.Pictures(os.path.join(log_dir, "pictures"), pictures),
            ]
        model.fit(
            distribution.distribute_datasets_from_function(
                lambda context, batches=batches: batches(context=context)
            ),
            epochs=phase.epochs,
            initial_epoch=checkpoints.epoch,
            steps_per_epoch=steps,
            validation_data=validation,
            callbacks=callbacks,
            verbose=0,
        )
        epoch_seconds += progress.epoch_seconds
    return _Fitted(checkpoints, time.monotonic() - started, epoch_seconds)


def _export(job: TrainingJob, prepared: _Prepared) -> dict[str, Any]:
    """Writes the SavedModel and returns what its metadata say beyond its form."""
    options = job.options
    # A model of its own, outside the strategy: plain variables, nothing left of
    # the training.
    strategy.set_precision(False)
    model = build_model(job.model.name, job.model.hyperparameters, seed=options.seed)
    model.set_weights(prepared.model.get_weights())
    batch_size = min(_FITTED_BATCH, prepared.count)
    training = prepared.batches(
        batch_size=batch_size,
        seed=options.seed,
        first_epoch=0,
        epochs=1,
        context=tf.distribute.InputContext(),
    )
    score = anomaly_score.fit(
        model, training.take(anomaly_score.SAMPLE // batch_size), seed=options.seed
    )
    threshold = anomaly_score.threshold(
        score, model, prepared.validation, prepared.preprocess, options.anomaly_quantile
    )
    facts = {
        **job.facts,
        "training": options.model_dump(),
        "training_images": prepared.count,
        "validation_images": len(prepared.validation),
    }
    if job.base_model:
        facts["warm_start"] = {"model": job.base_model, "restored": prepared.restored}
    served = signatures.ServedAutoencoder(model, prepared.preprocess, score, threshold)
    signatures.export(served, job.model.spec, job.model_dir, facts=facts)
    warm_start.save(model, job.model.name, job.model_dir)
    return {"anomaly_threshold": threshold, **facts}


def _summarize(job: TrainingJob, fitted: _Fitted, exported: dict[str, Any]) -> None:
    """Writes ``training.json``."""
    logs = fitted.checkpoints.history
    summary = {
        "seconds": fitted.seconds,
        "epoch_seconds": fitted.epoch_seconds,
        "epochs": len(logs),
        "history": logs,
        **exported,
    }
    tf.io.gfile.makedirs(job.log_dir)
    with tf.io.gfile.GFile(os.path.join(job.log_dir, TRAINING_FILE), "w") as f:
        json.dump(summary, f, indent=2)


def history(job: TrainingJob) -> list[dict[str, float]]:
    """The logs of every epoch of a training that is done."""
    with tf.io.gfile.GFile(os.path.join(job.log_dir, TRAINING_FILE)) as f:
        return json.load(f)["history"]


def main(argv: Sequence[str]) -> None:
    """Trains in this process, which ends with it; see the module."""
    logging.basicConfig(level=logging.INFO)
    quiet.settle_environment()
    code = 0
    try:
        job = None
        if argv:
            with tf.io.gfile.GFile(argv[0]) as job_file:
                job = TrainingJob.from_json(job_file.read())
        train(job)
    except Exception as e:
        _logger.exception("the training failed")
        code = e.exit_code if isinstance(e, Error) else 1
        reason = " ".join(str(e).split()) or type(e).__name__
        if os.environ.get("TF_CONFIG") and isinstance(e, _LOST):
            code = processes.EXIT_LOST
            reason = (
                "another worker is gone or does not answer; start all of them again: the training "
                "goes on from its last checkpoint"
            )
        if argv[1:]:
            with open(argv[1], "w", encoding="utf-8") as f:
                f.write(reason[:500])
        print(f"mnist-ae: error: {reason[:500]}", file=sys.stderr)
    # TensorFlow's own end waits for workers that may be gone.
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    main(sys.argv[1:])
