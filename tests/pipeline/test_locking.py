import os
import subprocess
import sys

import pytest

from pipeline.errors import BusyError, UserError
from pipeline.locking import locked, new_run_id


def test_identifiers_sort_by_time():
    first, second = new_run_id(), new_run_id()
    assert first <= second and len(first) == len("20260101-120000-000")


def test_one_run_at_a_time(tmp_path):
    root = str(tmp_path / "runs")
    script = (
        "import sys; from pipeline.errors import BusyError; from pipeline.locking import locked\n"
        "try:\n    with locked(sys.argv[1]): print('in')\n"
        "except BusyError as e: print(e)\n"
    )

    def other():
        done = subprocess.run(
            [sys.executable, "-c", script, root], capture_output=True, text=True, check=True
        )
        return done.stdout

    with locked(root):
        assert f"another run is at work there (process {os.getpid()})" in other()
        with pytest.raises(BusyError), locked(root):
            pass
    assert other() == "in\n"


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").write_text("-")
    with pytest.raises(UserError, match="choose another --root"), locked(f"{tmp_path}/file/runs"):
        pass
