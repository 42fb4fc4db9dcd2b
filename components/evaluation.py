"""What TFMA computes: reconstruction losses, slices, thresholds, baseline."""

from __future__ import annotations

import math
from typing import Any

import apache_beam as beam
import numpy as np
import tensorflow_model_analysis as tfma
from tensorflow_model_analysis.metrics import metric_types
from tensorflow_model_analysis.proto import config_pb2

from components import features
from serving import contract

CANDIDATE = "candidate"
BASELINE = "baseline"
LOSSES = (contract.MSE, contract.BCE)


class _Moments(beam.CombineFn):
    """Count, sum, sum of squares and maximum of a per-example output."""

    def __init__(self, key: tfma.metrics.MetricKey, output: str):
        self._key = key
        self._output = output

    def create_accumulator(self):
        return 0, 0.0, 0.0, -math.inf

    def add_input(self, accumulator, element):
        prediction = element.get_predictions()
        if self._key.model_name and self._key.model_name in prediction:
            prediction = prediction[self._key.model_name]
        values = np.asarray(prediction[self._output], np.float64).ravel()
        return self.merge_accumulators(
            [accumulator, (values.size, values.sum(), np.square(values).sum(), values.max())]
        )

    def merge_accumulators(self, accumulators):
        counts, sums, squares, maxima = zip(*accumulators)
        return sum(counts), sum(sums), sum(squares), max(maxima)

    def extract_output(self, accumulator):
        count, total, squares, maximum = accumulator
        if not count:
            return {}
        mean = total / count
        name = self._key.name
        spread = math.sqrt(max(squares / count - mean * mean, 0.0))

        def key(suffix: str) -> tfma.metrics.MetricKey:
            return self._key._replace(name=name + suffix)

        return {key(""): mean, key("_std"): spread, key("_max"): maximum}


class MeanOutput(tfma.metrics.Metric):
    """Mean, ``_std`` and ``_max`` of an output that a signature gives per example.

    TFMA's metrics compare predictions with labels; a reconstruction error is
    the prediction itself.
    """

    def __init__(self, name: str):
        """Makes the metric of the output called ``name``."""
        super().__init__(_computations, name=name)


def _computations(
    name: str, model_names: list[str] | None = None, example_weighted: bool = False, **_: Any
) -> tfma.metrics.MetricComputations:
    keys = [
        tfma.metrics.MetricKey(name, model_name, example_weighted=example_weighted)
        for model_name in model_names or [""]
    ]
    return [
        tfma.metrics.MetricComputation(keys=[key], preprocessors=None, combiner=_Moments(key, name))
        for key in keys
    ]


metric_types.register_metric(MeanOutput)


def eval_config(
    *,
    max_mse: float,
    max_increase: float,
    use_baseline: bool,
    by_label: bool,
    max_digit_increase: float | None = None,
) -> config_pb2.EvalConfig:
    """The Evaluator's configuration.

    Args:
      max_mse: A model whose mean MSE is above is not blessed.
      max_increase: How much worse than the baseline's the mean MSE may be,
        relative to the baseline's.
      use_baseline: Whether there may be a baseline; without a blessed one the
        comparison is left out.
      by_label: Slice by digit, too.
      max_digit_increase: The same as ``max_increase``, for every digit; None sets no
        limit on digits.
    """
    overall = config_pb2.SlicingSpec()
    digits = config_pb2.SlicingSpec(feature_keys=[features.LABEL])
    # The absolute bound is on the mean alone: a digit that is hard for every model would decide.
    limits: list[tuple[Any, float | None, float]] = [(overall, max_mse, max_increase)]
    if max_digit_increase is not None and use_baseline and by_label:
        limits.append((digits, None, max_digit_increase))
    thresholds = [
        config_pb2.PerSliceMetricThreshold(
            slicing_specs=[of_slice],
            threshold=config_pb2.MetricThreshold(
                value_threshold=None
                if bound is None
                else config_pb2.GenericValueThreshold(upper_bound={"value": bound}),
                change_threshold=_no_worse_by(increase) if use_baseline else None,
            ),
        )
        for of_slice, bound, increase in limits
    ]
    metrics = [config_pb2.MetricConfig(class_name="ExampleCount")]
    for loss in LOSSES:
        metrics.append(
            config_pb2.MetricConfig(
                class_name=MeanOutput.__name__,
                module=__name__,
                config=f'{{"name": "{loss}"}}',
                per_slice_thresholds=thresholds if loss == contract.MSE else [],
            )
        )
    names = {CANDIDATE: False, BASELINE: True} if use_baseline else {CANDIDATE: False}
    return config_pb2.EvalConfig(
        model_specs=[
            config_pb2.ModelSpec(name=name, signature_name=contract.EVALUATE, is_baseline=baseline)
            for name, baseline in names.items()
        ],
        slicing_specs=[overall, digits] if by_label else [overall],
        metrics_specs=[config_pb2.MetricsSpec(metrics=metrics)],
    )


def _no_worse_by(increase: float) -> config_pb2.GenericChangeThreshold:
    return config_pb2.GenericChangeThreshold(
        relative={"value": increase}, direction=config_pb2.MetricDirection.LOWER_IS_BETTER
    )
