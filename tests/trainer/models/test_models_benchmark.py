"""The benchmark's own arithmetic, and the page that it writes."""

from __future__ import annotations

import json

import numpy as np
import pytest

from benchmarks import models as bench
from benchmarks import models_page
from trainer.models import CATALOGUE


def test_the_page_is_what_catalogue_and_measurements_say() -> None:
    assert bench.main(["--check"]) == 0


def test_a_page_that_is_not_is_called_stale(tmp_path, capsys) -> None:
    page, measured = tmp_path / "models.md", tmp_path / "measured.json"
    measured.write_text(json.dumps({}))
    models_page.write(page, measured)
    assert models_page.check(page, measured) == 0
    page.write_text(page.read_text().replace("simple", "simpler"))
    assert models_page.check(page, measured) == 1
    assert "stale" in capsys.readouterr().out


def test_the_page_says_what_was_measured_of_which_model(tmp_path) -> None:
    entry = {
        "model": "simple",
        "label": "",
        "epochs": 7,
        "seconds": 12.4,
        "cpu_seconds": 20.6,
        "test": {"mse": 0.0123, "bce": 0.0987},
        "bars": [{"metric": "bce", "relation": "<=", "bound": 0.1, "epoch": 0, "value": 0.0987}],
    }
    page = models_page.render({"models": {"simple": entry}})
    assert all(f"## {name}\n" in page for name in CATALOGUE)
    section = page.split("## simple\n")[1].split("\n## ")[0]
    assert "bce **0.0987** after 7 epochs (bar <= 0.1)" in section
    assert CATALOGUE["simple"].source in section


def test_a_figure_of_other_options_than_the_catalogue_s_is_called_old(tmp_path, capsys) -> None:
    changed = {"training": {"epochs": 3}}
    entry = {"model": "simple", "label": "", "bars": [], "epochs": 3, "changed": changed}
    entry |= {"options": models_page.options("simple", changed), "commit": "0123456789abcdef"}
    page, measured = tmp_path / "models.md", tmp_path / "measured.json"
    for rate, status in ((entry["options"]["training"]["learning_rate"], 0), (7.0, 1)):
        entry["options"]["training"]["learning_rate"] = rate
        measured.write_text(json.dumps({"models": {"simple (short)": entry}}))
        models_page.write(page, measured)
        assert models_page.check(page, measured) == status
    assert "other options than today's: simple (short)" in capsys.readouterr().out
    assert "0123456789ab" in page.read_text()


def test_every_model_has_a_bar() -> None:
    assert {case.model for case in bench.CASES} == set(CATALOGUE)
    assert len({case.key for case in bench.CASES}) == len(bench.CASES)
    assert all(case.bars for case in bench.CASES)


@pytest.mark.parametrize(
    ("relation", "value", "met"),
    [("<=", 0.5, True), ("<=", 0.51, False), (">=", 0.5, True), (">=", 0.49, False)],
)
def test_a_bar_is_met_from_its_own_side(relation: str, value: float, met: bool) -> None:
    assert bench.Bar("x", relation, 0.5).met({"x": value}) is met


def test_auroc_is_the_share_of_pairs_in_order() -> None:
    rng = np.random.default_rng(0)
    normal, anomalous = rng.integers(0, 8, 40), rng.integers(3, 11, 60)
    pairs = anomalous[:, None] - normal[None]
    expected = np.mean((pairs > 0) + 0.5 * (pairs == 0))
    assert bench.auroc(normal, anomalous) == pytest.approx(expected)


def test_an_unknown_model_is_refused_before_anything_is_read(capsys) -> None:
    with pytest.raises(SystemExit) as ended:
        bench.main(["--models", "simpel", "--data-dir", "nowhere"])
    assert ended.value.code == 2
    assert "unknown model 'simpel'; did you mean 'simple'?" in capsys.readouterr().err
