"""The test driver leaves as text what KFP leaves as text, and says so."""

from __future__ import annotations

import pathlib

import pytest
import yaml

from tests.kubeflow.driver import Driver, LeftAsTextError


def driver(folder: pathlib.Path, argument: str, constant: str) -> Driver:
    """A pipeline of one task with one argument and one constant input."""
    container = {"command": ["python"], "args": [argument]}
    task = {
        "componentRef": {"name": "c"},
        "inputs": {"parameters": {"given": {"runtimeValue": {"constant": constant}}}},
    }
    spec = {
        "components": {"c": {"executorLabel": "e"}},
        "deploymentSpec": {"executors": {"e": {"container": container}}},
        "root": {"dag": {"tasks": {"t": task}}, "inputDefinitions": {"parameters": {}}},
    }
    path = folder / "pipeline.yaml"
    path.write_text(yaml.safe_dump(spec))
    return Driver(path)


GIVEN = "{{$.inputs.parameters['given']}}"


def test_the_run_id_reaches_a_container_through_an_input(tmp_path):
    found = driver(tmp_path, f"--id={GIVEN}", "{{$.pipeline_job_uuid}}").command("t", {}, "r-7")
    assert found[1:] == ["--id=r-7"]


@pytest.mark.parametrize(
    ("argument", "constant"),
    [
        ("{{$.pipeline_job_uuid}}", "x"),
        ("--id={{$.pipeline_job_uuid}}", "x"),
        (GIVEN, "run {{$.pipeline_job_uuid}}"),
        ("{{$.inputs.parameters['other']}}", "x"),
    ],
)
def test_what_nobody_resolves_is_refused(tmp_path, argument, constant):
    with pytest.raises(LeftAsTextError):
        driver(tmp_path, argument, constant).command("t", {}, "r-7")


@pytest.mark.parametrize(("value", "text"), [(8.0, "8"), (0.5, "0.5"), (True, "true"), ("a", "a")])
def test_values_are_written_as_the_launcher_does(tmp_path, value, text):
    assert driver(tmp_path, GIVEN, value).command("t", {}, "r")[1:] == [text]
