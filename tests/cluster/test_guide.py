"""docs/kubeflow.md, as a user follows it; each test begins where the one before ended.

The cluster has Kubeflow Pipelines 2 in the namespace ``kubeflow``, the image of
``pipeline/configs/kubeflow.yaml``, and nothing of ours; tests/cluster/cluster.sh makes such a one.
"""

from __future__ import annotations

import json
import re
import secrets

import numpy as np
import pytest

from tests.cluster.conftest import NAMESPACE, PROJECT, Cluster

pytestmark = [pytest.mark.cluster, pytest.mark.xdist_group("cluster")]
# Ends the node as the kernel does that is out of memory.
_KILL = """
import os, pathlib
for process in pathlib.Path("/proc").glob("[0-9]*/cmdline"):
    if process.read_bytes().startswith(b"python\0-m\0kubeflow.node"):
        os.kill(int(process.parent.name), 9)
"""
_RUNNER = f"system:serviceaccount:{NAMESPACE}:mnist-ae-runner"


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


def lineage(cluster: Cluster, run_id: str, node: str) -> list[str]:
    """States of a node's executions of a run, as ML Metadata has them."""
    query = (
        "SELECT e.last_known_state FROM Execution e JOIN Association a ON a.execution_id = e.id"
        " JOIN Context c ON c.id = a.context_id JOIN Type t ON t.id = c.type_id"
        f" WHERE t.name = 'pipeline_run' AND c.name = '{run_id}' AND e.id IN (SELECT execution_id"
        " FROM Association b JOIN Context d ON d.id = b.context_id WHERE d.name LIKE"
        f" '%.{node}')"
    )
    names = {0: "UNKNOWN", 1: "NEW", 2: "RUNNING", 3: "COMPLETE", 4: "FAILED", 5: "CACHED"}
    said = cluster.kubectl(
        *("exec", "mnist-ae-metadata-0", "--", "sh", "-c"),
        f'mysql --batch --skip-column-names --host=127.0.0.1 --user="$MYSQL_USER"'
        f' --password="$MYSQL_PASSWORD" "$MYSQL_DATABASE" --execute="{query}"',
    )
    return [names.get(int(word), "CANCELED") for word in said.split()]


def test_overlay_and_secret(cluster):
    cluster.kubectl(
        *("create", "secret", "generic", "mnist-ae-metadata"),
        f"--from-literal=password={secrets.token_hex(16)}",
    )
    cluster.apply("kubeflow/manifests/overlays/local")
    cluster.kubectl("rollout", "status", "statefulset/mnist-ae-metadata", "--timeout=300s")
    claim = cluster.get("persistentvolumeclaim/mnist-ae-models")
    assert claim["status"]["phase"] == "Bound"


def test_the_first_run_pushes_a_model_that_is_served(cluster, runs):
    runs["first"] = state = cluster.run("--param=epochs=1")
    assert state["state"] == "SUCCEEDED", state
    assert set(states(state).values()) == {"SUCCEEDED"} and len(state["tasks"]) >= 10
    cluster.kubectl("rollout", "status", "deployment/mnist-ae-serving", "--timeout=600s")
    assert len(versions(cluster)) == 1


def test_it_answers(cluster, tmp_path):
    np.save(tmp_path / "digits.npy", np.zeros((3, 28, 28), np.uint8))
    with cluster.forwarded("deployment/mnist-ae-serving", 8500) as port:
        done = cluster.mnist_ae(
            *("predict", str(tmp_path / "digits.npy"), f"--target=localhost:{port}"),
            *("--model=best", f"--out={tmp_path}/out"),
        )
    assert done.returncode == 0, done.stderr


def test_the_next_run_trains_anew_against_the_first_model(cluster, runs):
    runs["second"] = state = cluster.run("--param=epochs=2")
    assert state["state"] == "SUCCEEDED", state
    assert state["run_id"] != runs["first"]["run_id"]
    for name in ("first", "second"):
        assert lineage(cluster, runs[name]["run_id"], "Trainer") == ["COMPLETE"]
    assert len(versions(cluster)) == 2


def test_the_same_again_comes_from_the_cache(cluster, runs):
    state = cluster.run("--param=epochs=2")
    assert state["state"] == "SUCCEEDED", state
    assert lineage(cluster, state["run_id"], "Trainer") == ["CACHED"]
    assert len(versions(cluster)) == 2


