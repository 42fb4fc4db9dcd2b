"""How a span differs from the window and from the golden set, and the verdict on it.

Raw images have no distribution that TFDV could compare, so a few numbers of
each are compared: how much ink, where it lies, how far it spreads, the serving
model's code and reconstruction error. TFDV makes the statistics and measures
the Jensen-Shannon divergences: drift is against the window, skew against the
golden set, which no slow change moves.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from typing import Any

import numpy as np
import pandas as pd
import tensorflow as tf
import tensorflow_data_validation as tfdv
from tensorflow_metadata.proto.v0 import anomalies_pb2, schema_pb2, statistics_pb2
from tfx import types
from tfx.types import artifact_utils

from components.image_sources import RecordSource
from serving import contract

TRAIN, SKIP, STOP = "train", "skip", "stop"

_SAMPLE = 5_000
_BUCKETS = 20
_CODES = 64
_CODE = "code_"
_ERROR = "reconstruction_error"
_QUANTILES = (0.5, 0.9, 0.99)
_JUDGED = ("0.5", "0.9")
_BATCH = 1_000

Statistics = dict[str, statistics_pb2.DatasetFeatureStatisticsList]


@dataclasses.dataclass(frozen=True)
class Limits:
    """When a span is too strange, or nothing new; see ``ContinuousConfig``."""

    max_distance: float
    max_code_distance: float
    max_error_ratio: float
    skip_overlap: float
    skip_distance: float

    def to_json(self) -> str:
        """The limits as JSON, in one order."""
        return json.dumps(dataclasses.asdict(self), sort_keys=True)


@dataclasses.dataclass(frozen=True)
class Sample:
    """Images of a set and what is known of all of them.

    Attributes:
      images: uint8 [<=5000, 28, 28].
      hashes: One hash an image, for every image of the set.
    """

    images: np.ndarray
    hashes: frozenset[bytes]


def examine(
    span: Sample, window: Sample, golden: Sample, model: Any | None, limits: Limits
) -> tuple[dict[str, Any], Statistics, anomalies_pb2.Anomalies]:
    """Describes the sets and compares them.

    Args:
      window: What was trained on last, perhaps empty.
      model: The serving SavedModel, or None.

    Returns:
      As :func:`summarise`, with ``overlap`` and ``golden_overlap``, the
      fractions of the span's images that the window and the golden set have
      too; TFDV's statistics by set; and its anomalies.
    """
    tables = {
        name: describe(sample.images, model)
        for name, sample in (("span", span), ("window", window), ("golden", golden))
        if len(sample.images)
    }
    statistics = {name: _statistics(table) for name, table in tables.items()}
    anomalies = compare(statistics, list(tables["span"]), limits)
    found = summarise(anomalies, tables)
    found["overlap"] = len(span.hashes & window.hashes) / len(span.hashes)
    found["golden_overlap"] = len(span.hashes & golden.hashes) / len(span.hashes)
    return found, statistics, anomalies


def read_sample(artifacts: list[types.Artifact]) -> Sample:
    """An even sample of the images of some Examples, from all their splits."""
    rows: list[np.ndarray] = []
    for artifact in artifacts:
        for split in artifact_utils.decode_split_names(artifact.split_names):
            uri = artifact_utils.get_split_uri([artifact], split)
            for file in sorted(tf.io.gfile.glob(os.path.join(uri, "*.gz"))):
                rows += [batch.images for batch in RecordSource(file).batches()]
    if not rows:
        return Sample(np.zeros((0, 28, 28), np.uint8), frozenset())
    images = np.concatenate(rows)
    hashes = frozenset(hashlib.blake2b(row.data, digest_size=16).digest() for row in images)
    step = max(1, -(-len(images) // _SAMPLE))
    return Sample(images[::step], hashes)


def describe(images: np.ndarray, model: Any | None) -> pd.DataFrame:
    """A few numbers of each image, and what the serving model makes of it.

    Args:
      images: uint8 [n, 28, 28].
      model: A loaded SavedModel, or None.
    """
    values = images.astype(np.float32) / 255
    ink = values.mean(axis=(1, 2))
    mass = np.maximum(values.sum(axis=(1, 2)), 1e-6)
    across, down = values.sum(axis=1), values.sum(axis=2)
    place = np.arange(images.shape[1], dtype=np.float32)
    columns = {"ink": ink, "dark": (values > 0.5).mean(axis=(1, 2))}
    for name, profile in (("x", across), ("y", down)):
        centre = profile @ place / mass
        columns[f"centre_{name}"] = centre
        columns[f"spread_{name}"] = np.sqrt(np.maximum(profile @ place**2 / mass - centre**2, 0))
    steps = np.abs(np.diff(values, axis=2)).mean(axis=(1, 2))
    columns["roughness"] = steps + np.abs(np.diff(values, axis=1)).mean(axis=(1, 2))
    if model is not None:
        signature = model.signatures[contract.RECONSTRUCT]
        answers = [
            signature(images=tf.constant(images[i : i + _BATCH]))
            for i in range(0, len(images), _BATCH)
        ]
        columns[_ERROR] = np.concatenate([a[contract.RECONSTRUCTION_ERROR] for a in answers])
        codes = np.concatenate([a[contract.CODE] for a in answers])
        chosen = np.unique(np.linspace(0, codes.shape[1] - 1, _CODES).astype(int))
        for i in chosen:
            columns[f"{_CODE}{i}"] = codes[:, i]
    return pd.DataFrame(columns).astype(np.float32)


def compare(statistics: Statistics, columns: list[str], limits: Limits) -> anomalies_pb2.Anomalies:
    """TFDV's comparators: drift of the span from the window, skew from the golden set."""
    schema = schema_pb2.Schema()
    for name in columns:
        feature = schema.feature.add(name=name, type=schema_pb2.FLOAT)
        limit = limits.max_code_distance if name.startswith(_CODE) else limits.max_distance
        # TFDV measures the divergence, whose root is the distance.
        for comparator in (feature.drift_comparator, feature.skew_comparator):
            comparator.jensen_shannon_divergence.threshold = limit**2
    return tfdv.validate_statistics(
        statistics["span"],
        schema,
        previous_statistics=statistics.get("window"),
        serving_statistics=statistics["golden"],
    )


