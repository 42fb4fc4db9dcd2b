"""What one server counts, under TensorFlow Serving's names, for Prometheus."""

from __future__ import annotations

import bisect
import collections
import contextlib
import itertools
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from prometheus_client import CollectorRegistry, Metric, generate_latest, metrics_core
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

from serving.standin.status import from_exception

PATH = "/monitoring/prometheus/metrics"

# monitoring.cc: exponential buckets, 10 microseconds times 1.8 to the i.
_BUCKETS = [10 * 1.8**i for i in range(33)]
_BUCKET_NAMES = [*map(floatToGoString, _BUCKETS), "+Inf"]
# Names come from the network; beyond this many the rest are counted together.
_MAX_MODELS = 500

_REQUESTS = ":tensorflow:serving:request_count"
_LATENCY = ":tensorflow:serving:request_latency"
_RUNTIME = ":tensorflow:serving:runtime_latency"
_ERROR = "mnist_ae:serving:reconstruction_error"
_VERSION_ERROR = "mnist_ae:serving:version_reconstruction_error"
_VERSION = "mnist_ae:serving:model_version"
_Counter, _Gauge = metrics_core.CounterMetricFamily, metrics_core.GaugeMetricFamily
_HistogramFamily = metrics_core.HistogramMetricFamily
# By name: kind, text, labels beside model_name.
_SERIES: dict[str, tuple[Any, str, tuple[str, ...]]] = {
    _REQUESTS: (_Counter, "Requests answered", ("status",)),
    _LATENCY: (_HistogramFamily, "Microseconds from arrival to answer", ("API", "entrypoint")),
    _RUNTIME: (_HistogramFamily, "Microseconds of a run of the graph", ("API", "runtime")),
    f"{_ERROR}_sum": (_Gauge, "Sum of reconstruction errors sent", ()),
    f"{_ERROR}_count": (_Gauge, "Number of reconstruction errors sent", ()),
    f"{_VERSION_ERROR}_sum": (_Gauge, "Sum of these, by version", ("version",)),
    f"{_VERSION_ERROR}_count": (_Gauge, "Number of these, by version", ("version",)),
    _VERSION: (_Gauge, "A version that answers", ("version",)),
}


class _Histogram:
    """Values by bucket. prometheus_client's own walks along the buckets, value by value."""

    def __init__(self) -> None:
        self._counts = [0] * len(_BUCKET_NAMES)
        self._total = 0.0

    def observe(self, value: float) -> None:
        self._counts[bisect.bisect_left(_BUCKETS, value)] += 1
        self._total += value

    def cumulated(self) -> tuple[list[tuple[str, float]], float]:
        return list(zip(_BUCKET_NAMES, itertools.accumulate(self._counts))), self._total


class Metrics(Collector):
    """The series of one server.

    Args:
      versions: Gives the answering versions of each model, for the gauge.
    """

    def __init__(self, versions: Callable[[], dict[str, list[int]]] = dict) -> None:
        self._versions = versions
        self._lock = threading.Lock()
        self._models: set[str] = set()
        # By name and the labels' values.
        self._sums: dict[tuple[str, ...], float] = collections.defaultdict(float)
        self._histograms: dict[tuple[str, ...], _Histogram] = collections.defaultdict(_Histogram)
        self._registry = CollectorRegistry()
        self._registry.register(self)

    @contextlib.contextmanager
    def counted(self, model: str, entrypoint: str) -> Iterator[None]:
        """Counts a Predict, answered or refused when the block ends, and its time.

        Args:
          model: The model's name as asked for.
          entrypoint: ``GRPC`` or ``REST``.
        """
        started = time.monotonic()
        status = "OK"
        try:
            yield
        except Exception as error:
            status = from_exception(error).code.name
            raise
        finally:
            microseconds = (time.monotonic() - started) * 1e6
            with self._lock:
                if model not in self._models:
                    if len(self._models) >= _MAX_MODELS:
                        model = "(other)"
                    self._models.add(model)
                self._sums[_REQUESTS, model, status] += 1
                if status == "OK":
                    self._histograms[_LATENCY, model, "predict", entrypoint].observe(microseconds)

    def count_run(self, model: str, microseconds: float) -> None:
        """Counts one run of the graph."""
        with self._lock:
            self._histograms[_RUNTIME, model, "Predict", "TF1"].observe(microseconds)

    def count_reconstruction_error(
        self, model: str, version: int, total: float, images: int
    ) -> None:
        """Adds up the ``reconstruction_error`` that went out with answers."""
        with self._lock:
            for part, amount in (("_sum", total), ("_count", images)):
                self._sums[_ERROR + part, model] += amount
                self._sums[_VERSION_ERROR + part, model, str(version)] += amount

    def collect(self) -> Iterable[Metric]:
        """The series as they are now; prometheus_client asks for them."""
        families = {
            name: kind(name, text, labels=("model_name", *labels))
            for name, (kind, text, labels) in _SERIES.items()
        }
        with self._lock:
            for (name, *labels), value in self._sums.items():
                families[name].add_metric(labels, value)
            for (name, *labels), histogram in self._histograms.items():
                families[name].add_metric(labels, *histogram.cumulated())
        for model, versions in self._versions().items():
            for version in versions:
                families[_VERSION].add_metric((model, str(version)), version)
        return families.values()

    def render(self) -> str:
        """The metrics as Prometheus's text format."""
        # Here a counter's name ends in _total, in TensorFlow Serving it does not, and one
        # dashboard is to fit both.
        text = generate_latest(self._registry).decode()
        return text.replace(f"{_REQUESTS}_total", _REQUESTS)
