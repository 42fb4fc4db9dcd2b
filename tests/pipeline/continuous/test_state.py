import os

import pytest

from pipeline import cli
from pipeline.continuous import state
from pipeline.errors import UserError
from tests.pipeline.continuous import test_watcher

root = test_watcher.root
publish = test_watcher.publish


def test_a_state_that_is_no_state_is_refused_in_one_line(root, capsys):
    folder = root / "continuous"
    folder.mkdir()
    (folder / "state.json").write_text("{")
    assert cli.main(["watch", "--once", "--root", str(root)]) == 2
    error = capsys.readouterr().err
    assert "move it away" in error and error.count("\n") == 1
    assert os.path.exists(folder / "state.json")


def test_what_was_written_is_read_again(root):
    assert state.read(root) == state.State()
    known = state.State(spans={"1.1": {"status": "pushed"}}, window=["1.1"], serving=7, errors=2)
    state.write(root, known)
    assert state.read(root) == known
    assert known.status("1.1") == "pushed" and known.status("2.1") == state.NEW


def test_only_what_was_set_aside_can_be_let_in(root, digits):
    publish(root, digits, 0)
    with pytest.raises(UserError, match="no span 2"):
        state.accept(root, 2)
    with pytest.raises(UserError, match="was not set aside"):
        state.accept(root, 1)
    state.write(root, state.State(spans={"1.1": {"status": state.QUARANTINED}}))
    assert state.accept(root, 1) == "1.1"
    assert state.accepted(root) == {"1.1"}
    state.forget_acceptance(root, "1.1")
    assert state.accepted(root) == set()
