"""ImageIndex: codes of every image by batch inference, and what they are good for."""

# No postponed annotations here: @component reads them.
import json
import os
import time
from collections.abc import Callable, Iterator, Sequence
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
from serving.uses.columns import PREDICTED, read_blocks, read_columns
from serving.uses.shards import Predictor, Shard, WriteShards, read_metadata

METRICS_FILE = "code_metrics.json"

# What is kept of an image that can be found, and of one that is looked into.
_INDEXED = (contract.CODE,)
_EXAMINED = (contract.CODE, contract.RECONSTRUCTION_ERROR, contract.ANOMALY_SCORE)
_ANOMALY_IMAGES = 2_000
INDEXED_COLUMNS = (features.IMAGE, features.LABEL, *_INDEXED)
EXAMINED_COLUMNS = (features.IMAGE, features.LABEL, *_EXAMINED)
_MAX_PCA = 128


class ImageIndexArtifact(Artifact):
    """A folder a split (``Split-train``, ...) of Parquet files, rows in the examples' order.

    Columns: ``image`` (784 bytes), ``label`` (null where unknown), ``code``, and in
    all splits but ``train`` ``reconstruction_error``, ``anomaly_score`` and, where the
    model classifies, ``predicted_label``.
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


def read_split(
    index_uri: str, split: str, *columns: str, rows: np.ndarray | None = None
) -> dict[str, np.ndarray]:
    """Columns of a split of an index, see :func:`columns.read_columns`; {} without it."""
    paths = _files(index_uri, split)
    return read_columns(paths, columns, rows) if paths else {}


def read_sample(
    index_uri: str, split: str, columns: Sequence[str], images: int
) -> dict[str, np.ndarray]:
    """As :func:`read_split`, of so many images drawn at random, or of all where there are fewer."""
    count = len(read_split(index_uri, split, features.LABEL).get(features.LABEL, ()))
    rows = None
    if count > images:
        rows = np.sort(np.random.default_rng(0).choice(count, images, replace=False))
    return read_split(index_uri, split, *columns, rows=rows)


def _files(index_uri: str, split: str) -> list[str]:
    return sorted(fileio.glob(os.path.join(index_uri, f"Split-{split}", "*.parquet")))


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

    Codes and images are looked at a block at a time and not kept, but for the
    queries' and the corrupted images'.

    Args:
      mean: PCA's, float [784].
      components: PCA's, float [784, 784], most important first.

    Returns:
      ``search`` (None without labels, or where all are the same),
      ``classification`` (None without labels or classifier),
      ``anomaly`` and ``code``.
    """
    return {
        "search": _search(index_uri, mean, components),
        "anomaly": _anomaly(index_uri, model_path),
        "classification": _classification(index_uri),
        "code": _spread(index_uri),
    }


def _labels(index_uri: str, split: str) -> np.ndarray:
    return read_split(index_uri, split, features.LABEL)[features.LABEL]


def _search(index_uri: str, mean: np.ndarray, components: np.ndarray) -> dict[str, Any] | None:
    labels = _labels(index_uri, features.EVAL_SPLIT)
    indexed = _labels(index_uri, features.TRAIN_SPLIT)
    indexed = indexed[indexed != contract.NO_LABEL]
    rows = neighbours.choose_queries(labels)
    if not len(rows) or len(np.unique(indexed)) < 2:
        return None
    queries = read_split(index_uri, features.EVAL_SPLIT, features.IMAGE, contract.CODE, rows=rows)

    def project(images: np.ndarray) -> np.ndarray:
        floats = images.reshape(len(images), -1).astype(np.float32) / 255
        return (floats - mean) @ components[:size].T

    def agreement(column: str, like: Callable[[np.ndarray], np.ndarray]) -> dict[str, float]:
        blocks = read_blocks(_files(index_uri, features.TRAIN_SPLIT), (features.LABEL, column))
        known = (like(b[column][b[features.LABEL] != contract.NO_LABEL]) for b in blocks)
        found, _ = neighbours.nearest_in_blocks(known, like(queries[column]))
        figures = neighbours.agreement(indexed[found], labels[rows])
        return dict(zip(("precision_at_10", "knn_accuracy"), figures))

    def known_codes() -> Iterator[np.ndarray]:
        for block in read_blocks(
            _files(index_uri, features.TRAIN_SPLIT), (features.LABEL, contract.CODE)
        ):
            yield block[contract.CODE][block[features.LABEL] != contract.NO_LABEL]

    size = min(queries[contract.CODE].shape[1], _MAX_PCA)
    return {
        **agreement(contract.CODE, neighbours.HalfWhitening(known_codes())),
        "queries": len(rows),
        "indexed": len(indexed),
        "pca": {"components": size, **agreement(features.IMAGE, project)},
    }


def _anomaly(index_uri: str, model_path: str) -> dict[str, Any]:
    score = contract.ANOMALY_SCORE
    held_out = read_split(index_uri, features.HELD_OUT_SPLIT, features.LABEL, score)
    if held_out:
        scores = read_split(index_uri, features.EVAL_SPLIT, score)[score]
        return anomalies.on_held_out(scores, held_out[score], held_out[features.LABEL])
    predict = Predictor(model_path, (score,))
    normal = read_sample(index_uri, features.EVAL_SPLIT, (features.IMAGE, score), _ANOMALY_IMAGES)
    return anomalies.on_corruptions(
        normal[features.IMAGE], normal[score], lambda images: predict(images)[score]
    )


def _classification(index_uri: str) -> dict[str, Any] | None:
    try:
        found = read_split(index_uri, features.EVAL_SPLIT, features.LABEL, PREDICTED)
    except KeyError:
        return None
    known = found[features.LABEL] != contract.NO_LABEL
    if not known.any():
        return None
    confusion = np.zeros((features.NUM_CLASSES, features.NUM_CLASSES), np.int64)
    np.add.at(confusion, (found[features.LABEL][known], found[PREDICTED][known]), 1)
    return {
        "accuracy": float(np.trace(confusion) / confusion.sum()),
        "confusion": confusion.tolist(),
    }


def _spread(index_uri: str) -> dict[str, Any]:
    count, total, squares = 0, np.zeros(1), np.zeros(1)
    for block in read_blocks(_files(index_uri, features.EVAL_SPLIT), (contract.CODE,)):
        codes = block[contract.CODE].astype(np.float64)
        count += len(codes)
        total, squares = total + codes.sum(axis=0), squares + np.square(codes).sum(axis=0)
    mean, square = total / count, squares / count
    stddev = np.sqrt(np.maximum(square - mean**2, 0))
    return {
        "mean": float(mean.mean()),
        "stddev": float(np.sqrt(max(square.mean() - mean.mean() ** 2, 0))),
        # A unit that never changes tells nothing of the image.
        "active_units": int(np.sum(stddev > 1e-3)),
        "size": len(mean),
    }
