"""A backend to submit to; the test driver, and a pipeline compiled for it."""

from __future__ import annotations

import functools
import inspect
import pathlib

import pytest

from kubeflow import compiler
from pipeline import config
from tests.kubeflow.backend import Backend
from tests.kubeflow.driver import Driver


@pytest.fixture(scope="session", autouse=True)
def _stacks_without_source_lines():
    """Spares kfp's compiler, which looks for its caller's name, the source of pytest's frames.

    It asks for the stack for each setting of a task: 6 s a pipeline under pytest, .2 s outside.
    """
    patch = pytest.MonkeyPatch()
    patch.setattr(inspect, "stack", functools.partial(inspect.stack, 0))
    yield
    patch.undo()


@pytest.fixture
def backend():
    """A loopback Kubeflow Pipelines backend that records what it is asked."""
    server = Backend()
    yield server
    server.close()


@pytest.fixture(scope="session")
def driver_of():
    """Compiles a configuration to a file and gives the Driver of that file."""

    def make(folder: pathlib.Path, *assignments: str):
        values = config.read(
            None,
            [
                "model=simple",
                "kubeflow.volume_claim=null",
                f"kubeflow.pipeline_root={folder}/pipeline",
                f"kubeflow.push_dir={folder}/models",
                f"kubeflow.data_dir={folder}/data",
                f"kubeflow.metadata_url=sqlite://{folder}/metadata.sqlite",
                "kubeflow.defaults.backoff_seconds=1",
                *assignments,
            ],
        )
        text = compiler.compile_pipeline(config.parse(values), values)
        path = folder / "pipeline.yaml"
        path.write_text(text)
        return Driver(path)

    return make
