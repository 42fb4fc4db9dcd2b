"""ImageIndex: codes of every image by batch inference, and what they are good for."""

# No postponed annotations here: @component reads them.
import json
import os
import time
from typing import Any, ClassVar

import apache_beam as beam
import numpy as np
from tfx.dsl.component.experimental.annotations import (
    BeamComponentParameter,
    InputArtifact,
    OutputArtifact,
)
from tfx.dsl.component.experimental.decorators import component
from tfx.dsl.io import fileio
from tfx.types import artifact_utils, standard_artifacts, system_artifacts
from tfx.types.artifact import Artifact, Property, PropertyType
from tfx.utils import io_utils, path_utils

from components import features
from components.image_index import anomalies
from components.image_sources import RecordSource
from components.pca_reference import PcaReferenceArtifact, read_reference
from serving import contract
from serving.uses import neighbours
from serving.uses.columns import PREDICTED, read_columns
from serving.uses.shards import Predictor, Shard, WriteShards, read_metadata

METRICS_FILE = "code_metrics.json"

# What is kept of an image that can be found, and of one that is looked into.
_INDEXED = (contract.CODE,)
_EXAMINED = (contract.CODE, contract.RECONSTRUCTION_ERROR)
_ANOMALY_IMAGES = 2_000
INDEXED_COLUMNS = (features.IMAGE, features.LABEL, *_INDEXED)
EXAMINED_COLUMNS = (features.IMAGE, features.LABEL, *_EXAMINED)
_MAX_PCA = 128
_BLOCK = 10_000


class ImageIndexArtifact(Artifact):
    """A folder a split (``Split-train``, ...) of Parquet files, rows in the examples' order.

    Columns: ``image`` (784 bytes), ``label`` (null where unknown), ``code``, and in
    all splits but ``train`` ``reconstruction_error`` and, where the model
    classifies, ``predicted_label``.
    """

    TYPE_NAME = "ImageIndex"
    TYPE_ANNOTATION = system_artifacts.Dataset
    PROPERTIES: ClassVar = {
        "span": Property(type=PropertyType.INT),
        "split_names": Property(type=PropertyType.STRING),
    }


class CodeMetricsArtifact(Artifact):
    """``code_metrics.json``: image search, anomaly detection, classification, the code's spread."""

    TYPE_NAME = "CodeMetrics"
    TYPE_ANNOTATION = system_artifacts.Metrics
    PROPERTIES: ClassVar = {"span": Property(type=PropertyType.INT)}


def read_split(index_uri: str, split: str, *columns: str) -> dict[str, np.ndarray]:
    """Columns of a split of an index, see :func:`columns.read_columns`; {} without it."""
    paths = sorted(fileio.glob(os.path.join(index_uri, f"Split-{split}", "*.parquet")))
    return read_columns(paths, columns) if paths else {}


@component(use_beam=True)
def ImageIndex(  # noqa: N802: components are named like classes
    examples: InputArtifact[standard_artifacts.Examples],
    model: InputArtifact[standard_artifacts.Model],
    reference: InputArtifact[PcaReferenceArtifact],
    index: OutputArtifact[ImageIndexArtifact],
    metrics: OutputArtifact[CodeMetricsArtifact],
    beam_pipeline: BeamComponentParameter[beam.Pipeline] = None,
) -> None:
    """Encodes all images on Beam, and measures search, detection and classification."""
    started = time.monotonic()
    model_path = path_utils.serving_model_path(model.uri, path_utils.is_old_model_artifact(model))
    abilities = read_metadata(model_path)["abilities"]
    examined = (*_EXAMINED, PREDICTED) if contract.CLASSIFY in abilities else _EXAMINED
    splits = artifact_utils.decode_split_names(examples.split_names)
    shards = []
    for split in splits:
        folder = os.path.join(index.uri, f"Split-{split}")
        fileio.makedirs(folder)
        sources = fileio.glob(os.path.join(artifact_utils.get_split_uri([examples], split), "*.gz"))
        outputs = _INDEXED if split == features.TRAIN_SPLIT else examined
        for source in sorted(sources):
            name = os.path.basename(source).removesuffix(".gz") + ".parquet"
            shards.append(
                Shard(
                    os.path.join(folder, name),
                    RecordSource(source),
                    outputs,
                    with_images=True,
                )
            )
    with beam_pipeline as p:
        _ = p | beam.Create(shards) | WriteShards(model_path)
    index.split_names = artifact_utils.encode_split_names(splits)
    pca = read_reference(reference.uri)
    figures = measure(index.uri, model_path, pca["mean"], pca["components"])
    figures["seconds"] = time.monotonic() - started
    fileio.makedirs(metrics.uri)
    io_utils.write_string_file(
        os.path.join(metrics.uri, METRICS_FILE), json.dumps(figures, indent=2)
    )


