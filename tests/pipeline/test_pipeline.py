"""Both pipelines, as compiled: what is wired, and that nothing is dropped on the way."""

import json
import tempfile

import pytest
from tfx.dsl.compiler import compiler

from pipeline import config
from pipeline.continuous.pipeline import create_continuous_pipeline
from pipeline.pipeline import create_pipeline

# TFX writes the Trainer's module under the root as soon as a pipeline is made.
ROOT = tempfile.TemporaryDirectory()
WORKERS = {"launcher": "kubeflow.workers:launch", "count": 2}


def once(conf, **options):
    return create_pipeline(conf, data_folder="/data", **options)


def continuous(conf, **options):
    place = {"data_folder": "/spans", "data_span": 3, "version": 1, "golden_folder": "/golden"}
    return create_continuous_pipeline(conf, **place, **options)


def make(**values):
    return config.parse({"root": ROOT.name, "model": "simple", **values})


def compiled(pipeline):
    """The compiled nodes by id."""
    ir = compiler.Compiler().compile(pipeline)
    return {n.pipeline_node.node_info.id: n.pipeline_node for n in ir.nodes}


def custom_config(node):
    parameter = node.parameters.parameters["custom_config"].field_value
    return json.loads(parameter.string_value)


@pytest.mark.parametrize("create", [once, continuous])
def test_the_tuner_reaches_the_training(create):
    assert "Tuner" not in compiled(create(make()))
    nodes = compiled(create(make(tuner={"enabled": True, "trials": 3, "epochs": 2})))
    assert custom_config(nodes["Tuner"])["tuner"] == {"trials": 3, "epochs": 2}
    assert "Tuner" in nodes["Trainer"].upstream_nodes
    assert "hyperparameters" in nodes["Trainer"].inputs.inputs


@pytest.mark.parametrize("create", [once, continuous])
def test_workers_reach_the_training(create):
    assert custom_config(compiled(create(make()))["Trainer"])["workers"] is None
    trainer = compiled(create(make(), workers=WORKERS))["Trainer"]
    assert custom_config(trainer)["workers"] == WORKERS


def test_a_tuned_continuous_training_starts_from_the_serving_model_in_both_nodes():
    tuned = make(tuner={"enabled": True})
    nodes = compiled(continuous(tuned))
    for name in ("Trainer", "Tuner"):
        assert "base_model" in nodes[name].inputs.inputs
        assert custom_config(nodes[name])["warm"]["epochs"] > 0
    cold = compiled(continuous(tuned, cold=True))
    assert "base_model" not in cold["Trainer"].inputs.inputs
    assert "base_model" not in cold["Tuner"].inputs.inputs


def test_without_a_baseline_nothing_looks_for_one():
    nodes = compiled(once(make(evaluator={"baseline": False})))
    assert "BaselineResolver" not in nodes
    assert "baseline_model" not in nodes["Evaluator"].inputs.inputs


@pytest.mark.parametrize("create", [once, continuous])
def test_bad_data_stops_a_run_before_anything_is_computed_from_it(create):
    nodes = compiled(create(make()))

    def upstream(name):
        direct = set(nodes[name].upstream_nodes)
        return direct.union(*(upstream(other) for other in direct)) if direct else direct

    for name in ("Transform", "PcaReference", "Trainer", "Pusher"):
        assert "DataGate" in upstream(name)
