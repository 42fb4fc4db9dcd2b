"""Executes a compiled pipeline without KFP: knows the YAML and nothing else.

Orders the tasks by their dependencies, puts the parameters in and runs each
task's own command as a subprocess, with the environment and the retries that
the file gives it. Containers share this machine instead of an image and a
volume.
"""

from __future__ import annotations

import dataclasses
import os
import pathlib
import re
import subprocess
import sys
import uuid
from collections.abc import Callable
from typing import Any

import yaml

_PARAMETER = re.compile(r"\{\{\$\.inputs\.parameters\['(\w+)'\]\}\}")
_RUN_ID = "{{$.pipeline_job_uuid}}"


@dataclasses.dataclass
class Attempt:
    """One try of a task."""

    task: str
    code: int
    stderr: str


@dataclasses.dataclass
class Execution:
    """What a run of the file did."""

    run_id: str
    attempts: list[Attempt]
    failed: str | None

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
        self.tasks = self.spec["root"]["dag"]["tasks"]

    def order(self) -> list[str]:
        """The tasks, each after those it waits for."""
        done: list[str] = []
        while len(done) < len(self.tasks):
            ready = [
                name
                for name, task in self.tasks.items()
                if name not in done and set(task.get("dependentTasks", [])) <= set(done)
            ]
            assert ready, "the tasks wait for each other"
            done += sorted(ready)
        return done

    def container(self, task: str) -> tuple[str, dict[str, Any]]:
        """The executor's name of a task, and its container."""
        component = self.spec["components"][self.tasks[task]["componentRef"]["name"]]
        label = component["executorLabel"]
        return label, self.spec["deploymentSpec"]["executors"][label]["container"]

    def command(self, task: str, parameters: dict[str, Any], run_id: str) -> list[str]:
        """A task's command with every placeholder resolved."""
        defaults = {
            name: p["defaultValue"]
            for name, p in self.spec["root"]["inputDefinitions"]["parameters"].items()
        }
        values = {**defaults, **parameters}
        inputs = {}
        for name, source in self.tasks[task]["inputs"]["parameters"].items():
            value = values[source["componentInputParameter"]]
            # KFP's numbers are doubles; a container gets an integer as one.
            inputs[name] = str(int(value)) if isinstance(value, float) else str(value)
        _, container = self.container(task)
        words = [*container["command"], *container["args"]]
        resolved = [
            _PARAMETER.sub(lambda m: inputs[m[1]], word).replace(_RUN_ID, run_id) for word in words
        ]
        assert not any("{{$" in word for word in resolved), "a placeholder is left"
        assert resolved[0] == "python"
        return [sys.executable, *resolved[1:]]

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
        for task in only or self.order():
            retries = self.tasks[task].get("retryPolicy", {}).get("maxRetryCount", 0)
            for attempt in range(retries + 1):
                more = before(task, attempt) or {}
                process = subprocess.Popen(
                    self.command(task, parameters, run_id),
                    env={**os.environ, **self.environment(task, secrets or {}), **more},
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.PIPE,
                    text=True,
                )
                watch(task, attempt, process)
                _, stderr = process.communicate(timeout=600)
                attempts.append(Attempt(task, process.returncode, stderr))
                if process.returncode == 0:
                    break
            else:
                return Execution(run_id, attempts, task)
        return Execution(run_id, attempts, None)
