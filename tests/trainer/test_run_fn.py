"""Whole trainings: resumed, repeated, distributed, exported."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf

from serving import contract
from trainer import checkpoint, data, monitoring, run_fn
from trainer.job import TrainingOptions
from trainer.models import get_model_spec


def served(job):
    """Reconstructions of fixed noise by the exported model."""
    model = tf.saved_model.load(job.model_dir)
    images = np.random.default_rng(0).integers(0, 256, (8, 28, 28), np.uint8)
    return model.signatures["reconstruct"](images=tf.constant(images))


class Killed(BaseException):
    pass


@pytest.mark.parametrize(
    "model", ["simple", "vae", pytest.param("stacked", marks=pytest.mark.slow)]
)
def test_an_interrupted_training_goes_on_as_if_it_had_not_been(make_job, monkeypatch, model):
    whole = make_job(model, "whole", epochs=5)
    run_fn.train(whole)

    interrupted = make_job(model, "interrupted", epochs=5)
    monkeypatch.setattr(checkpoint.Checkpointer.__init__, "__kwdefaults__", {"min_seconds": 0.0})
    report = monitoring.ProgressLog.on_epoch_begin

    def killed_in_the_last_phase(self, epoch, logs=None):
        report(self, epoch, logs)
        if epoch == 3:
            raise Killed

    monkeypatch.setattr(monitoring.ProgressLog, "on_epoch_begin", killed_in_the_last_phase)
    with pytest.raises(Killed):
        run_fn.train(interrupted)
    assert os.listdir(interrupted.checkpoint_root)
    monkeypatch.setattr(monitoring.ProgressLog, "on_epoch_begin", report)
    run_fn.train(interrupted)

    assert len(run_fn.history(interrupted)) == len(run_fn.history(whole))
    for ours, theirs in zip(run_fn.history(interrupted), run_fn.history(whole)):
        assert ours == pytest.approx(theirs, rel=1e-5)
    np.testing.assert_allclose(
        served(interrupted)["reconstruction"], served(whole)["reconstruction"], atol=1e-5
    )
    assert os.listdir(interrupted.checkpoint_root) == []


def test_every_option_is_read(make_job, monkeypatch):
    """A key that is carried here and not looked at would do nothing, unnoticed."""
    job, read = make_job(epochs=1), set()

    def reading(self, name):
        read.add(name)
        return object.__getattribute__(self, name)

    monkeypatch.setattr(TrainingOptions, "__getattribute__", reading, raising=False)
    run_fn.train(job)
    assert set(TrainingOptions.model_fields) <= read


def test_the_same_configuration_gives_the_same_loss_and_another_seed_another(make_job):
    losses = []
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        job = make_job("simple", name, seed=seed)
        run_fn.train(job)
        losses.append(run_fn.history(job)[-1]["loss"])
    assert losses[0] == pytest.approx(losses[1], abs=5e-4)
    assert losses[0] != pytest.approx(losses[2], abs=1e-6)


@pytest.mark.parametrize(
    "model", ["simple", pytest.param("supervised_aae", marks=pytest.mark.slow)]
)
def test_a_streamed_training_learns_as_much(make_job, model):
    in_memory, streamed = (
        make_job(
            model,
            str(streaming),
            {"hidden": [64, 64]} if "aae" in model else {},
            streaming=streaming,
        )
        for streaming in (False, True)
    )
    for job in (in_memory, streamed):
        run_fn.train(job)
    losses = [run_fn.history(job)[-1]["loss"] for job in (in_memory, streamed)]
    assert losses[1] == pytest.approx(losses[0], rel=0.05)


def test_the_best_weights_are_exported_and_patience_ends_the_training(make_job):
    # A rate at which the loss soon rises again.
    job = make_job("simple", epochs=40, learning_rate=0.3, patience=3)
    run_fn.train(job)
    losses = [epoch["val_loss"] for epoch in run_fn.history(job)]
    assert len(losses) < 40
    assert np.argmin(losses) == len(losses) - 4
    assert losses[-1] > min(losses)


def test_alarms_are_a_little_less_frequent_than_stated_on_what_was_held_out(make_job):
    job = make_job("simple", epochs=2, anomaly_quantile=0.9)
    run_fn.train(job)
    score = tf.saved_model.load(job.model_dir).signatures["score"]
    _, held_out = data.split_validation(data.read_examples(job.train_files), 0.05, seed=0)
    images = held_out.pixels[held_out.rows].reshape(-1, 28, 28)
    usual, inverted = score(images=images), score(images=255 - images)
    assert 0.06 < np.mean(usual["is_anomaly"]) < 0.1
    assert np.all(inverted["is_anomaly"])
    with open(os.path.join(job.model_dir, contract.METADATA_FILE)) as f:
        threshold = json.load(f)["anomaly_threshold"]
    np.testing.assert_array_equal(usual["is_anomaly"], usual["anomaly_score"] > threshold)


def test_a_divergence_is_said_and_nothing_is_exported(make_job, monkeypatch):
    original = checkpoint.Checkpointer.on_epoch_end
    monkeypatch.setattr(
        checkpoint.Checkpointer,
        "on_epoch_end",
        lambda self, epoch, logs=None: original(self, epoch, {**logs, "val_loss": float("nan")}),
    )
    job = make_job("simple")
    with pytest.raises(FloatingPointError, match=r"diverged.*trainer\.learning_rate"):
        run_fn.train(job)
    assert not os.path.exists(job.model_dir)


def test_stacked_trains_without_a_label(make_job):
    job = make_job("stacked", hyperparameters={"labels": 0, "pretraining_epochs": 1}, epochs=1)
    run_fn.train(job)
    assert len(run_fn.history(job)) == 3 + 1
    assert "classify" not in tf.saved_model.load(job.model_dir).signatures


@pytest.mark.slow
@pytest.mark.parametrize("model", ["semi_supervised_aae", "stacked"])
def test_labels_beyond_the_budget_change_nothing(make_job, monkeypatch, model):
    """Early stopping looks at the images set aside: 1,000 labels would be 4,000."""
    few = {
        "semi_supervised_aae": {"hidden": [32]},
        "stacked": {"hidden": [32], "pretraining_epochs": 0},
    }
    original = data.split_validation

    def with_wrong_labels(examples, fraction, seed):
        training, validation = original(examples, fraction, seed)
        return training, validation.with_labels(9 - validation.labels)

    logs = []
    for name in ("right", "wrong"):
        job = make_job(model, name, hyperparameters={"labels": 100, **few[model]}, epochs=1)
        run_fn.train(job)
        logs.append(run_fn.history(job))
        monkeypatch.setattr(data, "split_validation", with_wrong_labels)
    assert logs[0] == logs[1]


def test_progress_is_reported(make_job, caplog):
    with caplog.at_level("INFO", monitoring.PROGRESS_LOGGER):
        run_fn.train(make_job("simple"))
    done = [r.done for r in caplog.records if r.name == monitoring.PROGRESS_LOGGER]
    assert done == sorted(done)
    assert done[-1] == 3


def test_tensorboard_gets_scalars_pictures_and_histograms(make_job):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    job = make_job("simple")
    run_fn.train(job)
    train = EventAccumulator(os.path.join(job.log_dir, "train", "train")).Reload()
    assert "epoch_loss" in train.Tags()["tensors"]
    pictures = EventAccumulator(os.path.join(job.log_dir, "train", "pictures")).Reload()
    assert {"reconstructions", "code"} <= set(pictures.Tags()["tensors"])


def run_on_devices(count, *jobs):
    """Trains in a process that has so many logical CPU devices."""
    done = subprocess.run(
        [sys.executable, "-c", _ON_LOGICAL_DEVICES, str(count), *(job.to_json() for job in jobs)],
        capture_output=True,
        text=True,
        check=False,
        timeout=1_800,
    )
    assert done.returncode == 0, done.stderr[-3000:]


_ON_LOGICAL_DEVICES = """
import sys
import tensorflow as tf
cpu = tf.config.list_physical_devices("CPU")[0]
devices = [tf.config.LogicalDeviceConfiguration()] * int(sys.argv[1])
tf.config.set_logical_device_configuration(cpu, devices)
from trainer import run_fn
from trainer.job import TrainingJob
for job in sys.argv[2:]:
    run_fn.train(TrainingJob.from_json(job))
