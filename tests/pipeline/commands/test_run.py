"""``mnist-ae run`` around a runner that is not there."""

import sys
import types

import pytest

import pipeline
from pipeline import cli
from pipeline.errors import RunError, UserError


@pytest.fixture
def runner(monkeypatch):
    """Stands in for pipeline.local_runner: keeps what it was asked for, then fails as told."""
    fake = types.SimpleNamespace(runs=[], failure=RunError("the trainer failed"))

    def run(config, dataset, *, run_id, listener):
        fake.runs.append((config, list(sys.argv)))
        raise fake.failure

    fake.run = run
    monkeypatch.setitem(sys.modules, "pipeline.local_runner", fake)
    monkeypatch.setattr(pipeline, "local_runner", fake, raising=False)
    return fake


@pytest.fixture
def run(monkeypatch, digits_folder, tmp_path, capfd):
    monkeypatch.delenv("MNIST_AE_ROOT", raising=False)

    def call(*arguments):
        words = ["run", "--data-dir", str(digits_folder), "--root", str(tmp_path), *arguments]
        monkeypatch.setattr(sys, "argv", ["mnist-ae", *words])
        code = cli.main()
        return code, capfd.readouterr().err.splitlines()

    return call


def test_options_reach_the_configuration_and_set_wins(run, runner, tmp_path):
    run("--model", "conv", "--tune", "--no-cache", "--set", "tuner.enabled=false", "--beam", "x=1")
    ((config, _),) = runner.runs
    assert (config.model.name, config.root, config.cache) == ("conv", str(tmp_path), False)
    assert (config.tuner.enabled, dict(config.beam)) == (False, {"x": 1})


def test_tfx_does_not_see_the_command_line(run, runner):
    run("-v")
    ((_, argv),) = runner.runs
    assert argv == ["mnist-ae"]


@pytest.mark.parametrize(("failure", "code"), [(RunError("it broke"), 1), (UserError("no"), 2)])
def test_a_failed_run_names_its_log(run, runner, tmp_path, failure, code):
    runner.failure = failure
    got, lines = run()
    assert got == code
    assert lines[-1].startswith(f"mnist-ae: error: {failure.args[0].split(' (')[0]} (log: ")
    (log,) = (tmp_path / "logs").iterdir()
    assert str(log) in lines[-1]


def test_several_models_run_one_after_the_other_and_the_worst_code_counts(run, runner):
    code, lines = run("--model", "simple,conv,simple")
    assert code == 1
    assert [config.model.name for config, _ in runner.runs] == ["simple", "conv"]
    assert lines[-1] == "mnist-ae: 2 of 2 models failed"
