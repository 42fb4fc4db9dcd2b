"""What the door says is so: hooks, folders, files, commands."""

from __future__ import annotations

import pathlib
import re

import yaml

PROJECT = pathlib.Path(__file__).resolve().parent.parent
MAKEFILE = (PROJECT / "Makefile").read_text()
CONTRIBUTING = (PROJECT / "CONTRIBUTING.md").read_text()


def test_the_hooks_run_what_lint_runs():
    recipe = MAKEFILE.partition("\nlint:")[2].partition("\n\n")[0].splitlines()[1:]
    linted = [line.strip().removeprefix("@$(BIN)/").removesuffix(" .") for line in recipe]
    (local,) = yaml.safe_load((PROJECT / ".pre-commit-config.yaml").read_text())["repos"]
    hooked = [hook["entry"].removeprefix(".venv/bin/") for hook in local["hooks"]]
    assert local["repo"] == "local" and hooked == linted


def test_every_make_target_that_is_named_is_there():
    targets = set(re.findall(r"^([\w-]+):", MAKEFILE, re.M))
    named = set(re.findall(r"make ([\w-]+)", CONTRIBUTING))
    assert named and named <= targets


def test_every_path_that_is_named_is_there():
    folders = ["", "components", "trainer", "trainer/models", "serving", "pipeline", "kubeflow"]
    named = set(re.findall(r"`([\w./-]+(?:\.(?:py|md|toml)|/))`", CONTRIBUTING))
    assert len(named) > 20
    for name in named:
        assert any((PROJECT / folder / name).exists() for folder in [*folders, "tests"]), name
