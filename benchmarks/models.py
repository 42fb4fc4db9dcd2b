"""Trains the autoencoders of the catalogue on full MNIST and holds them to their bars.

    python -m benchmarks.models --models simple,vae --data-dir DIR
    python -m benchmarks.models --models all --one-class --data-dir DIR
    python -m benchmarks.models --check

Results are merged into ``docs/models_measured.json``, from which and from the
catalogue ``docs/models.md`` is written. ``--check`` fails when the page is not
what they say.

Models train as in the Trainer (the same input pipeline, 5 % of the training
images held out), but outside of TFX. The test split is ``t10k``.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import operator
import os
import platform
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import tensorflow as tf

from benchmarks import models_page
from components.mnist_example_gen import datasets, idx
from trainer.anomaly_score import fit as fit_anomaly_score
from trainer.data import (
    Examples,
    Preprocessor,
    mask_labels,
    split_validation,
    steps_per_epoch,
    training_batches,
)
from trainer.models import build_model, get_model_spec
from trainer.models.base import IMAGE_SHAPE, Autoencoder, per_image_bce, per_image_mse
from trainer.models.catalogue import TrainingDefaults, UnknownModelError
from trainer.models.denoising import Denoising
from trainer.models.keras_api import keras

DOCS = Path(__file__).parents[1] / "docs"
MEASURED = DOCS / "models_measured.json"
PAGE = DOCS / "models.md"

_COMPARE = {"<=": operator.le, ">=": operator.ge}
_STEPS_PER_EXECUTION = 50
# As in the pipeline: 3,000 of MNIST's 60,000.
_HELD_OUT = 0.05
_NOISE_SEED = 2026
_ONE_CLASS_EPOCHS, _ONE_CLASS_BATCH = 20, 64


@dataclasses.dataclass(frozen=True)
class Bar:
    """A figure that a model has to reach on the test split.

    Attributes:
      metric: Key of :func:`evaluate`'s result.
      relation: "<=" or ">=".
      bound: The figure.
      epoch: After which epoch; 0 for the last.
    """

    metric: str
    relation: str
    bound: float
    epoch: int = 0

    def met(self, measured: dict[str, float]) -> bool:
        """Whether the measured figures reach it."""
        return _COMPARE[self.relation](measured[self.metric], self.bound)


@dataclasses.dataclass(frozen=True)
class Case:
    """A training to measure.

    Attributes:
      model: Name in the catalogue.
      bars: What it has to reach.
      hyperparameters: Where they differ from the defaults.
      training: Where it differs from the defaults.
      seed: Of the training.
      label: What distinguishes it from the model's default training.
    """

    model: str
    bars: tuple[Bar, ...]
    hyperparameters: dict[str, Any] = dataclasses.field(default_factory=dict)
    training: dict[str, Any] = dataclasses.field(default_factory=dict)
    seed: int = 0
    label: str = ""

    @property
    def key(self) -> str:
        """Where its result is kept."""
        return f"{self.model} ({self.label})" if self.label else self.model


def _below(metric: str, **bounds: float) -> tuple[Bar, ...]:
    return tuple(Bar(metric, "<=", bound, int(at[2:])) for at, bound in bounds.items())


_AAE_BARS = (
    Bar("code_stddev", ">=", 1.8),
    Bar("code_stddev", "<=", 2.2),
    Bar("discriminator_accuracy", ">=", 0.45),
    Bar("discriminator_accuracy", "<=", 0.65),
)

# The bars of the project's catalogue of autoencoders, after the same epochs.
CASES = (
    *(
        Case("best", (Bar("mse", "<=", 0.0028),), seed=seed, label=label)
        for seed, label in enumerate(("", "seed 1", "seed 2"))
    ),
    Case("low_level", _below("bce", at10=0.087)),
    Case("sequential", _below("bce", at10=0.070)),
    Case("fully_connected", _below("mse", at10=0.0255, at50=0.023)),
    *(
        Case("conv_mse", _below("mse", at2=0.03), training={"epochs": 2}, seed=seed, label=label)
        for seed, label in enumerate(("", "seed 1", "seed 2", "seed 3", "seed 4"))
    ),
    Case("conv_denoising", _below("noisy_bce", at3=0.14), training={"epochs": 3}),
    Case(
        "conv_vae",
        (*_below("loss", at3=165.0), Bar("active_units", ">=", 50)),
        training={"epochs": 3},
    ),
    Case("mlp_2d", _below("mse", at3=0.0415)),
    Case("aae", (*_below("mse", at5=0.044), *_AAE_BARS)),
    Case(
        "supervised_aae",
        (
            *_below("mse", at2=0.0145),
            Bar("code_stddev", ">=", 0.9),
            Bar("code_stddev", "<=", 1.1),
        ),
    ),
    Case("semi_supervised_aae", (Bar("accuracy", ">=", 0.95),)),
    Case("simple", _below("bce", at10=0.100, at50=0.0935)),
    Case("sparse", (*_below("bce", at10=0.103, at100=0.095), Bar("active_share", ">=", 0.3))),
    Case("deep", _below("bce", at10=0.105, at100=0.0845)),
    Case("conv", _below("bce", at3=0.122, at12=0.103)),
    Case("denoising", _below("noisy_bce", at1=0.120, at3=0.108), training={"epochs": 3}),
    Case("lstm", _below("mse", at3=0.046)),
    Case("vae", (*_below("loss", at10=168.0), Bar("kl", ">=", 4.0, 10), Bar("kl", "<=", 7.0, 10))),
    Case(
        "vae",
        _below("loss", at10=108.0),
        hyperparameters={"hidden": (500,), "code_size": 20},
        training={"epochs": 10},
        label="784-500-20",
    ),
    Case("tied_denoising", _below("noisy_mse", at10=0.009)),
    Case("stacked", _below("bce", at10=0.086)),
    Case(
        "stacked",
        (Bar("bce", ">=", 0.116),),
        hyperparameters={"pretraining_epochs": 0, "labels": 0},
        label="from scratch",
    ),
)


@dataclasses.dataclass(frozen=True)
class Mnist:
    """MNIST in memory.

    Attributes:
      train: ``trainer.data.Examples``, the Trainer's 57,000.
      images: Test images float32 [n, 28, 28] in [0, 1].
      labels: Test labels int64 [n].
    """

    train: Examples
    images: np.ndarray
    labels: np.ndarray


def load_mnist(data_dir: str) -> Mnist:
    """Reads the four IDX files of ``data_dir``, plain or compressed."""

    def read(prefix: str) -> tuple[np.ndarray, np.ndarray]:
        images, labels = (
            str(next(Path(data_dir).glob(f"{prefix}-{kind}*"))) for kind in (idx.IMAGES, idx.LABELS)
        )
        pixels = np.concatenate(list(idx.read_images(images)))
        return pixels, np.concatenate(list(idx.read_labels(labels))).astype(np.int64)

    pixels, labels = read(idx.SPLIT_PREFIXES["train"])
    examples = Examples(pixels, np.arange(len(pixels)), labels)
    train, _ = split_validation(examples, _HELD_OUT, seed=0)
    test_pixels, test_labels = read(idx.SPLIT_PREFIXES["eval"])
    test_images = test_pixels.reshape(-1, *IMAGE_SHAPE).astype(np.float32) / 255
    return Mnist(train, test_images, test_labels)


def scale(images: tf.Tensor, labels: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """What the pipeline's Transform does: bytes to images float [n, 28, 28] in [0, 1]."""
    pixels = tf.cast(tf.io.decode_raw(images, tf.uint8), tf.float32) / 255
    return tf.reshape(pixels, (-1, *IMAGE_SHAPE)), labels


