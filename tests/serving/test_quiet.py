"""What TensorFlow says while it is imported is kept off stderr, what matters is not."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap

import pytest

# As TensorFlow 2.21 and 2.16 write them.
INFO = "I0000 00:00:1795275296.816565     147 port.cc:153] oneDNN custom operations are on."
WARNING = "W0000 00:00:1795275296.816565     147 cudart_stub.cc:31] no GPU"
ERROR = "2026-11-21 16:00:00.123456: E external/local_xla/stream.cc:9261] Unable to register"
PREAMBLE = "WARNING: All log messages before absl::InitializeLog() is called are written to STDERR"
OURS = "warning: models.config lists 'm', whose folder is missing"


def stderr_of(code: str, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=False,
        env={**os.environ, **environment},
    )  # fmt: skip
    return done.stderr


@pytest.mark.parametrize(
    ("level", "shown"),
    [
        (0, [PREAMBLE, INFO, WARNING, ERROR, OURS]),
        (1, [WARNING, ERROR, OURS]),
        (2, [ERROR, OURS]),
        (3, [OURS]),
    ],
)
def test_a_log_line_is_shown_where_its_severity_is_wanted(level: int, shown: list[str]) -> None:
    said = [PREAMBLE, INFO, WARNING, ERROR, OURS]
    code = f"""
        import os, sys
        from serving import quiet
        with quiet.log_level_kept({level}):
            for line in {said!r}:
                os.write(2, line.encode() + b"\\n")
        print("after", file=sys.stderr)
    """
    assert stderr_of(code).splitlines() == [*shown, "after"]


def test_if_the_import_fails_everything_is_shown() -> None:
    code = f"""
        import os
        from serving import quiet
        with quiet.log_level_kept(3):
            os.write(2, {INFO.encode()!r} + b"\\n")
            raise ImportError("no AVX")
    """
    first, *_, last = stderr_of(code).splitlines()
    assert (first, last) == (INFO, "ImportError: no AVX")


def test_a_closed_stderr_is_no_reason_to_fail() -> None:
    code = """
        import os
        os.close(2)
        from serving import quiet
        with quiet.log_level_kept(3):
            print("went on")
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=False
    )
    assert done.stdout == "went on\n"


def test_tensorflow_is_imported_without_a_word() -> None:
    code = """
        from serving import quiet
        tf = quiet.import_tensorflow()
        assert tf is quiet.import_tensorflow() and tf.constant(1) == 1
    """
    assert stderr_of(code, TF_CPP_MIN_LOG_LEVEL="3", PYTHONWARNINGS="ignore") == ""
