import json

import pytest

from trainer import run_fn, tuner_fn
from trainer.models import get_model_spec


class FnArgs:
    def __init__(self, job, working_dir):
        self.custom_config = {
            "model": job.model.model_dump(mode="json"),
            "options": {**job.options.model_dump(), "epochs": 50},
            "tuner": {"trials": 3, "epochs": 2},
        }
        self.train_files = list(job.train_files)
        self.transform_graph_path = job.transform_savedmodel.removesuffix("/transform_fn")
        self.working_dir = str(working_dir)


def test_the_best_of_the_trials_wins_and_reaches_the_training(make_job, tmp_path, monkeypatch):
    job = make_job("simple")
    tried = []
    original = run_fn.train_only

    def remembered(trial):
        logs = original(trial)
        tried.append((min(epoch["val_mse"] for epoch in logs), trial))
        return logs

    monkeypatch.setattr(run_fn, "train_only", remembered)
    result = tuner_fn.tuner_fn(FnArgs(job, tmp_path / "work"))
    result.tuner.search(**result.fit_kwargs)

    assert len(tried) == 3
    assert all(trial.options.epochs == 2 for _, trial in tried)
    assert len({trial.options.learning_rate for _, trial in tried}) == 3
    best = result.tuner.get_best_hyperparameters()[0].get_config()
    winner = min(tried, key=lambda item: item[0])[1]
    tuned = job.tuned(json.loads(json.dumps(best))["values"])
    assert tuned.options.learning_rate == winner.options.learning_rate
    assert tuned.model == winner.model
    assert tuned.options.epochs == job.options.epochs


@pytest.mark.parametrize("model", ["best", "deep", "conv", "vae"])
def test_a_search_space_names_hyperparameters_of_its_model(make_job, model):
    space = tuner_fn.search_space(make_job(model))
    spec = get_model_spec(model)
    for name, values in spec.search_space.items():
        for value in values:
            spec.hyperparameters.replaced(**{name: value})
        assert name in space.values
    assert tuner_fn.LEARNING_RATE in space.values