def training_data(
    model: Autoencoder, examples: Examples, batch_size: int, epochs: int
) -> tf.data.Dataset:
    """The Trainer's batches, with the labels that the model may see and no others."""
    if not model.uses_labels:
        examples = examples.without_labels()
    elif count := getattr(model.hp, "labels", 0):
        examples = examples.with_labels(mask_labels(examples.labels, count, model.seed))
    return training_batches(
        examples,
        cast(Preprocessor, scale),
        batch_size=batch_size,
        labelled_batch_size=model.labelled_batch_size,
        seed=model.seed,
        first_epoch=0,
        epochs=epochs,
        context=tf.distribute.InputContext(),
    )


def evaluate(model: Autoencoder, mnist: Mnist) -> dict[str, float]:
    """Figures of the test split.

    Returns:
      ``mse`` and ``bce`` of what would be served, the model's own loss terms,
      ``active_units`` (code units whose variance is above .01), and for
      denoising models ``noisy_mse`` and ``noisy_bce``, from corrupted images
      against clean ones.
    """
    data = tf.data.Dataset.from_tensor_slices((mnist.images, mnist.labels)).batch(1_000)
    figures = model.evaluate(data, return_dict=True, verbose=0)
    codes = np.concatenate([model.encode(images).numpy() for images, _ in data])
    figures["active_units"] = int((codes.var(axis=0) > 0.01).sum())
    pairs = {"": [(images, model(images)) for images, _ in data]}
    if isinstance(model, Denoising):
        pairs["noisy_"] = [
            (images, model(model.corrupt(images, tf.constant((i, _NOISE_SEED), tf.int64))))
            for i, (images, _) in enumerate(data)
        ]
    for prefix, batches in pairs.items():
        for name, error in (("mse", per_image_mse), ("bce", per_image_bce)):
            figures[prefix + name] = float(np.concatenate([error(*b) for b in batches]).mean())
    return {name: round(float(value), 6) for name, value in figures.items()}


