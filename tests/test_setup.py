"""What set-up says where something is missing: one line that helps; nothing is made."""

from __future__ import annotations

import os
import pathlib
import re
import shutil
import subprocess

import pytest

PROJECT = pathlib.Path(__file__).parent.parent
# What every Linux has, and nothing else of this machine.
ORDINARY = (
    "bash sh cat grep sed sort tail head getconf id uname mkdir rm mktemp dirname basename "
    "readlink cksum flock touch ls"
).split()
# A Python as the script asks for one: its version, and a folder of headers.
PYTHON = """
[ "$3" = {version} ] || exit 3
printf '%s\\n' "$0" {headers}
"""
NO_INDEX = {"PIP_INDEX_URL": "http://127.0.0.1:9/simple", "UV_DEFAULT_INDEX": "http://127.0.0.1:9/"}


class Machine:
    """A copy of what set-up reads, and a PATH of its own."""

    def __init__(self, folder: pathlib.Path):
        self.project, self.bin = folder / "project", folder / "bin"
        self.home = folder / "home"
        for made in (self.project, self.bin, self.home):
            made.mkdir()
        shutil.copytree(PROJECT / "requirements", self.project / "requirements")
        for name in ("pyproject.toml", "setup.py", "Makefile"):
            shutil.copy(PROJECT / name, self.project)
        for name in ORDINARY:
            self.has(name)

    def has(self, name: str) -> None:
        (self.bin / name).symlink_to(shutil.which(name))

    def has_script(self, name: str, text: str) -> None:
        (self.bin / name).write_text(f"#!/bin/bash\n{text}\n")
        (self.bin / name).chmod(0o755)

    def has_python(self, version: str, headers: pathlib.Path) -> None:
        """Puts a Python in the PATH that runs nothing but the script's question."""
        self.has_script(f"python{version}", PYTHON.format(version=version, headers=headers))

    def set_up(self, *arguments: str) -> subprocess.CompletedProcess:
        environment = {"PATH": str(self.bin), "HOME": str(self.home), "LANG": "C.UTF-8", **NO_INDEX}
        return subprocess.run(
            [self.project / "requirements/setup.sh", *arguments],
            capture_output=True,
            text=True,
            env=environment,
            check=False,
        )


@pytest.fixture
def machine(tmp_path) -> Machine:
    return Machine(tmp_path)


def one_line(done: subprocess.CompletedProcess, machine: Machine) -> str:
    assert done.returncode == 2, done.stderr
    (line,) = done.stderr.splitlines()
    assert line.startswith("setup: ")
    assert not (machine.project / ".venv").exists()
    return line


def test_a_stack_that_is_none(machine):
    assert "known: tfx-1.21, tfx-1.16" in one_line(machine.set_up("tfx-2"), machine)


def test_no_compiler(machine):
    line = one_line(machine.set_up("tfx-1.16"), machine)
    assert "no C++ compiler" in line
    assert "g++" in line or "gcc" in line


@pytest.mark.skipif(not shutil.which("c++"), reason="no C++ compiler on this machine")
def test_no_headers(machine, tmp_path):
    machine.has("c++")
    machine.has_python("3.11", tmp_path / "nowhere")
    line = one_line(machine.set_up("tfx-1.16"), machine)
    assert f"Python 3.11 has no headers ({tmp_path}/nowhere/Python.h)" in line


@pytest.mark.skipif(not shutil.which("c++"), reason="no C++ compiler on this machine")
def test_no_python_and_no_network(machine):
    machine.has("c++")
    line = one_line(machine.set_up("tfx-1.16"), machine)
    assert "no Python" in line or "no suitable Python" in line


@pytest.mark.skipif(not shutil.which("c++"), reason="no C++ compiler on this machine")
@pytest.mark.skipif(not shutil.which("apt-cache"), reason="not of Debian's family")
def test_a_python_that_the_archive_has_is_what_helps(machine):
    machine.has("c++")
    machine.has_script("uv", "[ $1 = --version ] && echo uv 0.9.0")
    more = "while [ $((i += 1)) -lt 20000 ]; do echo and much more; done"
    machine.has_script("apt-cache", f"[ $2 = python3.11 ] && echo Package: $2 && {more}")
    done = machine.set_up("tfx-1.16")
    assert done.returncode == 2
    looked, line = done.stderr.splitlines()
    assert "no Python 3.10 here; uv looks for one to download" in looked
    assert "no suitable Python: TFX 1.16 needs Python 3.10 or 3.11" in line
    assert re.search(r"apt-get install g\+\+ python3(\.11)?-dev", line), line


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes everywhere")
def test_a_folder_that_cannot_be_written(machine):
    machine.project.chmod(0o555)
    try:
        assert "cannot be written" in one_line(machine.set_up("tfx-1.16"), machine)
    finally:
        machine.project.chmod(0o755)
