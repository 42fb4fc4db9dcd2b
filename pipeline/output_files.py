"""Files that a person asked for: whole or not at all, and a refusal in one line."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import BinaryIO

from pipeline.errors import UserError
from serving import files


@contextlib.contextmanager
def writing(path: files.Path) -> Iterator[BinaryIO]:
    """A file that takes the place of ``path`` when the block ends well.

    Raises:
      UserError: It cannot be written.
    """
    try:
        with files.replacing(path) as file:
            yield file
    except OSError as e:
        raise UserError(f"{os.fspath(path)}: cannot be written ({e.strerror})") from None


def write(path: files.Path, text: str) -> None:
    """Replaces a text file; see :func:`writing`."""
    with writing(path) as file:
        file.write(text.encode())
