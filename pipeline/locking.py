"""One run at a time in a root, and a name for each."""

from __future__ import annotations

import contextlib
import datetime
import os
from collections.abc import Iterator

from pipeline.errors import BusyError, UserError
from serving import files

_LOCK_FILE = ".lock"


def new_run_id() -> str:
    """An identifier of a run: the time, so that identifiers sort."""
    return datetime.datetime.now().strftime("%Y%m%d-%H%M%S-%f")[:-3]


@contextlib.contextmanager
def locked(root: str) -> Iterator[None]:
    """Makes ``root`` and keeps other runs out of it.

    Raises:
      BusyError: Another run is in it.
      UserError: The folder cannot be written.
    """
    with contextlib.ExitStack() as stack:
        try:
            os.makedirs(root, exist_ok=True)
            stack.enter_context(files.locked(os.path.join(root, _LOCK_FILE), wait=False))
        except files.LockedError as e:
            raise BusyError(
                f"{root}: another run is at work there (process {e.owner or 'unknown'}); "
                "wait for it or choose another --root"
            ) from None
        except OSError as e:
            raise UserError(
                f"{e.filename or root}: cannot be written ({e.strerror}); choose another --root"
            ) from None
        yield
