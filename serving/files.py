"""Files and folders that appear whole or not at all, and locks between processes.

Everything here raises plain ``OSError`` where the disk refuses; the caller,
who knows what was being written, says it in the user's words.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import pathlib
import struct
import uuid
from collections.abc import Iterator
from typing import Any, BinaryIO

from serving.errors import Error

Path = str | os.PathLike[str]

# struct flock: type, whence, start, length (0: to the end), process.
_WHOLE_FILE = struct.Struct("hhqqi4x")


class LockedError(Error):
    """Another process holds the lock.

    Attributes:
      owner: Its process id, where it could be read.
    """

    exit_code = 2

    def __init__(self, path: Path, owner: int | None) -> None:
        who = "another process" if owner is None else f"process {owner}"
        super().__init__(f"{os.fspath(path)}: held by {who}")
        self.owner = owner


def open_anywhere(path: str) -> BinaryIO:
    """Opens a file for reading, of this machine or remote (``gs://``)."""
    if "://" in path:
        from tfx.dsl.io import fileio

        return fileio.open(path, "rb")
    return open(path, "rb")


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """A new file that takes the place of ``path`` when the block ends well.

    Readers see the old content or all of the new; when this returns, it is on
    the disk. Missing folders are made. Nothing is left after an exception.
    """
    target = pathlib.Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name}.{uuid.uuid4().hex}")
    try:
        with open(temporary, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, target)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_folder(target.parent)


def write_atomically(path: Path, data: bytes | str) -> None:
    """Replaces a file in one step; text is written as UTF-8. See :func:`replacing`."""
    with replacing(path) as file:
        file.write(data.encode() if isinstance(data, str) else data)


def write_json(path: Path, value: Any) -> None:
    """Replaces a file in one step by a value as indented JSON."""
    write_atomically(path, json.dumps(value, indent=2) + "\n")


def publish(staging: Path, final: Path) -> None:
    """Renames a finished folder into place and has the new name on the disk.

    Raises:
      OSError: ``final`` is there and not empty, or another file system.
    """
    os.rename(staging, final)
    sync_folder(pathlib.Path(final).parent)


def sync_folder(path: Path) -> None:
    """Has a folder's names on the disk, after a rename in it."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def locked(path: Path, *, wait: bool = True) -> Iterator[None]:
    """Holds a lock among processes, which the system frees however they end.

    The file stays, since removing it would let two in; it holds the owner's
    process id while the lock is held.

    Args:
      path: The lock file; its folder must exist.
      wait: Until the lock is free; otherwise it is refused at once.

    Raises:
      LockedError: Held by another, without ``wait``.
      OSError: The file cannot be opened or locked.
    """
    # Not opened with truncation: the one who is refused must not wipe the owner.
    with open(path, "a+", encoding="utf-8") as lock:
        order = fcntl.F_OFD_SETLKW if wait else fcntl.F_OFD_SETLK
        try:
            fcntl.fcntl(lock, order, _WHOLE_FILE.pack(fcntl.F_WRLCK, 0, 0, 0, 0))
        except OSError as error:
            if error.errno not in (errno.EAGAIN, errno.EACCES):
                raise
            raise LockedError(path, _read_owner(path)) from None
        lock.truncate(0)
        lock.write(str(os.getpid()))
        lock.flush()
        try:
            yield
        finally:
            lock.truncate(0)


def is_locked(path: Path) -> bool:
    """Whether a process holds a lock. Asking never takes it, not for an instant."""
    try:
        with open(path, encoding="utf-8") as lock:
            question = _WHOLE_FILE.pack(fcntl.F_WRLCK, 0, 0, 0, 0)
            answer = fcntl.fcntl(lock, fcntl.F_OFD_GETLK, question)
    except OSError:
        return False
    return bool(_WHOLE_FILE.unpack(answer)[0] != fcntl.F_UNLCK)


def lock_owner(path: Path) -> int | None:
    """The process that holds a lock, or None where nobody does or it is not known."""
    return _read_owner(path) if is_locked(path) else None


def _read_owner(path: Path) -> int | None:
    try:
        text = pathlib.Path(path).read_text(encoding="utf-8").strip()
    except OSError:
        return None
    return int(text) if text.isdigit() else None


def is_disk_full(error: BaseException | None) -> bool:
    """Whether an error, or one that it came from, says that no space is left."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            return True
        error = error.__cause__ or error.__context__
    return False
