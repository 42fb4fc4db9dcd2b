"""A training as data: from the configuration to the Trainer and to its workers."""

from __future__ import annotations

import json
import types

import pydantic
import pytest

from pipeline import config
from trainer.job import CustomConfig, TrainingJob, TrainingOptions
from trainer.models import CATALOGUE, ModelChoice

PLACES = {"model_dir": "m", "log_dir": "l", "checkpoint_root": "c"}


def job_of(custom_config: CustomConfig, **places) -> TrainingJob:
    """The job of what TFX hands on: JSON, read back."""
    fn_args = types.SimpleNamespace(train_files=["a*"], transform_graph_path="t")
    read = CustomConfig.model_validate(json.loads(json.dumps(custom_config.to_dict())))
    return read.job(fn_args, **{**PLACES, **places})


def custom_config(*assignments: str) -> CustomConfig:
    loaded = config.load(None, assignments)
    return CustomConfig(model=loaded.model, options=loaded.trainer)


@pytest.mark.parametrize("name", CATALOGUE)
def test_a_configured_model_arrives_at_the_trainer_as_it_was(name: str) -> None:
    loaded = config.load(None, [f"model={name}", "trainer.epochs=3"])
    job = job_of(custom_config(f"model={name}", "trainer.epochs=3"))
    assert (job.model, job.options) == (loaded.model, loaded.trainer)
    assert TrainingJob.from_json(job.to_json()) == job
    assert TrainingJob.from_json(job.to_json()).digest() == job.digest()


def test_equal_configurations_are_equal_bytes_whatever_was_spelt_out() -> None:
    said = custom_config("model=deep", "model.hidden=[128, 64]", "trainer.xla=true")
    unsaid = custom_config("model={name: deep}")
    assert json.dumps(said.to_dict()) == json.dumps(unsaid.to_dict())


def test_the_model_decides_what_was_not_given() -> None:
    options = TrainingOptions(epochs=3).resolved(CATALOGUE["best"].training)
    assert (options.epochs, options.batch_size) == (3, CATALOGUE["best"].training.batch_size)
    assert options.given("epochs") == 3
    assert options.given("batch_size") is None


def test_a_digest_tells_results_apart_not_places() -> None:
    job = job_of(custom_config("model=simple"))
    assert job.replaced(log_dir="elsewhere").digest() == job.digest()
    assert job.replaced(base_model="b").digest() != job.digest()
    assert job.replaced(options=job.options.replaced(seed=1)).digest() != job.digest()
    assert job_of(custom_config("model.code_size=16", "model=simple")).digest() != job.digest()


def test_a_warm_start_has_options_of_its_own() -> None:
    warm = custom_config("trainer.epochs=9").model_copy(update={"warm": {"epochs": 2}})
    assert job_of(warm).options.epochs == 9
    assert job_of(warm, base_model="b").options.epochs == 2


def test_tuned_values_are_checked_like_given_ones() -> None:
    job = job_of(custom_config("model=deep"))
    tuned = job.tuned({"hidden": "[256, 128]", "learning_rate": 0.01})
    assert tuned.model.hyperparameters.hidden == (256, 128)
    assert (tuned.options.learning_rate, tuned.options.epochs) == (0.01, job.options.epochs)
    with pytest.raises(pydantic.ValidationError, match="hidden"):
        job.tuned({"hidden": "[0]"})


def test_a_code_s_size_that_follows_from_others_cannot_be_given() -> None:
    assert ModelChoice.of("semi_supervised_aae", style_size=4).hyperparameters.code_size == 14
    with pytest.raises(config.UserError, match=r"unknown key 'model\.code_size'"):
        config.load(None, ["model=semi_supervised_aae", "model.code_size=14"])
