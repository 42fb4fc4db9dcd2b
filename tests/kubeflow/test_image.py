"""Installs exactly what the Dockerfile installs, and starts what it starts."""

from __future__ import annotations

import os
import pathlib
import re
import shlex
import shutil
import subprocess
import sys

import pytest

import kubeflow

pytestmark = pytest.mark.e2e

PROJECT = pathlib.Path(kubeflow.__file__).resolve().parent.parent


def instructions(stage: int, variables: dict[str, str]) -> list[tuple[str, str]]:
    """The instructions of a stage of the Dockerfile, with its variables put in."""
    text = re.sub(r"\\\n", " ", (PROJECT / "kubeflow" / "Dockerfile").read_text())
    stages: list[list[tuple[str, str]]] = []
    for line in text.splitlines():
        if not line.strip() or line.startswith("#"):
            continue
        word, _, rest = line.partition(" ")
        if word == "FROM":
            stages.append([])
        for name, value in variables.items():
            rest = rest.replace("${" + name + "}", value)
        stages[-1].append((word, rest.strip()))
    return stages[stage]


def test_what_the_image_installs_starts_a_node(tmp_path):
    build, venv = tmp_path / "build", tmp_path / "venv"
    build.mkdir()
    steps = instructions(0, {"VARIANT": "cpu"})
    base = dict(steps)["FROM"]
    version = ".".join(map(str, sys.version_info[:2]))
    if f"python:{version}." not in base:
        pytest.skip(f"the image has another Python than this one: {base}")
    for word, rest in steps:
        if word == "COPY":
            *sources, target = rest.split()
            for source in sources:
                path = PROJECT / source
                if path.is_dir():
                    ignore = shutil.ignore_patterns("__pycache__")
                    shutil.copytree(path, build / target, ignore=ignore)
                else:
                    goal = build / target
                    shutil.copy(path, goal / path.name if goal.is_dir() else goal)
        elif word == "RUN":
            command = rest.replace("/opt/venv", str(venv)).replace(
                "python -m venv", f"{sys.executable} -m venv"
            )
            subprocess.run(["sh", "-ec", command], cwd=build, check=True, timeout=900)
    # Without the variables of this session, as the container's own user would.
    final = instructions(1, {})
    words = shlex.split(dict(final)["CMD"].strip("[]").replace(",", " "))
    environment = {"PATH": f"{venv}/bin:/usr/bin:/bin", "HOME": str(tmp_path)}
    done = subprocess.run(words, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "--metadata-url" in done.stdout
    # It is the installed package that answers, and it can make the graph.
    code = (
        "import kubeflow.node, pipeline.pipeline, serving, sys;"
        "print(kubeflow.node.__file__); print('pytest' in sys.modules)"
    )
    done = subprocess.run(
        [venv / "bin" / "python", "-c", code],
        cwd=tmp_path, env=environment, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert str(venv) in done.stdout and os.path.commonpath([done.stdout.split()[0], venv])
