"""Two worker processes that are killed and started again: losses as if they had not been."""

from __future__ import annotations

import itertools
import json
import os
import pathlib
import subprocess
import sys

import portpicker
import pytest

from trainer import processes, run_fn

SCRIPT = pathlib.Path(__file__).with_name("worker.py")
ROOT = SCRIPT.parents[2]
# Whose process sends itself a signal: the chief's, the other's or both.
WHO = {"chief": (0,), "other": (1,), "both": (0, 1)}


def run_workers(job, signal="", who="both", epochs=0, calls=0) -> list[int]:
    """Trains with two workers; returns their exit codes, and leaves their logs beside the model.

    Args:
      job: The training; only the chief is given it.
      signal: What the workers ``who`` send themselves after so many epochs and calls of the
        training function.
    """
    folder = pathlib.Path(job.model_dir).parent
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "job.json").write_text(job.to_json())
    hosts = [f"localhost:{portpicker.pick_unused_port()}" for _ in range(2)]
    workers = []
    for index in range(2):
        point = f"{signal}:{epochs}:{calls}" if signal and index in WHO[who] else ""
        task = {"cluster": {"worker": hosts}, "task": {"type": "worker", "index": index}}
        with open(folder / f"worker-{index}.log", "w") as log:
            workers.append(
                subprocess.Popen(
                    [sys.executable, str(SCRIPT), "" if index else str(folder / "job.json"), point],
                    env={**os.environ, "PYTHONPATH": str(ROOT), "TF_CONFIG": json.dumps(task)},
                    stdout=log,
                    stderr=subprocess.STDOUT,
                )
            )
    stopped = WHO[who] if signal == "SIGSTOP" else ()
    codes = {i: worker.wait() for i, worker in enumerate(workers) if i not in stopped}
    for index in stopped:
        workers[index].kill()
        codes[index] = workers[index].wait()
    return [codes[index] for index in range(2)]


def last_words(job, index: int) -> str:
    """The last line that is ours in a worker's log."""
    log = (pathlib.Path(job.model_dir).parent / f"worker-{index}.log").read_text()
    return [line for line in log.splitlines() if line.startswith("mnist-ae: error: ")][-1]


def assert_trained_alike(ours, theirs):
    """Every loss is equal to the fourth digit."""
    assert len(run_fn.history(ours)) == len(run_fn.history(theirs))
    for epoch, expected in zip(run_fn.history(ours), run_fn.history(theirs)):
        assert epoch == pytest.approx(expected, rel=1e-4, abs=1e-6)


@pytest.mark.slow
def test_two_workers_train_like_one_process_whoever_is_killed(make_job):
    one = make_job("simple", "one", strategy="none")
    run_fn.train(one)
    two = make_job("simple", "two", strategy="multi_worker")
    assert run_workers(two, "SIGKILL", "other", epochs=1, calls=1) == [processes.EXIT_LOST, -9]
    assert "another worker is gone" in last_words(two, 0)
    assert not os.path.exists(two.model_dir)
    assert run_workers(two, "SIGKILL", "chief", epochs=2) == [-9, processes.EXIT_LOST]
    assert run_workers(two) == [0, 0]
    assert os.path.exists(os.path.join(two.model_dir, "saved_model.pb"))
    assert os.listdir(two.checkpoint_root) == []
    assert_trained_alike(two, one)


@pytest.mark.e2e
@pytest.mark.parametrize("who", ["chief", "other"])
def test_a_worker_that_hangs_ends_the_training_in_one_line(make_job, who):
    job = make_job("simple", strategy="multi_worker")
    codes = run_workers(job, "SIGSTOP", who, epochs=1, calls=1)
    survivor = 1 if who == "chief" else 0
    assert codes[survivor] == processes.EXIT_LOST
    assert "does not answer" in last_words(job, survivor)


# Several phases; two optimizers; a schedule; early stopping before the last epoch.
FAMILIES = {
    "stacked": (
        {"hidden": [32], "labels": 100, "pretraining_epochs": 1, "classifier_epochs": 1},
        {"epochs": 1},
    ),
    "aae": ({"hidden": [32]}, {"epochs": 2}),
    "best": ({"hidden": [32], "filters": [4, 8]}, {"epochs": 2}),
    "simple": ({}, {"epochs": 9, "learning_rate": 0.3, "patience": 1}),
}


@pytest.mark.e2e
@pytest.mark.parametrize("model", FAMILIES)
def test_any_family_survives_being_killed_at_every_epoch_and_in_between(make_job, model):
    """One training, killed again and again, against one that nobody disturbed."""
    hyperparameters, options = FAMILIES[model]
    options = {"strategy": "multi_worker", **options}
    whole = make_job(model, "whole", hyperparameters, **options)
    assert run_workers(whole) == [0, 0]
    killed = make_job(model, "killed", hyperparameters, **options)
    points = [(epochs, calls) for epochs in range(len(run_fn.history(whole))) for calls in (0, 1)]
    # Each of the three is killed at a boundary and in between.
    for (epochs, calls), who in zip(points, itertools.cycle(WHO)):
        codes = run_workers(killed, "SIGKILL", who, epochs=epochs, calls=calls)
        assert codes == [-9 if i in WHO[who] else processes.EXIT_LOST for i in range(2)]
    assert run_workers(killed) == [0, 0]
    assert_trained_alike(killed, whole)