def summarise(
    anomalies: anomalies_pb2.Anomalies, tables: dict[str, pd.DataFrame]
) -> dict[str, Any]:
    """What decides, and what people want to see.

    Returns:
      ``distance`` and ``feature`` (the worst pixel statistic), ``code_distance``
      (mean), ``distances`` by feature, each against ``window`` and ``golden``;
      ``errors``: quantiles by set; ``error_ratio``: the worst judged one.
    """
    distances: dict[str, dict[str, float]] = {"window": {}, "golden": {}}
    for info in anomalies.drift_skew_info:
        name = info.path.step[0]
        for against, measurements in (
            ("window", info.drift_measurements),
            ("golden", info.skew_measurements),
        ):
            for measurement in measurements:
                distances[against][name] = float(np.sqrt(max(measurement.value, 0.0)))
    pixels = [
        (value, name, against)
        for against, found in distances.items()
        for name, value in found.items()
        if not name.startswith(_CODE) and name != _ERROR
    ]
    codes = [
        [value for name, value in found.items() if name.startswith(_CODE)]
        for found in distances.values()
    ]
    worst, feature, against = max(pixels, default=(0.0, "", ""))
    quantiles = {
        name: {str(q): float(np.quantile(table[_ERROR], q)) for q in _QUANTILES}
        for name, table in tables.items()
        if _ERROR in table
    }
    ratios = [
        quantiles["span"][q] / max(quantiles[other][q], 1e-12)
        for other in ("window", "golden")
        if other in quantiles
        for q in _JUDGED
    ]
    return {
        "distance": worst,
        "feature": feature,
        "against": against,
        "code_distance": max((float(np.mean(c)) for c in codes if c), default=0.0),
        "error_ratio": max(ratios, default=1.0),
        "errors": quantiles,
        "distances": distances,
    }


def judge(found: dict[str, Any], limits: Limits, *, accepted: bool) -> tuple[str, str]:
    """The verdict and why."""
    strange = []
    if found["distance"] > limits.max_distance:
        strange.append(
            f"{found['feature']} is at a distance of {found['distance']:.2f} from the "
            f"{found['against']} (limit {limits.max_distance:g})"
        )
    if found["code_distance"] > limits.max_code_distance:
        strange.append(
            f"codes are at a distance of {found['code_distance']:.2f} "
            f"(limit {limits.max_code_distance:g})"
        )
    if found["error_ratio"] > limits.max_error_ratio:
        strange.append(
            f"the serving model's errors are {found['error_ratio']:.1f} times the usual "
            f"(limit {limits.max_error_ratio:g})"
        )
    if accepted:
        return TRAIN, "let in by hand" + (f" although {'; '.join(strange)}" if strange else "")
    if found["overlap"] >= limits.skip_overlap:
        return SKIP, f"nothing new: {found['overlap']:.0%} of its images are in the window"
    if strange:
        return STOP, "too strange: " + "; ".join(strange)
    largest = max(found["distance"], found["code_distance"])
    if largest < limits.skip_distance:
        return SKIP, f"nothing new: no distance above {largest:.3f}"
    reason = f"largest distance {found['distance']:.3f} ({found['feature']})"
    if found["golden_overlap"]:
        # They will be trained on: the golden loss says less from then on.
        reason += f"; {found['golden_overlap']:.1%} of its images are in the golden set"
    return TRAIN, reason


def _statistics(table: pd.DataFrame) -> statistics_pb2.DatasetFeatureStatisticsList:
    options = tfdv.StatsOptions(
        num_histogram_buckets=_BUCKETS, num_quantiles_histogram_buckets=_BUCKETS
    )
    return tfdv.generate_statistics_from_dataframe(table, stats_options=options)
