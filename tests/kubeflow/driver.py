"""Executes a compiled pipeline without KFP: knows the YAML and nothing else.

Orders the tasks by their dependencies and runs each task's own command as a
subprocess, with the environment and the retries that the file gives it.
Containers share this machine instead of an image and a volume.

It is no kinder than the backend. Placeholders are resolved in two steps by the
rules of kubeflow/pipelines 2.5 to 2.17, and nowhere else; one that is left as
text, as a container would get it there, is an error here:

- backend/src/v2/driver/resolve.go, resolveInputParameter (2.4 and before have
  no such cases): facts of the run, only where they are all of a constant that
  is a task's input parameter.
- backend/src/v2/component/launcher_v2.go, compileCmdAndArgs and
  getPlaceholders: in command and arguments the executor's inputs and outputs.
- the same, collectOutputParameters: a declared output whose file is not there
  fails the task.
- backend/src/v2/driver/dag.go and expression.go: a trigger policy is judged when
  the task is reached, on the inputs of that task; what it leads to is skipped.
"""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib
import re
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Callable
from typing import Any

import yaml

# The one form of condition that the compiled pipeline uses; KFP's language is CEL.
_CONDITION = re.compile(r"inputs\.parameter_values\['([^']+)'\]\s*==\s*'([^']*)'")


class LeftAsTextError(Exception):
    """A placeholder that no part of the backend resolves where it stands."""


@dataclasses.dataclass
class Attempt:
    """One try of a task."""

    task: str
    code: int
    stderr: str


@dataclasses.dataclass
class Execution:
    """What a run of the file did.

    Attributes:
      outputs: Output parameters by task.
      skipped: Tasks under a condition that did not hold.
    """

    run_id: str
    attempts: list[Attempt]
    failed: str | None
    outputs: dict[str, dict[str, str]]
    skipped: list[str]

    def of(self, task: str) -> list[Attempt]:
        return [a for a in self.attempts if a.task == task]


