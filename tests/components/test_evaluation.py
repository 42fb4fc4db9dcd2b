import math

import numpy as np
import pytest

from components import evaluation


class Extracts:
    def __init__(self, predictions):
        self._predictions = predictions

    def get_predictions(self):
        return self._predictions


def combine(name, model_name, groups):
    (computation,) = evaluation.MeanOutput(name).computations(model_names=[model_name])
    combiner = computation.combiner
    accumulators = []
    for group in groups:
        accumulator = combiner.create_accumulator()
        for element in group:
            accumulator = combiner.add_input(accumulator, element)
        accumulators.append(accumulator)
    merged = combiner.merge_accumulators(accumulators)
    return {key.name: value for key, value in combiner.extract_output(merged).items()}


def test_mean_spread_and_maximum_do_not_depend_on_the_grouping():
    values = np.random.default_rng(0).random(100)
    elements = [Extracts({"mse": np.array([v])}) for v in values]
    for groups in ([elements], [elements[:1], elements[1:30], [], elements[30:]]):
        found = combine("mse", "", groups)
        assert found["mse"] == pytest.approx(values.mean())
        assert found["mse_std"] == pytest.approx(values.std())
        assert found["mse_max"] == values.max()


def test_each_model_gets_its_own_figures():
    elements = [Extracts({"candidate": {"mse": [1.0]}, "baseline": {"mse": [3.0]}})]
    assert combine("mse", "candidate", [elements])["mse"] == 1.0
    assert combine("mse", "baseline", [elements])["mse"] == 3.0


def test_nothing_gives_nothing():
    assert combine("mse", "", [[]]) == {}


def test_thresholds_are_on_the_overall_mse_alone():
    config = evaluation.eval_config(
        max_mse=0.02, max_increase=0.1, use_baseline=True, by_label=True
    )
    (spec,) = config.metrics_specs
    (metric,) = [m for m in spec.metrics if m.per_slice_thresholds]
    assert '"mse"' in metric.config
    (per_slice,) = metric.per_slice_thresholds
    assert [list(s.feature_keys) for s in per_slice.slicing_specs] == [[]]
    assert per_slice.threshold.value_threshold.upper_bound.value == 0.02
    assert math.isclose(per_slice.threshold.change_threshold.relative.value, 0.1)


def test_without_labels_or_baseline_neither_is_asked_for():
    config = evaluation.eval_config(
        max_mse=0.02, max_increase=0.1, use_baseline=False, by_label=False
    )
    assert len(config.model_specs) == 1
    assert [list(s.feature_keys) for s in config.slicing_specs] == [[]]
