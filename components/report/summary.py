"""What is picked out of a run's summary: versions, the worst digit, what runs are compared by."""

from __future__ import annotations

import contextlib
import importlib.metadata
import platform
from typing import Any

_PACKAGES = ("tfx", "tensorflow", "tf-keras", "apache-beam", "ml-metadata", "numpy", "scikit-learn")


def versions() -> dict[str, str]:
    """Versions of what the run was made with."""
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        # The image has tensorflow-cpu.
        for name in (f"{package}-cpu", package):
            with contextlib.suppress(importlib.metadata.PackageNotFoundError):
                found[package] = importlib.metadata.version(name)
    return found


def worst_digit(by_label: dict[str, dict[str, float]]) -> tuple[str, float] | None:
    """The digit with the highest MSE and that MSE, or None without labels."""
    if not by_label:
        return None
    digit, figures = max(by_label.items(), key=lambda item: item[1]["mse"])
    return digit, figures["mse"]


def leaderboard_figures(summary: dict[str, Any]) -> dict[str, float | int]:
    """The figures by which runs are compared.

    What a run does not have, such as losses by digit without labels, is left out.
    """
    metrics = summary["metrics"]
    found: dict[str, float | int | None] = {
        "mse": metrics["overall"]["mse"],
        "bce": metrics["overall"]["bce"],
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
    if worst := worst_digit(metrics["by_label"]):
        found |= {"worst_digit": int(worst[0]), "worst_mse": worst[1]}
    if search := metrics["search"]:
        found |= {key: search[key] for key in ("precision_at_10", "knn_accuracy")}
    if classification := metrics["classification"]:
        found["accuracy"] = classification["accuracy"]
    return {key: value for key, value in found.items() if value is not None}
