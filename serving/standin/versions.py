"""A version's life, and which versions a folder offers, by TensorFlow Serving's rules.

Source: tensorflow_serving/sources/storage_path/file_system_storage_path_source.cc.
"""

from __future__ import annotations

import dataclasses
import enum
import os
import re

from serving.standin.status import StatusError

_INT64 = re.compile(r"\s*[+-]?\d+\s*", re.ASCII)


class VersionState(enum.IntEnum):
    """``ModelVersionStatus.State``."""

    START = 10
    LOADING = 20
    AVAILABLE = 30
    UNLOADING = 40
    END = 50


@dataclasses.dataclass
class Version:
    """A version that was seen, from its first look on.

    Attributes:
      state: Where in its life it is.
      error: Why the last load failed; None when it did not.
      fingerprint: Of its files when the last load began; see :func:`fingerprint`.
    """

    number: int
    path: str
    state: VersionState = VersionState.START
    error: StatusError | None = None
    fingerprint: frozenset[tuple[str, int, int]] = frozenset()


def parse_version(name: str) -> int | None:
    """The version that a child of a model folder stands for, or None.

    ``00000123`` is 123, a sign is read, anything else than an int64 is None.
    """
    if not _INT64.fullmatch(name):
        return None
    number = int(name)
    return number if -(2**63) <= number < 2**63 else None


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


def fingerprint(path: str) -> frozenset[tuple[str, int, int]]:
    """Names, sizes and times of a version's files; changes when any file does.

    Lets a failed version be tried again once it was repaired or completed.
    """
    found = set()
    for folder, _, names in os.walk(path):
        for name in names:
            try:
                info = os.stat(os.path.join(folder, name))
            except OSError:
                continue  # gone since it was listed
            found.add((os.path.join(folder, name), info.st_size, info.st_mtime_ns))
    return frozenset(found)
