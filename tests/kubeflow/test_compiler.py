"""The compiled pipeline: what a backend accepts, and what is refused before it could."""

from __future__ import annotations

import pytest
import yaml
from google.protobuf import json_format
from kfp.pipeline_spec import pipeline_spec_pb2

from kubeflow import compiler
from pipeline import config
from pipeline.errors import UserError
from tests.kubeflow import spec_rules

_GPU = ("kubeflow.nodes.Trainer.gpus=1", "kubeflow.nodes.Trainer.node_selector.pool=gpu")


def compiled(*assignments: str) -> str:
    values = config.read(None, assignments)
    return compiler.compile_pipeline(config.parse(values), values)


@pytest.fixture(scope="module")
def text() -> str:
    return compiled(
        "model=simple",
        "kubeflow.nodes.Trainer.env.TF_GPU_ALLOCATOR=cuda_malloc_async",
        "kubeflow.nodes.Transform.memory=4Gi",
        "kubeflow.nodes.Transform.retries=5",
        "kubeflow.nodes.Transform.timeout_seconds=77",
        *_GPU,
    )


@pytest.fixture(scope="module")
def documents(text) -> list[dict]:
    return list(yaml.safe_load_all(text))


def test_it_is_a_pipeline_spec_of_containers_only(text, documents):
    spec_rules.check_spec(text)
    spec = documents[0]
    json_format.ParseDict(spec, pipeline_spec_pb2.PipelineSpec())
    executors = spec["deploymentSpec"]["executors"]
    assert {kind for executor in executors.values() for kind in executor} == {"container"}
    assert spec["schemaVersion"] == "2.1.0"
    assert len(executors) == len(spec["root"]["dag"]["tasks"]) >= 10


def test_it_is_the_same_every_time(text):
    again = compiled(
        *_GPU,
        "kubeflow.nodes.Transform.timeout_seconds=77",
        "kubeflow.nodes.Transform.retries=5",
        "kubeflow.nodes.Transform.memory=4Gi",
        "kubeflow.nodes.Trainer.env.TF_GPU_ALLOCATOR=cuda_malloc_async",
        "model=simple",
    )
    assert again == text


def test_tasks_wait_for_what_tfx_says(documents):
    tasks = documents[0]["root"]["dag"]["tasks"]
    assert tasks["transform"]["dependentTasks"] == ["mnist-example-gen", "statistics-gen"]
    assert "trainer" in tasks["evaluator"]["dependentTasks"]
    assert "dependentTasks" not in tasks["mnist-example-gen"]


def nodes_of(spec: dict) -> dict[str, list[str]]:
    """The nodes that each task runs, in turn."""
    return {
        name.removeprefix("exec-"): executor["container"]["args"][0]
        .removeprefix("--node=")
        .split(",")
        for name, executor in spec["deploymentSpec"]["executors"].items()
    }


def test_nodes_without_work_run_in_the_container_of_another(documents):
    nodes = nodes_of(documents[0])
    assert nodes["statistics-gen"] == [
        "ImportSchemaGen",
        "StatisticsGen",
        "ExampleValidator",
        "DataGate",
    ]
    assert nodes["evaluator"] == ["BaselineResolver", "Evaluator"]
    shown = documents[0]["root"]["dag"]["tasks"]["evaluator"]["taskInfo"]["name"]
    assert shown == "baseline-resolver + evaluator"


def test_a_node_with_settings_of_its_own_is_a_task_of_its_own():
    text = compiled("model=simple", "kubeflow.nodes.DataGate.memory=3Gi")
    spec, _ = yaml.safe_load_all(text)
    assert nodes_of(spec)["data-gate"] == ["DataGate"]
    assert "DataGate" not in nodes_of(spec)["statistics-gen"]
    assert "data-gate" in spec["root"]["dag"]["tasks"]["transform"]["dependentTasks"]


def test_all_that_follows_the_verdict_on_a_span_hangs_on_it():
    text = compiled("model=simple", "continuous.golden=/mnt/mnist-ae/data/golden")
    spec_rules.check_spec(text)
    spec, _ = yaml.safe_load_all(text)
    tasks = spec["root"]["dag"]["tasks"]
    (condition,) = [task for task in tasks.values() if "triggerPolicy" in task]
    (given,) = [
        name
        for name, source in condition["inputs"]["parameters"].items()
        if source.get("taskOutputParameter")
        == {"producerTask": "drift-monitor", "outputParameterKey": "verdict"}
    ]
    assert condition["triggerPolicy"]["condition"].split() == [
        f"inputs.parameter_values['{given}']",
        "==",
        "'train'",
    ]
    inner = spec["components"][condition["componentRef"]["name"]]["dag"]["tasks"]
    assert {"transform", "trainer", "pusher", "run-report"} <= set(inner)
    assert set(tasks) >= {"drift-monitor", "statistics-gen"}
    outputs = spec["components"]["comp-drift-monitor"]["outputDefinitions"]["parameters"]
    assert set(outputs) == {"verdict", "reason"}


def test_kfp_never_answers_from_its_own_cache(documents):
    for task in documents[0]["root"]["dag"]["tasks"].values():
        assert not task["cachingOptions"].get("enableCache")


