"""Installs exactly what the Dockerfile installs, and starts what it starts."""

from __future__ import annotations

import pathlib
import re
import shlex
import shutil
import subprocess
import sys

import pytest

import kubeflow

PROJECT = pathlib.Path(kubeflow.__file__).resolve().parent.parent


def stages() -> list[list[tuple[str, str]]]:
    """The stages of the Dockerfile as instructions, with the defaults of its ARGs put in."""
    text = re.sub(r"\\\n", " ", (PROJECT / "kubeflow" / "Dockerfile").read_text())
    found: list[list[tuple[str, str]]] = []
    variables: dict[str, str] = {}
    for line in text.splitlines():
        if not line.strip() or line.startswith("#"):
            continue
        word, _, rest = line.partition(" ")
        for name, value in variables.items():
            rest = rest.replace("${" + name + "}", value)
        if word == "ARG":
            name, _, value = rest.partition("=")
            variables[name] = value
            continue
        if word == "FROM":
            found.append([])
        found[-1].append((word, rest.strip()))
    return found


def test_what_changes_with_the_project_is_a_layer_of_its_own():
    packages, project, final = stages()
    copied = [rest for word, rest in packages if word == "COPY"]
    assert copied == ["requirements/image-cpu.txt requirements.txt"]
    assert {"kubeflow kubeflow", "trainer trainer"} <= {rest for word, rest in project}
    layers = [rest for word, rest in final if word == "COPY"]
    assert layers == [
        "--from=packages /opt/venv /opt/venv",
        "--from=project /opt/project /opt/project",
    ]


def test_a_mirror_can_be_named_and_does_not_stay_in_the_image():
    text = (PROJECT / "kubeflow" / "Dockerfile").read_text()
    for name in ("PIP_INDEX_URL", "PIP_TRUSTED_HOST"):
        assert re.search(rf"^ARG {name}$", text, re.M)
        assert not re.search(rf"^ENV.*{name}", text, re.M)
    assert text.count("FROM ${BASE}") == 2


@pytest.mark.e2e
def test_what_the_image_installs_starts_a_node(tmp_path):
    build, venv, project = (tmp_path / name for name in ("build", "venv", "project"))
    build.mkdir()
    packages, sources, final = stages()
    base = dict(packages)["FROM"]
    version = ".".join(map(str, sys.version_info[:2]))
    if f"python:{version}." not in base:
        pytest.skip(f"the image has another Python than this one: {base}")
    for word, rest in [*packages, *sources]:
        if word == "COPY":
            *names, target = rest.split()
            for name in names:
                copy(PROJECT / name, build / target)
        elif word == "RUN" and not rest.startswith("apt-get"):
            command = rest.replace("/opt/venv", str(venv)).replace("/opt/project", str(project))
            command = command.replace("python -m venv", f"{sys.executable} -m venv")
            subprocess.run(["sh", "-ec", command], cwd=build, check=True, timeout=900)
    # Without the variables of this session, as the container's own user would.
    words = shlex.split(dict(final)["CMD"].strip("[]").replace(",", " "))
    path = f"{project}/bin:{venv}/bin:/usr/bin:/bin"
    environment = {"PATH": path, "HOME": str(tmp_path)}
    done = subprocess.run(words, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "--metadata-url" in done.stdout
    # It is the installed package that answers, and it can make the graph.
    code = "import kubeflow.node, pipeline.pipeline, serving; print(kubeflow.node.__file__)"
    words = [venv / "bin" / "python", "-c", code]
    done = subprocess.run(
        words, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True
    )
    assert pathlib.Path(done.stdout.strip()).is_relative_to(project)


def copy(source: pathlib.Path, goal: pathlib.Path) -> None:
    """Copies as COPY does: a folder's content, or a file to a file or into a folder."""
    if source.is_dir():
        shutil.copytree(source, goal, ignore=shutil.ignore_patterns("__pycache__"))
    else:
        shutil.copy(source, goal / source.name if goal.is_dir() else goal)
