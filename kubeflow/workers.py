"""Distributed training on a cluster: workers that the Trainer's pod starts.

The Trainer node writes the training job, starts N workers that run it under
MultiWorkerMirroredStrategy, and waits. They are an indexed Kubernetes Job, a
TFJob of Kubeflow's training operator, or processes of its own pod; in all three
a worker is ``python -m kubeflow.workers JOB.json``. The first one writes the
model, into the Trainer's own artifact.

However the Trainer's pod ends, its workers do: it deletes them; the next attempt
of the same run takes their name; they go with the pod, which owns them; and they
end by themselves when nothing is heard of it (kill -9, a lost machine).
"""

from __future__ import annotations

import contextlib
import itertools
import json
import logging
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import urllib3

if TYPE_CHECKING:
    from pipeline.config import KubeflowConfig
    from trainer.job import TrainingJob

_logger = logging.getLogger(__name__)

LAUNCHER = "kubeflow.workers:launch"
LABEL = "mnist-ae-workers"
HOSTS = "MNIST_AE_WORKER_HOSTS"
INDEX = "JOB_COMPLETION_INDEX"
# Set by the node: which run its workers are for.
RUN_ID = "MNIST_AE_RUN_ID"
# Seconds after which a worker takes a silent Trainer for dead.
SILENCE = "MNIST_AE_TRAINER_SILENCE"
_SILENCE_SECONDS = 120.0
_BEAT_SECONDS = 10.0
_JOB_FILE = "job.json"
# Beside the job file: written anew every few seconds while the Trainer lives.
_BEAT_SUFFIX = ".alive"
_POLL_SECONDS = 2.0
# How long the cluster's API may fail before the training does.
_API_PATIENCE = 300.0
_USER = 1000


def options(cluster: KubeflowConfig) -> dict[str, Any] | None:
    """What the Trainer needs to start its workers, as plain data; None for a single one."""
    if cluster.workers.count < 2:
        return None
    return {
        "launcher": LAUNCHER,
        **cluster.workers.model_dump(),
        "image": cluster.image,
        "namespace": cluster.namespace,
        "volume_claim": cluster.volume_claim,
        "mount_path": cluster.mount_path,
    }


