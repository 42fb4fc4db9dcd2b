"""Compiles the pipeline for Kubeflow Pipelines: a KFP task for each TFX node that has work.

``create_pipeline`` gives the graph; the KFP SDK writes it down as container
components, each of which runs ``python -m kubeflow.node`` in the project's
image. KFP has the run, the schedule, the retries and the machines; TFX keeps
its resolvers, cache and lineage, against one ML Metadata store. The node makes
the same graph again from the configuration that stands in its arguments, so
that every run parameter reaches every place that depends on it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import graphlib
import inspect
import json
import pathlib
import re
import tempfile
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

from kubeflow import checks
from pipeline.config import KubeflowConfig, NodeConfig, PipelineConfig
from pipeline.errors import UserError, hint
from trainer.models.catalogue import UnknownModelError, get_model_spec

# Run parameters, which are arguments of every node, and what they are for people.
PARAMETERS = {
    "model": "Which autoencoder; see 'mnist-ae models'.",
    "epochs": "Passes over the training images; 0 is the model's own default.",
    "data_dir": "Folder with the IDX files, or with span-N folders of them.",
    "span": "Which span of the data folder: 'latest' or a number.",
    "pipeline_root": "Where artifacts go.",
    "push_dir": "Folder above the servables, that TensorFlow Serving reads.",
}
# Output parameters of the node that judges a span, as KFP shows them: the verdict,
# on which all later tasks hang, and its reason in words.
VERDICT_OUTPUTS = ("verdict", "reason")
# An input of every task that is no run parameter: KFP's driver resolves the
# placeholder only where it is all of a task's input, and leaves it as text in
# container arguments (kubeflow/pipelines, backend/src/v2/driver/resolve.go).
_RUN_ID = "run_id"
# What the SDK writes at most (dsl/structures.py), and a week, which never counts: a node has
# retries and a time for each.
_SDK_MAX_DURATION = "backoffMaxDuration: 3600s"
_MAX_DURATION = "backoffMaxDuration: 604800s"

_CAMEL = re.compile(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])")


# Nodes without work of their own run in another node's container, which starts for
# seconds: those that choose or prepare inputs with the first node that waits for
# them, those that only pass a verdict on with the last one that they wait for.
_WITH_NEXT = (
    "ImportSchemaGen",
    "BaselineResolver",
    "ServingModelResolver",
    "ReferenceResolver",
    "WindowResolver",
    "SpanGate",
)
_WITH_LAST = ("ExampleValidator", "DataGate")


@dataclasses.dataclass(frozen=True)
class Task:
    """A task of the compiled pipeline, which runs one node or several in turn.

    Attributes:
      name: KFP's name of it.
      lead: Identifier of the node whose settings it has.
      nodes: Identifiers of all its nodes, in topological order.
      upstream: Names of the tasks that it waits for.
    """

    name: str
    lead: str
    nodes: tuple[str, ...]
    upstream: tuple[str, ...]


def run_parameters(config: PipelineConfig, assignments: Sequence[str] = ()) -> dict[str, Any]:
    """The run parameters of a submission, all of them.

    Args:
      assignments: ``key=value`` over them.

    Raises:
      UserError: Unknown parameter or bad value.
    """
    values: dict[str, Any] = {
        "model": config.model.name,
        "epochs": config.trainer.given("epochs") or 0,
        "data_dir": config.kubeflow.data_dir,
        "span": str(config.kubeflow.span),
        "pipeline_root": config.kubeflow.pipeline_root,
        "push_dir": config.kubeflow.push_dir,
    }
    for assignment in assignments:
        key, sign, text = assignment.partition("=")
        if not sign:
            raise UserError(f"--param {assignment}: expected KEY=VALUE, such as epochs=20")
        if key not in PARAMETERS:
            raise UserError(f"--param: no run parameter {key!r}; {hint(key, PARAMETERS)}")
        values[key] = _checked(key, text)
    return values


def _checked(key: str, text: str) -> int | str:
    """The value of a run parameter."""
    if key == "epochs":
        if not text.isdigit():
            raise UserError(f"--param epochs={text}: expected a whole number, 0 or more")
        return int(text)
    if key == "model":
        try:
            return get_model_spec(text).name
        except UnknownModelError as e:
            raise UserError(f"--param model: {e}") from None
    if key == "span" and text != "latest" and not text.isdigit():
        raise UserError(f"--param span={text}: expected 'latest' or a number")
    return text


def task_name(node_id: str) -> str:
    """``MnistExampleGen`` to ``mnist-example-gen``."""
    return _CAMEL.sub("-", node_id).replace("_", "-").lower()


def make_ir(
    config: PipelineConfig,
    *,
    pipeline_root: str,
    data_folder: str,
    data_pattern: str = "",
    data_span: int | None = None,
    labelled: bool = True,
) -> Any:
    """TFX's intermediate representation of the graph: of a continuous run with a golden set.

    Args:
      data_folder: Folder with the IDX files, or with folders of spans.
      data_pattern: Folder of a span below that; "" for none, or not known.
      data_span: Which span; the latest when None.
      labelled: Whether the images have labels.
    """
    from ml_metadata.proto import metadata_store_pb2
    from tfx.dsl.compiler import compiler

    from kubeflow import workers
    from pipeline.continuous import spans
    from pipeline.continuous.pipeline import create_continuous_pipeline
    from pipeline.pipeline import create_pipeline

    nowhere = metadata_store_pb2.ConnectionConfig()
    nowhere.fake_database.SetInParent()
    common: dict[str, Any] = {
        "data_folder": data_folder,
        "data_span": data_span,
        "labelled": labelled,
        "workers": workers.options(config.kubeflow),
        "metadata_connection": nowhere,
        "pipeline_root": pipeline_root,
    }
    golden = config.continuous.golden
    if golden is None:
        pipeline = create_pipeline(config, data_pattern=data_pattern, **common)
    else:
        common["data_pattern"] = data_pattern or spans.PATTERN
        pipeline = create_continuous_pipeline(config, golden_folder=golden, **common)
    return compiler.Compiler().compile(pipeline)


def graph(config: PipelineConfig) -> list[Task]:
    """The tasks of the pipeline in topological order.

    A node that ``kubeflow.nodes`` has settings for is always a task of its own.
    """
    cluster = config.kubeflow
    ir = make_ir(config, pipeline_root=cluster.pipeline_root, data_folder=cluster.data_dir)
    nodes = [node.pipeline_node for node in ir.nodes]
    upstream = {n.node_info.id: tuple(n.upstream_nodes) for n in nodes}
    leads = {node: node for node in upstream}
    for node in reversed(upstream):
        if node in _WITH_NEXT and node not in cluster.nodes:
            waiting = [other for other in upstream if node in upstream[other]]
            leads[node] = leads[waiting[0]]
    for node in upstream:
        if node in _WITH_LAST and node not in cluster.nodes:
            leads[node] = leads[[other for other in upstream if other in upstream[node]][-1]]
    groups: dict[str, list[str]] = {}
    for node, lead in leads.items():
        groups.setdefault(lead, []).append(node)
    waits = {
        lead: {leads[other] for node in group for other in upstream[node]} - {lead}
        for lead, group in groups.items()
    }
    return [
        Task(
            task_name(lead),
            lead,
            tuple(groups[lead]),
            tuple(sorted(task_name(other) for other in waits[lead])),
        )
        for lead in graphlib.TopologicalSorter(waits).static_order()
    ]


def compile_pipeline(config: PipelineConfig, values: Mapping[str, Any]) -> str:
    """Compiles the pipeline.

    Args:
      values: The mapping that ``config`` was parsed from; the nodes parse it again.

    Returns:
      KFP v2 YAML: the pipeline spec and, where there are volumes, secrets or
      node selectors, the platform spec as a second document. The same for the
      same input.

    Raises:
      UserError: A backend would refuse it, or it could not work there.
    """
    checks.check(config)
    tasks = graph(config)
    checks.check_nodes(config.kubeflow, [node for task in tasks for node in task.nodes])
    return _write(config, _shipped(values), tasks)


def _shipped(values: Mapping[str, Any]) -> str:
    """What of a configuration a node needs, as JSON: not what KFP does already."""
    shipped = {key: value for key, value in values.items() if key not in ("root", "kubeflow")}
    cluster = values.get("kubeflow") or {}
    if "workers" in cluster:
        wanted = ("workers", "image", "namespace", "volume_claim", "mount_path")
        shipped["kubeflow"] = {key: cluster[key] for key in wanted if key in cluster}
    if "data" in shipped:
        shipped["data"] = {k: v for k, v in (shipped["data"] or {}).items() if k != "dir"}
    return json.dumps(shipped, sort_keys=True)


def _write(config: PipelineConfig, shipped: str, tasks: Sequence[Task]) -> str:
    with warnings.catch_warnings():
        # kfp warns of every Python version that is not its newest.
        warnings.simplefilter("ignore")
        from kfp import compiler as kfp_compiler
        from kfp import dsl

        from components.drift.comparison import TRAIN
        from pipeline.continuous.pipeline import DRIFT

        cluster = config.kubeflow
        outputs = {DRIFT: VERDICT_OUTPUTS}
        components = {
            task.name: _component(config, shipped, task, outputs.get(task.lead, ()))
            for task in tasks
        }

        def pipeline(*values: Any) -> None:
            made: dict[str, Any] = {}
            with contextlib.ExitStack() as conditions:
                for task in tasks:
                    new = components[task.name](
                        **dict(zip(PARAMETERS, values)),
                        **{_RUN_ID: dsl.PIPELINE_JOB_ID_PLACEHOLDER},
                    )
                    for upstream in task.upstream:
                        new.after(made[upstream])
                    new.set_display_name(" + ".join(task_name(node) for node in task.nodes))
                    _equip(new, cluster, cluster.node(task.lead))
                    made[task.name] = new
                    if task.lead == DRIFT:
                        # A span that is not to be trained on is no failure: the rest is skipped.
                        worth_it = new.outputs["verdict"] == TRAIN
                        conditions.enter_context(dsl.If(worth_it, name="train-on-span"))

        _take(pipeline, run_parameters(config))
        pipeline.__doc__ = "\n".join(
            ["Images in, a served autoencoder out.", "", "Args:"]
            + [f"    {name}: {text}" for name, text in PARAMETERS.items()]
        )
        decorated = dsl.pipeline(name=config.name)(pipeline)
        with tempfile.TemporaryDirectory() as folder:
            path = pathlib.Path(folder) / "pipeline.yaml"
            kfp_compiler.Compiler().compile(decorated, str(path))
            text = path.read_text(encoding="utf-8")
        # By name the longest pause. KFP's backend makes it Argo's maxDuration, counted from the
        # start of the first attempt: later there is no other, and whatever runs is ended then.
        return text.replace(_SDK_MAX_DURATION, _MAX_DURATION)


def _component(
    config: PipelineConfig, shipped: str, task: Task, outputs: Sequence[str] = ()
) -> Any:
    """The KFP component of a task; its output parameters come from files that it writes."""
    from kfp import dsl

    timeout = config.kubeflow.node(task.lead).timeout_seconds or 0
    names = (_RUN_ID, *PARAMETERS, *outputs)

    def run_node(*values: Any) -> dsl.ContainerSpec:
        arguments = [
            f"--node={','.join(task.nodes)}",
            f"--config={shipped}",
            f"--metadata-url={config.kubeflow.metadata_url}",
            f"--timeout={timeout}",
        ]
        for name, value in zip(names, values):
            suffix = "-file" if name in outputs else ""
            arguments += [f"--{name.replace('_', '-')}{suffix}", value]
        return dsl.ContainerSpec(
            image=config.kubeflow.image,
            command=["python", "-m", "kubeflow.node"],
            args=arguments,
        )

    run_node.__name__ = task.name.replace("-", "_")
    _take(run_node, dict.fromkeys(names, inspect.Parameter.empty), outputs)
    return dsl.container_component(run_node)


def _take(function: Any, parameters: Mapping[str, Any], outputs: Sequence[str] = ()) -> None:
    """Gives a function the signature that kfp is to read: names and defaults."""
    from kfp import dsl

    annotations: dict[str, Any] = {"epochs": int} | dict.fromkeys(outputs, dsl.OutputPath(str))
    function.__signature__ = inspect.Signature(
        [
            inspect.Parameter(
                name,
                inspect.Parameter.POSITIONAL_OR_KEYWORD,
                default=default,
                annotation=annotations.get(name, str),
            )
            for name, default in parameters.items()
        ]
    )


def _equip(task: Any, cluster: KubeflowConfig, node: NodeConfig) -> None:
    """Gives a task what its node is to have."""
    from kfp import kubernetes

    # KFP cannot see that the data changed; TFX's own cache can.
    task.set_caching_options(False)
    if node.cpu is not None:
        task.set_cpu_request(str(node.cpu)).set_cpu_limit(str(node.cpu))
    if node.memory is not None:
        task.set_memory_request(str(node.memory)).set_memory_limit(str(node.memory))
    if node.gpus:
        task.set_accelerator_type("nvidia.com/gpu").set_accelerator_limit(node.gpus)
    if node.retries:
        task.set_retry(
            num_retries=node.retries,
            backoff_duration=f"{node.backoff_seconds}s",
            backoff_factor=2.0,
        )
    for name, value in sorted(node.env.items()):
        task.set_env_variable(name, value)
    for name, reference in sorted(node.secrets.items()):
        secret, _, key = reference.partition("/")
        kubernetes.use_secret_as_env(task, secret_name=secret, secret_key_to_env={key: name})
    if cluster.volume_claim:
        kubernetes.mount_pvc(task, pvc_name=cluster.volume_claim, mount_path=cluster.mount_path)
    for label, value in sorted(node.node_selector.items()):
        kubernetes.add_node_selector(task, label_key=label, label_value=value)