def test_every_run_parameter_has_a_default_and_reaches_the_node(documents):
    parameters = documents[0]["root"]["inputDefinitions"]["parameters"]
    assert set(parameters) == set(compiler.PARAMETERS)
    assert all("defaultValue" in p for p in parameters.values())
    for executor in documents[0]["deploymentSpec"]["executors"].values():
        arguments = " ".join(executor["container"]["args"])
        for name in compiler.PARAMETERS:
            assert f"inputs.parameters['{name}']" in arguments


def test_the_run_id_is_an_input_of_every_task_and_in_no_argument(documents):
    # Its source: kubeflow/pipelines, driver/resolve.go and component/launcher_v2.go.
    for task in documents[0]["root"]["dag"]["tasks"].values():
        source = task["inputs"]["parameters"]["run_id"]
        assert source == {"runtimeValue": {"constant": "{{$.pipeline_job_uuid}}"}}
    for executor in documents[0]["deploymentSpec"]["executors"].values():
        arguments = executor["container"]["args"]
        assert arguments[arguments.index("--run-id") + 1] == "{{$.inputs.parameters['run_id']}}"
        assert "pipeline_job" not in " ".join(arguments)


def test_only_the_trainer_gets_a_gpu(documents):
    executors = documents[0]["deploymentSpec"]["executors"]
    with_gpu = [n for n, e in executors.items() if "accelerator" in e["container"]["resources"]]
    assert with_gpu == ["exec-trainer"]
    platform = documents[1]["platforms"]["kubernetes"]["deploymentSpec"]["executors"]
    assert [n for n, e in platform.items() if "nodeSelector" in e] == ["exec-trainer"]


def test_resources_retries_and_time_limit_are_those_of_the_node(documents):
    spec = documents[0]
    container = spec["deploymentSpec"]["executors"]["exec-transform"]["container"]
    assert container["resources"]["memoryLimit"] == pytest.approx(4 * 2**30 / 1e9)
    assert "--timeout=77" in container["args"]
    assert spec["root"]["dag"]["tasks"]["transform"]["retryPolicy"]["maxRetryCount"] == 5
    assert spec["root"]["dag"]["tasks"]["trainer"]["retryPolicy"]["maxRetryCount"] == 2
    environment = spec["deploymentSpec"]["executors"]["exec-trainer"]["container"]["env"]
    assert environment == [{"name": "TF_GPU_ALLOCATOR", "value": "cuda_malloc_async"}]


def test_a_retry_of_a_long_node_has_its_time(documents):
    """Argo's maxDuration begins with the first attempt (workflow/controller/operator.go)."""
    for task, spec in documents[0]["root"]["dag"]["tasks"].items():
        policy = spec["retryPolicy"]
        label = documents[0]["components"][spec["componentRef"]["name"]]["executorLabel"]
        arguments = documents[0]["deploymentSpec"]["executors"][label]["container"]["args"]
        [limit] = [int(a.partition("=")[2]) for a in arguments if a.startswith("--timeout=")]
        retries, pause = policy["maxRetryCount"], int(policy["backoffDuration"][:-1])
        needed = (retries + 1) * limit + pause * 2**retries
        assert int(policy["backoffMaxDuration"][:-1]) >= needed, task


def test_every_node_has_the_volume_and_the_password_but_not_in_clear(documents, text):
    platform = documents[1]["platforms"]["kubernetes"]["deploymentSpec"]["executors"]
    assert set(platform) == set(documents[0]["deploymentSpec"]["executors"])
    for executor in platform.values():
        (mount,) = executor["pvcMount"]  # a newer kfp-kubernetes names the claim twice
        assert (mount["constant"], mount["mountPath"]) == ("mnist-ae-models", "/mnt/mnist-ae")
        assert executor["secretAsEnv"][0]["secretName"] == "mnist-ae-metadata"
    assert "password" not in documents[0].__repr__()


@pytest.mark.parametrize(
    ("assignment", "expected"),
    [
        ("kubeflow.nodes.Trainer.gpu=1", "did you mean 'kubeflow.nodes.Trainer.gpus'"),
        ("kubeflow.nodes.Trainer.cpu=lots", "no Kubernetes quantity"),
        ("kubeflow.image=no-tag", "kubeflow.image"),
        ("kubeflow.volume_claim=Not_A_Claim", "kubeflow.volume_claim"),
        ("kubeflow.defaults.secrets.X=nokey", "secret-name/key"),
        ("kubeflow.defaults.env={1A: b}", "environment variable"),
        ("kubeflow.nodes.Trainer.node_selector={'a b': c}", "no Kubernetes label"),
        ("kubeflow.metadata_url=mysql://u:secret@h/d", "as a secret instead"),
        ("kubeflow.span=newest", "'latest' or a number"),
        ("kubeflow.workers.count=0", "kubeflow.workers.count"),
    ],
)
def test_a_bad_value_is_named_with_its_key(assignment, expected):
    with pytest.raises(UserError) as caught:
        config.load(None, [assignment])
    assert expected in str(caught.value)
    assert "secret@" not in str(caught.value)
