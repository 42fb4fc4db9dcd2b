"""RunReport: what a run found, as figures and as a page for people."""

# No postponed annotations here: @component reads them.
import io
import json
import os
from typing import Any, ClassVar

import numpy as np
import tensorflow as tf
from tfx.components.util import model_utils
from tfx.dsl.component.experimental.annotations import InputArtifact, OutputArtifact, Parameter
from tfx.dsl.component.experimental.decorators import component
from tfx.dsl.io import fileio
from tfx.types import standard_artifacts, system_artifacts
from tfx.types.artifact import Artifact, Property, PropertyType
from tfx.utils import io_utils, path_utils

from components import evaluation as evaluation_config
from components import features, inference, results
from components.image_index.component import (
    EXAMINED_COLUMNS,
    INDEXED_COLUMNS,
    METRICS_FILE,
    CodeMetricsArtifact,
    ImageIndexArtifact,
    read_split,
)
from components.mnist_example_gen import executor as example_gen
from components.pca_reference import PCA_FILE, PcaReferenceArtifact
from components.report import page, sections
from components.serving_validator import component as serving_validator
from serving import contract

SUMMARY_FILE = "summary.json"
PAGE_FILE = "report.html"
CARD_FILE = "model_card.md"
# Custom property of a RunReport: what leaderboard_figures gives, as JSON.
FIGURES_PROPERTY = "figures"
PICTURES_FOLDER = "pictures"

# Of a float in a compressed code; as many as `mnist-ae compress` takes by default.
CODE_BITS = 8


class RunReportArtifact(Artifact):
    """``report.html`` with its ``pictures``, ``model_card.md`` and ``summary.json``.

    What runs are listed and compared by are custom properties: ``model``,
    ``servable``, ``dataset``, ``blessed``, ``mse``, ``bce``, ``pca_mse``, and
    ``figures``, those of :func:`leaderboard_figures` in full precision.
    """

    TYPE_NAME = "RunReport"
    TYPE_ANNOTATION = system_artifacts.Metrics
    PROPERTIES: ClassVar = {"span": Property(type=PropertyType.INT)}


@component
def RunReport(  # noqa: N802: components are named like classes
    examples: InputArtifact[standard_artifacts.Examples],
    model: InputArtifact[standard_artifacts.Model],
    model_run: InputArtifact[standard_artifacts.ModelRun],
    evaluation: InputArtifact[standard_artifacts.ModelEvaluation],
    blessing: InputArtifact[standard_artifacts.ModelBlessing],
    infra_blessing: InputArtifact[standard_artifacts.InfraBlessing],
    reference: InputArtifact[PcaReferenceArtifact],
    index: InputArtifact[ImageIndexArtifact],
    code_metrics: InputArtifact[CodeMetricsArtifact],
    report: OutputArtifact[RunReportArtifact],
    model_name: Parameter[str],
    servable: Parameter[str],
    configuration: Parameter[str],
) -> None:
    """Writes the summary, the page, its pictures and the model card.

    ``configuration`` is JSON, to be shown.
    """
    model_path = path_utils.serving_model_path(model.uri, path_utils.is_old_model_artifact(model))
    metadata = inference.read_metadata(model_path)
    training = results.read_json(model_run.uri, results.TRAINING_FILE)
    with fileio.open(os.path.join(reference.uri, PCA_FILE), "rb") as f:
        pca = np.load(io.BytesIO(f.read()))
        size = min(metadata["code_size"], features.IMAGE_BYTES)
        pca_mse = float(pca["mse"][size])
        pca_by_label = {
            str(digit): float(value)
            for digit, value in enumerate(pca["mse_by_label"][:, size])
            if np.isfinite(value)
        }
    candidate = results.load_metrics(evaluation.uri, evaluation_config.CANDIDATE)
    if not candidate:
        raise RuntimeError(f"no evaluation of the candidate in {evaluation.uri}")
    baseline = results.load_metrics(evaluation.uri, evaluation_config.BASELINE)
    serving = results.read_json(infra_blessing.uri, serving_validator.REPORT_FILE)
    of_codes = results.read_json(code_metrics.uri, METRICS_FILE)
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
            "baseline_by_label": baseline.get("by_label"),
            **{key: of_codes[key] for key in ("search", "anomaly", "classification", "code")},
        },
        "blessed": blessed,
        "refusals": [*results.refusals(evaluation.uri), *serving["problems"]],
        "code_size": metadata["code_size"],
        "bits_per_pixel": metadata["code_size"] * CODE_BITS / features.IMAGE_BYTES,
        "parameters": metadata["parameters"],
        "model_bytes": _folder_size(model_path),
        "latency_ms": serving["latency_ms"],
        "anomaly_threshold": metadata["anomaly_threshold"],
        "training": {key: training[key] for key in ("seconds", "epochs")},
        "durations": {
            "image index and its figures": of_codes["seconds"],
            "serving validation": serving["seconds"],
        },
        "versions": page.versions(),
        "configuration": json.loads(configuration),
    }
    inputs = {
        "examples": examples,
        "PCA reference": reference,
        "model": model,
        "training": model_run,
        "evaluation": evaluation,
        "blessing": blessing,
        "serving validation": infra_blessing,
        "image index": index,
        "code metrics": code_metrics,
    }
    material = sections.Material(
        summary=summary,
        metadata=metadata,
        training=training,
        model=sections.Model(model_path),
        evaluation=read_split(index.uri, features.EVAL_SPLIT, *EXAMINED_COLUMNS),
        train=read_split(index.uri, features.TRAIN_SPLIT, *INDEXED_COLUMNS),
        held_out=read_split(index.uri, features.HELD_OUT_SPLIT, *EXAMINED_COLUMNS),
    )
    lineage = [
        page.Artifact(name, artifact.type_name, artifact.id, artifact.uri)
        for name, artifact in inputs.items()
    ]
    _write(report.uri, material, lineage)
    figures = leaderboard_figures(summary)
    # ML Metadata keeps six decimals of a float in SQLite; text it keeps as it is.
    report.set_string_custom_property(FIGURES_PROPERTY, json.dumps(figures))
    for key in ("mse", "bce", "pca_mse"):
        report.set_float_custom_property(key, figures[key])
    report.set_string_custom_property("model", model_name)
    report.set_string_custom_property("servable", servable)
    report.set_string_custom_property("dataset", summary["dataset"]["name"])
    report.set_int_custom_property("blessed", int(blessed))


