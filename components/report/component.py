"""RunReport: what a run found, as figures and as a page for people."""

# No postponed annotations here: @component reads them.
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
from components import features, results
from components.image_index.component import (
    EXAMINED_COLUMNS,
    INDEXED_COLUMNS,
    METRICS_FILE,
    CodeMetricsArtifact,
    ImageIndexArtifact,
    read_sample,
)
from components.mnist_example_gen import executor as example_gen
from components.pca_reference import PcaReferenceArtifact, read_reference
from components.report import page
from components.report.blocks import Figure, Strips
from components.report.material import Material
from components.report.sections import build
from components.report.summary import leaderboard_figures, versions
from components.serving_validator import component as serving_validator
from serving.client import ReconstructionClient
from serving.uses.shards import read_metadata

SUMMARY_FILE = "summary.json"
PAGE_FILE = "report.html"
CARD_FILE = "model_card.md"
PICTURES_FOLDER = "pictures"
# Custom property of a RunReport: what leaderboard_figures gives, as JSON.
FIGURES_PROPERTY = "figures"

# Bits of a float in a compressed code; as many as `mnist-ae compress` takes by default.
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
    images: Parameter[int],
) -> None:
    """Writes the summary, the page, its pictures and the model card.

    ``configuration`` is JSON, to be shown; at most ``images`` of a split, drawn at
    random, are what pictures and charts are made of.
    """
    model_path = path_utils.serving_model_path(model.uri, path_utils.is_old_model_artifact(model))
    metadata = read_metadata(model_path)
    training = results.read_json(model_run.uri, results.TRAINING_FILE)
    serving = results.read_json(infra_blessing.uri, serving_validator.REPORT_FILE)
    of_codes = results.read_json(code_metrics.uri, METRICS_FILE)
    passed = model_utils.is_model_blessed(blessing), model_utils.is_infra_validated(infra_blessing)
    dataset = _dataset(examples)
    summary = {
        "model": model_name,
        "servable": servable,
        "dataset": dataset,
        "metrics": {
            **_losses(evaluation.uri, reference.uri, metadata["code_size"]),
            **{key: of_codes[key] for key in ("search", "anomaly", "classification", "code")},
        },
        "blessed": all(passed),
        "refusals": [*results.refusals(evaluation.uri), *serving["problems"]],
        "refused_by": [name for name, fine in zip(("evaluator", "validator"), passed) if not fine],
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
        "versions": versions(),
        "configuration": json.loads(configuration),
    }
    model_client = ReconstructionClient.from_folder(model_path, model=servable)
    material = Material(
        summary=summary,
        metadata=metadata,
        training=training,
        model=model_client,
        evaluation=read_sample(index.uri, features.EVAL_SPLIT, EXAMINED_COLUMNS, images),
        train=read_sample(index.uri, features.TRAIN_SPLIT, INDEXED_COLUMNS, images),
        held_out=read_sample(index.uri, features.HELD_OUT_SPLIT, EXAMINED_COLUMNS, images),
    )
    lineage = {
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
    with model_client:
        _write(report.uri, material, lineage)
    figures = leaderboard_figures(summary)
    # ML Metadata keeps six decimals of a float in SQLite; text it keeps as it is.
    report.set_string_custom_property(FIGURES_PROPERTY, json.dumps(figures))
    for key in ("mse", "bce", "pca_mse"):
        report.set_float_custom_property(key, figures[key])
    report.set_string_custom_property("model", model_name)
    report.set_string_custom_property("servable", servable)
    report.set_string_custom_property("dataset", dataset["name"])
    report.set_int_custom_property("blessed", int(summary["blessed"]))


def _dataset(examples: Artifact) -> dict[str, Any]:
    counts = {
        split: examples.get_int_custom_property(example_gen.COUNT_PROPERTY.format(split=split))
        for split in (features.TRAIN_SPLIT, features.EVAL_SPLIT)
    }
    return {
        "name": examples.get_string_custom_property(example_gen.DATASET_PROPERTY),
        "digest": examples.get_string_custom_property(example_gen.DIGEST_PROPERTY),
        **counts,
    }


def _losses(evaluation_uri: str, reference_uri: str, code_size: int) -> dict[str, Any]:
    """The losses of the candidate, of PCA with as many components, of the baseline."""
    candidate = results.load_metrics(evaluation_uri, evaluation_config.CANDIDATE)
    if not candidate:
        raise RuntimeError(f"no evaluation of the candidate in {evaluation_uri}")
    baseline = results.load_metrics(evaluation_uri, evaluation_config.BASELINE)
    pca = read_reference(reference_uri)
    components = min(code_size, features.IMAGE_BYTES)
    return {
        **candidate,
        "pca_mse": float(pca["mse"][components]),
        "pca_mse_by_label": {
            str(digit): float(value)
            for digit, value in enumerate(pca["mse_by_label"][:, components])
            if np.isfinite(value)
        },
        "baseline": baseline.get("overall"),
        "baseline_by_label": baseline.get("by_label"),
    }


def _write(uri: str, material: Material, lineage: dict[str, Artifact]) -> None:
    summary = material.summary
    shown = build(material)
    fileio.makedirs(os.path.join(uri, PICTURES_FOLDER))
    for section in shown:
        for block in section.blocks:
            if isinstance(block, (Figure, Strips)):
                path = os.path.join(uri, PICTURES_FOLDER, f"{block.name}.png")
                with fileio.open(path, "wb") as f:
                    f.write(block.png)
    card = page.model_card(summary, material.metadata)
    texts = {
        SUMMARY_FILE: json.dumps(summary, indent=2),
        CARD_FILE: card,
        PAGE_FILE: page.render(shown, summary, material.metadata, card, lineage),
    }
    for name, text in texts.items():
        io_utils.write_string_file(os.path.join(uri, name), text)


def _folder_size(path: str) -> int:
    files = (os.path.join(folder, name) for folder, _, names in fileio.walk(path) for name in names)
    return sum(tf.io.gfile.stat(file).length for file in files)
