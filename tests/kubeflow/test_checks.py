"""What a backend would refuse is refused before it could."""

from __future__ import annotations

import copy

import pytest
import yaml

from kubeflow import compiler
from pipeline import config
from pipeline.errors import UserError
from tests.kubeflow import spec_rules
from tests.kubeflow.spec_rules import RefusedError


def compiled(*assignments: str) -> str:
    values = config.read(None, assignments)
    text = compiler.compile_pipeline(config.parse(values), values)
    spec_rules.check_spec(text)
    return text


@pytest.fixture(scope="module")
def documents() -> list[dict]:
    return list(yaml.safe_load_all(compiled("model=simple")))


@pytest.mark.parametrize(
    ("assignment", "expected"),
    [
        ("kubeflow.nodes.Evaluator.gpus=1", "kubeflow.nodes.Evaluator.gpus"),
        ("kubeflow.nodes.Trainr.cpu=2", "did you mean 'Trainer'"),
        ("kubeflow.nodes.Pusher.retries=11", "at most 10"),
        ("kubeflow.nodes.Pusher.backoff_seconds=9999", "at most 3600"),
        ("kubeflow.pipeline_root=s3://bucket/x", "no file system for s3://"),
        ("kubeflow.pipeline_root=minio://bucket/x", "no file system for minio://"),
        ("kubeflow.pipeline_root=relative/folder", "kubeflow.pipeline_root"),
        ("kubeflow.push_dir=/elsewhere/models", "not on the volume"),
        ("kubeflow.data_dir=gs://bucket/data", "kubeflow.data_dir"),
        ("kubeflow.metadata_url=postgres://h/d", "no ML Metadata store"),
        ("name=Not_A_Name", "no name for a KFP pipeline"),
        ("beam.runner=FlinkRunner", "EXTERNAL"),
    ],
)
def test_what_a_backend_would_refuse_is_refused_here(assignment, expected):
    with pytest.raises(UserError) as caught:
        compiled("model=simple", assignment)
    assert expected in str(caught.value)


def _rename_task(spec):
    tasks = spec["root"]["dag"]["tasks"]
    tasks["run_report"] = tasks.pop("run-report")


def _wait_for_nobody(spec):
    spec["root"]["dag"]["tasks"]["pusher"]["dependentTasks"].append("nobody")


def _add_resolver(spec):
    executors = spec["deploymentSpec"]["executors"]
    executors["exec-pusher"] = {"importer": {"artifactUri": {"constant": "x"}}}


def _drop_default(spec):
    del spec["root"]["inputDefinitions"]["parameters"]["model"]["defaultValue"]


def _cache(spec):
    spec["root"]["dag"]["tasks"]["pusher"]["cachingOptions"] = {"enableCache": True}


def _placeholder_in_arguments(spec):
    arguments = spec["deploymentSpec"]["executors"]["exec-pusher"]["container"]["args"]
    arguments += ["--name={{$.pipeline_job_name}}"]


def _misspell(spec):
    spec["root"]["dag"]["tasks"]["pusher"]["dependantTasks"] = []


@pytest.mark.parametrize(
    ("damage", "expected"),
    [
        (_rename_task, "letters, digits and hyphens"),
        (_wait_for_nobody, "not in the pipeline"),
        (_add_resolver, "containers only"),
        (_drop_default, "no default"),
        (_cache, "cache is on"),
        (_placeholder_in_arguments, r"leaves \{\{\$.pipeline_job_name\}\} as text"),
        (_misspell, "no KFP pipeline spec"),
    ],
)
def test_a_spec_that_a_backend_would_refuse_is_found(documents, damage, expected):
    spec = copy.deepcopy(documents[0])
    damage(spec)
    with pytest.raises(RefusedError, match=expected):
        spec_rules.check_spec(yaml.safe_dump_all([spec, documents[1]]))


def test_platform_settings_of_an_unknown_task_are_found(documents):
    platform = copy.deepcopy(documents[1])
    executors = platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"]
    executors["exec-nobody"] = executors.pop("exec-pusher")
    with pytest.raises(RefusedError, match="exec-nobody"):
        spec_rules.check_spec(yaml.safe_dump_all([documents[0], platform]))