def train(
    model: Autoencoder, training: TrainingDefaults, mnist: Mnist, epochs_to_measure: set[int]
) -> tuple[dict[int, dict[str, float]], Clock]:
    """Trains through all phases and measures after the given epochs of the main one.

    Returns:
      Test figures by epoch, the last being 0, and the time that training took.
    """
    figures: dict[int, dict[str, float]] = {}
    clock = Clock()

    def measure(epoch: int, _: Any) -> None:
        if epoch + 1 in epochs_to_measure:
            with clock.stopped():
                figures[epoch + 1] = evaluate(model, mnist)

    batch_size = training.batch_for(len(mnist.train))
    for phase in model.phases(training.epochs):
        steps = steps_per_epoch(len(mnist.train), batch_size, 1)
        with clock:
            model.begin_phase(phase)
            model.configure(
                training,
                total_steps=steps * phase.epochs,
                steps_per_execution=min(_STEPS_PER_EXECUTION, steps),
            )
            callbacks = [keras.callbacks.LambdaCallback(on_epoch_end=measure)] if phase.main else []
            model.fit(
                training_data(model, mnist.train, batch_size, phase.epochs),
                epochs=phase.epochs,
                steps_per_epoch=steps,
                callbacks=callbacks,
                verbose=0,
            )
    figures[0] = evaluate(model, mnist)
    return figures, clock


class Clock:
    """Wall and CPU seconds of this process, while it runs."""

    def __init__(self) -> None:
        self.wall = self.cpu = 0.0

    def __enter__(self) -> None:
        self._wall, self._cpu = time.perf_counter(), time.process_time()

    def __exit__(self, *_: object) -> None:
        self.wall += time.perf_counter() - self._wall
        self.cpu += time.process_time() - self._cpu

    @contextlib.contextmanager
    def stopped(self) -> Iterator[None]:
        """Leaves out what happens in it."""
        self.__exit__()
        try:
            yield
        finally:
            self.__enter__()


