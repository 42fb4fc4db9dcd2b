"""The command line, run as a user would run it."""

import json
import os
import time

import pytest

from components.mnist_example_gen import idx
from trainer.models.catalogue import CATALOGUE


def test_models_lists_the_whole_catalogue(cli):
    listed = json.loads(cli("models", "--json").stdout)
    assert [entry["name"] for entry in listed] == list(CATALOGUE)
    for entry in listed:
        assert {"name", "code_size", "abilities", "parameters", "source"} <= set(entry)
        assert entry["code_size"] > 0
    table = cli("models").stdout
    for name in CATALOGUE:
        assert name in table


@pytest.mark.parametrize(
    "arguments",
    [["--help"], ["models"], ["models", "--json"], ["run", "--set", "trainer.epohcs=1"]],
    ids=" ".join,
)
def test_what_needs_no_tensorflow_answers_at_once(cli, arguments):
    seconds = []
    for _ in range(3):
        started = time.monotonic()
        cli(*arguments)
        seconds.append(time.monotonic() - started)
    # The bar is 1 s on a quiet machine; TensorFlow alone takes 3.
    assert min(seconds) < 2


def test_data_shows_what_would_be_used(cli, digits_folder):
    done = cli("data", "--json", "--data-dir", str(digits_folder))
    found = json.loads(done.stdout)
    assert (found["name"], found["folder"]) == ("mnist-5k", str(digits_folder))
    assert found["splits"]["train"]["count"] == 4_500
    by_environment = cli("data", "--json", MNIST_DATA_DIR=str(digits_folder))
    assert json.loads(by_environment.stdout)["origin"].startswith("folder")
    assert "4,500 train and 500 eval" in cli("data", "--dataset", "mnist-5k").stdout


def test_runs_of_an_empty_root(cli, tmp_path):
    done = cli("runs", "--root", str(tmp_path))
    assert done.returncode == 0
    assert "no runs" in done.stdout
    assert json.loads(cli("runs", "--json", "--root", str(tmp_path)).stdout) == []


def no_images(folder):
    (folder / f"train-{idx.LABELS}").write_bytes(b"")
    return ["run", "--data-dir", str(folder)]


def config_file(folder):
    path = folder / "c.yaml"
    path.write_text("model: [")
    return ["run", "--config", str(path)]


def root_is_a_file(folder):
    (folder / "file").write_text("")
    return ["run", "--dataset", "mnist-5k", "--root", str(folder / "file" / "runs")]


MISTAKES = {
    "no command": (lambda f: [], "COMMAND"),
    "unknown command": (lambda f: ["rnu"], "rnu"),
    "unknown option": (lambda f: ["run", "--modle", "simple"], "--modle"),
    "unknown model": (lambda f: ["run", "--model", "simpel"], "'simple'"),
    "unknown dataset": (lambda f: ["run", "--dataset", "mnits"], "'mnist'"),
    "unknown key": (lambda f: ["run", "--set", "trainer.epohcs=1"], "trainer.epochs"),
    "negative epochs": (lambda f: ["run", "--set", "trainer.epochs=-5"], "trainer.epochs"),
    "wrong type": (lambda f: ["run", "--set", "trainer.epochs=ten"], "trainer.epochs"),
    "strategy": (lambda f: ["run", "--set", "trainer.strategy=mirror"], "'mirrored'"),
    "no yaml": (config_file, "not YAML"),
    "missing config": (lambda f: ["run", "--config", str(f / "nope")], "cannot be read"),
    "missing folder": (lambda f: ["run", "--data-dir", str(f / "nope")], "nope"),
    "folder without files": (lambda f: ["run", "--data-dir", str(f)], "train-*"),
    "folder without images": (no_images, "train-*"),
    "data of an unknown set": (lambda f: ["data", "--dataset", "x"], "mnist-5k"),
    "root in a file": (root_is_a_file, "cannot be written"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_line_and_exit_code_2_and_nothing_is_written(cli, tmp_path, mistake):
    make, words = MISTAKES[mistake]
    (tmp_path / "data").mkdir()
    root = tmp_path / "runs"
    done = cli(*make(tmp_path / "data"), MNIST_AE_ROOT=str(root))
    assert done.returncode == 2, done.stderr
    assert done.stdout == ""
    assert words in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1, done.stderr
    assert done.stderr.startswith("mnist-ae: error:")
    assert not root.exists()


def test_a_second_run_in_the_same_root_says_so(cli, tmp_path):
    from pipeline.locking import locked

    with locked(str(tmp_path)):
        done = cli("run", "--dataset", "mnist-5k", "--root", str(tmp_path))
    assert done.returncode == 2
    assert f"process {os.getpid()}" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
