import json
import threading

import pytest

from serving import contract
from trainer import processes, run_fn, tuner_fn
from trainer.models import get_model_spec


class FnArgs:
    def __init__(self, job, working_dir, base_model=None):
        self.base_model = base_model
        self.custom_config = {
            "model": job.model.model_dump(mode="json"),
            "options": {**job.options.model_dump(), "epochs": 50},
            "tuner": {"trials": 2, "epochs": 2},
        }
        self.train_files = list(job.train_files)
        self.transform_graph_path = job.transform_savedmodel.removesuffix("/transform_fn")
        self.working_dir = str(working_dir)


def test_the_best_of_the_trials_wins_and_reaches_the_training(make_job, tmp_path, monkeypatch):
    job = make_job("simple")
    tried = []
    original = processes.run

    def remembered(trial, environments):
        original(trial, environments)
        tried.append((min(epoch["val_mse"] for epoch in run_fn.history(trial)), trial))

    monkeypatch.setattr(processes, "run", remembered)
    result = tuner_fn.tuner_fn(FnArgs(job, tmp_path / "work"))
    result.tuner.search(**result.fit_kwargs)

    assert len(tried) == 2
    assert all(trial.options.epochs == 2 for _, trial in tried)
    assert len({trial.options.learning_rate for _, trial in tried}) == 2
    best = result.tuner.get_best_hyperparameters()[0].get_config()
    winner = min(tried, key=lambda item: item[0])[1]
    tuned = job.tuned(json.loads(json.dumps(best))["values"])
    assert tuned.options.learning_rate == winner.options.learning_rate
    assert tuned.model == winner.model
    assert tuned.options.epochs == job.options.epochs


@pytest.mark.slow
def test_from_a_trained_model_only_the_learning_rate_is_searched(make_job, tmp_path):
    """Else the second span of a tuned continuous run would find another architecture."""
    (name, values), *_ = get_model_spec("simple").search_space.items()
    other = next(v for v in values if v != getattr(get_model_spec("simple").hyperparameters, name))
    trained = make_job("simple", name="trained", hyperparameters={name: other}, epochs=1)
    run_fn.train(trained)
    args = FnArgs(make_job("simple"), tmp_path / "work", base_model=trained.model_dir)
    result = tuner_fn.tuner_fn(args)
    result.tuner.search(**result.fit_kwargs)
    best = json.loads(json.dumps(result.tuner.get_best_hyperparameters()[0].get_config()))
    assert set(best["values"]) == {tuner_fn.LEARNING_RATE}
    args.model_run_dir = str(tmp_path / "Trainer" / "model_run" / "1")
    args.serving_model_dir = str(tmp_path / "Trainer" / "model" / "1" / "Format-Serving")
    args.hyperparameters = best
    run_fn.run_fn(args)
    with open(f"{args.serving_model_dir}/{contract.METADATA_FILE}") as f:
        facts = json.load(f)
    assert facts["hyperparameters"][name] == other
    assert facts["warm_start"]["restored"] > 0
    assert facts["training"]["learning_rate"] == best["values"][tuner_fn.LEARNING_RATE]


def test_there_are_as_many_trials_at_a_time_as_gpus(make_job, tmp_path, monkeypatch):
    both = threading.Barrier(2, timeout=60)
    devices = set()

    def run(job, environments):
        devices.add(environments[0]["CUDA_VISIBLE_DEVICES"])
        both.wait()

    share = [{"CUDA_VISIBLE_DEVICES": "0"}, {"CUDA_VISIBLE_DEVICES": "1"}]
    monkeypatch.setattr(processes, "shares", lambda: share)
    monkeypatch.setattr(processes, "run", run)
    monkeypatch.setattr(run_fn, "history", lambda job: [{"val_mse": 0.1}])
    result = tuner_fn.tuner_fn(FnArgs(make_job("simple"), tmp_path / "work"))
    result.tuner.search(**result.fit_kwargs)
    assert devices == {"0", "1"}


def test_trials_of_a_training_with_several_workers_take_this_machine(make_job, tmp_path):
    job = make_job("simple", strategy="multi_worker")
    assert tuner_fn.tuner_fn(FnArgs(job, tmp_path)).tuner.job.options.strategy == "auto"


@pytest.mark.parametrize("model", ["best", "deep", "conv", "vae"])
def test_a_search_space_names_hyperparameters_of_its_model(make_job, model):
    space = tuner_fn.search_space(make_job(model))
    spec = get_model_spec(model)
    for name, values in spec.search_space.items():
        for value in values:
            spec.hyperparameters.replaced(**{name: value})
        assert name in space.values
    assert tuner_fn.LEARNING_RATE in space.values
