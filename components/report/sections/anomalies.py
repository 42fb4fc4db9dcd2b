"""What the anomaly score tells of strange images."""

from __future__ import annotations

from typing import Any

import numpy as np

from components import features
from components.image_index import anomalies
from components.report import charts
from components.report.blocks import Figure, Section, Strips, Table, number
from components.report.material import TEN, Material
from serving import contract


def errors(material: Material) -> Section:
    """The histogram of anomaly scores, with the threshold."""
    threshold = material.summary["anomaly_threshold"]
    above = np.mean(material.anomaly_scores > threshold)
    caption = f"{above:.1%} of the eval images are above the threshold."
    strange = None
    if material.held_out:
        strange = material.held_out[contract.ANOMALY_SCORE]
        caption += (
            f" Of the digits that it never saw, {np.mean(strange > threshold):.1%} are above it."
        )
    chart = charts.score_histogram(material.anomaly_scores, threshold, strange, "digits never seen")
    quantile = material.training.get("training", {}).get("anomaly_quantile")
    how = ""
    if quantile:
        how = f" At most {1 - quantile:.1%} of images like those that were held out are above it."
    return Section(
        "errors",
        "Anomaly scores",
        "How strange code, reconstruction error and sharpness are together. An image whose score "
        f"is above {threshold:.2f} counts as an anomaly.{how}",
        [Figure("errors", chart, caption)],
    )


def anomaly_detection(material: Material) -> Section:
    """AUROC and AUPR, with examples."""
    found = material.metrics["anomaly"]
    if found["against"] == anomalies.HELD_OUT:
        together, against = "all digits never seen", "digits that the model never saw"
        over = "over all"
        names = {kind: f"digit {kind}" for kind in found["by_kind"]}
    else:
        together, against = "mean", "corrupted images and letters"
        over = "for each kind"
        names = {kind: f"{kind}: {anomalies.EXPLANATIONS[kind]}" for kind in found["by_kind"]}

    def row(name: str, of: dict[str, Any]) -> list[Any]:
        return [name, number(of["auroc"], 4), number(of["aupr"], 4)]

    table = Table(
        ["anomalies", "AUROC", "AUPR"],
        [*(row(names[kind], of) for kind, of in found["by_kind"].items()), row(together, found)],
        f"{found['normal']:,} normal images against {against}. Guessing gives an AUROC of 0.5 and "
        f"an AUPR of {found['base_rate']:.2f} {over}.",
    )
    return Section(
        "anomalies",
        "Anomaly detection",
        "How well the anomaly score tells strange images from normal ones.",
        [_strange_examples(material), table],
    )


def _strange_examples(material: Material) -> Strips:
    if material.held_out:
        labels = material.held_out[features.LABEL]
        rng = np.random.default_rng(0)
        rows = np.sort(rng.choice(len(labels), min(TEN, len(labels)), replace=False))
        strange = material.held_out[features.IMAGE][rows]
        header, span = [str(digit) for digit in labels[rows]], 1
        caption = "Images of digits that the model never saw, and what it makes of them."
    else:
        normal = material.images[material.sample(seed=2)[:2]]
        strange = np.concatenate([anomalies.corrupt(normal, kind) for kind in anomalies.KINDS])
        header, span = list(anomalies.KINDS), 2
        caption = "Strange images, two of each kind, and what the model makes of them."
    shown, scores = material.reconstruct(strange)
    caption += f" Errors of {scores.min():.3f} to {scores.max():.3f}."
    strips = [("anomaly", strange), ("reconstruction", shown)]
    return Strips("anomalies", max(TEN, len(strange)), strips, caption, header, span)
