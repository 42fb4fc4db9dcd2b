"""The cluster of KUBECONFIG, and the commands of the guide against it."""

from __future__ import annotations

import contextlib
import json
import os
import pathlib
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import portpicker
import pytest

NAMESPACE = "kubeflow"
PROJECT = pathlib.Path(__file__).resolve().parents[2]
_CONFIG = "pipeline/configs/kubeflow.yaml"


class Cluster:
    """kubectl and mnist-ae, as somebody who follows the guide has them."""

    def __init__(self) -> None:
        self.environment = dict(os.environ)

    def kubectl(self, *words: str, given: str | None = None, check: bool = True) -> str:
        """What kubectl says in the namespace of Kubeflow Pipelines."""
        done = subprocess.run(
            ["kubectl", "--namespace", NAMESPACE, *words],
            input=given,
            capture_output=True,
            text=True,
            cwd=PROJECT,
        )
        assert not check or done.returncode == 0, f"kubectl {' '.join(words)}: {done.stderr}"
        return done.stdout + ("" if check else done.stderr)

    def get(self, *words: str) -> Any:
        """An object, or the list of those that a selector names."""
        found = json.loads(self.kubectl("get", *words, "--output=json"))
        return found.get("items", found)

    def apply(self, folder: str) -> None:
        """kubectl kustomize FOLDER | kubectl apply -f -"""
        rendered = self.kubectl("kustomize", "--load-restrictor=LoadRestrictionsNone", folder)
        self.kubectl("apply", "--filename=-", given=rendered)

    def mnist_ae(self, *words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [str(pathlib.Path(sys.executable).with_name("mnist-ae")), *words],
            capture_output=True,
            text=True,
            cwd=PROJECT,
            env=self.environment,
        )

    def start(self, *words: str) -> str:
        """Submits a run, of the images in the image, and gives its identifier."""
        return json.loads(self.submit(*words, "--json").stdout)["run_id"]

    def submit(self, *words: str) -> subprocess.CompletedProcess[str]:
        done = self.mnist_ae("kubeflow", "submit", *_SOURCE, *words)
        assert done.returncode == 0, done.stderr
        return done

    def schedule(self, *words: str) -> str:
        done = self.mnist_ae("kubeflow", "schedule", *_SOURCE, *words, "--json")
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)["recurring_run_id"]

    def run(self, *words: str) -> dict[str, Any]:
        """Submits a run, waits for it and gives its last state."""
        return self.ended(self.start(*words))

    def ended(self, run_id: str) -> dict[str, Any]:
        done = self.mnist_ae("kubeflow", "wait", run_id, "--json", "--patience=1800")
        return json.loads(done.stdout)

    def status(self, run_id: str) -> dict[str, Any]:
        done = self.mnist_ae("kubeflow", "status", run_id, "--json")
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    def pod_of(self, run_id: str, node: str) -> dict[str, Any]:
        """The pod in which a node of a run is at work, as soon as it is."""

        def running() -> Any:
            for pod in self.get("pods", f"--selector=pipeline/runid={run_id}"):
                main = [c for c in pod["spec"]["containers"] if c["name"] == "main"]
                # The driver has it too, inside of its JSON.
                words = main[0].get("command", []) + main[0].get("args", [])
                nodes = [w[7:].split(",") for w in words if w.startswith("--node=")]
                if nodes and node in nodes[0] and pod["status"]["phase"] == "Running":
                    return pod
            return None

        return self.eventually(running, 900)

    @staticmethod
    def eventually(look: Callable[[], Any], seconds: float) -> Any:
        """What a look finds, once it finds something."""
        deadline = time.monotonic() + seconds
        while True:
            found = look()
            if found:
                return found
            assert time.monotonic() < deadline, f"not in {seconds:g} s"
            time.sleep(1)

    @contextlib.contextmanager
    def forwarded(self, target: str, port: int) -> Iterator[int]:
        """A port of this machine that is one of the cluster."""
        local = portpicker.pick_unused_port()
        process = subprocess.Popen(
            ["kubectl", "--namespace", NAMESPACE, "port-forward", target, f"{local}:{port}"],
            stdout=subprocess.DEVNULL,
        )

        def answers() -> bool:
            with contextlib.suppress(OSError), socket.create_connection(("localhost", local), 1):
                return True
            return False

        try:
            self.eventually(answers, 30)
            yield local
        finally:
            process.terminate()
            process.wait()


_SOURCE = [
    f"--config={_CONFIG}",
    "--service-account=mnist-ae-runner",
    "--set=data.dataset=mnist-5k",
    # Every model is good enough, after few steps on a machine that much else is on.
    *("--set=trainer.batch_size=64", "--set=evaluator.max_mse=1", "--set=evaluator.max_increase=9"),
    "--set=validator.latency_budget_ms=60000",
]


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Nobody's cluster is touched by chance: it takes a KUBECONFIG and ``-m cluster``."""
    if config.option.markexpr == "cluster" and os.environ.get("KUBECONFIG"):
        return
    for item in items:
        if item.get_closest_marker("cluster"):
            item.add_marker(pytest.mark.skip(reason="for 'make test-cluster', with KUBECONFIG"))


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    """The cluster, with Kubeflow Pipelines' API at the address that mnist-ae knows."""
    cluster = Cluster()
    with cluster.forwarded("service/ml-pipeline", 8888) as port:
        cluster.environment["MNIST_AE_KFP_HOST"] = f"http://localhost:{port}"
        yield cluster
