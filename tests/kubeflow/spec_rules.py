"""The rules by which a KFP v2 backend takes a compiled pipeline, or does not."""

from __future__ import annotations

import re

import yaml
from google.protobuf import json_format

_TASK_NAME = re.compile(r"[a-zA-Z0-9][-a-zA-Z0-9]*")
# What KFP's launcher leaves as text in arguments: everything but inputs and outputs
# (kubeflow/pipelines, backend/src/v2/component/launcher_v2.go, getPlaceholders).
_IN_ARGUMENTS = re.compile(r"\{\{\$(?!\}\}|\.inputs\.|\.outputs\.)[^}]*\}\}")


class RefusedError(Exception):
    """A backend would not take it."""


def check_spec(text: str) -> None:
    """Checks compiled YAML by the rules of a KFP v2 backend.

    The SDK's own parser passes some files that a backend refuses.

    Raises:
      RefusedError: Naming task and rule.
    """
    from kfp.pipeline_spec import pipeline_spec_pb2

    spec, *platform = list(yaml.safe_load_all(text))
    try:
        json_format.ParseDict(spec, pipeline_spec_pb2.PipelineSpec())
    except json_format.ParseError as e:
        raise RefusedError(f"the compiled pipeline is no KFP pipeline spec: {e}") from None
    if spec["schemaVersion"] != "2.1.0":
        raise RefusedError(f"schemaVersion {spec['schemaVersion']}: KFP 2 takes 2.1.0")
    executors = spec["deploymentSpec"]["executors"]
    for name, executor in executors.items():
        if set(executor) != {"container"}:
            raise RefusedError(
                f"{name}: KFP runs containers only, not {', '.join(sorted(executor))}"
            )
        for word in executor["container"].get("args", []):
            for placeholder in _IN_ARGUMENTS.findall(word):
                raise RefusedError(
                    f"{name}: KFP leaves {placeholder} as text in arguments; hand it over as an "
                    "input of the task"
                )
    for name, parameter in spec["root"].get("inputDefinitions", {}).get("parameters", {}).items():
        if "defaultValue" not in parameter:
            raise RefusedError(
                f"parameter {name}: has no default, so that no schedule could run it"
            )
    tasks = spec["root"]["dag"]["tasks"]
    for name, task in tasks.items():
        if not _TASK_NAME.fullmatch(name):
            raise RefusedError(f"task {name!r}: KFP allows letters, digits and hyphens only")
        for upstream in task.get("dependentTasks", []):
            if upstream not in tasks:
                raise RefusedError(
                    f"task {name}: waits for {upstream}, which is not in the pipeline"
                )
        if task.get("cachingOptions", {}).get("enableCache"):
            raise RefusedError(
                f"task {name}: KFP's cache is on, which cannot see that data changed"
            )
        if task["componentRef"]["name"] not in spec["components"]:
            raise RefusedError(f"task {name}: its component is not in the pipeline")
    for document in platform:
        for known in document["platforms"]["kubernetes"]["deploymentSpec"]["executors"]:
            if known not in executors:
                raise RefusedError(f"platform settings of {known}, which is not in the pipeline")