"""


@pytest.mark.parametrize("model", ["simple", pytest.param("conv", marks=pytest.mark.slow)])
def test_two_devices_train_like_one_xla_or_not(make_job, model):
    one = make_job(model, "one", strategy="none")
    run_fn.train(one)
    two = make_job(model, "two", strategy="mirrored", xla=True)
    run_on_devices(2, two)
    for ours, theirs in zip(run_fn.history(two), run_fn.history(one)):
        assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-3)
        assert ours["val_loss"] == pytest.approx(theirs["val_loss"], rel=1e-3)
    np.testing.assert_allclose(
        served(two)["reconstruction"], served(one)["reconstruction"], atol=2e-3
    )


# Each with how far its loss may be from one device's: replicas draw noise of their own.
FAMILIES = {
    **dict.fromkeys(("best", "low_level", "deep", "conv", "lstm", "stacked"), 2e-3),
    **dict.fromkeys(("tied_denoising", "vae", "aae", "semi_supervised_aae"), 0.05),
}


@pytest.mark.e2e
@pytest.mark.parametrize("count", [2, 4, 8])
def test_every_family_trains_on_any_number_of_devices_by_its_defaults(make_job, count):
    def job(model, name, strategy):
        defaults = get_model_spec(model).training.model_dump()
        return make_job(
            model,
            f"{model}-{name}",
            {"hidden": [64, 64]} if model.endswith("aae") else {},
            **{**defaults, "epochs": 1, "strategy": strategy},
        )

    alone = {model: job(model, "one", "none") for model in FAMILIES}
    together = {model: job(model, "many", "mirrored") for model in FAMILIES}
    run_on_devices(1, *alone.values())
    run_on_devices(count, *together.values())
    for model, tolerance in FAMILIES.items():
        one, many = (run_fn.history(jobs[model])[-1]["loss"] for jobs in (alone, together))
        print(f"{model:<20} 1 device {one:.4f}, {count} devices {many:.4f}")
        assert many == pytest.approx(one, rel=tolerance), model
