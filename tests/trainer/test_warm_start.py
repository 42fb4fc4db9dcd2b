import glob
import json
import os

import numpy as np
import pytest
import tensorflow as tf

from trainer import run_fn, warm_start
from trainer.models import build_model, get_model_spec


@pytest.mark.parametrize("name", ["simple", "conv", "stacked"])
def test_every_variable_comes_back(tmp_path, name):
    trained = build_model(name, seed=1)
    warm_start.save(trained, name, str(tmp_path / "model" / "Format-Serving"))
    fresh = build_model(name, seed=2)
    restored = warm_start.restore(fresh, name, str(tmp_path / "model" / "Format-Serving"))
    assert restored == len(trained.weights) == len(fresh.weights)
    for before, after in zip(trained.get_weights(), fresh.get_weights()):
        np.testing.assert_array_equal(before, after)
    images = tf.random.stateless_uniform((3, 28, 28), (0, 0))
    np.testing.assert_array_equal(trained(images), fresh(images))


def test_another_architecture_is_refused_and_nothing_is_changed(tmp_path):
    folder = str(tmp_path / "model" / "Format-Serving")
    warm_start.save(build_model("simple", seed=1), "simple", folder)
    reference = get_model_spec("simple").hyperparameters
    other = build_model("simple", reference.replaced(code_size=16), seed=2)
    before = other.get_weights()
    with pytest.raises(warm_start.WarmStartError, match="--cold"):
        warm_start.restore(other, "simple", folder)
    for kept, now in zip(before, other.get_weights()):
        np.testing.assert_array_equal(kept, now)
    with pytest.raises(warm_start.WarmStartError, match="'simple', not 'conv'"):
        warm_start.restore(build_model("conv"), "conv", folder)
    with pytest.raises(warm_start.WarmStartError, match="missing"):
        warm_start.restore(other, "simple", str(tmp_path / "nowhere" / "Format-Serving"))


def losses(job):
    with open(os.path.join(job.log_dir, run_fn.TRAINING_FILE)) as f:
        training = json.load(f)
    return [epoch["val_loss"] for epoch in training["history"]], training


@pytest.mark.slow
@pytest.mark.parametrize("model", ["simple"])
def test_a_warm_start_needs_half_the_epochs_at_most(make_job, training_files, caplog, model):
    """On digits that the base model has not seen."""
    files = sorted(glob.glob(training_files))
    options = {"epochs": 10, "batch_size": 64}
    base = make_job(model, "base", **options).replaced(train_files=(files[0],))
    run_fn.train(base)
    cold = make_job(model, "cold", **options).replaced(train_files=(files[1],))
    run_fn.train(cold)
    warm = make_job(model, "warm", epochs=5, batch_size=64).replaced(
        train_files=(files[1],),
        base_model=base.model_dir,
    )
    with caplog.at_level("INFO"):
        run_fn.train(warm)
    (cold_losses, _), (warm_losses, facts) = losses(cold), losses(warm)
    assert min(warm_losses) <= min(cold_losses)
    count = facts["warm_start"]["restored"]
    assert facts["warm_start"]["model"] == base.model_dir and count >= 4
    assert f"restored {count} of {count} variables" in caplog.text


def test_another_base_is_another_training(make_job):
    job = make_job()
    assert job.replaced(base_model="/elsewhere").digest() != job.digest()
