"""What the tests of components share: evaluations by TFMA, without a model."""

from __future__ import annotations

import os
import pathlib
from collections.abc import Callable
from typing import Any

import apache_beam as beam
import numpy as np
import pytest
import tensorflow_model_analysis as tfma
from tensorflow_model_analysis.evaluators.metrics_plots_and_validations_evaluator import (
    MetricsPlotsAndValidationsEvaluator,
)
from tensorflow_model_analysis.extractors.slice_key_extractor import SliceKeyExtractor
from tensorflow_model_analysis.utils import config_util
from tfx.components.evaluator import constants
from tfx.types import standard_artifacts

from components import evaluation

Losses = dict[int, float]
# ModelEvaluation and ModelBlessing of a candidate with these losses by digit.
Evaluate = Callable[..., tuple[Any, Any]]


@pytest.fixture(scope="session")
def evaluate(tmp_path_factory: pytest.TempPathFactory) -> Evaluate:
    """Has TFMA evaluate, slice and validate losses that a model could have had."""
    done: dict[str, tuple[Any, Any]] = {}

    def remember(*losses: Losses, **limits: Any) -> tuple[Any, Any]:
        key = repr((losses, limits))
        if key not in done:
            done[key] = run(*losses, **limits)
        return done[key]

    def run(candidate: Losses, baseline: Losses | None = None, **limits: Any) -> tuple[Any, Any]:
        limits = {"max_mse": 0.1, "max_increase": 0.1, "max_digit_increase": 0.5, **limits}
        config = config_util.update_eval_config_with_defaults(
            evaluation.eval_config(use_baseline=baseline is not None, by_label=True, **limits),
            has_baseline=baseline is not None,
        )
        models = {evaluation.CANDIDATE: candidate}
        if baseline is not None:
            models[evaluation.BASELINE] = baseline
        extracts = []
        for digit in candidate:
            outputs = {
                name: {"mse": np.array([losses[digit]]), "bce": np.array([losses[digit]])}
                for name, losses in models.items()
            }
            # TFMA drops the name of an only model.
            predictions = outputs if len(models) > 1 else outputs[evaluation.CANDIDATE]
            extracts.append(
                {
                    tfma.FEATURES_KEY: {"label": np.array([digit])},
                    tfma.LABELS_KEY: None,
                    tfma.EXAMPLE_WEIGHTS_KEY: None,
                    tfma.PREDICTIONS_KEY: predictions,
                }
            )
        folder = tmp_path_factory.mktemp("evaluation")
        with beam.Pipeline() as pipeline:
            _ = (
                pipeline
                | beam.Create(extracts)
                | tfma.ExtractAndEvaluate(
                    extractors=[SliceKeyExtractor(eval_config=config)],
                    evaluators=[MetricsPlotsAndValidationsEvaluator(config)],
                )
                | tfma.WriteResults(tfma.default_writers(str(folder), eval_config=config))
            )
        result, blessing = standard_artifacts.ModelEvaluation(), standard_artifacts.ModelBlessing()
        result.uri, blessing.uri = str(folder), str(folder) + "-blessing"
        os.makedirs(blessing.uri)
        blessed = tfma.load_validation_result(str(folder)).validation_ok
        name = constants.BLESSED_FILE_NAME if blessed else constants.NOT_BLESSED_FILE_NAME
        pathlib.Path(blessing.uri, name).touch()
        blessing.set_int_custom_property(constants.ARTIFACT_PROPERTY_BLESSED_KEY, int(blessed))
        return result, blessing

    return remember
