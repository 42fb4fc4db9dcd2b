"""The work of SpanGate."""

from __future__ import annotations

import json
import os
from typing import Any

from tfx import types
from tfx.components.evaluator import constants
from tfx.components.util import model_utils
from tfx.dsl.components.base import base_executor
from tfx.types import artifact_utils
from tfx.utils import io_utils

from components import evaluation
from components.mnist_example_gen import executor as example_gen
from components.report.component import TRAINING_FILE, load_metrics, refusals
from components.serving_validator import component as serving_validator
from serving import contract

MODEL_KEY = "model"
MODEL_RUN_KEY = "model_run"
DRIFT_KEY = "drift"
WINDOW_KEY = "window"
GOLDEN_KEY = "golden"
SPAN_EVALUATION_KEY = "span_evaluation"
SPAN_BLESSING_KEY = "span_blessing"
GOLDEN_EVALUATION_KEY = "golden_evaluation"
GOLDEN_BLESSING_KEY = "golden_blessing"
INFRA_BLESSING_KEY = "infra_blessing"
BASELINE_KEY = "baseline"
BASELINE_BLESSING_KEY = "baseline_blessing"
BLESSING_KEY = "blessing"
REPORT_KEY = "report"
MAX_GOLDEN_KEY = "max_golden_increase"
HARMFUL_KEY = "harmful_increase"

REPORT_FILE = "span.json"
# On a blessing: that every check was asked, and the best golden loss so far.
GATED_PROPERTY = "gated"
BEST_PROPERTY = "best_golden"
GOLDEN_PROPERTY = "golden_digest"


