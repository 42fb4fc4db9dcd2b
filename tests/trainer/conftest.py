"""Trainings without TFX: real examples on disk, and Transform's graph."""

from __future__ import annotations

import pathlib

import pytest
import tensorflow as tf

from components import features, preprocessing
from components.mnist_example_gen import executor as example_gen
from trainer.job import TrainingJob, TrainingOptions
from trainer.models import ModelChoice


@pytest.fixture(scope="session")
def transform_savedmodel(tmp_path_factory) -> str:
    """A SavedModel of preprocessing_fn, in the form that Transform writes."""

    class Transform(tf.Module):
        @tf.function(
            input_signature=[
                {
                    features.IMAGE: tf.TensorSpec([None], tf.string),
                    features.LABEL: tf.TensorSpec([None], tf.int64),
                }
            ]
        )
        def transform_fn(self, raw):
            return preprocessing.preprocessing_fn(raw)

    path = str(tmp_path_factory.mktemp("transform") / "transform_fn")
    tf.saved_model.save(Transform(), path)
    return path


@pytest.fixture(scope="session")
def training_files(tmp_path_factory, digits) -> str:
    """The pattern of 2,000 training digits in two shards."""
    folder = tmp_path_factory.mktemp("examples")
    images, labels = digits["train"]
    for shard in range(2):
        rows = slice(shard * 1_000, (shard + 1) * 1_000)
        with tf.io.TFRecordWriter(str(folder / f"data-{shard}.gz"), "GZIP") as writer:
            for example in example_gen.encode_examples(images[rows].reshape(-1, 784), labels[rows]):
                writer.write(example)
    return str(folder / "*.gz")


@pytest.fixture
def make_job(tmp_path, training_files, transform_savedmodel):
    """Makes training jobs; keyword arguments are options."""

    def make(model="simple", name="job", hyperparameters=None, **options) -> TrainingJob:
        choice = ModelChoice.of(model, **(hyperparameters or {}))
        values = {
            "epochs": 3,
            "batch_size": 128,
            "learning_rate": choice.spec.training.learning_rate,
            "xla": False,
            "steps_per_execution": 4,
            "patience": 0,
            **options,
        }
        folder = pathlib.Path(tmp_path) / name
        return TrainingJob(
            model=choice,
            options=TrainingOptions(**values),
            train_files=(training_files,),
            transform_savedmodel=transform_savedmodel,
            model_dir=str(folder / "model"),
            log_dir=str(folder / "logs"),
            checkpoint_root=str(folder / "checkpoints"),
            facts={"servable": model},
        )

    return make