def throughput(model_name: str, mnist: Mnist, rounds: int = 2) -> dict[str, int]:
    """Images a second in the Trainer's way and in plain ``model.fit`` on NumPy arrays.

    Both train the catalogue's default at its batch size, an epoch at a time in
    turns, after one to warm up; the best round of each counts.
    """
    spec = get_model_spec(model_name)
    batch = spec.training.batch_size
    steps = steps_per_epoch(len(mnist.train), batch, 1)
    fits = {
        "trainer": (spec.training, _STEPS_PER_EXECUTION),
        "numpy": (spec.training.replaced(xla=False), 1),
    }
    best = dict.fromkeys(fits, 0.0)
    models = {}
    for way, (training, steps_per_execution) in fits.items():
        models[way] = model = build_model(model_name)
        model.begin_phase(next(phase for phase in model.phases(1) if phase.main))
        model.configure(training, total_steps=steps, steps_per_execution=steps_per_execution)
    width = batch + models["numpy"].labelled_batch_size
    images = scale(mnist.train.images(), mnist.train.labels)[0].numpy()[: steps * width]
    data = training_data(models["trainer"], mnist.train, batch, 1)
    for turn in range(rounds + 1):
        for way, model in models.items():
            start = time.perf_counter()
            if way == "numpy":
                model.fit(images, mnist.train.labels[: len(images)], batch_size=width, verbose=0)
                seen = len(images) / width * batch
            else:
                model.fit(data, steps_per_epoch=steps, verbose=0)
                seen = steps * batch
            if turn:
                best[way] = max(best[way], seen / (time.perf_counter() - start))
    return {f"{way}_images_per_second": round(rate) for way, rate in best.items()}


def run_case(case: Case, mnist: Mnist) -> dict[str, Any]:
    """Trains a case and returns its entry of the measured file."""
    spec = get_model_spec(case.model)
    training = spec.training.replaced(**case.training)
    hyperparameters = spec.hyperparameters.replaced(**case.hyperparameters)
    model = build_model(case.model, hyperparameters, seed=case.seed)
    figures, clock = train(model, training, mnist, {bar.epoch for bar in case.bars})
    changed = {"training": case.training, "hyperparameters": case.hyperparameters}
    return {
        "model": case.model,
        "label": case.label,
        "changed": changed,
        "options": models_page.options(case.model, changed),
        "commit": _commit(),
        "epochs": training.epochs,
        "parameters": model.parameter_count(),
        "seconds": round(clock.wall, 1),
        "cpu_seconds": round(clock.cpu, 1),
        "bars": [
            dataclasses.asdict(bar) | {"value": figures[bar.epoch][bar.metric]} for bar in case.bars
        ],
        "test": figures[0],
    }


