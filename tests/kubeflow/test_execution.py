"""The compiled file, executed whole: three runs, faults, two runs at once."""

from __future__ import annotations

import json
import pathlib
import shutil
import subprocess
import threading
import time

import numpy as np
import pytest
from ml_metadata.proto import metadata_store_pb2

from components.mnist_example_gen import idx
from pipeline import history

pytestmark = pytest.mark.e2e

STATES = metadata_store_pb2.Execution
SETTINGS = (
    "trainer.epochs=8",
    "trainer.batch_size=64",
    "trainer.patience=0",
    # Every later model is a little different, none may be refused for it.
    "evaluator.max_increase=0.5",
    "evaluator.max_mse=0.06",
    # Of a machine that tests share.
    "validator.latency_budget_ms=60000",
)


class Volume:
    """A folder as a cluster's volume would be, and the pipeline compiled for it."""

    def __init__(self, folder: pathlib.Path, driver_of, *more: str):
        self.folder = folder
        self.driver = driver_of(folder, *SETTINGS, *more)

    @property
    def store(self):
        return history.open_store(str(self.folder / "metadata.sqlite"))

    @property
    def versions(self) -> list[str]:
        folder = self.folder / "models" / "simple"
        return sorted(p.name for p in folder.iterdir()) if folder.is_dir() else []

    def record(self, run_id: str):
        return history.run(self.store, run_id)


@pytest.fixture(scope="module")
def volume(tmp_path_factory, digits_folder, driver_of):
    folder = tmp_path_factory.mktemp("volume")
    span = folder / "data" / "span-1"
    span.mkdir(parents=True)
    for file in digits_folder.iterdir():
        shutil.copy(file, span)
    return Volume(folder, driver_of)


@pytest.fixture(scope="module")
def first(volume):
    done = volume.driver.run({}, run_id="run-first")
    assert done.failed is None, done.attempts[-1].stderr[-2_000:]
    return done


def baseline_of(volume, run_id: str):
    """The models that the evaluation of a run was given, the candidate first."""
    store = volume.store
    execution = history.node_executions(store, run_id, "Evaluator")[-1]
    events = store.get_events_by_execution_ids([execution.id])
    wanted = {
        step.key: event.artifact_id
        for event in events
        if event.type == metadata_store_pb2.Event.INPUT
        for step in event.path.steps
        if step.key
    }
    return wanted.get("model"), wanted.get("baseline_model")


def test_the_first_run_pushes_without_a_baseline(first, volume):
    record = volume.record(first.run_id)
    assert record.state == "complete"
    assert record.properties["blessed"] == 1
    assert record.pushed_version == volume.versions[-1]
    model, baseline = baseline_of(volume, first.run_id)
    assert model is not None and baseline is None


def test_its_model_is_that_of_a_local_run(first, volume, tmp_path, cli):
    words = ["run", "--model", "simple", "--data-dir", str(volume.folder / "data" / "span-1")]
    words += ["--root", str(tmp_path / "runs"), "--json"]
    done = cli(*words, *[word for setting in SETTINGS for word in ("--set", setting)])
    assert done.returncode == 0, done.stderr
    local = json.loads(done.stdout)
    remote = volume.record(first.run_id).properties
    assert remote["mse"] == pytest.approx(local["metrics"]["overall"]["mse"], rel=1e-5)
    assert remote["bce"] == pytest.approx(local["metrics"]["overall"]["bce"], rel=1e-5)


@pytest.fixture(scope="module")
def second(first, volume):
    # Another configuration of the same servable: a new model, with a baseline.
    done = volume.driver.run({"epochs": 9.0}, run_id="run-second")
    assert done.failed is None, done.attempts[-1].stderr[-2_000:]
    return done


def test_the_second_run_is_compared_with_the_first_model(second, first, volume):
    _, baseline = baseline_of(volume, second.run_id)
    (model,) = history.run_outputs(volume.store, first.run_id, "Model")
    assert baseline == model.id
    assert len(volume.versions) == 2
    cached = {c.id for c in volume.record(second.run_id).components if c.cached}
    assert {"MnistExampleGen", "StatisticsGen", "Transform"} <= cached
    assert "Trainer" not in cached


def test_a_new_span_is_trained_on(second, volume, digits):
    span = volume.folder / "data" / "span-2"
    span.mkdir()
    for split, prefix in idx.SPLIT_PREFIXES.items():
        images, labels = digits[split]
        # Shifted by a pixel: other images of the same digits.
        idx.write_idx(str(span / f"{prefix}-{idx.IMAGES}"), np.roll(images, 1, axis=2))
        idx.write_idx(str(span / f"{prefix}-{idx.LABELS}"), labels)
    done = volume.driver.run({"epochs": 9.0}, run_id="run-third")
    assert done.failed is None, done.attempts[-1].stderr[-2_000:]
    (examples,) = history.run_outputs(volume.store, "run-third", "Examples")
    assert examples.custom_properties["span"].int_value == 2
    assert len(volume.versions) == 3
    # An older span can be asked for.
    again = volume.driver.run({"span": "1"}, run_id="run-old-span", only=["mnist-example-gen"])
    assert again.failed is None
    (examples,) = history.run_outputs(volume.store, "run-old-span", "Examples")
    assert examples.custom_properties["span"].int_value == 1


def test_a_node_that_is_killed_is_retried_and_the_run_goes_on(tmp_path, digits_folder, driver_of):
    (tmp_path / "data").symlink_to(digits_folder)
    volume = Volume(tmp_path, driver_of)
    killed = []

    def watch(task: str, attempt: int, process: subprocess.Popen) -> None:
        if task != "trainer" or attempt:
            return

        def kill() -> None:
            while process.poll() is None:
                if history.node_executions(volume.store, "run-killed", "Trainer"):
                    killed.append(process.poll())
                    process.kill()
                    return
                time.sleep(0.05)

        threading.Thread(target=kill).start()

    done = volume.driver.run({}, run_id="run-killed", watch=watch)
    assert killed == [None]
    assert done.failed is None, done.attempts[-1].stderr[-2_000:]
    assert [a.code for a in done.of("trainer")] == [-9, 0]
    record = volume.record("run-killed")
    assert record.state == "complete"
    assert len(history.run_outputs(volume.store, "run-killed", "Model")) == 1
    assert len(volume.versions) == 1


def test_a_node_that_fails_for_good_ends_the_run(tmp_path, digits_folder, driver_of):
    (tmp_path / "data").symlink_to(digits_folder)
    volume = Volume(tmp_path, driver_of, "kubeflow.defaults.retries=1", "model.code_size=32")
    # A hyper-parameter that this model does not have: the Trainer's own refusal
    # comes before, so break what it reads instead.
    before = ["mnist-example-gen", "statistics-gen", "pca-reference", "transform"]
    assert volume.driver.run({}, run_id="run-fails", only=before).failed is None
    (graph,) = history.run_outputs(volume.store, "run-fails", "TransformGraph")
    shutil.rmtree(pathlib.Path(graph.uri) / "transform_fn")
    done = volume.driver.run({}, run_id="run-fails", only=["trainer", "pusher"])
    assert done.failed == "trainer"
    assert [a.code for a in done.of("trainer")] == [1, 1]
    assert done.attempts[-1].stderr.splitlines()[-1].startswith("Trainer: error: Trainer failed:")
    assert volume.record("run-fails").state == "failed"
    assert volume.versions == []