def manifests(name: str, job_file: str, settings: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What is created in the cluster for one training.

    Args:
      name: Of the job, a DNS label.
      job_file: The training job, on the volume.

    Returns:
      A headless Service and an indexed Job, or a TFJob; owned by this pod, where
      KFP says which one it is.
    """
    labels = {"app.kubernetes.io/name": LABEL, "app.kubernetes.io/instance": name}
    count, port = settings["count"], settings["port"]
    amounts = {resource: str(settings[resource]) for resource in ("cpu", "memory")}
    if settings["gpus"]:
        amounts["nvidia.com/gpu"] = str(settings["gpus"])
    container: dict[str, Any] = {
        "name": "tensorflow",
        "image": settings["image"],
        "command": ["python", "-m", "kubeflow.workers", job_file],
        "ports": [{"name": "tfjob-port", "containerPort": port}],
        "env": [{"name": SILENCE, "value": str(_SILENCE_SECONDS)}],
        "resources": {"requests": amounts, "limits": amounts},
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "capabilities": {"drop": ["ALL"]},
        },
    }
    pod: dict[str, Any] = {
        "restartPolicy": "Never",
        "automountServiceAccountToken": False,
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": _USER,
            "runAsGroup": _USER,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "containers": [container],
    }
    if settings["volume_claim"]:
        pod["volumes"] = [
            {"name": "models", "persistentVolumeClaim": {"claimName": settings["volume_claim"]}}
        ]
        container["volumeMounts"] = [{"name": "models", "mountPath": settings["mount_path"]}]
    metadata: dict[str, Any] = {
        "name": name,
        "namespace": settings["namespace"],
        "labels": labels,
        "ownerReferences": _owners(os.environ),
    }
    template = {"metadata": {"labels": labels}, "spec": pod}
    if settings["kind"] == "tfjob":
        # The operator sets TF_CONFIG itself.
        worker = {"replicas": count, "restartPolicy": "Never", "template": template}
        return [
            {
                "apiVersion": "kubeflow.org/v1",
                "kind": "TFJob",
                "metadata": metadata,
                "spec": {
                    "runPolicy": {"cleanPodPolicy": "All", "backoffLimit": 0},
                    "tfReplicaSpecs": {"Worker": worker},
                },
            }
        ]
    pod["subdomain"] = name
    hosts = ",".join(f"{name}-{i}.{name}:{port}" for i in range(count))
    container["env"].append({"name": HOSTS, "value": hosts})
    return [
        {
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": metadata,
            "spec": {
                "clusterIP": "None",
                # They must find each other before any of them is ready.
                "publishNotReadyAddresses": True,
                "selector": labels,
                "ports": [{"name": "workers", "port": port}],
            },
        },
        {
            "apiVersion": "batch/v1",
            "kind": "Job",
            "metadata": metadata,
            "spec": {
                "completionMode": "Indexed",
                "completions": count,
                "parallelism": count,
                # Half a cluster cannot train: KFP repeats the node as a whole.
                "backoffLimit": 0,
                "ttlSecondsAfterFinished": 3_600,
                "template": template,
            },
        },
    ]


def launch(job: TrainingJob, settings: Mapping[str, Any]) -> None:
    """Runs a training with several workers and waits for it.

    Raises:
      RuntimeError, TrainingError: A worker failed; nothing of them is left running.
    """
    import portpicker
    from tfx.dsl.io import fileio

    from trainer import processes

    job = job.replaced(options=job.options.replaced(strategy="multi_worker"))
    if settings["kind"] == "local":
        count = settings["count"]
        hosts = ",".join(f"localhost:{portpicker.pick_unused_port()}" for _ in range(count))
        places = [{"TF_CONFIG": tf_config({HOSTS: hosts, INDEX: str(i)})} for i in range(count)]
        processes.run(job, [{**a, **b} for a, b in zip(places, processes.shares(count))])
        return
    fileio.makedirs(job.log_dir)
    job_file = os.path.join(job.log_dir, _JOB_FILE)
    with fileio.open(job_file, "w") as f:
        f.write(job.to_json())
    _run_there(_name(job), job_file, settings)


def _owners(environment: Mapping[str, str]) -> list[dict[str, Any]]:
    """The pod of this process as an owner (kubeflow/pipelines, argocompiler/common.go)."""
    name, uid = environment.get("KFP_POD_NAME"), environment.get("KFP_POD_UID")
    if not name or not uid:
        return []
    return [{"apiVersion": "v1", "kind": "Pod", "name": name, "uid": uid}]


def _name(job: TrainingJob) -> str:
    """The name of a run's training: all attempts share it, and no other run has it."""
    run = re.sub(r"[^a-z0-9]+", "-", os.environ.get(RUN_ID, job.digest()).lower())
    return f"mnist-ae-train-{run[:40].strip('-')}"


def _run_there(name: str, job_file: str, settings: Mapping[str, Any]) -> None:
    cluster = _Cluster()
    objects = manifests(name, job_file, settings)
    try:
        with _beating(job_file):
            for thing in objects:
                cluster.create(thing)
            while True:
                done, problem = cluster.outcome(objects[-1])
                if problem:
                    raise RuntimeError(f"the workers of {name} failed: {problem}")
                if done:
                    return
                time.sleep(_POLL_SECONDS)
    finally:
        # Also when this node is cancelled: workers must not train on alone.
        for thing in objects:
            cluster.delete(thing)


@contextlib.contextmanager
def _beating(job_file: str) -> Iterator[None]:
    """Signs of life of this process on the volume, for its workers, whatever it waits for."""
    from tfx.dsl.io import fileio

    ended = threading.Event()

    def beat() -> None:
        for count in itertools.count():
            try:
                with fileio.open(job_file + _BEAT_SUFFIX, "w") as f:
                    f.write(f"{os.environ.get('KFP_POD_UID', os.getpid())} {count}")
            except Exception as e:
                # A volume that stumbles is no reason to end a training.
                _logger.warning("no sign of life for the workers: %s", e)
            if ended.wait(_BEAT_SECONDS):
                return

    threading.Thread(target=beat, daemon=True).start()
    try:
        yield
    finally:
        # Not waited for: on a volume that hangs, the workers are to be deleted all the same.
        ended.set()


class _Cluster:
    """The few calls of the Kubernetes API that are needed, for manifests of any kind."""

    def __init__(self) -> None:
        from kubernetes import client, config

        config.load_incluster_config()
        self._api = client.ApiClient()
        self._error = client.ApiException

    def create(self, thing: dict[str, Any]) -> None:
        """Creates an object; what a killed attempt left under its name goes first."""
        what = f"{thing['kind']} {thing['metadata']['name']}"
        for _ in range(30):
            try:
                self._patiently("POST", thing)
                return
            except self._error as e:
                if e.status != 409:
                    raise RuntimeError(
                        f"the cluster refused {what}: {e.status} {e.reason}; does the service "
                        "account have the role of kubeflow/manifests/workers?"
                    ) from e
            self.delete(thing)
            time.sleep(_POLL_SECONDS)
        raise RuntimeError(f"{what} of an earlier attempt does not go away")

    def outcome(self, thing: dict[str, Any]) -> tuple[bool, str]:
        """Whether the workers are done, and what went wrong, or ""."""
        status = self._patiently("GET", thing).get("status") or {}
        conditions = status.get("conditions") or []
        true = {c["type"]: c.get("message") for c in conditions if c["status"] == "True"}
        if "Failed" in true:
            return True, true["Failed"] or "no reason given"
        return "Complete" in true or "Succeeded" in true, ""

    def delete(self, thing: dict[str, Any]) -> None:
        """Deletes an object and its pods; one that is not there is fine."""
        try:
            self._call("DELETE", thing)
        except (self._error, urllib3.exceptions.HTTPError) as e:
            if getattr(e, "status", None) != 404:
                what = f"{thing['kind']} {thing['metadata']['name']}"
                _logger.warning("%s cannot be deleted: %s", what, e)

    def _patiently(self, method: str, thing: dict[str, Any]) -> Any:
        """The answer to a call that is repeated while the API server stumbles."""
        until = time.monotonic() + _API_PATIENCE
        while True:
            try:
                return self._call(method, thing)
            except (self._error, urllib3.exceptions.HTTPError) as e:
                status = getattr(e, "status", None) or 0
                if time.monotonic() > until or (400 <= status < 500 and status != 429):
                    raise
                _logger.warning("the cluster's API: %s; trying again", " ".join(str(e).split()))
            time.sleep(_POLL_SECONDS)

    def _call(self, method: str, thing: dict[str, Any]) -> Any:
        version, metadata = thing["apiVersion"], thing["metadata"]
        path = f"/{'apis' if '/' in version else 'api'}/{version}"
        path += f"/namespaces/{metadata['namespace']}/{thing['kind'].lower()}s"
        return self._api.call_api(
            path if method == "POST" else f"{path}/{metadata['name']}",
            method,
            query_params=[("propagationPolicy", "Background")] * (method == "DELETE"),
            header_params={"Accept": "application/json", "Content-Type": "application/json"},
            body=thing if method == "POST" else None,
            response_type="object",
            auth_settings=["BearerToken"],
            _return_http_data_only=True,
        )


def tf_config(environment: Mapping[str, str]) -> str:
    """``TF_CONFIG`` of this worker: what an operator set, or made of hosts and index.

    Raises:
      ValueError: Neither is there.
    """
    if environment.get("TF_CONFIG"):
        return environment["TF_CONFIG"]
    hosts, index = environment.get(HOSTS, ""), environment.get(INDEX, "")
    if not hosts or not index.isdigit():
        raise ValueError(f"a worker needs TF_CONFIG, or {HOSTS} and {INDEX}")
    return json.dumps(
        {"cluster": {"worker": hosts.split(",")}, "task": {"type": "worker", "index": int(index)}}
    )


def main(job_file: str) -> int:
    """Runs one worker, as long as the Trainer lives.

    Returns:
      The exit code of the worker; 143 where it was told to stop, by SIGTERM or by
      the silence of the Trainer.
    """
    from tfx.dsl.io import fileio

    environment = {**os.environ, "TF_CONFIG": tf_config(os.environ)}
    silence = float(os.environ.get(SILENCE, _SILENCE_SECONDS))
    command = [sys.executable, "-m", "trainer.run_fn", job_file]
    with subprocess.Popen(command, env=environment) as worker:
        # As the first process of a container this one would ignore it.
        signal.signal(signal.SIGTERM, lambda *_: worker.terminate())
        beat, heard = "", time.monotonic()
        while True:
            try:
                code = worker.wait(timeout=min(_BEAT_SECONDS, silence / 4))
                return code if code >= 0 else 128 - code
            except subprocess.TimeoutExpired:
                pass
            try:
                with fileio.open(job_file + _BEAT_SUFFIX) as f:
                    last = f.read()
            except Exception:
                # Not there yet, or the volume stumbles: silence, until it speaks.
                last = beat
            if last != beat:
                beat, heard = last, time.monotonic()
            elif time.monotonic() - heard > silence:
                print(f"worker: nothing heard of the Trainer for {silence:.0f} s", file=sys.stderr)
                worker.terminate()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
