"""What a run says at its end."""

import io

import pytest

from pipeline import console


@pytest.mark.parametrize(
    ("by", "advice"), [("evaluator", "train longer"), ("validator", "validator.latency_budget_ms")]
)
def test_a_refused_model_is_told_what_helps(by, advice):
    losses = {"mse": 0.01, "bce": 0.1}
    result = {
        "model": "simple", "code_size": 32, "components": [], "report": "/report.html",
        "dataset": {"name": "mnist", "digest": "0" * 64, "train": 5, "eval": 1},
        "metrics": {"overall": losses, "baseline": None, "pca_mse": 0.02, "by_label": {}},
        "blessed": False, "refused_by": [by], "refusals": ["for a reason"],
    }  # fmt: skip
    stream = io.StringIO()
    console.show_summary(stream, result, "/log", "predict")
    words = " ".join(stream.getvalue().split())
    assert "not blessed, not pushed: for a reason" in words
    assert advice in words.partition("next")[2]
