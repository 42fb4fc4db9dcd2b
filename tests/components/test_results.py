"""What TFMA found, read back from its own files."""

import pytest

from components import evaluation, results


def test_losses_overall_and_by_digit_of_both_models(evaluate):
    found, _ = evaluate({0: 0.01, 3: 0.03}, {0: 0.02, 3: 0.04})
    candidate = results.load_metrics(found.uri, evaluation.CANDIDATE)
    assert candidate["overall"]["mse"] == pytest.approx(0.02)
    assert candidate["overall"]["example_count"] == 2
    assert list(candidate["by_label"]) == ["0", "3"]
    assert candidate["by_label"]["3"]["bce"] == pytest.approx(0.03)
    baseline = results.load_metrics(found.uri, evaluation.BASELINE)
    assert baseline["overall"]["mse"] == pytest.approx(0.03)


def test_an_only_model_has_figures_and_the_baseline_none(evaluate):
    found, _ = evaluate({0: 0.01, -1: 0.03})
    candidate = results.load_metrics(found.uri, evaluation.CANDIDATE)
    assert candidate["overall"]["mse"] == pytest.approx(0.02)
    # What has no label is no digit.
    assert list(candidate["by_label"]) == ["0"]
    assert results.load_metrics(found.uri, evaluation.BASELINE) == {}


def test_a_good_model_is_refused_for_nothing(evaluate):
    found, _ = evaluate({0: 0.01}, {0: 0.01})
    assert results.refusals(found.uri) == []


def test_a_refusal_names_the_bound_the_increase_and_the_digit(evaluate):
    found, _ = evaluate({0: 0.3, 3: 0.1}, {0: 0.1, 3: 0.1})
    reasons = results.refusals(found.uri)
    assert "mse 0.20000 is above the bound 0.1" in reasons
    assert any(r.startswith("mse is +0.10000 against the baseline's") for r in reasons)
    (digit,) = [reason for reason in reasons if reason.startswith("digit")]
    assert digit == "digit 0: mse is +0.20000 against the baseline's, more than 50% worse"


def test_json_beside_an_artifact(tmp_path):
    (tmp_path / results.TRAINING_FILE).write_text('{"epochs": 3}')
    assert results.read_json(str(tmp_path), results.TRAINING_FILE) == {"epochs": 3}
