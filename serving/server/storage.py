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


def parse_version(name: str) -> int | None:
    """The version that a child of a model folder stands for, or None.

    ``00000123`` is 123, a sign is read, anything else than an int64 is None.
    """
    if not _INT64.fullmatch(name):
        return None
    number = int(name)
    return number if -_INT64_MAX - 1 <= number <= _INT64_MAX else None


def list_versions(base_path: str) -> dict[int, str]:
    """Every version under a model folder.

    A child that is a plain file counts, as it does for TensorFlow Serving; its
    load then fails. Of two names for one number the last in sorted order wins.

    Args:
      base_path: The model's folder.

    Returns:
      Version number to path.

    Raises:
      OSError: The folder is missing or cannot be read.
    """
    found = {}
    for name in sorted(os.listdir(base_path)):
        number = parse_version(name)
        if number is not None:
            found[number] = os.path.join(base_path, name)
    return found


def aspired_versions(available: dict[int, str], policy: VersionPolicy) -> dict[int, str]:
    """Chooses the versions to serve.

    Args:
      available: From :func:`list_versions`.
      policy: What to choose by.
    """
    if policy.kind == "all":
        return dict(available)
    if policy.kind == "specific":
        return {number: available[number] for number in policy.versions if number in available}
    newest = sorted(available, reverse=True)[: policy.count]
    return {number: available[number] for number in newest}


def fingerprint(path: str) -> tuple[tuple[str, int, int], ...]:
    """Names, sizes and times of a version's files; changes when any file does.

    Lets a failed version be tried again once it was repaired or completed.
    """
    found = []
    for folder, _, files in os.walk(path):
        for name in sorted(files):
            full = os.path.join(folder, name)
            try:
                info = os.stat(full)
            except OSError:
                continue
            found.append((os.path.relpath(full, path), info.st_size, info.st_mtime_ns))
    if not found:
        try:
            info = os.stat(path)
        except OSError:
            return ()
        found.append((".", info.st_size, info.st_mtime_ns))
    return tuple(sorted(found))
