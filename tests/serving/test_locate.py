"""The model that a command line names."""

from __future__ import annotations

import pathlib
import shutil

import pytest

from serving import locate


def test_find(pushed: pathlib.Path, tmp_path: pathlib.Path) -> None:
    assert locate.find(None, pushed).name == "autoencoder"  # the most recently pushed
    by_path = locate.find(str(pushed / "serving" / "conformance"), pushed)
    assert (by_path.name, by_path.versions) == ("conformance", (1700000000,))
    one = locate.find(str(pushed / "serving" / "conformance" / "1700000000"), pushed)
    assert one.version == 1700000000
    bare = tmp_path / "bare"
    shutil.copytree(by_path.version_path(1700000000), bare)
    with pytest.raises(locate.ModelFolderError, match="without a version"):
        locate.find(str(bare), pushed)


def test_a_bare_name_need_not_be_pushed_here_to_be_asked_of_a_server(
    pushed: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    assert locate.served_name(None, pushed) == "autoencoder"
    assert locate.served_name("elsewhere", tmp_path) == "elsewhere"
    assert locate.served_name(str(pushed / "serving" / "conformance"), tmp_path) == "conformance"
    with pytest.raises(locate.ModelFolderError, match="--model NAME"):
        locate.served_name(None, tmp_path)
