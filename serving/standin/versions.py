"""Which versions a folder offers, by TensorFlow Serving's rules.

Source: tensorflow_serving/sources/storage_path/file_system_storage_path_source.cc.
"""

from __future__ import annotations

import dataclasses
import os
import re
from typing import Literal

_INT64 = re.compile(r"\s*[+-]?\d+\s*", re.ASCII)
_INT64_MAX = 2**63 - 1


@dataclasses.dataclass(frozen=True)
class VersionPolicy:
    """Which of a folder's versions are served.

    Attributes:
      kind: ``latest`` (the highest ``count`` numbers), ``all``, or
        ``specific`` (the listed ones that exist).
      count: For ``latest``.
      versions: For ``specific``.
    """

    kind: Literal["latest", "all", "specific"] = "latest"
    count: int = 1
    versions: tuple[int, ...] = ()

    def choose(self, available: dict[int, str]) -> dict[int, str]:
        """The versions to serve, of those that :func:`list_versions` found."""
        if self.kind == "all":
            return dict(available)
        if self.kind == "specific":
            chosen = [number for number in self.versions if number in available]
        else:
            chosen = sorted(available, reverse=True)[: self.count]
        return {number: available[number] for number in chosen}


def parse_version(name: str) -> int | None:
    """The version that a child of a model folder stands for, or None.

    ``00000123`` is 123, a sign is read, anything else than an int64 is None.
    """
    if not _INT64.fullmatch(name):
        return None
    number = int(name)
    return number if -_INT64_MAX - 1 <= number <= _INT64_MAX else None


def list_versions(base_path: str) -> dict[int, str]:
    """Every version under a model folder, number to path.

    A child that is a plain file counts, as it does for TensorFlow Serving; its
    load then fails. Of two names for one number the last in sorted order wins.

    Raises:
      OSError: The folder is missing or cannot be read.
    """
    return {
        number: os.path.join(base_path, name)
        for name in sorted(os.listdir(base_path))
        if (number := parse_version(name)) is not None
    }


def fingerprint(path: str) -> tuple[tuple[str, int, int], ...]:
    """Names, sizes and times of a version's files; changes when any file does.

    Lets a failed version be tried again once it was repaired or completed.
    """
    files = [os.path.join(folder, name) for folder, _, names in os.walk(path) for name in names]
    found = []
    for file in sorted(files) or [path]:
        try:
            info = os.stat(file)
        except OSError:
            continue  # gone since it was listed
        found.append((os.path.relpath(file, path), info.st_size, info.st_mtime_ns))
    return tuple(found)
