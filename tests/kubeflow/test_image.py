"""The Dockerfile, as written and as built."""

from __future__ import annotations

import importlib.metadata
import json
import os
import pathlib
import re
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


# What a node imports, as names of distributions.
IMPORTED = """
import importlib.metadata, sys, sysconfig
import kubeflow.compiler, kubeflow.node, kubeflow.store, kubeflow.workers, pipeline.local_runner
import pipeline.nodes, trainer.run_fn, trainer.tuner_fn
loaded = {name.partition(".")[0] for name in sys.modules}
for distribution in importlib.metadata.distributions(path=[sysconfig.get_path("purelib")]):
    if loaded & {file.parts[0].removesuffix(".py") for file in distribution.files or ()}:
        print(distribution.name)
"""


@pytest.mark.skipif(
    not importlib.metadata.version("tfx").startswith("1.16."), reason="the image has TFX 1.16"
)
def test_everything_that_a_node_imports_is_in_the_image():
    """Also what a package imports and does not ask for, as ipywidgets does ipykernel."""
    command = [sys.executable, "-c", IMPORTED]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=PROJECT)
    lock = (PROJECT / "requirements" / "image-cpu.txt").read_text()
    locked = set(re.findall(r"^([a-z0-9-]+)==", lock, re.M))
    wanted = {re.sub(r"[-_.]+", "-", name).lower() for name in done.stdout.split()}
    assert "tensorflow-cpu" in locked and {"tensorflow-model-analysis", "ipykernel"} <= wanted
    # kubernetes tries the validator, which is for tests, and with it what it needs.
    for_tests = {"kubernetes-validate", "importlib-resources", "tensorflow", "mnist-autoencoder"}
    assert sorted(wanted - locked - for_tests) == []


@pytest.mark.e2e
def test_it_builds_and_a_changed_line_is_a_layer_of_megabytes(tmp_path):
    """With a Docker daemon that has the base, or can pull it: minutes the first time."""
    base = re.search(r"^ARG BASE=(\S+)", (PROJECT / "kubeflow" / "Dockerfile").read_text(), re.M)[1]
    if not shutil.which("docker") or docker("info").returncode:
        pytest.skip("no Docker daemon answers")
    if docker("image", "inspect", base).returncode and docker("pull", base).returncode:
        pytest.skip(f"{base} cannot be pulled from here")
    checkout = tmp_path / "checkout"
    files = subprocess.run(["git", "ls-files"], cwd=PROJECT, capture_output=True, text=True)
    for name in files.stdout.splitlines():
        (checkout / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(PROJECT / name, checkout / name)
    first = build(checkout, "first")
    usage = docker("run", "--rm", first)
    assert usage.returncode == 0, usage.stderr
    assert "--metadata-url" in usage.stdout
    code = "import kubeflow.node, os, pipeline.nodes; print(os.getuid(), kubeflow.node.__file__)"
    imported = docker("run", "--rm", first, "python", "-c", code)
    uid, place = imported.stdout.split()
    assert (uid, place[:13]) == ("1000", "/opt/project/")
    # Matplotlib would look for the fonts again where its folder were missing, or not to be written.
    code = "import logging; logging.basicConfig(level=10); import matplotlib.font_manager"
    fonts = docker("run", "--rm", first, "python", "-c", code).stderr
    assert "Using fontManager instance from /opt/venv/matplotlib/" in fonts
    # Some packages only mention that what they import is missing.
    assert "Error importing" not in imported.stderr
    with (checkout / "pipeline" / "nodes.py").open("a") as file:
        file.write("# a line\n")
    second = build(checkout, "second")
    before, after = layers(first), layers(second)
    shared = [one for one, other in zip(before, after) if one == other]
    assert len(shared) == before.index(shared[-1]) + 1 and len(shared) < len(after)
    form = "--format={{.Size}} {{.CreatedBy}}"
    history = docker("history", "--no-trunc", "--human=false", form, second).stdout.splitlines()
    sizes = [int(line.split()[0]) for line in history if re.search("COPY .*/opt/project", line)]
    assert 0 < sum(sizes) < 10_000_000


def docker(*words: str, **options) -> subprocess.CompletedProcess:
    return subprocess.run(["docker", *words], capture_output=True, text=True, **options)


def build(checkout: pathlib.Path, tag: str) -> str:
    """Builds as the guide says, by the network and the package index of this machine."""
    image = f"mnist-autoencoder-test:{tag}"
    words = ["--network=host", "--file=kubeflow/Dockerfile", f"--tag={image}"]
    for name in ("PIP_INDEX_URL", "PIP_TRUSTED_HOST"):
        if name in os.environ:
            words.append(f"--build-arg={name}={os.environ[name]}")
    done = docker("build", "--platform=linux/amd64", *words, ".", cwd=checkout)
    assert done.returncode == 0, done.stderr[-2_000:]
    return image


def layers(image: str) -> list[str]:
    found = docker("image", "inspect", "--format={{json .RootFS.Layers}}", image)
    return json.loads(found.stdout)