class Driver:
    """A pipeline from its compiled file."""

    def __init__(self, path: pathlib.Path):
        self.spec, *platform = list(yaml.safe_load_all(path.read_text()))
        self.platform = {}
        for document in platform:
            executors = document["platforms"]["kubernetes"]["deploymentSpec"]["executors"]
            self.platform.update(executors)
        self.tasks: dict[str, dict[str, Any]] = {}
        # The task that is a graph itself, of those that stand in one.
        self._graphs: dict[str, str] = {}
        self._gather(self.spec["root"]["dag"], None)

    def _gather(self, dag: dict[str, Any], graph: str | None) -> None:
        for name, task in dag["tasks"].items():
            assert name not in self.tasks, f"two tasks are named {name}"
            self.tasks[name] = task
            if graph is not None:
                self._graphs[name] = graph
            inner = self.spec["components"][task["componentRef"]["name"]].get("dag")
            if inner is not None:
                self._gather(inner, name)

    def order(self) -> list[str]:
        """The tasks with containers, each after those it waits for."""
        done: list[str] = []
        while len(done) < len(self.tasks):
            ready = [
                name
                for name, task in self.tasks.items()
                if name not in done
                and {*task.get("dependentTasks", []), *self._above(name)} <= set(done)
            ]
            assert ready, "the tasks wait for each other"
            done += sorted(ready)
        return [name for name in done if name not in self._graphs.values()]

    def _above(self, task: str) -> list[str]:
        return [self._graphs[task]] if task in self._graphs else []

    def container(self, task: str) -> tuple[str, dict[str, Any]]:
        """The executor's name of a task, and its container."""
        component = self.spec["components"][self.tasks[task]["componentRef"]["name"]]
        label = component["executorLabel"]
        return label, self.spec["deploymentSpec"]["executors"][label]["container"]

    def inputs(
        self,
        task: str,
        parameters: dict[str, Any],
        run_id: str,
        outputs: dict[str, dict[str, str]] | None = None,
    ) -> dict[str, Any]:
        """A task's input parameters, as KFP's driver resolves them."""
        if task in self._graphs:
            given = self.inputs(self._graphs[task], parameters, run_id, outputs)
        else:
            given = {
                name: p["defaultValue"]
                for name, p in self.spec["root"]["inputDefinitions"]["parameters"].items()
            } | parameters
        # The driver knows more; these are the ones that this driver can tell.
        facts = {"{{$.pipeline_job_uuid}}": run_id, "{{$.pipeline_task_name}}": task}
        values = {}
        for name, source in self.tasks[task]["inputs"]["parameters"].items():
            if "componentInputParameter" in source:
                values[name] = given[source["componentInputParameter"]]
            elif "taskOutputParameter" in source:
                output = source["taskOutputParameter"]
                values[name] = (outputs or {})[output["producerTask"]][output["outputParameterKey"]]
            else:
                constant = source["runtimeValue"]["constant"]
                values[name] = facts.get(constant, constant)
        return values

    def _holds(
        self, task: str, parameters: dict[str, Any], run_id: str, outputs: dict[str, dict[str, str]]
    ) -> bool:
        """Whether the condition over a task holds, and that over the graph that it is in."""
        policy = self.tasks[task].get("triggerPolicy")
        if policy is not None:
            found = _CONDITION.fullmatch(policy["condition"])
            assert found, policy
            values = self.inputs(task, parameters, run_id, outputs)
            if values[found[1]] != found[2]:
                return False
        above = self._above(task)
        return not above or self._holds(above[0], parameters, run_id, outputs)

    def _output_files(self, task: str, folder: pathlib.Path) -> dict[str, pathlib.Path]:
        component = self.spec["components"][self.tasks[task]["componentRef"]["name"]]
        declared = component.get("outputDefinitions", {}).get("parameters", {})
        return {name: folder / name for name in declared}

    def command(
        self,
        task: str,
        parameters: dict[str, Any],
        run_id: str,
        files: dict[str, pathlib.Path] | None = None,
        outputs: dict[str, dict[str, str]] | None = None,
    ) -> list[str]:
        """A task's command, as KFP's launcher hands it to the container.

        Args:
          files: Where its output parameters go.
          outputs: Those of the tasks before it.
        """
        inputs = self.inputs(task, parameters, run_id, outputs)
        placeholders = {
            "{{$}}": json.dumps({"inputs": {"parameterValues": inputs}}),
            **{f"{{{{$.inputs.parameters['{k}']}}}}": _text(v) for k, v in inputs.items()},
            **{
                f"{{{{$.outputs.parameters['{k}'].output_file}}}}": str(path)
                for k, path in (files or {}).items()
            },
        }
        _, container = self.container(task)
        words = []
        for word in [*container["command"], *container["args"]]:
            for placeholder, value in placeholders.items():
                word = word.replace(placeholder, value)
            if "{{$" in word:
                raise LeftAsTextError(f"{task} would get the text {word}")
            words.append(word)
        assert words[0] == "python"
        return [sys.executable, *words[1:]]

    def environment(self, task: str, secrets: dict[str, str]) -> dict[str, str]:
        """The variables that a task's container sees, secrets included."""
        label, container = self.container(task)
        variables = {v["name"]: v["value"] for v in container.get("env", [])}
        for secret in self.platform.get(label, {}).get("secretAsEnv", []):
            for pair in secret["keyToEnv"]:
                key = f"{secret['secretName']}/{pair['secretKey']}"
                variables[pair["envVar"]] = secrets[key]
        return variables

    def run(
        self,
        parameters: dict[str, Any],
        *,
        secrets: dict[str, str] | None = None,
        run_id: str | None = None,
        before: Callable[[str, int], dict[str, str] | None] = lambda task, attempt: None,
        watch: Callable[[str, int, subprocess.Popen], None] = lambda task, attempt, process: None,
        only: list[str] | None = None,
    ) -> Execution:
        """Runs every task in order until one fails for good.

        Args:
          parameters: Over the defaults of the file.
          secrets: Values by ``name/key``.
          run_id: As KFP would give it.
          before: Called before each attempt; more environment variables.
          watch: Called with the running process of each attempt.
          only: The tasks to run; all when None.
        """
        run_id = run_id or str(uuid.uuid4())
        attempts: list[Attempt] = []
        outputs: dict[str, dict[str, str]] = {}
        skipped: list[str] = []
        for task in only or self.order():
            if not self._holds(task, parameters, run_id, outputs):
                skipped.append(task)
                continue
            retries = self.tasks[task].get("retryPolicy", {}).get("maxRetryCount", 0)
            for attempt in range(retries + 1):
                more = before(task, attempt) or {}
                with tempfile.TemporaryDirectory() as folder:
                    files = self._output_files(task, pathlib.Path(folder))
                    process = subprocess.Popen(
                        self.command(task, parameters, run_id, files, outputs),
                        env={**os.environ, **self.environment(task, secrets or {}), **more},
                        stdout=subprocess.DEVNULL,
                        stderr=subprocess.PIPE,
                        text=True,
                    )
                    watch(task, attempt, process)
                    _, stderr = process.communicate()
                    code = process.returncode
                    if code == 0 and all(path.is_file() for path in files.values()):
                        outputs[task] = {name: path.read_text() for name, path in files.items()}
                    elif code == 0:
                        code, stderr = 1, stderr + "an output parameter has no file\n"
                attempts.append(Attempt(task, code, stderr))
                if code == 0:
                    break
            else:
                return Execution(run_id, attempts, task, outputs, skipped)
        return Execution(run_id, attempts, None, outputs, skipped)


def _text(value: Any) -> str:
    """A value as the launcher writes it: numbers are doubles, without needless digits."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return str(int(value)) if value == int(value) else repr(value)
    return value if isinstance(value, str) else json.dumps(value)
