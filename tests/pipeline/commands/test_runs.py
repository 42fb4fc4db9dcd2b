"""``mnist-ae runs``, ``report`` and ``compare`` where there is nothing yet."""

import json

import pytest

from pipeline import leaderboard


def test_runs_of_an_empty_root(invoke, tmp_path):
    done = invoke("runs")
    assert (done.exit_code, done.stdout) == (
        0,
        f"no runs in {tmp_path / 'runs'}; start one with 'mnist-ae run'\n",
    )
    assert json.loads(invoke("runs", "--json").stdout) == []


def test_an_empty_root_is_none_at_all(invoke, tmp_path):
    # As of `--root "$FOLDER"` where there is no such variable.
    assert invoke("runs", "--root", "").stdout == invoke("runs").stdout


@pytest.mark.parametrize("command", ["report", "compare"])
def test_what_needs_a_run_says_how_to_get_one(invoke, command):
    done = invoke(command)
    assert (done.exit_code, done.stdout) == (2, "")
    assert "start one with 'mnist-ae run'" in done.stderr and done.stderr.count("\n") == 1


def test_every_sortable_figure_can_be_named_on_the_command_line(invoke):
    text = " ".join(invoke("compare", "--help").stdout.split())
    assert all(figure in text for figure in leaderboard.SORTABLE)
    done = invoke("compare", "--sort", "speed")
    assert done.exit_code == 2 and "'knn_accuracy'" in done.stderr
