"""docs/kubeflow.md, as a user follows it; each test begins where the one before ended.

The cluster has Kubeflow Pipelines 2 in the namespace ``kubeflow``, the image of
``pipeline/configs/kubeflow.yaml``, and nothing of ours; tests/cluster/cluster.sh makes such a one.
"""

from __future__ import annotations

import json
import re
import secrets
import urllib.request

import numpy as np
import pytest

from components.mnist_example_gen import idx
from tests.cluster.conftest import NAMESPACE, PROJECT, Cluster

pytestmark = [pytest.mark.cluster, pytest.mark.xdist_group("cluster"), pytest.mark.timeout(3_600)]
# Ends the node as the kernel does that is out of memory.
_KILL = """
import os, pathlib
for process in pathlib.Path("/proc").glob("[0-9]*/cmdline"):
    if process.read_bytes().startswith(b"python\\0-m\\0kubeflow.node"):
        os.kill(int(process.parent.name), 9)
"""
_RUNNER = f"system:serviceaccount:{NAMESPACE}:mnist-ae-runner"
_STATES = {0: "UNKNOWN", 1: "NEW", 2: "RUNNING", 3: "COMPLETE", 4: "FAILED", 5: "CACHED"}


@pytest.fixture(scope="module")
def runs() -> dict[str, dict]:
    """Last states by what the test that made them calls them."""
    return {}


def versions(cluster: Cluster) -> list[int]:
    """What was pushed, as the pods that serve see it."""
    said = cluster.kubectl("exec", "deployment/mnist-ae-serving", "--", "ls", "/models/best")
    return sorted(int(name) for name in said.split() if name.isdigit())


def states(state: dict) -> dict[str, str]:
    return {task["name"]: task["state"] for task in state["tasks"]}


def asked(cluster: Cluster, query: str) -> list[str]:
    """The words of a query's answer by the metadata database."""
    return cluster.kubectl(
        *("exec", "mnist-ae-metadata-0", "--", "sh", "-c"),
        f'mysql --batch --skip-column-names --host=127.0.0.1 --user="$MYSQL_USER"'
        f' --password="$MYSQL_PASSWORD" "$MYSQL_DATABASE" --execute="{query}"',
    ).split()


def _executions(run_id: str, node: str) -> str:
    return (
        "FROM Execution e JOIN Association a ON a.execution_id = e.id"
        " JOIN Context c ON c.id = a.context_id JOIN Type t ON t.id = c.type_id"
        f" WHERE t.name = 'pipeline_run' AND c.name = '{run_id}' AND e.id IN (SELECT execution_id"
        f" FROM Association b JOIN Context d ON d.id = b.context_id WHERE d.name LIKE '%.{node}')"
    )


def lineage(cluster: Cluster, run_id: str, node: str) -> list[str]:
    """States of a node's executions of a run, as ML Metadata has them."""
    found = asked(cluster, f"SELECT e.last_known_state {_executions(run_id, node)}")
    return [_STATES.get(int(word), "CANCELED") for word in found]


def artifacts(cluster: Cluster, run_id: str, node: str, key: str) -> list[str]:
    """Identifiers of what a node took or gave under a key."""
    query = (
        "SELECT v.artifact_id FROM Event v JOIN EventPath p ON p.event_id = v.id WHERE"
        f" p.step_key = '{key}' AND v.execution_id IN (SELECT e.id {_executions(run_id, node)})"
    )
    return asked(cluster, query)


def at_work(cluster: Cluster, run_id: str, node: str) -> dict:
    """The pod of a node, once ML Metadata has the node's execution."""
    pod = cluster.pod_of(run_id, node)
    cluster.eventually(lambda: lineage(cluster, run_id, node), 300)
    return pod


def test_secret_and_overlay(cluster):
    cluster.kubectl(
        *("create", "secret", "generic", "mnist-ae-metadata"),
        f"--from-literal=password={secrets.token_hex(16)}",
    )
    cluster.apply("kubeflow/manifests/overlays/local")
    cluster.kubectl("rollout", "status", "statefulset/mnist-ae-metadata", "--timeout=300s")
    bound = "--for=jsonpath={.status.phase}=Bound"
    cluster.kubectl("wait", bound, "persistentvolumeclaim/mnist-ae-models", "--timeout=60s")


