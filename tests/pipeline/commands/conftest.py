"""Commands called in this process, as CliRunner calls them."""

from __future__ import annotations

import pytest
from click.testing import CliRunner, Result

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
