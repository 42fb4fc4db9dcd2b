"""Commands called in this process, as CliRunner calls them."""

from __future__ import annotations

import os
import pathlib

# Before anything imports TensorFlow.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np
import pytest
from click.testing import CliRunner, Result
from PIL import Image

from pipeline import cli


@pytest.fixture
def invoke(tmp_path, monkeypatch):
    """``mnist-ae`` with arguments, in an empty root: exit code, stdout, stderr."""
    monkeypatch.delenv("MNIST_DATA_DIR", raising=False)
    monkeypatch.setenv("MNIST_AE_ROOT", str(tmp_path / "runs"))
    # `run` and `infer` take its arguments from it; other tests want theirs back.
    monkeypatch.setattr("sys.argv", ["mnist-ae"])

    def call(*arguments: object) -> Result:
        done = CliRunner().invoke(cli.mnist_ae, [str(argument) for argument in arguments])
        assert done.exception is None or isinstance(done.exception, SystemExit), done.exc_info
        return done

    return call


@pytest.fixture
def run(pushed, monkeypatch, capfd):
    """``mnist-ae`` with arguments, where two models are pushed: exit code, stdout, stderr."""
    monkeypatch.setenv("MNIST_AE_ROOT", str(pushed))

    def call(*arguments: object) -> tuple[int, str, str]:
        capfd.readouterr()
        code = cli.main([str(argument) for argument in arguments])
        out, err = capfd.readouterr()
        return code, out, err

    return call


@pytest.fixture
def picture(tmp_path: pathlib.Path) -> pathlib.Path:
    path = tmp_path / "some.png"
    array = np.zeros((60, 40, 3), np.uint8)
    array[10:50, 15:25] = 255
    Image.fromarray(array).save(path)
    return path
