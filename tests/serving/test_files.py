"""Files that appear whole, and locks between processes."""

from __future__ import annotations

import errno
import json
import os
import pathlib
import subprocess
import sys
import threading

import pytest

from serving import files


def test_a_file_is_replaced_as_a_whole_and_its_folder_made(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "new" / "state.json"
    files.write_json(path, {"a": 1})
    files.write_json(path, {"a": 2})
    assert json.loads(path.read_text()) == {"a": 2}
    assert os.listdir(path.parent) == ["state.json"]


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "state"
    files.write_atomically(path, "old")
    with pytest.raises(KeyError), files.replacing(path) as file:
        file.write(b"half")
        raise KeyError
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["state"]


HOLD = """
import sys
from serving import files

with files.locked(sys.argv[1]):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_a_lock_is_refused_with_its_owner_and_freed_with_its_process(
    tmp_path: pathlib.Path,
) -> None:
    path = tmp_path / "lock"
    assert not files.is_locked(path) and files.lock_owner(path) is None
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        cwd=pathlib.Path(files.__file__).parents[1],
    )
    try:
        assert process.stdout is not None and process.stdout.readline() == b"held\n"
        for _ in range(2):  # the refused one does not wipe the owner
            with pytest.raises(files.LockedError) as refused, files.locked(path, wait=False):
                pass
            assert refused.value.owner == process.pid
            assert refused.value.exit_code == 2
        assert files.is_locked(path) and files.lock_owner(path) == process.pid
    finally:
        process.kill()
        process.communicate()
    assert not files.is_locked(path)
    with files.locked(path, wait=False):
        assert files.lock_owner(path) == os.getpid()
    assert files.lock_owner(path) is None


def test_asking_for_a_lock_never_takes_it(tmp_path: pathlib.Path) -> None:
    """`watch status` must not make a starting watcher believe that another is at work."""
    path = tmp_path / "lock"
    path.touch()
    stop = threading.Event()

    def ask() -> None:
        while not stop.is_set():
            files.is_locked(path)

    asking = threading.Thread(target=ask)
    asking.start()
    try:
        for _ in range(2000):
            with files.locked(path, wait=False):
                pass
    finally:
        stop.set()
        asking.join()


def test_a_full_disk_is_known_by_its_number_through_the_causes() -> None:
    full = OSError(errno.ENOSPC, "whatever the language says")
    wrapped = RuntimeError("the component failed")
    wrapped.__cause__ = full
    assert files.is_disk_full(full) and files.is_disk_full(wrapped)
    assert not files.is_disk_full(RuntimeError("No space left on device, says a text"))
    assert not files.is_disk_full(None)
