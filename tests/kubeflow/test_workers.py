"""Distributed training: what is created in a cluster, and the same code as processes."""

from __future__ import annotations

import contextlib
import json
import os
import pathlib
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence

import kubernetes
import kubernetes_validate
import portpicker
import pytest

from kubeflow import workers
from pipeline import config
from tests import loopback
from trainer.job import TrainingJob, TrainingOptions
from trainer.models import ModelChoice


def settings(*assignments: str) -> dict:
    cluster = config.load(None, ["kubeflow.workers.count=2", *assignments]).kubeflow
    found = workers.options(cluster)
    assert found is not None
    return found


def test_one_worker_is_the_trainer_itself():
    assert workers.options(config.load(None, []).kubeflow) is None


def test_the_job_is_valid_and_its_workers_find_each_other():
    service, job = workers.manifests("mnist-ae-train-1", "/mnt/job.json", settings())
    for thing in (service, job):
        kubernetes_validate.validate(thing, "1.29", strict=True)
    spec = job["spec"]["template"]["spec"]
    assert spec["subdomain"] == service["metadata"]["name"]
    assert service["spec"]["selector"] == job["spec"]["template"]["metadata"]["labels"]
    environment = {e["name"]: e["value"] for e in spec["containers"][0]["env"]}
    cluster = json.loads(workers.tf_config({**environment, "JOB_COMPLETION_INDEX": "1"}))
    assert cluster["task"] == {"type": "worker", "index": 1}
    assert cluster["cluster"]["worker"] == [
        "mnist-ae-train-1-0.mnist-ae-train-1:2222",
        "mnist-ae-train-1-1.mnist-ae-train-1:2222",
    ]
    assert job["spec"]["completions"] == job["spec"]["parallelism"] == 2


def test_gpus_and_the_volume_are_the_workers():
    _, job = workers.manifests("n", "/mnt/job.json", settings("kubeflow.workers.gpus=1"))
    spec = job["spec"]["template"]["spec"]
    assert spec["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] == "1"
    assert spec["volumes"][0]["persistentVolumeClaim"]["claimName"] == "mnist-ae-models"


def test_a_tfjob_is_one_object_whose_operator_sets_tf_config():
    (job,) = workers.manifests("n", "/j.json", settings("kubeflow.workers.kind=tfjob"))
    worker = job["spec"]["tfReplicaSpecs"]["Worker"]
    assert worker["replicas"] == 2
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "n"}}
    kubernetes_validate.validate({**pod, "spec": worker["template"]["spec"]}, "1.29", strict=True)
    # The training operator finds the container and its port by these names.
    container = worker["template"]["spec"]["containers"][0]
    assert (container["name"], container["ports"][0]["name"]) == ("tensorflow", "tfjob-port")
    given = '{"cluster": {"worker": ["a:1", "b:1"]}, "task": {"type": "worker", "index": 0}}'
    assert workers.tf_config({"TF_CONFIG": given, workers.HOSTS: "x:1"}) == given


def test_a_worker_that_does_not_know_the_others_says_what_it_needs():
    with pytest.raises(ValueError, match="MNIST_AE_WORKER_HOSTS"):
        workers.tf_config({})


@pytest.fixture
def job(tmp_path):
    """Makes training jobs, as the Trainer would write them."""

    def make(name: str) -> TrainingJob:
        options = {"epochs": 2, "batch_size": 64, "learning_rate": 1e-3, "xla": False}
        return TrainingJob(
            model=ModelChoice.of("simple", code_size=32),
            options=TrainingOptions(**options),
            train_files=("examples/*.gz",),
            transform_savedmodel="transform_fn",
            model_dir=str(tmp_path / name / "model"),
            log_dir=str(tmp_path / name / "log"),
            checkpoint_root=str(tmp_path / name / "checkpoints"),
            facts={},
        )

    return make


class Api:
    """A loopback Kubernetes API server; the Job fails or completes at the second look.

    Args:
      refusals: Status codes that its first answers to reads have instead.
      until: Reads are refused as long as this is not true.
    """

    def __init__(
        self,
        outcome: str,
        refusals: Sequence[int] = (),
        until: Callable[[], bool] = lambda: True,
    ):
        refused = list(refusals)
        self.calls: list[tuple[str, str]] = []
        self.bodies: list[dict] = []
        looks = [0]
        outer = self

        class Handler(loopback.Handler):
            def _handle(self):
                length = int(self.headers.get("Content-Length") or 0)
                body = json.loads(self.rfile.read(length) or b"{}")
                outer.calls.append((self.command, self.path.split("?")[0]))
                answer: dict = {}
                if self.command == "POST":
                    outer.bodies.append(body)
                    answer = body
                status = 200
                if self.command == "GET" and refused:
                    status = refused.pop(0)
                elif self.command == "GET" and not until():
                    status = 503
                elif self.command == "GET":
                    looks[0] += 1
                    conditions = [
                        {"type": outcome, "status": "True", "message": "worker 1 was evicted"}
                    ]
                    answer = {"status": {"conditions": conditions if looks[0] > 1 else []}}
                data = json.dumps(answer).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            do_GET = do_POST = do_DELETE = _handle  # noqa: N815

        self._stack = contextlib.ExitStack()
        self.host = self._stack.enter_context(loopback.served(Handler))

    def close(self):
        self._stack.close()


