"""One run at a time in a root, and a name for each."""

from __future__ import annotations

import contextlib
import datetime
import errno
import fcntl
import os
from collections.abc import Iterator

from pipeline.errors import UserError

_LOCK_FILE = ".lock"


def new_run_id() -> str:
    """An identifier of a run: the time, so that identifiers sort."""
    return datetime.datetime.now().strftime("%Y%m%d-%H%M%S-%f")[:-3]


@contextlib.contextmanager
def locked(root: str) -> Iterator[None]:
    """Makes ``root`` and keeps other runs out of it.

    Raises:
      UserError: The folder cannot be written, or another run is in it.
    """
    try:
        os.makedirs(root, exist_ok=True)
        lock = open(os.path.join(root, _LOCK_FILE), "a+", encoding="utf-8")  # noqa: SIM115
    except OSError as e:
        raise UserError(
            f"{e.filename or root}: cannot be written ({e.strerror}); choose another --root"
        ) from None
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as e:
            if e.errno not in (errno.EAGAIN, errno.EACCES):
                raise UserError(f"{root}: cannot be locked ({e.strerror})") from None
            lock.seek(0)
            owner = lock.read().strip() or "unknown"
            raise UserError(
                f"{root}: another run is at work there (process {owner}); "
                "wait for it or choose another --root"
            ) from None
        lock.truncate(0)
        lock.write(str(os.getpid()))
        lock.flush()
        yield
