"""SpanGate: every check is asked, and one verdict is written."""

from __future__ import annotations

import json
import os
import pathlib
from typing import Any

import pytest
from tfx.components.util import model_utils
from tfx.types import standard_artifacts

from components.drift.component import DriftReportArtifact
from components.span_gate import component

GOOD = {0: 0.010, 3: 0.010}
WORSE = {0: 0.016, 3: 0.010}
BAD = {0: 0.3, 3: 0.1}


class Gate:
    """Runs the gate on what the other nodes would have left."""

    def __init__(self, folder: pathlib.Path, evaluate: Any) -> None:
        self._folder, self._evaluate = folder, evaluate

    def _artifact(self, kind: Any, name: str, **properties: Any) -> Any:
        artifact = kind()
        artifact.uri = str(self._folder / name)
        os.makedirs(artifact.uri, exist_ok=True)
        for key, value in properties.items():
            setter = artifact.set_int_custom_property
            if isinstance(value, str):
                setter = artifact.set_string_custom_property
            elif isinstance(value, float):
                setter = artifact.set_float_custom_property
            setter(key, value)
        return artifact

    def __call__(
        self,
        span: tuple[Any, ...],
        golden: tuple[Any, ...],
        *,
        problems: tuple[str, ...] = (),
        best: float | None = None,
        best_of: str = "digest",
    ) -> tuple[Any, Any, dict[str, Any]]:
        """Losses before and after on span and golden set to blessing, report and span.json."""
        on_span, on_golden = self._evaluate(*span), self._evaluate(*golden)
        run = self._artifact(standard_artifacts.ModelRun, "run")
        pathlib.Path(run.uri, "training.json").write_text(
            '{"epochs": 2, "training_images": 90, "warm_start": {"from": "1"}}'
        )
        infra = self._artifact(standard_artifacts.InfraBlessing, "infra", blessed=int(not problems))
        pathlib.Path(infra.uri, "serving_validation.json").write_text(
            json.dumps({"problems": problems})
        )
        pathlib.Path(infra.uri, "INFRA_NOT_BLESSED" if problems else "INFRA_BLESSED").touch()
        inputs = {
            "model": self._artifact(standard_artifacts.Model, "model"),
            "model_run": run,
            "drift": self._artifact(DriftReportArtifact, "drift", span=7, version=2),
            "golden": self._artifact(standard_artifacts.Examples, "golden", digest="digest"),
            "span_evaluation": on_span[0],
            "span_blessing": on_span[1],
            "golden_evaluation": on_golden[0],
            "golden_blessing": on_golden[1],
            "infra_blessing": infra,
        }
        inputs["model"].id = 11
        lists = {key: [artifact] for key, artifact in inputs.items()}
        lists["window"] = [
            self._artifact(standard_artifacts.Examples, f"span{n}", span=n, version=n - 5)
            for n in (6, 7)
        ]
        # As a resolver leaves them where there is no serving model.
        lists["baseline"] = lists["baseline_blessing"] = []
        if best is not None:
            lists["baseline"] = [self._artifact(standard_artifacts.Model, "serving")]
            lists["baseline_blessing"] = [
                self._artifact(
                    standard_artifacts.ModelBlessing,
                    "serving-blessing",
                    **{component.BEST_PROPERTY: best, component.GOLDEN_PROPERTY: best_of},
                )
            ]
        blessing = self._artifact(standard_artifacts.ModelBlessing, "blessing")
        report = self._artifact(component.SpanReportArtifact, "report")
        component.SpanGate.EXECUTOR_SPEC.executor_class().Do(
            lists,
            {"blessing": [blessing], "report": [report]},
            {"max_golden_increase": 0.02, "harmful_increase": 0.1},
        )
        found = json.loads(pathlib.Path(report.uri, component.REPORT_FILE).read_text())
        return blessing, report, found


@pytest.fixture
def gate(tmp_path: pathlib.Path, evaluate: Any) -> Gate:
    return Gate(tmp_path, evaluate)


def test_a_first_model_that_every_check_blesses_is_blessed(gate: Gate) -> None:
    blessing, report, found = gate((GOOD,), (GOOD,))
    assert model_utils.is_model_blessed(blessing)
    assert os.listdir(blessing.uri) == ["BLESSED"]
    assert blessing.get_int_custom_property("current_model_id") == 11
    assert blessing.get_int_custom_property(component.GATED_PROPERTY) == 1
    assert blessing.get_float_custom_property(component.BEST_PROPERTY) == pytest.approx(0.01)
    assert not blessing.has_custom_property("baseline_model_id")
    assert (found["span"], found["version"], found["window"]) == (7, 2, ["6.1", "7.2"])
    assert found["warm_start"] == {"from": "1"} and found["epochs"] == 2
    assert found["golden"]["before"] is None and found["golden"]["after_by_digit"]["3"] == 0.01
    assert report.get_int_custom_property("blessed") == 1
    assert report.get_string_custom_property("reason") == ""
    assert report.get_float_custom_property("golden_after") == pytest.approx(0.01)
    assert not report.has_custom_property("golden_before")


def test_every_check_that_refuses_says_so(gate: Gate) -> None:
    blessing, report, found = gate((BAD,), (GOOD,), problems=("no signature score",))
    assert not model_utils.is_model_blessed(blessing)
    assert os.listdir(blessing.uri) == ["NOT_BLESSED"]
    assert found["reasons"] == [
        "newest span: mse 0.20000 is above the bound 0.1",
        "serving: no signature score",
    ]
    assert report.get_string_custom_property("reason") == "; ".join(found["reasons"])
    assert not found["blessed"] and not found["harmful"]


def test_worse_on_the_golden_set_than_the_best_so_far_is_refused_and_blamed(gate: Gate) -> None:
    # TFMA allows 10 % against the serving model, which is worse than the best was.
    blessing, _, found = gate((GOOD,), (WORSE, WORSE), best=0.0105)
    assert found["reasons"] == [
        "golden set: mse 0.01300 is +23.8% against the best so far (limit +2.0%)"
    ]
    assert found["harmful"] and not model_utils.is_model_blessed(blessing)
    assert blessing.get_float_custom_property(component.BEST_PROPERTY) == pytest.approx(0.0105)
    assert blessing.has_custom_property("baseline_model_id")


def test_the_best_of_another_golden_set_does_not_count(gate: Gate) -> None:
    blessing, _, found = gate((GOOD,), (WORSE, WORSE), best=0.0105, best_of="another")
    assert found["blessed"] and not found["harmful"]
    assert blessing.get_float_custom_property(component.BEST_PROPERTY) == pytest.approx(0.013)
    assert blessing.get_string_custom_property(component.GOLDEN_PROPERTY) == "digest"


def test_an_evaluator_that_refuses_without_a_reason_is_named(gate: Gate, evaluate: Any) -> None:
    _, verdict = evaluate(GOOD)
    verdict.set_int_custom_property("blessed", 0)
    os.rename(os.path.join(verdict.uri, "BLESSED"), os.path.join(verdict.uri, "NOT_BLESSED"))
    try:
        _, _, found = gate((GOOD,), (WORSE, WORSE))
    finally:
        verdict.set_int_custom_property("blessed", 1)
        os.rename(os.path.join(verdict.uri, "NOT_BLESSED"), os.path.join(verdict.uri, "BLESSED"))
    assert found["reasons"] == ["newest span: not blessed by the Evaluator"]