def test_a_recurring_run_fires_twice_and_again_takes_its_own_place(cluster):
    first = cluster.schedule("--every=60s", "--param=epochs=2")
    again = cluster.schedule("--every=60s", "--param=epochs=2")
    assert first != again

    def scheduled() -> list[dict]:
        return cluster.get("scheduledworkflows")

    def fired() -> list[dict]:
        found = cluster.get(
            "workflows",
            "--selector=scheduledworkflows.kubeflow.org/isOwnedByScheduledWorkflow=true",
        )
        return found if len(found) >= 2 else []

    assert len(scheduled()) == 1
    workflows = cluster.eventually(fired, 900)
    cluster.kubectl("delete", "scheduledworkflows", "--all")
    ids = {flow["metadata"]["labels"]["pipeline/runid"] for flow in workflows}
    assert len(ids) >= 2
    for run_id in ids:
        cluster.mnist_ae("kubeflow", "cancel", run_id)


def test_a_killed_node_is_tried_again(cluster):
    """Of a pod that is deleted Argo 3.7 says Error, which KFP's retries are not for."""
    run_id = cluster.start("--param=epochs=3")
    pod = cluster.pod_of(run_id, "Trainer")
    cluster.eventually(lambda: lineage(cluster, run_id, "Trainer"), 120)
    cluster.kubectl(
        *("exec", pod["metadata"]["name"], "--container=main", "--", "python", "-c"), _KILL
    )
    state = cluster.ended(run_id)
    assert state["state"] == "SUCCEEDED", state
    assert lineage(cluster, run_id, "Trainer")[-1] == "COMPLETE"


def test_a_cancelled_run_ends(cluster):
    run_id = cluster.start("--param=epochs=4")
    cluster.pod_of(run_id, "Trainer")
    assert cluster.mnist_ae("kubeflow", "cancel", run_id).returncode == 0
    # To KFP 2.16 its workflow failed: it ends one by a deadline of zero seconds.
    assert cluster.ended(run_id)["state"] in ("CANCELED", "FAILED")


def test_a_rollout_moves_every_replica(cluster):
    cluster.kubectl("scale", "deployment/mnist-ae-serving", "--replicas=2")
    cluster.kubectl("rollout", "status", "deployment/mnist-ae-serving", "--timeout=600s")
    newest = versions(cluster)[-1]
    for order in (["canary", str(newest)], ["promote"]):
        text = (PROJECT / "kubeflow/manifests/examples/rollout.yaml").read_text()
        text = re.sub(r"- list\n", "".join(f"- {json.dumps(w)}\n            " for w in order), text)
        job = json.loads(cluster.kubectl("create", "--output=json", "--filename=-", given=text))
        name = job["metadata"]["name"]
        cluster.kubectl("wait", "--for=condition=Complete", f"job/{name}", "--timeout=300s")
    pods = cluster.get("pods", "--selector=app.kubernetes.io/name=mnist-ae-serving")
    assert len(pods) == 2
    for pod in pods:
        with cluster.forwarded(f"pod/{pod['metadata']['name']}", 8500) as port:
            done = cluster.mnist_ae(
                *("rollout", "list", "--model=best", f"--target=localhost:{port}", "--json")
            )
            assert f'"stable": {newest}' in done.stdout, done


def test_workers_are_an_indexed_job(cluster):
    cluster.apply("kubeflow/manifests/workers")
    small = "{count: 2, kind: job, gpus: 0, cpu: 1, memory: 2Gi}"
    run_id = cluster.start("--param=epochs=1", f"--set=kubeflow.workers={small}")
    jobs = cluster.eventually(
        lambda: cluster.get("jobs", "--selector=app.kubernetes.io/name=mnist-ae-workers"), 900
    )
    assert jobs[0]["spec"]["completionMode"] == "Indexed"
    assert cluster.ended(run_id)["state"] == "SUCCEEDED"
    assert not cluster.get("jobs", "--selector=app.kubernetes.io/name=mnist-ae-workers")


@pytest.mark.parametrize(
    ("may", "verb", "what"),
    [
        ("yes", "create", "workflowtaskresults.argoproj.io"),
        ("yes", "get", "secret/mlpipeline-minio-artifact"),
        ("no", "get", "secret/mnist-ae-metadata"),
        ("no", "list", "secrets"),
        ("no", "create", "pods"),
        ("no", "delete", "pods"),
        ("no", "create", "deployments.apps"),
        ("no", "delete", "persistentvolumeclaims"),
        ("no", "create", "workflows.argoproj.io"),
    ],
)
def test_what_the_pods_of_a_run_may_do(cluster, may, verb, what):
    said = cluster.kubectl("auth", "can-i", verb, what, f"--as={_RUNNER}", check=False)
    assert said.split()[0] == may
