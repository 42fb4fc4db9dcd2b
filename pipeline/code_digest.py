"""Tells apart the code that nodes run, so that an edit is never answered from the cache.

TFX's cache knows a node's inputs and parameters, not its code. Here the files
are found that a reference such as ``trainer.run_fn.run_fn`` leads to: the
module, what it imports within the project (inside functions, too), modules that
it names in strings, the packages around them, and the data files beside them.
Sources are read, nothing is imported.
"""

from __future__ import annotations

import ast
import functools
import hashlib
import importlib.util
import pathlib
import re
from collections.abc import Iterable, Iterator

PACKAGES = ("components", "kubeflow", "pipeline", "serving", "trainer")
_DATA_SUFFIXES = (".binpb", ".css", ".j2", ".pbtxt")
# It names every implementation there is; a node runs the one it was told to.
_CATALOGUE = "trainer.models.catalogue"
_REFERENCE = re.compile(rf"\b(?:{'|'.join(PACKAGES)})(?:[.:][A-Za-z_]\w*)+")
# As a string of its own in a source.
_NAMED = re.compile(rf"[\"']({_REFERENCE.pattern})[\"']")
_BLOCKS = ("body", "orelse", "finalbody", "handlers", "cases")


def digest(references: Iterable[str]) -> str:
    """Tells apart what ``references`` run.

    Args:
      references: Modules, or things in them, such as ``trainer.models.best:Best``.
        What does not belong to the project counts for nothing.

    Returns:
      16 hexadecimal digits: of names and contents, wherever the project lies.
    """
    found = hashlib.sha256()
    for name, path in sorted(files(references).items()):
        found.update(f"{name}\0".encode())
        found.update(_content(path))
    return found.hexdigest()[:16]


def digest_of_file(path: pathlib.Path) -> str:
    """Tells contents of a file apart."""
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16]


def references_in(text: str) -> list[str]:
    """What of the project a text names, such as a parameter of a node."""
    return _REFERENCE.findall(text)


def files(references: Iterable[str]) -> dict[str, pathlib.Path]:
    """The files that ``references`` run: a name that is the same everywhere, and the place."""
    modules: dict[str, pathlib.Path] = {}
    waiting = [name for reference in references for name in _modules_of(reference)]
    while waiting:
        name = waiting.pop()
        path = _locate(name)
        if name in modules or path is None:
            continue
        modules[name] = path
        waiting += _named_by(path, follow_strings=name != _CATALOGUE)
    found = dict(modules)
    for name, path in modules.items():
        package = name if path.name == "__init__.py" else name.rpartition(".")[0]
        found.update((f"{package}/{data.name}", data) for data in _data_beside(path.parent))
    return found


def _modules_of(reference: str) -> list[str]:
    """The packages and the module of a reference, outermost first."""
    parts = reference.replace(":", ".").split(".")
    names = [".".join(parts[: i + 1]) for i in range(len(parts))]
    return [name for name in names if _locate(name) is not None]


@functools.cache
def _locate(name: str) -> pathlib.Path | None:
    """The source of a module of the project."""
    top, *rest = name.split(".")
    if top not in PACKAGES:
        return None
    spec = importlib.util.find_spec(top)
    for base in (spec.submodule_search_locations or []) if spec is not None else []:
        place = pathlib.Path(base).joinpath(*rest)
        for path in (place / "__init__.py", place.with_suffix(".py")):
            if path.is_file():
                return path
    return None


@functools.cache
def _named_by(path: pathlib.Path, *, follow_strings: bool) -> tuple[str, ...]:
    """The modules of the project that a module imports or, in strings, names."""
    source = _content(path).decode()
    mentioned = set(_NAMED.findall(source)) if follow_strings else set()
    for statement in _statements(ast.parse(source)):
        if isinstance(statement, ast.Import):
            mentioned.update(alias.name for alias in statement.names)
        elif isinstance(statement, ast.ImportFrom) and statement.module:
            mentioned.update(f"{statement.module}.{alias.name}" for alias in statement.names)
    return tuple(name for reference in sorted(mentioned) for name in _modules_of(reference))


def _statements(tree: ast.AST) -> Iterator[ast.AST]:
    """All statements but what only type checkers see; expressions cost ten times as much."""
    waiting = [tree]
    while waiting:
        statement = waiting.pop()
        yield statement
        test = getattr(statement, "test", None)
        unseen = isinstance(test, ast.Name) and test.id == "TYPE_CHECKING"
        for block in ("orelse",) if unseen else _BLOCKS:
            waiting += getattr(statement, block, ())


@functools.cache
def _data_beside(folder: pathlib.Path) -> tuple[pathlib.Path, ...]:
    """Data files in a folder of modules, and in folders of it that hold no modules."""
    found = []
    for path in sorted(folder.iterdir()):
        if path.suffix in _DATA_SUFFIXES:
            found.append(path)
        elif path.is_dir() and not (path / "__init__.py").exists():
            found += _data_beside(path)
    return tuple(found)


@functools.cache
def _content(path: pathlib.Path) -> bytes:
    return path.read_bytes()
