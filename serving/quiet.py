"""TensorFlow's import, as quiet as ``TF_CPP_MIN_LOG_LEVEL`` asks for.

TensorFlow 2.21 writes to file descriptor 2 while it is imported, before its C++ part has read that
variable: the first thing that a user of ``serve`` and ``predict`` would see.
"""

from __future__ import annotations

import contextlib
import os
import re
import sys
import tempfile
from collections.abc import Iterator
from typing import Any

_STDERR = 2
# "I0000 00:00:1795275296.816565 147 port.cc:153] ..." and "2026-11-21 16:00:00.1: I file.cc:1] ..."
_LOGGED = re.compile(rb"(?:\d{4}-\d\d-\d\d [\d:.]+: )?([IWEF])(?:\d{4} [\d:.]+ | )")
_PREAMBLE = b"WARNING: All log messages before absl::InitializeLog() is called"


def settle_environment(log_level: int = 1) -> None:
    """Says what TensorFlow reads from the environment, for this process and those that it starts.

    A GPU's memory is taken as it is needed: whoever initialises TensorFlow first in a process
    decides it for all that come after, and leaves other processes none otherwise.

    Args:
      log_level: How many of the severities info, warning, error are unwanted.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", str(log_level))
    os.environ.setdefault("TF_FORCE_GPU_ALLOW_GROWTH", "true")


def import_tensorflow() -> Any:
    """The module ``tensorflow``; for the first import in a process."""
    if "tensorflow" not in sys.modules:
        with log_level_kept(int(os.environ.get("TF_CPP_MIN_LOG_LEVEL") or 0)):
            import tensorflow  # noqa: F401
    return sys.modules["tensorflow"]


@contextlib.contextmanager
def log_level_kept(level: int) -> Iterator[None]:
    """Lets through to stderr what is no log line, or one of a severity that is wanted.

    What is let through comes when the block ends. If it raises, everything comes: the last words
    may be the reason.

    Args:
      level: How many of the severities info, warning, error are unwanted.
    """
    sys.stderr.flush()
    try:
        terminal = os.dup(_STDERR)
    except OSError:  # closed: nobody listens
        yield
        return
    with tempfile.TemporaryFile() as said:
        os.dup2(said.fileno(), _STDERR)
        try:
            yield
        except BaseException:
            level = 0
            raise
        finally:
            sys.stderr.flush()
            os.dup2(terminal, _STDERR)
            os.close(terminal)
            said.seek(0)
            for line in said:
                if not _is_unwanted(line, level):
                    os.write(_STDERR, line)


def _is_unwanted(line: bytes, level: int) -> bool:
    if line.startswith(_PREAMBLE):
        return level > 0
    logged = _LOGGED.match(line)
    return logged is not None and b"IWEF".index(logged[1]) < level
