"""The Trainer's workers on a cluster, as processes of this machine."""

from __future__ import annotations

import os

import pytest

from kubeflow import workers
from pipeline import config
from trainer import processes, run_fn

SETTINGS = workers.options(
    config.load(None, ["kubeflow.workers.count=2", "kubeflow.workers.kind=local"]).kubeflow
)


@pytest.mark.slow
def test_two_processes_train_like_one(make_job):
    one = make_job("simple", "one", strategy="none")
    run_fn.train(one)
    two = make_job("simple", "two")
    workers.launch(two, SETTINGS)
    assert len(run_fn.history(two)) == len(run_fn.history(one))
    for ours, theirs in zip(run_fn.history(two), run_fn.history(one)):
        assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-3)
    assert os.path.exists(os.path.join(two.model_dir, "saved_model.pb"))


def test_a_worker_that_fails_ends_the_training_and_the_others(make_job):
    broken = make_job("simple", "broken").replaced(train_files=("/nowhere/*",))
    with pytest.raises(processes.TrainingError, match=r"worker \d of 2 failed: .*no file matches"):
        workers.launch(broken, SETTINGS)
    assert not os.path.exists(broken.model_dir)
