"""What other nodes found, read back: TFMA's figures and refusals, files of JSON."""

from __future__ import annotations

import json
import os
from typing import Any

import tensorflow_model_analysis as tfma
from tfx.utils import io_utils

from components import evaluation, features

# What the Trainer leaves in its ModelRun: curves, seconds, epochs, image counts.
TRAINING_FILE = "training.json"


def read_json(uri: str, file: str) -> Any:
    """A JSON file in an artifact's folder."""
    return json.loads(io_utils.read_string_file(os.path.join(uri, file)))


def load_metrics(path: str, model_name: str) -> dict[str, Any]:
    """TFMA's figures of a model.

    Returns:
      ``overall`` and, where there were labels, ``by_label``, each with mean,
      spread and maximum of the losses and the example count. Empty where that
      model was not evaluated.
    """
    specs = tfma.load_eval_result(path).config.model_specs
    if model_name not in [spec.name for spec in specs]:
        if model_name != evaluation.CANDIDATE:
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
