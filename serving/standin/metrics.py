"""Counters and histograms under TensorFlow Serving's names, for Prometheus.

``prometheus_client`` writes the page; the numbers are kept here, since its own
counters would be called ``..._total``, and one dashboard is to fit both servers.
"""

from __future__ import annotations

import bisect
import collections
import itertools
import math
import threading
from collections.abc import Callable, Iterator

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import (
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
    SummaryMetricFamily,
)
from prometheus_client.utils import floatToGoString

PATH = "/monitoring/prometheus/metrics"

# monitoring.cc: exponential buckets, 10 microseconds times 1.8 to the i.
_BOUNDS = (*(10 * 1.8**i for i in range(33)), math.inf)
# Names come from the network; beyond this many the rest are counted together.
_MAX_SERIES = 500


class _Histogram:
    """How many values fell into each bucket, and their sum."""

    def __init__(self) -> None:
        self._counts = [0] * len(_BOUNDS)
        self.total = 0.0

    def add(self, value: float) -> None:
        self._counts[bisect.bisect_left(_BOUNDS, value)] += 1
        self.total += value

    def cumulative(self) -> list[tuple[str, float]]:
        """Upper bound of each bucket and how many values are not above it."""
        counts = itertools.accumulate(self._counts)
        return [(floatToGoString(bound), count) for bound, count in zip(_BOUNDS, counts)]


class Metrics:
    """What one server counts.

    Args:
      versions: Gives the answering versions of each model, for the gauge.
    """

    def __init__(self, versions: Callable[[], dict[str, list[int]]] = dict) -> None:
        self._versions = versions
        self._lock = threading.Lock()
        self._requests: collections.Counter[tuple[str, str]] = collections.Counter()
        self._latency: dict[tuple[str, str], _Histogram] = {}
        self._runtime: dict[str, _Histogram] = {}
        # Sum and number of the reconstruction errors, by model and version.
        self._errors: dict[tuple[str, int], tuple[float, int]] = {}
        self._registry = CollectorRegistry()
        self._registry.register(self)  # type: ignore[arg-type]

    def count_request(self, model: str, status: str, entrypoint: str, microseconds: float) -> None:
        """Counts one answered Predict.

        Args:
          model: The model's name as asked for.
          status: The canonical code's name.
          entrypoint: ``GRPC`` or ``REST``.
          microseconds: From arrival to answer.
        """
        with self._lock:
            if (model, status) not in self._requests and len(self._requests) >= _MAX_SERIES:
                model = "(other)"
            self._requests[model, status] += 1
            if status == "OK":
                self._latency.setdefault((model, entrypoint), _Histogram()).add(microseconds)

    def count_run(self, model: str, microseconds: float) -> None:
        """Counts one run of the graph."""
        with self._lock:
            self._runtime.setdefault(model, _Histogram()).add(microseconds)

    def count_reconstruction_error(
        self, model: str, version: int, total: float, images: int
    ) -> None:
        """Adds up the ``reconstruction_error`` that went out with answers."""
        with self._lock:
            before, count = self._errors.get((model, version), (0.0, 0))
            self._errors[model, version] = (before + total, count + images)

    def requests(self, model: str | None = None, status: str | None = None) -> int:
        """How many requests were answered, of all models and statuses by default."""
        with self._lock:
            return sum(
                count
                for (name, code), count in self._requests.items()
                if model in (None, name) and status in (None, code)
            )

    def render(self) -> str:
        """The metrics as Prometheus's text format."""
        text = generate_latest(self._registry).decode()
        # A counter's name ends in _total for the library; TensorFlow Serving's does not.
        return text.replace("request_count_total", "request_count")

    def collect(self) -> Iterator[Metric]:
        """Gives every series, when ``prometheus_client`` asks."""
        with self._lock:
            yield from (self._collect_requests(), *self._collect_times(), *self._collect_errors())
        gauge = GaugeMetricFamily(
            "mnist_ae:serving:model_version",
            "A version that answers",
            labels=("model_name", "version"),
        )
        for model, versions in self._versions().items():
            for version in versions:
                gauge.add_metric((model, str(version)), version)
        yield gauge

    def _collect_requests(self) -> Metric:
        counter = Metric(":tensorflow:serving:request_count", "Requests answered", "counter")
        for (model, status), count in self._requests.items():
            labels = {"model_name": model, "status": status}
            counter.add_sample(counter.name, labels, count)
        return counter

    def _collect_times(self) -> tuple[Metric, ...]:
        latency = HistogramMetricFamily(
            ":tensorflow:serving:request_latency",
            "Microseconds from a request's arrival to its answer",
            labels=("model_name", "API", "entrypoint"),
        )
        for (model, entrypoint), item in self._latency.items():
            latency.add_metric((model, "predict", entrypoint), item.cumulative(), item.total)
        runtime = HistogramMetricFamily(
            ":tensorflow:serving:runtime_latency",
            "Microseconds of a run of the graph",
            labels=("model_name", "API", "runtime"),
        )
        for model, item in self._runtime.items():
            runtime.add_metric((model, "Predict", "TF1"), item.cumulative(), item.total)
        return latency, runtime

    def _collect_errors(self) -> tuple[Metric, ...]:
        by_version = SummaryMetricFamily(
            "mnist_ae:serving:version_reconstruction_error",
            "Reconstruction errors sent, by version",
            labels=("model_name", "version"),
        )
        sums: dict[str, tuple[float, int]] = {}
        for (model, version), (total, count) in self._errors.items():
            by_version.add_metric((model, str(version)), count, total)
            before, images = sums.get(model, (0.0, 0))
            sums[model] = (before + total, images + count)
        by_model = SummaryMetricFamily(
            "mnist_ae:serving:reconstruction_error",
            "Reconstruction errors sent",
            labels=("model_name",),
        )
        for model, (total, count) in sums.items():
            by_model.add_metric((model,), count, total)
        return by_model, by_version
