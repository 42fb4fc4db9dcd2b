"""Walks every configuration key to where it is used: nothing is dropped on the way."""

import copy
import functools
import pathlib
import re
import tempfile

import pydantic
import pytest
from tfx.dsl.compiler import compiler
from tfx.orchestration.local import runner_utils

import pipeline as project
from kubeflow import compiler as cluster
from pipeline import config
from pipeline.continuous.pipeline import create_continuous_pipeline
from pipeline.pipeline import create_pipeline

# TFX writes the Trainer's module under the root as soon as it is wired.
ROOT = tempfile.TemporaryDirectory()

# On which nearly every key has something to say.
BASE = {
    "root": f"{ROOT.name}/runs",
    "model": {"name": "simple"},
    "tuner": {"enabled": True},
    "kubeflow": {"workers": {"count": 2}},
}

# Keys that change what is wired, by which graph shows it, and another value.
# "once" is the pipeline of a run, "continuous" that of a span, "cluster" what
# Kubeflow Pipelines gets.
WIRED = {
    "name": ("once", "another"),
    "root": ("once", f"{ROOT.name}/elsewhere"),
    "cache": ("once", False),
    "data.keep_labels": ("once", [1]),
    "data.drop_labels": ("once", [1]),
    "model.name": ("once", "deep"),
    "model.code_size": ("once", 8),
    "trainer.epochs": ("once", 7),
    "trainer.batch_size": ("once", 7),
    "trainer.learning_rate": ("once", 0.7),
    "trainer.min_steps": ("once", 7),
    "trainer.xla": ("once", True),
    "trainer.steps_per_execution": ("once", 7),
    "trainer.mixed_precision": ("once", True),
    "trainer.strategy": ("once", "none"),
    "trainer.seed": ("once", 7),
    "trainer.validation_fraction": ("once", 0.7),
    "trainer.patience": ("once", 7),
    "trainer.streaming": ("once", True),
    "trainer.anomaly_quantile": ("once", 0.7),
    "tuner.enabled": ("once", False),
    "tuner.trials": ("once", 7),
    "tuner.epochs": ("once", 7),
    "evaluator.max_mse": ("once", 0.7),
    "evaluator.max_increase": ("once", 0.7),
    "evaluator.baseline": ("once", False),
    "validator.latency_budget_ms": ("once", 7.0),
    "report.images": ("once", 7),
    "pusher.dir": ("once", "/models"),
    "pusher.name": ("once", "another"),
    "beam": ("once", {"direct_num_workers": 7}),
    "continuous.window": ("continuous", 7),
    "continuous.warm_epochs": ("continuous", 7),
    "continuous.warm_learning_rate": ("continuous", 0.7),
    "continuous.max_distance": ("continuous", 0.7),
    "continuous.max_code_distance": ("continuous", 0.7),
    "continuous.max_error_ratio": ("continuous", 7.0),
    "continuous.skip_overlap": ("continuous", 0.7),
    "continuous.skip_distance": ("continuous", 0.7),
    "continuous.max_span_increase": ("continuous", 0.7),
    "continuous.max_golden_increase": ("continuous", 0.7),
    "continuous.max_digit_increase": ("continuous", 0.7),
    "continuous.max_span_digit_increase": ("continuous", 0.7),
    "continuous.harmful_increase": ("continuous", 0.7),
    "continuous.golden": ("cluster", "/mnt/mnist-ae/golden"),
    "kubeflow.image": ("cluster", "another:1"),
    "kubeflow.namespace": ("cluster", "another"),
    "kubeflow.volume_claim": ("cluster", "another"),
    "kubeflow.mount_path": ("cluster", "/mnt"),
    "kubeflow.data_dir": ("cluster", "/mnt/mnist-ae/other"),
    "kubeflow.span": ("cluster", "7"),
    "kubeflow.pipeline_root": ("cluster", "/mnt/mnist-ae/other"),
    "kubeflow.push_dir": ("cluster", "/mnt/mnist-ae/other"),
    "kubeflow.metadata_url": ("cluster", "grpc://other:8080"),
    "kubeflow.defaults.cpu": ("cluster", "7"),
    "kubeflow.defaults.memory": ("cluster", "7Gi"),
    "kubeflow.defaults.node_selector": ("cluster", {"a": "b"}),
    "kubeflow.defaults.retries": ("cluster", 7),
    "kubeflow.defaults.backoff_seconds": ("cluster", 7),
    "kubeflow.defaults.timeout_seconds": ("cluster", 7),
    "kubeflow.defaults.env": ("cluster", {"A": "b"}),
    "kubeflow.defaults.secrets": ("cluster", {"A": "b/c"}),
    "kubeflow.nodes": ("cluster", {"Trainer": {"gpus": 1}}),
    "kubeflow.workers.count": ("cluster", 7),
    "kubeflow.workers.kind": ("cluster", "local"),
    "kubeflow.workers.port": ("cluster", 7777),
    "kubeflow.workers.gpus": ("cluster", 7),
    "kubeflow.workers.cpu": ("cluster", "7"),
    "kubeflow.workers.memory": ("cluster", "7Gi"),
}