class Executor(base_executor.BaseExecutor):
    """Asks every check and writes one blessing."""

    def Do(  # noqa: N802 (TFX's name)
        self,
        input_dict: dict[str, list[types.Artifact]],
        output_dict: dict[str, list[types.Artifact]],
        exec_properties: dict[str, Any],
    ) -> None:
        """See the base class.

        Args:
          input_dict: See SpanGateSpec.
          output_dict: ``blessing`` and ``report``.
          exec_properties: The limits on the golden set.
        """
        self._log_startup(input_dict, output_dict, exec_properties)

        def one(key: str) -> types.Artifact:
            return artifact_utils.get_single_instance(input_dict[key])

        model, drift = one(MODEL_KEY), one(DRIFT_KEY)
        blessing = artifact_utils.get_single_instance(output_dict[BLESSING_KEY])
        report = artifact_utils.get_single_instance(output_dict[REPORT_KEY])
        baseline = (input_dict.get(BASELINE_KEY) or [None])[0]
        digest = one(GOLDEN_KEY).get_string_custom_property(example_gen.DIGEST_PROPERTY)
        on_span = _losses(one(SPAN_EVALUATION_KEY).uri)
        on_golden = _losses(one(GOLDEN_EVALUATION_KEY).uri)
        best = _best_so_far(input_dict.get(BASELINE_BLESSING_KEY) or [], digest)
        if on_golden["before"] is not None:
            best = min(best or on_golden["before"], on_golden["before"])

        reasons = [f"newest span: {line}" for line in refusals(one(SPAN_EVALUATION_KEY).uri)]
        reasons += [f"golden set: {line}" for line in refusals(one(GOLDEN_EVALUATION_KEY).uri)]
        increase = on_golden["after"] / best - 1 if best else 0.0
        limit = exec_properties[MAX_GOLDEN_KEY]
        if increase > limit:
            reasons.append(
                f"golden set: {contract.MSE} {on_golden['after']:.5f} is {increase:+.1%} against "
                f"the best so far (limit {limit:+.1%})"
            )
        for key, name in ((SPAN_BLESSING_KEY, "newest span"), (GOLDEN_BLESSING_KEY, "golden set")):
            said = any(line.startswith(name) for line in reasons)
            if not model_utils.is_model_blessed(one(key)) and not said:
                reasons.append(f"{name}: not blessed by the Evaluator")
        infra = one(INFRA_BLESSING_KEY)
        if not model_utils.is_infra_validated(infra):
            path = os.path.join(infra.uri, serving_validator.REPORT_FILE)
            problems = json.loads(io_utils.read_string_file(path))["problems"]
            reasons += [f"serving: {problem}" for problem in problems or ["not validated"]]
        blessed = not reasons
        harmful = best is not None and increase > exec_properties[HARMFUL_KEY]

        training = json.loads(
            io_utils.read_string_file(os.path.join(one(MODEL_RUN_KEY).uri, TRAINING_FILE))
        )
        window = [
            f"{a.get_int_custom_property('span')}.{a.get_int_custom_property('version')}"
            for a in input_dict[WINDOW_KEY]
        ]
        summary = {
            "span": drift.get_int_custom_property("span"),
            "version": drift.get_int_custom_property("version"),
            "blessed": blessed,
            "harmful": harmful,
            "reasons": reasons,
            "window": window,
            "golden": on_golden,
            "newest_span": on_span,
            "golden_digest": digest,
            "warm_start": training.get("warm_start"),
            "epochs": training["epochs"],
            "training_images": training["training_images"],
        }
        io_utils.write_string_file(
            os.path.join(report.uri, REPORT_FILE), json.dumps(summary, indent=2)
        )
        for name in ("span", "version"):
            report.set_int_custom_property(name, summary[name])
        for name in ("blessed", "harmful"):
            report.set_int_custom_property(name, int(summary[name]))
        report.set_string_custom_property("reason", "; ".join(reasons))
        report.set_string_custom_property("window", " ".join(window))
        for name, losses in (("golden", on_golden), ("span", on_span)):
            for when in ("before", "after"):
                if losses[when] is not None:
                    report.set_float_custom_property(f"{name}_{when}", losses[when])

        self._bless(blessing, blessed, model, baseline)
        after = on_golden["after"]
        blessing.set_float_custom_property(BEST_PROPERTY, min(best or after, after))
        blessing.set_string_custom_property(GOLDEN_PROPERTY, digest)

    def _bless(
        self,
        blessing: types.Artifact,
        blessed: bool,
        model: types.Artifact,
        baseline: types.Artifact | None,
    ) -> None:
        """As TFX's Evaluator does."""
        name = constants.BLESSED_FILE_NAME if blessed else constants.NOT_BLESSED_FILE_NAME
        io_utils.write_string_file(os.path.join(blessing.uri, name), "")
        blessing.set_int_custom_property(constants.ARTIFACT_PROPERTY_BLESSED_KEY, int(blessed))
        blessing.set_int_custom_property(GATED_PROPERTY, 1)
        blessing.set_string_custom_property(
            constants.ARTIFACT_PROPERTY_CURRENT_MODEL_URI_KEY, model.uri
        )
        blessing.set_int_custom_property(constants.ARTIFACT_PROPERTY_CURRENT_MODEL_ID_KEY, model.id)
        if baseline is not None:
            blessing.set_string_custom_property(
                constants.ARTIFACT_PROPERTY_BASELINE_MODEL_URI_KEY, baseline.uri
            )
            blessing.set_int_custom_property(
                constants.ARTIFACT_PROPERTY_BASELINE_MODEL_ID_KEY, baseline.id
            )


def _losses(path: str) -> dict[str, Any]:
    """The MSE before and after, overall and by digit; None where there was no baseline."""
    after = load_metrics(path, evaluation.CANDIDATE)
    before = load_metrics(path, evaluation.BASELINE)

    def by_digit(figures: dict[str, Any]) -> dict[str, float]:
        return {d: v[contract.MSE] for d, v in figures.get("by_label", {}).items()}

    return {
        "before": before["overall"][contract.MSE] if before else None,
        "after": after["overall"][contract.MSE],
        "before_by_digit": by_digit(before),
        "after_by_digit": by_digit(after),
    }


def _best_so_far(blessings: list[types.Artifact], digest: str) -> float | None:
    """The best loss on this golden set that the serving model's blessing knows of."""
    for blessing in blessings:
        if (
            blessing.has_custom_property(BEST_PROPERTY)
            and blessing.get_string_custom_property(GOLDEN_PROPERTY) == digest
        ):
            return blessing.get_float_custom_property(BEST_PROPERTY)
    return None