def leaderboard_figures(summary: dict[str, Any]) -> dict[str, float | int]:
    """The figures by which runs are compared.

    What a run does not have, such as losses by digit without labels, is left out.
    """
    metrics = summary["metrics"]
    found: dict[str, float | int | None] = {
        "mse": metrics["overall"][contract.MSE],
        "bce": metrics["overall"][contract.BCE],
        "pca_mse": metrics["pca_mse"],
        "auroc": metrics["anomaly"]["auroc"],
        "aupr": metrics["anomaly"]["aupr"],
        "code_size": summary["code_size"],
        "bits_per_pixel": summary["bits_per_pixel"],
        "parameters": summary["parameters"],
        "model_bytes": summary["model_bytes"],
        "training_seconds": summary["training"]["seconds"],
        "latency_ms": summary["latency_ms"],
    }
    if worst := page.worst_digit(metrics["by_label"]):
        found |= {"worst_digit": int(worst[0]), "worst_mse": worst[1]}
    if search := metrics["search"]:
        found |= {key: search[key] for key in ("precision_at_10", "knn_accuracy")}
    if classification := metrics["classification"]:
        found["accuracy"] = classification["accuracy"]
    return {key: value for key, value in found.items() if value is not None}


def _write(uri: str, material: sections.Material, lineage: list[page.Artifact]) -> None:
    summary = material.summary
    shown = sections.build(material)
    card = page.model_card(summary, material.metadata)
    fileio.makedirs(os.path.join(uri, PICTURES_FOLDER))
    for section in shown:
        for block in section.blocks:
            if png := page.png_of(block):
                name = f"{block.name}.png"  # type: ignore[union-attr]
                with fileio.open(os.path.join(uri, PICTURES_FOLDER, name), "wb") as f:
                    f.write(png)
    html = page.render(shown, summary, material.metadata, card, lineage)
    for name, text in (
        (SUMMARY_FILE, json.dumps(summary, indent=2)),
        (CARD_FILE, card),
        (PAGE_FILE, html),
    ):
        io_utils.write_string_file(os.path.join(uri, name), text)


def _folder_size(path: str) -> int:
    files = (os.path.join(folder, name) for folder, _, names in fileio.walk(path) for name in names)
    return sum(tf.io.gfile.stat(file).length for file in files)