def measure(
    index_uri: str, model_path: str, mean: np.ndarray, components: np.ndarray
) -> dict[str, Any]:
    """What the codes in an index are good for.

    Args:
      mean: PCA's, float [784].
      components: PCA's, float [784, 784], most important first.

    Returns:
      ``search`` (None without labels, or where all are the same),
      ``classification`` (None without labels or classifier),
      ``anomaly`` and ``code``.
    """
    train = read_split(index_uri, features.TRAIN_SPLIT, *INDEXED_COLUMNS)
    evaluation = read_split(index_uri, features.EVAL_SPLIT, *EXAMINED_COLUMNS)
    held_out = read_split(index_uri, features.HELD_OUT_SPLIT, *EXAMINED_COLUMNS)
    return {
        "search": _search(train, evaluation, mean, components),
        "anomaly": _anomaly(evaluation, held_out, model_path),
        "classification": _classification(index_uri, evaluation[features.LABEL]),
        "code": _spread(evaluation[contract.CODE]),
    }


def _search(
    train: dict[str, np.ndarray],
    evaluation: dict[str, np.ndarray],
    mean: np.ndarray,
    components: np.ndarray,
) -> dict[str, Any] | None:
    queries = neighbours.choose_queries(evaluation[features.LABEL])
    known = train[features.LABEL] >= 0
    if not len(queries) or len(np.unique(train[features.LABEL][known])) < 2:
        return None
    labels = evaluation[features.LABEL][queries]

    def agreement(codes: np.ndarray, query_codes: np.ndarray) -> dict[str, float]:
        rows, _ = neighbours.nearest(codes[known], query_codes)
        found = train[features.LABEL][known][rows]
        return dict(zip(("precision_at_10", "knn_accuracy"), neighbours.agreement(found, labels)))

    def project(images: np.ndarray) -> np.ndarray:
        # A block at a time: as floats, the images of a large set fill the memory.
        blocks = [images[i : i + _BLOCK] for i in range(0, len(images), _BLOCK)]
        return np.concatenate(
            [
                (block.reshape(len(block), -1).astype(np.float32) / 255 - mean)
                @ components[:size].T
                for block in blocks
            ]
        )

    size = min(train[contract.CODE].shape[1], _MAX_PCA)
    query_images = evaluation[features.IMAGE][queries]
    return {
        **agreement(train[contract.CODE], evaluation[contract.CODE][queries]),
        "queries": len(queries),
        "indexed": int(known.sum()),
        "pca": {
            "components": size,
            **agreement(project(train[features.IMAGE]), project(query_images)),
        },
    }


def _anomaly(
    evaluation: dict[str, np.ndarray], held_out: dict[str, np.ndarray], model_path: str
) -> dict[str, Any]:
    errors = evaluation[contract.RECONSTRUCTION_ERROR]
    if held_out:
        return anomalies.on_held_out(
            errors, held_out[contract.RECONSTRUCTION_ERROR], held_out[features.LABEL]
        )
    predict = Predictor(model_path, (contract.RECONSTRUCTION_ERROR,))
    rows = np.arange(len(errors))
    if len(rows) > _ANOMALY_IMAGES:
        rows = np.sort(np.random.default_rng(0).choice(rows, _ANOMALY_IMAGES, replace=False))
    return anomalies.on_corruptions(
        evaluation[features.IMAGE][rows],
        errors[rows],
        lambda images: predict(images)[contract.RECONSTRUCTION_ERROR],
    )


def _classification(index_uri: str, labels: np.ndarray) -> dict[str, Any] | None:
    try:
        predicted = read_split(index_uri, features.EVAL_SPLIT, PREDICTED)
    except KeyError:
        return None
    known = labels >= 0
    if not known.any():
        return None
    confusion = np.zeros((features.NUM_CLASSES, features.NUM_CLASSES), np.int64)
    np.add.at(confusion, (labels[known], predicted[PREDICTED][known]), 1)
    return {
        "accuracy": float(np.trace(confusion) / confusion.sum()),
        "confusion": confusion.tolist(),
    }


def _spread(codes: np.ndarray) -> dict[str, Any]:
    return {
        "mean": float(codes.mean()),
        "stddev": float(codes.std()),
        # A unit that never changes tells nothing of the image.
        "active_units": int(np.sum(codes.std(axis=0) > 1e-3)),
        "size": codes.shape[1],
    }