@pytest.mark.parametrize(
    ("may", "verb", "what"),
    [
        ("yes", "create", "workflowtaskresults.argoproj.io"),
        ("yes", "get", "secret/mlpipeline-minio-artifact"),
        ("yes", "get", "configmap/kfp-launcher"),
        ("yes", "get", "pods"),
        ("no", "get", "secret/mnist-ae-metadata"),
        ("no", "list", "secrets"),
        ("no", "create", "pods"),
        ("no", "delete", "pods"),
        ("no", "create", "pods/exec"),
        ("no", "create", "jobs.batch"),
        ("no", "create", "services"),
        ("no", "create", "deployments.apps"),
        ("no", "delete", "persistentvolumeclaims"),
        ("no", "create", "workflows.argoproj.io"),
        ("no", "create", "rolebindings.rbac.authorization.k8s.io"),
    ],
)
def test_what_the_pods_of_a_run_may_do(cluster, may, verb, what):
    assert allowed(cluster, verb, what) == may


def allowed(cluster: Cluster, verb: str, what: str) -> str:
    said = cluster.kubectl("auth", "can-i", verb, what, f"--as={_RUNNER}", check=False)
    return said.split()[-1] if said.startswith("Warning") else said.split()[0]


def test_the_first_run_pushes_a_model_that_is_served(cluster, runs):
    runs["first"] = state = cluster.run("--param=epochs=1")
    assert state["state"] == "SUCCEEDED", state
    assert set(states(state).values()) == {"SUCCEEDED"} and len(state["tasks"]) >= 10
    run_id = state["run_id"]
    assert lineage(cluster, run_id, "Trainer") == ["COMPLETE"]
    assert not artifacts(cluster, run_id, "Evaluator", "baseline_model")
    cluster.kubectl("rollout", "status", "deployment/mnist-ae-serving", "--timeout=600s")
    assert len(versions(cluster)) == 1


def test_it_answers(cluster, tmp_path):
    idx.write_idx(str(tmp_path / "digits"), np.zeros((3, 28, 28), np.uint8))
    with cluster.forwarded("deployment/mnist-ae-serving", 8500) as port:
        done = cluster.mnist_ae(
            *("predict", str(tmp_path / "digits"), f"--target=localhost:{port}"),
            *("--model=best", f"--out={tmp_path}/out"),
        )
    assert done.returncode == 0, done.stderr


def test_the_next_run_trains_anew_though_its_trainer_is_killed(cluster, runs):
    """Of a pod that is deleted Argo 3.7 says Error, which KFP's retries are not for."""
    run_id = cluster.start("--param=epochs=2")
    pod = at_work(cluster, run_id, "Trainer")["metadata"]["name"]
    cluster.kubectl("exec", pod, "--container=main", "--", "python", "-c", _KILL)
    runs["second"] = state = cluster.ended(run_id)
    assert state["state"] == "SUCCEEDED", state
    assert run_id != runs["first"]["run_id"]
    assert lineage(cluster, run_id, "MnistExampleGen") == ["CACHED"]
    # Two attempts, one execution.
    assert lineage(cluster, run_id, "Trainer") == ["COMPLETE"]
    (before,) = artifacts(cluster, runs["first"]["run_id"], "Trainer", "model")
    assert artifacts(cluster, run_id, "Evaluator", "baseline_model") == [before]
    assert len(versions(cluster)) == 2


def test_a_recurring_run_fires_twice_from_the_cache(cluster):
    """The same again is not trained and not pushed again; a schedule takes its own place."""
    first = cluster.schedule("--every=60s", "--param=epochs=2")
    again = cluster.schedule("--every=60s", "--param=epochs=2")
    assert first != again
    assert len(cluster.get("scheduledworkflows")) == 1

    def fired(count: int) -> list[str]:
        selector = "scheduledworkflows.kubeflow.org/isOwnedByScheduledWorkflow=true"
        found = cluster.get("workflows", f"--selector={selector}")
        found.sort(key=lambda flow: flow["metadata"]["creationTimestamp"])
        return [flow["metadata"]["labels"]["pipeline/runid"] for flow in found][:count] * (
            len(found) >= count
        )

    (one,) = cluster.eventually(lambda: fired(1), 300)
    state = cluster.ended(one)
    assert state["state"] == "SUCCEEDED", state
    assert lineage(cluster, one, "Trainer") == ["CACHED"]
    assert len(versions(cluster)) == 2
    _, other = cluster.eventually(lambda: fired(2), 300)
    cluster.kubectl("delete", "scheduledworkflows", "--all")
    assert other != one
    assert cluster.mnist_ae("kubeflow", "cancel", other).returncode == 0
    cluster.ended(other)


def test_a_cancelled_run_ends_and_says_so_in_the_lineage(cluster):
    run_id = cluster.start("--param=epochs=500")
    at_work(cluster, run_id, "Trainer")
    assert cluster.mnist_ae("kubeflow", "cancel", run_id).returncode == 0
    # To KFP 2.16 its workflow failed: it ends one by a deadline of zero seconds.
    assert cluster.ended(run_id)["state"] in ("CANCELED", "FAILED")
    assert lineage(cluster, run_id, "Trainer") == ["CANCELED"]


