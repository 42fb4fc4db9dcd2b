"""The test driver, and a pipeline compiled for it."""

from __future__ import annotations

import importlib.util
import pathlib
import sys

import pytest

from kubeflow import compiler
from pipeline import config


def _driver():
    path = pathlib.Path(__file__).with_name("driver.py")
    spec = importlib.util.spec_from_file_location("kfp_driver", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules["kfp_driver"] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def driver_of():
    """Compiles a configuration to a file and gives the Driver of that file."""
    module = _driver()

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
        return module.Driver(path)

    return make
