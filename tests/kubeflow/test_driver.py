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


def conditional(folder: pathlib.Path, script: str) -> Driver:
    """A task whose output parameter decides whether another one runs."""
    judge = {
        "componentRef": {"name": "judge"},
        "inputs": {"parameters": {}},
    }
    then = {
        "componentRef": {"name": "then"},
        "dependentTasks": ["judge"],
        "inputs": {
            "parameters": {
                "channel": {
                    "taskOutputParameter": {
                        "producerTask": "judge",
                        "outputParameterKey": "verdict",
                    }
                }
            }
        },
        "triggerPolicy": {"condition": "inputs.parameter_values['channel'] == 'train'"},
    }
    inner = {"componentRef": {"name": "train"}, "inputs": {"parameters": {}}}
    file = "{{$.outputs.parameters['verdict'].output_file}}"
    spec = {
        "components": {
            "judge": {
                "executorLabel": "judge",
                "outputDefinitions": {"parameters": {"verdict": {"parameterType": "STRING"}}},
            },
            "then": {"dag": {"tasks": {"train": inner}}},
            "train": {"executorLabel": "train"},
        },
        "deploymentSpec": {
            "executors": {
                "judge": {"container": {"command": ["python"], "args": ["-c", script, file]}},
                "train": {"container": {"command": ["python"], "args": ["-c", ""]}},
            }
        },
        "root": {
            "dag": {"tasks": {"judge": judge, "then": then}},
            "inputDefinitions": {"parameters": {}},
        },
    }
    path = folder / "pipeline.yaml"
    path.write_text(yaml.safe_dump(spec))
    return Driver(path)


@pytest.mark.parametrize(("verdict", "ran"), [("train", ["judge", "train"]), ("stop", ["judge"])])
def test_a_condition_that_does_not_hold_skips_what_is_under_it(tmp_path, verdict, ran):
    script = f"import sys; open(sys.argv[1], 'w').write('{verdict}')"
    done = conditional(tmp_path, script).run({})
    assert done.failed is None
    assert [attempt.task for attempt in done.attempts] == ran
    assert done.skipped == ([] if verdict == "train" else ["train"])


def test_a_declared_output_that_is_not_written_fails_its_task(tmp_path):
    assert conditional(tmp_path, "").run({}).failed == "judge"