@pytest.fixture
def api_of(monkeypatch):
    """Makes loopback API servers, which this process takes for its cluster's."""
    made = []

    def make(*args) -> Api:
        api = Api(*args)
        made.append(api)

        def load() -> None:
            configuration = kubernetes.client.Configuration(host=api.host)
            # Else urllib3 repeats reads itself.
            configuration.retries = 0
            kubernetes.client.Configuration.set_default(configuration)

        monkeypatch.setattr(kubernetes.config, "load_incluster_config", load)
        return api

    monkeypatch.setattr(workers, "_POLL_SECONDS", 0.01)
    yield make
    for api in made:
        api.close()
    kubernetes.client.Configuration.set_default(None)


@pytest.mark.parametrize("kind", ["job", "tfjob"])
@pytest.mark.parametrize("outcome", ["Complete", "Failed"])
def test_the_cluster_is_asked_for_workers_and_left_clean(job, api_of, kind, outcome):
    api = api_of("Succeeded" if (kind, outcome) == ("tfjob", "Complete") else outcome)
    training = job(f"{kind}-{outcome}")
    if outcome == "Failed":
        with pytest.raises(RuntimeError, match="evicted"):
            workers.launch(training, settings(f"kubeflow.workers.kind={kind}"))
    else:
        workers.launch(training, settings(f"kubeflow.workers.kind={kind}"))
    created = [path.rsplit("/", 1)[-1] for method, path in api.calls if method == "POST"]
    assert created == (["services", "jobs"] if kind == "job" else ["tfjobs"])
    deleted = [path for method, path in api.calls if method == "DELETE"]
    assert len(deleted) == len(created)
    names = {body["metadata"]["name"] for body in api.bodies}
    assert len(names) == 1 and len(names.pop()) <= 63
    with open(f"{training.log_dir}/job.json", encoding="utf-8") as f:
        assert json.load(f)["options"]["strategy"] == "multi_worker"


def test_an_api_server_that_stumbles_does_not_end_the_training(job, api_of):
    api = api_of("Complete", [500, 429, 503])
    workers.launch(job("stumbles"), settings())
    assert [method for method, _ in api.calls].count("GET") == 5


def test_workers_hear_of_a_trainer_whose_api_server_stumbles(job, api_of, monkeypatch):
    """They take it for dead sooner than it gives the API server up."""
    monkeypatch.setattr(workers, "_BEAT_SECONDS", 0.02)
    monkeypatch.setattr(workers, "_API_PATIENCE", 60.0)
    training, heard = job("heard"), set()

    def heard_thrice() -> bool:
        for path in pathlib.Path(training.log_dir).glob("*.alive"):
            heard.add(path.read_text())
        return len(heard - {""}) > 2

    api_of("Complete", (), heard_thrice)
    workers.launch(training, settings())


def test_workers_that_somebody_deleted_end_the_training_at_once(job, api_of):
    api_of("Complete", [404])
    with pytest.raises(kubernetes.client.ApiException, match="404"):
        workers.launch(job("deleted"), settings())


def test_every_attempt_of_a_run_has_the_same_workers_and_its_pod_owns_them(
    job, api_of, monkeypatch
):
    api = api_of("Complete")
    monkeypatch.setenv(workers.RUN_ID, "7C9E6679-7425-40de-944b-e07fc1f90ae7")
    for attempt in ("one", "two"):
        monkeypatch.setenv("KFP_POD_NAME", f"trainer-{attempt}")
        monkeypatch.setenv("KFP_POD_UID", f"uid-{attempt}")
        workers.launch(job(attempt), settings())
    assert {body["metadata"]["name"] for body in api.bodies} == {
        "mnist-ae-train-7c9e6679-7425-40de-944b-e07fc1f90ae7"
    }
    owners = [body["metadata"]["ownerReferences"] for body in api.bodies]
    pod = {"apiVersion": "v1", "kind": "Pod"}
    first, second = (
        [{**pod, "name": f"trainer-{attempt}", "uid": f"uid-{attempt}"}]
        for attempt in ("one", "two")
    )
    assert owners == [first, first, second, second]


@pytest.fixture
def lone_worker(tmp_path):
    """Starts one worker of two: it waits for the other, which never comes."""
    started = []

    def start(training: TrainingJob, **environment: str) -> subprocess.Popen:
        job_file = tmp_path / "job.json"
        options = training.options.replaced(strategy="multi_worker")
        job_file.write_text(training.replaced(options=options).to_json())
        hosts = ",".join(f"localhost:{portpicker.pick_unused_port()}" for _ in range(2))
        environment |= {workers.HOSTS: hosts, workers.INDEX: "1"}
        process = subprocess.Popen(
            [sys.executable, "-m", "kubeflow.workers", str(job_file)],
            env={**os.environ, **environment},
            stderr=subprocess.PIPE,
            text=True,
        )
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


def test_a_worker_ends_when_nothing_is_heard_of_its_trainer(job, lone_worker):
    worker = lone_worker(job("orphan"), **{workers.SILENCE: "2"})
    _, stderr = worker.communicate(timeout=120)
    assert worker.returncode == 143
    assert stderr.splitlines()[-1] == "worker: nothing heard of the Trainer for 2 s"


def test_a_worker_that_is_told_to_stop_stops(job, lone_worker):
    worker = lone_worker(job("told"))
    worker.send_signal(signal.SIGTERM)
    worker.communicate(timeout=120)
    assert worker.returncode in (143, -signal.SIGTERM)