# Keys that act elsewhere, and where.
ELSEWHERE = {
    "data.dir": "pipeline/commands/run.py",
    "data.dataset": "pipeline/commands/run.py",
    "continuous.tries": "pipeline/continuous/watcher.py",
    "continuous.retry_seconds": "pipeline/continuous/watcher.py",
    "continuous.notify_command": "pipeline/continuous/watcher.py",
    "continuous.notify_url": "pipeline/continuous/watcher.py",
    "continuous.keep_runs": "pipeline/continuous/retention.py",
    "continuous.keep_versions": "pipeline/continuous/retention.py",
    "continuous.soak_seconds": "pipeline/continuous/promotion.py",
    "continuous.soak_checks": "pipeline/continuous/promotion.py",
    "continuous.soak_tolerance": "pipeline/continuous/promotion.py",
    "continuous.sample_images": "pipeline/continuous/samples.py",
    "continuous.max_served_ratio": "pipeline/continuous/samples.py",
    # Only nodes that train may have GPUs: as a default it is refused.
    "kubeflow.defaults.gpus": "kubeflow/compiler.py",
}


def keys(model, prefix=""):
    """The leaves of a configuration class."""
    for name, field in model.model_fields.items():
        kind = field.annotation
        nested = isinstance(kind, type) and issubclass(kind, pydantic.BaseModel)
        if nested and name != "model":
            yield from keys(kind, f"{prefix}{name}.")
        elif name == "model":
            yield from ("model.name", "model.code_size")
        else:
            yield prefix + name


def with_value(key=None, value=None):
    """The base configuration, as a mapping, with another value of a key."""
    values = copy.deepcopy(BASE)
    if key is not None:
        *path, last = key.split(".")
        place = values
        for name in path:
            place = place.setdefault(name, {})
        place[last] = value
    return values


def graph_of(pipeline):
    """What is run: the compiled pipeline without what the report merely shows."""
    ir = compiler.Compiler().compile(pipeline)
    deployment = runner_utils.extract_local_deployment_config(ir)
    ir.ClearField("deployment_config")
    for node in ir.nodes:
        if node.pipeline_node.node_info.id == "RunReport":
            del node.pipeline_node.parameters.parameters["configuration"]
    return [m.SerializeToString(deterministic=True) for m in (ir, deployment)]


def shown_by(graph, values):
    conf = config.parse(values)
    if graph == "once":
        return graph_of(create_pipeline(conf, data_folder="/data"))
    if graph == "continuous":
        place = {"data_folder": "/spans", "data_span": 3, "version": 1, "golden_folder": "/golden"}
        return graph_of(create_continuous_pipeline(conf, **place))
    return cluster.compile_pipeline(conf, values)


@functools.cache
def before(graph):
    return shown_by(graph, with_value())


def test_every_key_is_in_one_of_the_tables():
    assert set(keys(config.PipelineConfig)) == set(WIRED) | set(ELSEWHERE)
    assert set(WIRED).isdisjoint(ELSEWHERE)


@pytest.mark.parametrize("key", WIRED)
def test_a_key_changes_what_is_run(key):
    graph, value = WIRED[key]
    assert shown_by(graph, with_value(key, value)) != before(graph)


@pytest.mark.parametrize("key", [key for key, (graph, _) in WIRED.items() if graph == "once"])
def test_what_concerns_a_run_concerns_a_span(key):
    if key in ("evaluator.max_increase", "evaluator.baseline"):
        pytest.skip("a span has limits of its own, and is always compared")
    value = WIRED[key][1]
    assert shown_by("continuous", with_value(key, value)) != before("continuous")


@pytest.mark.parametrize("key, place", ELSEWHERE.items())
def test_a_key_that_acts_elsewhere_is_read_there(key, place):
    source = (pathlib.Path(project.__file__).parent.parent / place).read_text()
    assert re.search(rf"\.{key.rpartition('.')[2]}\b", source)
