"""RunReport: gathers what a run found into one artifact."""

# No postponed annotations here: @component reads them.
import io
import json
import os
from typing import Any, ClassVar

import numpy as np
import tensorflow_model_analysis as tfma
from tfx.components.util import model_utils
from tfx.dsl.component.experimental.annotations import InputArtifact, OutputArtifact, Parameter
from tfx.dsl.component.experimental.decorators import component
from tfx.dsl.io import fileio
from tfx.types import standard_artifacts, system_artifacts
from tfx.types.artifact import Artifact, Property, PropertyType
from tfx.utils import io_utils

from components import evaluation as evaluation_config
from components import features
from components.mnist_example_gen import executor as example_gen
from components.pca_reference import PCA_FILE, PcaReferenceArtifact
from components.serving_validator import executor as serving_validator
from serving import contract

SUMMARY_FILE = "summary.json"
TRAINING_FILE = "training.json"


class RunReportArtifact(Artifact):
    """``summary.json``: data, losses overall and by digit, PCA's, verdict.

    The figures that a history lists are custom properties too: ``model``,
    ``servable``, ``dataset``, ``mse``, ``bce``, ``pca_mse``, ``blessed``.
    """

    TYPE_NAME = "RunReport"
    TYPE_ANNOTATION = system_artifacts.Metrics
    PROPERTIES: ClassVar = {"span": Property(type=PropertyType.INT)}


def load_metrics(path: str, model_name: str) -> dict[str, Any]:
    """TFMA's figures of a model.

    Args:
      path: Of the evaluation.
      model_name: Candidate or baseline.

    Returns:
      ``overall`` and, where there were labels, ``by_label``, each with mean,
      spread and maximum of the losses and the example count. Empty where that
      model was not evaluated.
    """
    specs = tfma.load_eval_result(path).config.model_specs
    if model_name not in [spec.name for spec in specs]:
        if model_name != evaluation_config.CANDIDATE:
            return {}
        # TFMA drops the name of an only model.
        model_name = ""
    result = tfma.load_eval_result(path, model_name=model_name)
    figures: dict[str, Any] = {"overall": {}, "by_label": {}}
    for slice_key in result.get_slice_names():
        metrics = result.get_metrics_for_slice(slice_key) or {}
        values = {
            name: value["doubleValue"] for name, value in metrics.items() if "doubleValue" in value
        }
        if not values:
            continue
        if slice_key == ():
            figures["overall"] = values
        else:
            label = int(slice_key[0][1])
            if label != features.NO_LABEL:
                figures["by_label"][str(label)] = values
    figures["by_label"] = dict(sorted(figures["by_label"].items()))
    return figures if figures["overall"] else {}


def refusals(path: str) -> list[str]:
    """Why TFMA's validation refused a model, a line each; empty where it did not."""
    reasons = []
    result = tfma.load_validation_result(path)
    for per_slice in result.metric_validations_per_slice:
        digits = [key.int64_value for key in per_slice.slice_key.single_slice_keys]
        where = f"digit {digits[0]}: " if digits else ""
        for failure in per_slice.failures:
            threshold = failure.metric_threshold
            value = failure.metric_value.double_value.value
            if failure.metric_key.is_diff:
                reasons.append(
                    f"{where}{failure.metric_key.name} is {value:+.5f} against the baseline's, "
                    f"more than {threshold.change_threshold.relative.value:.0%} worse"
                )
            else:
                bound = threshold.value_threshold.upper_bound.value
                reasons.append(
                    f"{where}{failure.metric_key.name} {value:.5f} is above the bound {bound:g}"
                )
    return reasons


@component
def RunReport(  # noqa: N802: components are named like classes
    examples: InputArtifact[standard_artifacts.Examples],
    model: InputArtifact[standard_artifacts.Model],
    model_run: InputArtifact[standard_artifacts.ModelRun],
    evaluation: InputArtifact[standard_artifacts.ModelEvaluation],
    blessing: InputArtifact[standard_artifacts.ModelBlessing],
    infra_blessing: InputArtifact[standard_artifacts.InfraBlessing],
    reference: InputArtifact[PcaReferenceArtifact],
    report: OutputArtifact[RunReportArtifact],
    model_name: Parameter[str],
    servable: Parameter[str],
) -> None:
    """Writes ``summary.json`` and the properties that a history lists."""
    metadata_path = os.path.join(model.uri, "Format-Serving", contract.METADATA_FILE)
    metadata = json.loads(io_utils.read_string_file(metadata_path))
    training = json.loads(io_utils.read_string_file(os.path.join(model_run.uri, TRAINING_FILE)))
    with fileio.open(os.path.join(reference.uri, PCA_FILE), "rb") as f:
        pca = np.load(io.BytesIO(f.read()))
        size = min(metadata["code_size"], features.IMAGE_BYTES)
        pca_mse = float(pca["mse"][size])
        pca_by_label = {
            str(digit): float(value)
            for digit, value in enumerate(pca["mse_by_label"][:, size])
            if np.isfinite(value)
        }
    candidate = load_metrics(evaluation.uri, evaluation_config.CANDIDATE)
    if not candidate:
        raise RuntimeError(f"no evaluation of the candidate in {evaluation.uri}")
    baseline = load_metrics(evaluation.uri, evaluation_config.BASELINE)
    servable_problems = json.loads(
        io_utils.read_string_file(os.path.join(infra_blessing.uri, serving_validator.REPORT_FILE))
    )["problems"]
    blessed = model_utils.is_model_blessed(blessing) and model_utils.is_infra_validated(
        infra_blessing
    )
    summary = {
        "model": model_name,
        "servable": servable,
        "dataset": {
            "name": examples.get_string_custom_property(example_gen.DATASET_PROPERTY),
            "digest": examples.get_string_custom_property(example_gen.DIGEST_PROPERTY),
            **{
                split: examples.get_int_custom_property(
                    example_gen.COUNT_PROPERTY.format(split=split)
                )
                for split in (features.TRAIN_SPLIT, features.EVAL_SPLIT)
            },
        },
        "metrics": {
            **candidate,
            "pca_mse": pca_mse,
            "pca_mse_by_label": pca_by_label,
            "baseline": baseline.get("overall"),
        },
        "blessed": blessed,
        "refusals": [*refusals(evaluation.uri), *servable_problems],
        "code_size": metadata["code_size"],
        "parameters": metadata["parameters"],
        "anomaly_threshold": metadata["anomaly_threshold"],
        "training": {key: training[key] for key in ("seconds", "epochs")},
    }
    fileio.makedirs(report.uri)
    io_utils.write_string_file(
        os.path.join(report.uri, SUMMARY_FILE), json.dumps(summary, indent=2)
    )
    for name, value in (
        ("mse", candidate["overall"][contract.MSE]),
        ("bce", candidate["overall"][contract.BCE]),
        ("pca_mse", pca_mse),
    ):
        report.set_float_custom_property(name, value)
    report.set_string_custom_property("model", model_name)
    report.set_string_custom_property("servable", servable)
    report.set_string_custom_property("dataset", summary["dataset"]["name"])
    report.set_int_custom_property("blessed", int(blessed))
