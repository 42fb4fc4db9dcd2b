"""Data components on a portable runner whose workers are a pool of their own."""

from __future__ import annotations

import os
import pathlib
import socket
import subprocess
import sys
import time

import pytest

from pipeline import history

pytestmark = pytest.mark.e2e


def _port() -> int:
    with socket.socket() as s:
        s.bind(("localhost", 0))
        return s.getsockname()[1]


def _listens(port: int, process: subprocess.Popen) -> None:
    while True:
        try:
            socket.create_connection(("localhost", port), timeout=1).close()
            return
        except OSError:
            assert process.poll() is None
            time.sleep(0.2)


@pytest.fixture
def cluster(tmp_path):
    """Beam's own Python job server and the worker pool of our image, as processes."""
    jobs, pool = _port(), _port()
    # The pool starts its workers with the first python on the PATH, in the image
    # the project's own.
    path = os.pathsep.join([os.path.dirname(sys.executable), os.environ["PATH"]])
    environment = {**os.environ, "PYTHONPATH": os.getcwd(), "PATH": path}
    processes = []
    staged = f"--staging_dir={tmp_path}/staged"
    for port, module, *arguments in (
        (jobs, "portability.local_job_service_main", f"--port={jobs}", staged),
        (pool, "worker.worker_pool_main", f"--service_port={pool}"),
    ):
        words = [sys.executable, "-m", f"apache_beam.runners.{module}", *arguments]
        with open(tmp_path / f"{module}.log", "w") as log:
            process = subprocess.Popen(words, env=environment, stdout=log, stderr=log)
        processes.append(process)
        _listens(port, process)
    yield jobs, pool
    for process in processes:
        process.kill()
        process.wait()


def test_ingestion_and_statistics_run_on_the_workers_of_a_pool(
    cluster, tmp_path, digits_folder, driver_of
):
    jobs, pool = cluster
    (tmp_path / "data").symlink_to(digits_folder)
    driver = driver_of(
        pathlib.Path(tmp_path),
        "beam.runner=PortableRunner",
        f"beam.job_endpoint=localhost:{jobs}",
        "beam.environment_type=EXTERNAL",
        f"beam.environment_config=localhost:{pool}",
    )
    done = driver.run({}, run_id="portable", only=["mnist-example-gen", "statistics-gen"])
    assert done.failed is None, done.attempts[-1].stderr[-3_000:]
    store = history.open_store(str(tmp_path / "metadata.sqlite"))
    (examples,) = history.run_outputs(store, "portable", "Examples")
    assert examples.custom_properties["count_train"].int_value == 4_500
    (statistics,) = history.run_outputs(store, "portable", "ExampleStatistics")
    assert os.path.getsize(os.path.join(statistics.uri, "Split-train", "FeatureStats.pb")) > 100
    log = (tmp_path / "worker.worker_pool_main.log").read_text()
    assert "sdk_worker_main" in log or "Starting worker" in log or log
