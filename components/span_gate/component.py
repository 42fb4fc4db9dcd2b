"""SpanGate: whether a model trained for a span may be pushed."""

# No postponed annotations here: @component reads them.
import json
import os
from typing import Any, ClassVar

from tfx.components.evaluator import constants
from tfx.components.util import model_utils
from tfx.dsl.component.experimental.annotations import InputArtifact, OutputArtifact, Parameter
from tfx.dsl.component.experimental.decorators import component
from tfx.types import standard_artifacts, system_artifacts
from tfx.types.artifact import Artifact, Property, PropertyType
from tfx.utils import io_utils

from components import evaluation, results
from components.drift.component import DriftReportArtifact
from components.mnist_example_gen.executor import DIGEST_PROPERTY
from components.serving_validator import component as serving_validator
from serving import contract

REPORT_FILE = "span.json"
# Custom properties of the blessing: that every check was asked, the best golden
# loss so far, and on which golden set.
GATED_PROPERTY = "gated"
BEST_PROPERTY = "best_golden"
GOLDEN_PROPERTY = "golden_digest"

_SPAN, _GOLDEN = "newest span", "golden set"


class SpanReportArtifact(Artifact):
    """``span.json``: window, warm start, losses before and after, verdict and why.

    The figures that a history lists are custom properties too: ``span``,
    ``version``, ``blessed``, ``harmful``, ``reason``, ``golden_before``,
    ``golden_after``, ``span_before``, ``span_after``, ``window``.
    """

    TYPE_NAME = "SpanReport"
    TYPE_ANNOTATION = system_artifacts.Metrics
    PROPERTIES: ClassVar = {"span": Property(type=PropertyType.INT)}


@component
def SpanGate(  # noqa: N802: components are named like classes
    model: InputArtifact[standard_artifacts.Model],
    model_run: InputArtifact[standard_artifacts.ModelRun],
    drift: InputArtifact[DriftReportArtifact],
    window: InputArtifact[list[standard_artifacts.Examples]],
    golden: InputArtifact[standard_artifacts.Examples],
    span_evaluation: InputArtifact[standard_artifacts.ModelEvaluation],
    span_blessing: InputArtifact[standard_artifacts.ModelBlessing],
    golden_evaluation: InputArtifact[standard_artifacts.ModelEvaluation],
    golden_blessing: InputArtifact[standard_artifacts.ModelBlessing],
    infra_blessing: InputArtifact[standard_artifacts.InfraBlessing],
    blessing: OutputArtifact[standard_artifacts.ModelBlessing],
    report: OutputArtifact[SpanReportArtifact],
    max_golden_increase: Parameter[float],
    harmful_increase: Parameter[float],
    baseline: InputArtifact[standard_artifacts.Model] = None,
    baseline_blessing: InputArtifact[standard_artifacts.ModelBlessing] = None,
) -> None:
    """Blesses a model that every check blesses; else says which did not, and why.

    ``blessing`` is the standard ModelBlessing, for a Pusher. On the golden set
    the model may be worse than the best so far by ``max_golden_increase``,
    relative to it; from ``harmful_increase`` on, the span is to blame.
    ``baseline`` is the serving model, with its blessing, where there is one.
    """
    digest = golden.get_string_custom_property(DIGEST_PROPERTY)
    on_span, on_golden = _losses(span_evaluation.uri), _losses(golden_evaluation.uri)
    best = _best_so_far(on_golden["before"], baseline_blessing, digest)
    after = on_golden["after"]
    increase = after / best - 1 if best else 0.0

    reasons = [f"{_SPAN}: {line}" for line in results.refusals(span_evaluation.uri)]
    reasons += [f"{_GOLDEN}: {line}" for line in results.refusals(golden_evaluation.uri)]
    if increase > max_golden_increase:
        reasons.append(
            f"{_GOLDEN}: {contract.MSE} {after:.5f} is {increase:+.1%} against "
            f"the best so far (limit {max_golden_increase:+.1%})"
        )
    for verdict, name in ((span_blessing, _SPAN), (golden_blessing, _GOLDEN)):
        said = any(line.startswith(name) for line in reasons)
        if not model_utils.is_model_blessed(verdict) and not said:
            reasons.append(f"{name}: not blessed by the Evaluator")
    if not model_utils.is_infra_validated(infra_blessing):
        problems = results.read_json(infra_blessing.uri, serving_validator.REPORT_FILE)["problems"]
        reasons += [f"serving: {problem}" for problem in problems or ["not validated"]]
    blessed = not reasons
    harmful = best is not None and increase > harmful_increase

    training = results.read_json(model_run.uri, results.TRAINING_FILE)
    spans = [
        f"{a.get_int_custom_property('span')}.{a.get_int_custom_property('version')}"
        for a in window
    ]
    summary = {
        "span": drift.get_int_custom_property("span"),
        "version": drift.get_int_custom_property("version"),
        "blessed": blessed,
        "harmful": harmful,
        "reasons": reasons,
        "window": spans,
        "golden": on_golden,
        "newest_span": on_span,
        "golden_digest": digest,
        "warm_start": training.get("warm_start"),
        "epochs": training["epochs"],
        "training_images": training["training_images"],
    }
    io_utils.write_string_file(os.path.join(report.uri, REPORT_FILE), json.dumps(summary, indent=2))
    for name in ("span", "version", "blessed", "harmful"):
        report.set_int_custom_property(name, int(summary[name]))
    report.set_string_custom_property("reason", "; ".join(reasons))
    report.set_string_custom_property("window", " ".join(spans))
    for name, losses in (("golden", on_golden), ("span", on_span)):
        for when in ("before", "after"):
            if losses[when] is not None:
                report.set_float_custom_property(f"{name}_{when}", losses[when])

    _bless(blessing, blessed, model, baseline)
    blessing.set_float_custom_property(BEST_PROPERTY, min(best or after, after))
    blessing.set_string_custom_property(GOLDEN_PROPERTY, digest)


def _bless(blessing: Artifact, blessed: bool, model: Artifact, baseline: Artifact | None) -> None:
    """Writes the verdict as TFX's Evaluator does, and that every check was asked."""
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
    after = results.load_metrics(path, evaluation.CANDIDATE)
    before = results.load_metrics(path, evaluation.BASELINE)

    def by_digit(figures: dict[str, Any]) -> dict[str, float]:
        return {digit: of[contract.MSE] for digit, of in figures.get("by_label", {}).items()}

    return {
        "before": before["overall"][contract.MSE] if before else None,
        "after": after["overall"][contract.MSE],
        "before_by_digit": by_digit(before),
        "after_by_digit": by_digit(after),
    }


def _best_so_far(before: float | None, blessing: Artifact | None, digest: str) -> float | None:
    """The best loss on this golden set: the serving model's, or what its blessing knows of."""
    known = [] if before is None else [before]
    if (
        blessing is not None
        and blessing.has_custom_property(BEST_PROPERTY)
        and blessing.get_string_custom_property(GOLDEN_PROPERTY) == digest
    ):
        known.append(blessing.get_float_custom_property(BEST_PROPERTY))
    return min(known, default=None)
