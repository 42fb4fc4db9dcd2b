"""Leaderboards of runs, and several runs in one go."""

import datetime
import json
import re

import pytest

from pipeline import leaderboard, runs
from pipeline.errors import UserError
from pipeline.history import RunRecord
from tests import browser


def record(run_id, servable, **figures):
    return RunRecord(
        run_id=run_id,
        started=datetime.datetime(2026, 1, 1),
        state="complete",
        components=[],
        properties={
            "servable": servable,
            "model": servable,
            "dataset": "mnist",
            "blessed": 1,
            **figures,
        },
        report_uri=None,
        pushed_version=None,
        pushed_path=None,
    )


RECORDS = [
    record("20260101-1", "simple", mse=0.02, auroc=0.8),
    record("20260102-1", "deep", mse=0.01, auroc=0.7),
    record("20260103-1", "simple", mse=0.03, auroc=0.9),
    record("20260104-1", "old"),
]


def test_the_best_comes_first_whatever_the_figure():
    def order(**options):
        return [row["run_id"][:8] for row in leaderboard.leaderboard(RECORDS, **options)]

    assert order(sort="mse") == ["20260102", "20260101", "20260103", "20260104"]
    assert order(sort="auroc") == ["20260103", "20260101", "20260102", "20260104"]
    # A run without the figure is last even then.
    assert order(sort="mse", reverse=True) == ["20260103", "20260101", "20260102", "20260104"]


def test_a_run_is_found_by_its_name_its_beginning_or_its_model():
    def found(given):
        return runs.choose(RECORDS, given).run_id

    assert found(None) == "20260104-1"
    assert found("20260101-1") == "20260101-1"
    assert found("20260102") == "20260102-1"
    assert found("simple") == "20260103-1"
    with pytest.raises(UserError, match="'nothing'.*simple"):
        runs.choose(RECORDS, "nothing")
    assert [r.run_id for r in runs.last_of_each(RECORDS)] == [
        "20260103-1",
        "20260102-1",
        "20260104-1",
    ]


def test_compare_prints_what_the_run_found(trained_run, cli):
    root = str(trained_run.root)
    (row,) = [
        row
        for row in json.loads(cli("compare", "--json", "--root", root).stdout)
        if row["servable"] == "simple"
    ]
    result, metrics = trained_run.result, trained_run.result["metrics"]
    assert row["mse"] == metrics["overall"]["mse"]
    assert row["knn_accuracy"] == metrics["search"]["knn_accuracy"]
    assert row["auroc"] == metrics["anomaly"]["auroc"]
    assert row["training_seconds"] == result["training"]["seconds"]
    assert row["model_bytes"] > 4 * result["parameters"]
    assert row["bits_per_pixel"] == pytest.approx(32 * 8 / 784)
    table = cli("compare", "simple", "--root", root).stdout
    assert "10-NN" in table and f"{row['mse']:.5f}" in table
    done = cli("compare", "unheard", "--root", root)
    assert done.returncode == 2 and "unheard" in done.stderr


def test_the_page_has_the_pictures_side_by_side(trained_run, cli, tmp_path):
    path = tmp_path / "pages" / "compare.html"
    run_id = trained_run.result["run_id"]
    done = cli("compare", run_id, run_id, "--html", str(path), "--root", str(trained_run.root))
    assert done.returncode == 0, done.stderr
    text = path.read_text(encoding="utf-8")
    mse = trained_run.result["metrics"]["overall"]["mse"]
    assert re.findall(r'data-figure="mse" value="([^"]*)"', text) == [str(mse)] * 2
    assert not re.search(r'(src|href)="(?!data:|#)', text)
    if browser.find() is None:
        pytest.skip("no Chromium on the PATH: the page is not opened")
    with browser.open_page(path.as_uri()) as page:
        for width in (390, 1440):
            page.resize(width)
            assert page.evaluate("document.documentElement.scrollWidth") <= width
        assert page.evaluate("document.images.length") >= 16
        assert page.evaluate("[...document.images].every(i => i.complete && i.naturalWidth > 0)")
        assert page.problems == []


def test_several_models_are_checked_before_any_runs(cli, tmp_path):
    root = tmp_path / "runs"
    done = cli("run", "--model", "simple,nothing", "--dataset", "mnist-5k", "--root", str(root))
    assert done.returncode == 2 and "'nothing'" in done.stderr
    done = cli(
        "run",
        "--model",
        "simple,deep",
        "--set",
        "pusher.name=one",
        "--dataset",
        "mnist-5k",
        "--root",
        str(root),
    )
    assert done.returncode == 2 and "pusher.name" in done.stderr
    assert not root.exists()


@pytest.mark.e2e
def test_several_models_share_their_data(trained_run, cli):
    root = str(trained_run.root)
    done = cli(
        "run",
        "--model",
        "deep,sparse",
        "--dataset",
        "mnist-5k",
        "--root",
        root,
        "--json",
        "--set",
        "trainer.epochs=3",
        "--set",
        "evaluator.max_mse=0.2",
    )
    assert done.returncode == 0, done.stderr
    results = [json.loads(line) for line in done.stdout.splitlines()]
    assert [result["model"] for result in results] == ["deep", "sparse"]
    for result in results:
        cached = {c["id"] for c in result["components"] if c["cached"]}
        assert {"MnistExampleGen", "StatisticsGen", "Transform", "PcaReference"} <= cached
        assert result["blessed"] and result["pushed_path"]
    assert "10-NN" in done.stderr
    rows = json.loads(
        cli("compare", "deep", "sparse", "--sort", "knn_accuracy", "--json", "--root", root).stdout
    )
    assert rows[0]["knn_accuracy"] >= rows[1]["knn_accuracy"]


@pytest.mark.e2e
def test_one_model_that_fails_does_not_stop_the_others(trained_run, cli):
    done = cli(
        "run",
        "--model",
        "deep,simple",
        "--dataset",
        "mnist-5k",
        "--root",
        str(trained_run.root),
        "--json",
        "--set",
        "trainer.learning_rate=1e30",
        "--set",
        "trainer.epochs=2",
    )
    assert done.returncode == 1
    assert "deep: Trainer failed" in done.stderr and "simple: Trainer failed" in done.stderr
    assert "Traceback" not in done.stderr