def test_a_rollout_moves_every_replica(cluster):
    cluster.kubectl("scale", "deployment/mnist-ae-serving", "--replicas=2")
    cluster.kubectl("rollout", "status", "deployment/mnist-ae-serving", "--timeout=600s")
    newest = versions(cluster)[-1]
    # The last one fails where a server does not do what the file says.
    for order in (["canary", str(newest)], ["promote"], ["list"]):
        text = (PROJECT / "kubeflow/manifests/examples/rollout.yaml").read_text()
        text = re.sub(r"- list\n", "".join(f"- {json.dumps(w)}\n            " for w in order), text)
        job = json.loads(cluster.kubectl("create", "--output=json", "--filename=-", given=text))
        name = f"job/{job['metadata']['name']}"

        def ended(name: str = name) -> list:
            return cluster.get(name)["status"].get("conditions")

        last = cluster.eventually(ended, 300)[-1]
        assert last["type"] in ("SuccessCriteriaMet", "Complete"), cluster.kubectl("logs", name)
    pods = cluster.get("pods", "--selector=app.kubernetes.io/name=mnist-ae-serving")
    assert len(pods) == 2
    for pod in pods:
        with cluster.forwarded(f"pod/{pod['metadata']['name']}", 8501) as port:
            url = f"http://localhost:{port}/v1/models/best/labels/stable/metadata"
            with urllib.request.urlopen(url) as answer:
                assert json.load(answer)["model_spec"]["version"] == str(newest)


@pytest.fixture(scope="module")
def continuous(cluster, digits, tmp_path_factory) -> list[str]:
    """Settings of a continuous run over a span, which it copies as the guide does."""
    folder = tmp_path_factory.mktemp("data")
    for split, words in (("eval", ["--golden"]), ("train", [])):
        images, labels = digits[split]
        np.save(folder / "images.npy", images[:2_000])
        np.save(folder / "labels.npy", labels[:2_000])
        files = [str(folder / "images.npy"), f"--labels={folder}/labels.npy"]
        done = cluster.mnist_ae("ingest", *files, f"--root={folder}", *words)
        assert done.returncode == 0, done.stderr
    cluster.kubectl("apply", "--filename=kubeflow/manifests/examples/copy.yaml")
    cluster.kubectl("wait", "--for=condition=Ready", "pod/mnist-ae-copy", "--timeout=300s")
    cluster.kubectl("cp", str(folder / "spans"), "mnist-ae-copy:/volume/data")
    return [
        "--set=continuous.golden=/mnt/mnist-ae/data/spans/golden/version-1",
        "--set=kubeflow.data_dir=/mnt/mnist-ae/data/spans",
        # Too few images to be strict with.
        *("--set=continuous.max_span_increase=9", "--set=continuous.max_golden_increase=9"),
        *("--set=continuous.max_digit_increase=9", "--set=continuous.max_span_digit_increase=9"),
    ]


def test_a_new_span_is_trained_on_by_workers_of_an_indexed_job(cluster, continuous):
    cluster.apply("kubeflow/manifests/workers")
    assert allowed(cluster, "create", "jobs.batch") == "yes"
    assert allowed(cluster, "list", "jobs.batch") == "no"
    pushed = len(versions(cluster))
    small = "{count: 2, kind: job, gpus: 0, cpu: 1, memory: 2Gi}"
    run_id = cluster.start(*(*continuous, "--param=epochs=2", f"--set=kubeflow.workers={small}"))
    of_workers = "--selector=app.kubernetes.io/name=mnist-ae-workers"
    (job,) = cluster.eventually(lambda: cluster.get("jobs", of_workers), 900)
    assert job["spec"]["completionMode"] == "Indexed"
    state = cluster.ended(run_id)
    assert state["state"] == "SUCCEEDED", state
    assert set(states(state).values()) == {"SUCCEEDED"}
    assert lineage(cluster, run_id, "Trainer") == ["COMPLETE"]
    assert not cluster.get("jobs", of_workers)
    assert len(versions(cluster)) == pushed + 1


def test_without_a_new_span_a_run_is_skipped_and_succeeds(cluster, continuous):
    pushed = versions(cluster)
    state = cluster.run(*continuous, "--param=epochs=2")
    assert state["state"] == "SUCCEEDED", state
    assert "SKIPPED" in states(state).values()
    assert lineage(cluster, state["run_id"], "Trainer") == []
    assert versions(cluster) == pushed
