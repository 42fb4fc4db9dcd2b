"""What the tests share: real digits, and one trained pipeline."""

from __future__ import annotations

import json
import os
import pathlib
import shutil
import subprocess
import sys
from typing import Any

import numpy as np
import pytest

from components.mnist_example_gen import datasets, idx

# Before any test imports TensorFlow, whose C++ part reads it once.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

# The embedded 5,000 digits, and as much training as a blessing takes.
SHARED_RUN = (
    "--model",
    "simple",
    "--dataset",
    "mnist-5k",
    "--set",
    "trainer.epochs=15",
    "--set",
    "trainer.batch_size=64",
    # Of a machine that may be busy.
    "--set",
    "validator.latency_budget_ms=60000",
)


# Made once, by one worker: what uses one of them stays together, as a module does otherwise.
SHARED = ("trained_run", "trained")
# The longest first, so that no worker is left with them at the end.
FIRST = ("trained", "trainer/test_run_fn.py", "kubeflow/test_node.py", "trained_run")


@pytest.hookimpl(tryfirst=True)  # before xdist looks at the groups
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Deals the tests out to workers, those last that add runs to the shared root."""
    for item in items:
        names = [name for name in SHARED if name in getattr(item, "fixturenames", ())]
        module = f"{item.path.parent.name}/{item.path.name}"
        item.add_marker(pytest.mark.xdist_group((names or [module])[0]))
    items.sort(key=_place)


def _place(item: pytest.Item) -> tuple[bool, int]:
    (group,) = next(item.iter_markers("xdist_group")).args
    return item.path.name == "test_rerun.py", (*FIRST, group).index(group)


@pytest.fixture(scope="session", autouse=True)
def _cache_folder(tmp_path_factory):
    """Keeps the user's cache out of the tests."""
    patch = pytest.MonkeyPatch()
    patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
    yield
    patch.undo()


@pytest.fixture(scope="session")
def digits_folder(_cache_folder) -> pathlib.Path:
    """A folder with 4,500 + 500 real digits as IDX files."""
    return pathlib.Path(datasets.find(datasets.MNIST_5K).folder)


@pytest.fixture(scope="session")
def digits(digits_folder) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Split to images uint8 [n, 28, 28] and labels uint8 [n], real digits."""
    return {
        split: (
            np.concatenate(
                list(idx.read_images(str(digits_folder / f"{prefix}-{idx.IMAGES}")))
            ).reshape(-1, 28, 28),
            np.concatenate(list(idx.read_labels(str(digits_folder / f"{prefix}-{idx.LABELS}")))),
        )
        for split, prefix in idx.SPLIT_PREFIXES.items()
    }


@pytest.fixture(scope="session")
def full_mnist() -> str:
    """The folder of the full MNIST, where there is one."""
    folder = os.environ.get("MNIST_DATA_DIR")
    if not folder:
        pytest.skip("MNIST_DATA_DIR names no folder with the full MNIST")
    return folder


def run_cli(
    *arguments: str, timeout: float = 1_800, **environment: str
) -> subprocess.CompletedProcess:
    """Runs ``mnist-ae`` as a user would."""
    env = {k: v for k, v in os.environ.items() if k not in ("MNIST_DATA_DIR", "MNIST_AE_ROOT")}
    return subprocess.run(
        [sys.executable, "-m", "pipeline.cli", *arguments],
        capture_output=True,
        text=True,
        timeout=timeout,
        env={**env, **environment},
        check=False,
    )


@pytest.fixture(scope="session")
def cli():
    """The command line as a function; see :func:`run_cli`."""
    return run_cli


class TrainedRun:
    """The shared run: its root and what ``--json`` printed."""

    arguments = SHARED_RUN

    def __init__(self, root: pathlib.Path, result: dict[str, Any], log: str):
        self.root = root
        self.result = result
        self.log = log

    @property
    def model_path(self) -> str:
        return self.result["pushed_path"]


@pytest.fixture(scope="session")
def trained_run(tmp_path_factory, _cache_folder) -> TrainedRun:
    """One run of the whole pipeline, for all tests that look at its outputs."""
    root = tmp_path_factory.mktemp("shared") / "runs"
    done = run_cli("run", *SHARED_RUN, "--root", str(root), "--json")
    assert done.returncode == 0, done.stderr
    return TrainedRun(root, json.loads(done.stdout), done.stderr)


@pytest.fixture(scope="session")
def built(tmp_path_factory) -> pathlib.Path:
    """A folder with one version of each small model; copy from it, never into it."""
    from tests.serving import models

    folder = tmp_path_factory.mktemp("built")
    models.write_conformance(folder / models.CONFORMANCE, 123)
    models.write_autoencoder(folder / "autoencoder", 1)
    return folder


@pytest.fixture(scope="session")
def pushed(built, tmp_path_factory) -> pathlib.Path:
    """A root with two pushed models, for reading only; the autoencoder is the newer one."""
    folder = tmp_path_factory.mktemp("root")
    for name, version in (("conformance", "1700000000"), ("autoencoder", "1700000009")):
        [source] = (built / name).iterdir()
        shutil.copytree(source, folder / "serving" / name / version)
    return folder