def _commit() -> str:
    """The commit that is checked out."""
    command = ["git", "rev-parse", "HEAD"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def auroc(normal: np.ndarray, anomalous: np.ndarray) -> float:
    """Area under the ROC curve of scores that are higher for anomalies."""
    scores = np.concatenate([normal, anomalous])
    _, inverse, counts = np.unique(scores, return_inverse=True, return_counts=True)
    # The mean rank of equal scores, from 1.
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[inverse]
    of_anomalous = ranks[len(normal) :].sum()
    pairs = len(normal) * len(anomalous)
    return float((of_anomalous - len(anomalous) * (len(anomalous) + 1) / 2) / pairs)


def one_class(model_name: str, mnist: Mnist, epochs: int = _ONE_CLASS_EPOCHS) -> dict[str, Any]:
    """Trains on one digit at a time and scores all test images.

    A model that knows how many steps it needs is trained by its own defaults.

    Returns:
      The AUROC of each digit and the mean, by anomaly score and by the error alone;
      and how often the least of the ten errors names the digit.
    """
    spec = get_model_spec(model_name)
    training = spec.training
    if not training.min_steps:
        training = training.replaced(epochs=epochs, batch_size=_ONE_CLASS_BATCH)
    aurocs, by_error, errors = [], [], []
    for digit in range(10):
        rows = np.flatnonzero(mnist.train.labels == digit)
        of_digit = Mnist(mnist.train.take(rows), mnist.images, mnist.labels)
        model = build_model(model_name, seed=digit)
        train(model, training, of_digit, set())
        seen = training_data(model, of_digit.train, min(1_000, len(rows)), 1)
        anomaly_score = fit_anomaly_score(model, seen, seed=digit)
        batches = np.array_split(mnist.images, 10)
        error = np.concatenate([per_image_mse(b, model(b)).numpy() for b in batches])
        score = np.concatenate([anomaly_score.of(model, b).numpy() for b in batches])
        normal = mnist.labels == digit
        aurocs.append(auroc(score[normal], score[~normal]))
        by_error.append(auroc(error[normal], error[~normal]))
        errors.append(error)
    accuracy = float((np.argmin(errors, axis=0) == mnist.labels).mean())
    return {
        "auroc": [round(value, 4) for value in aurocs],
        "mean_auroc": round(float(np.mean(aurocs)), 4),
        "mean_auroc_by_error": round(float(np.mean(by_error)), 4),
        "argmin_accuracy": round(accuracy, 4),
        "epochs": training.epochs,
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; returns 1 when a bar is missed or the page is stale."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.models", description=__doc__)
    parser.add_argument(
        "--models", default="", help="comma-separated names, or all (when nothing else is asked)"
    )
    parser.add_argument(
        "--one-class", default="", metavar="MODELS", help="one-class AUROC of these"
    )
    parser.add_argument(
        "--data-dir",
        default=os.environ.get("MNIST_DATA_DIR"),
        help="folder with MNIST's four IDX files (default: MNIST_DATA_DIR)",
    )
    parser.add_argument("--no-throughput", action="store_true", help="leave out images a second")
    parser.add_argument("--write-docs", action="store_true", help="write docs/models.md only")
    parser.add_argument("--check", action="store_true", help="fail if docs/models.md is stale")
    options = parser.parse_args(arguments)
    if options.check:
        return models_page.check(PAGE, MEASURED)
    if not (options.models or options.one_class or options.write_docs):
        options.models = "all"
    one_class_models = [name for name in options.one_class.split(",") if name]
    try:
        cases = _cases(options.models)
        for name in one_class_models:
            get_model_spec(name)
    except UnknownModelError as e:
        parser.error(str(e))
    if (cases or one_class_models) and not options.data_dir:
        parser.error("measuring needs --data-dir or MNIST_DATA_DIR")
    missed = 0
    if cases or one_class_models:
        try:
            mnist = load_mnist(datasets.find(datasets.AUTO, options.data_dir).folder)
        except idx.DataError as e:
            parser.error(str(e))
        for case in cases:
            entry = run_case(case, mnist)
            if not (options.no_throughput or case.label):
                entry |= throughput(case.model, mnist)
            missed += _report(case.key, entry)
            _merge("models", case.key, entry)
        for name in one_class_models:
            entry = one_class(name, mnist)
            print(name, json.dumps(entry), flush=True)
            _merge("one_class", name, entry)
    models_page.write(PAGE, MEASURED)
    return 1 if missed else 0


def _cases(names: str) -> list[Case]:
    if names == "all":
        return list(CASES)
    chosen = [name for name in names.split(",") if name]
    for name in chosen:
        get_model_spec(name)
    return [case for case in CASES if case.model in chosen]


def _report(key: str, entry: dict[str, Any]) -> int:
    """Prints a case and returns how many bars it missed."""
    missed = 0
    for measured in entry["bars"]:
        value = measured["value"]
        bar = Bar(**{name: measured[name] for name in ("metric", "relation", "bound", "epoch")})
        met = bar.met({bar.metric: value})
        missed += not met
        at = f"@{bar.epoch}" if bar.epoch else ""
        verdict = "ok" if met else "MISSED"
        print(f"{key}: {bar.metric}{at} {value:.4f} {bar.relation} {bar.bound} {verdict}")
    rest = {k: v for k, v in entry.items() if k not in ("bars", "model", "label")}
    print(key, json.dumps(rest), flush=True)
    return missed


def _merge(section: str, key: str, entry: dict[str, Any]) -> None:
    measured = models_page.read_measured(MEASURED)
    measured.setdefault(section, {})[key] = entry
    measured["environment"] = {
        "tensorflow": tf.__version__,
        "python": platform.python_version(),
        "cpus": os.cpu_count(),
    }
    MEASURED.write_text(json.dumps(measured, indent=1, sort_keys=True) + "\n")


if __name__ == "__main__":
    sys.exit(main())
