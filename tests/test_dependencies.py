"""What the product imports is what pyproject.toml declares."""

from __future__ import annotations

import ast
import importlib.metadata
import pathlib
import re
import sys

PROJECT = pathlib.Path(__file__).resolve().parent.parent
ROOMS = ("components", "kubeflow", "pipeline", "serving", "trainer")


def declared() -> set[str]:
    """The distributions of the product, its extra for Kubeflow included, not the tools."""
    found = set()
    for line in importlib.metadata.requires("mnist-autoencoder") or []:
        requirement, _, marker = line.partition(";")
        name = re.match(r"[\w.-]+", requirement)[0].lower()
        if not marker or "kubeflow" in marker:
            found.add(name)
    return found


def module(parts: tuple[str, ...]) -> str:
    """What of a dotted name says whose it is: ``google`` alone belongs to many."""
    return ".".join(parts[:2] if parts[0] == "google" else parts[:1])


def provided(distribution: str) -> set[str]:
    files = importlib.metadata.files(distribution) or []
    return {module(f.with_suffix("").parts) for f in files if f.suffix == ".py"}


def imported(path: pathlib.Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names.add(node.module)
    return {module(tuple(name.split("."))) for name in names}


def test_every_import_is_declared():
    known = {*sys.stdlib_module_names, *ROOMS}.union(*map(provided, declared()))
    unknown = {
        f"{path.relative_to(PROJECT)}: {name}"
        for room in ROOMS
        for path in sorted((PROJECT / room).rglob("*.py"))
        for name in imported(path) - known
    }
    assert not unknown
