"""What one server counts, under TensorFlow Serving's names, for Prometheus."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

PATH = "/monitoring/prometheus/metrics"

# monitoring.cc: exponential buckets, 10 microseconds times 1.8 to the i.
_BUCKETS = tuple(10 * 1.8**i for i in range(33))
# Names come from the network; beyond this many the rest are counted together.
_MAX_NAMES = 500
# prometheus_client's counters end in _total and have a time beside them;
# TensorFlow Serving's do not, and one dashboard is to fit both servers.
_SUFFIX = re.compile(r"_total(?=[ {])")
_CREATED = re.compile(r"^(# \w+ )?\S+_created[ {].*\n", re.MULTILINE)


class Metrics:
    """The series of one server.

    Args:
      versions: Gives the answering versions of each model, for the gauge.
    """

    def __init__(self, versions: Callable[[], dict[str, list[int]]] = dict) -> None:
        self._versions = versions
        self._names: set[str] = set()
        self._registry = registry = CollectorRegistry()

        # Looking a series up costs more than counting in it: those found are kept.
        def gauge(name: str, text: str, *labels: str) -> Any:
            name, labels = f"mnist_ae:serving:{name}", ("model_name", *labels)
            return functools.cache(Gauge(name, text, labels, registry=registry).labels)

        def histogram(name: str, text: str, *labels: str) -> Any:
            name, labels = f":tensorflow:serving:{name}", ("model_name", *labels)
            made = Histogram(name, text, labels, buckets=_BUCKETS, registry=registry)
            return functools.cache(made.labels)

        name, labels = ":tensorflow:serving:request_count", ("model_name", "status")
        counter = Counter(name, "Requests answered", labels, registry=registry)
        self._requests = functools.cache(counter.labels)
        text = "Microseconds from a request's arrival to its answer"
        self._latency = histogram("request_latency", text, "API", "entrypoint")
        text = "Microseconds of a run of the graph"
        self._runtime = histogram("runtime_latency", text, "API", "runtime")
        text = "reconstruction errors sent"
        self._error_sum = gauge("reconstruction_error_sum", f"Sum of {text}")
        self._error_count = gauge("reconstruction_error_count", f"Number of {text}")
        name = "version_reconstruction_error"
        self._version_sum = gauge(f"{name}_sum", f"Sum of {text}, by version", "version")
        self._version_count = gauge(f"{name}_count", f"Number of {text}, by version", "version")
        name, labels = "mnist_ae:serving:model_version", ("model_name", "version")
        self._version = Gauge(name, "A version that answers", labels, registry=registry)

    def count_request(self, model: str, status: str, entrypoint: str, microseconds: float) -> None:
        """Counts one answered Predict.

        Args:
          model: The model's name as asked for.
          status: The canonical code's name.
          entrypoint: ``GRPC`` or ``REST``.
          microseconds: From arrival to answer.
        """
        if model not in self._names:
            if len(self._names) >= _MAX_NAMES:
                model = "(other)"
            self._names.add(model)
        self._requests(model, status).inc()
        if status == "OK":
            self._latency(model, "predict", entrypoint).observe(microseconds)

    def count_run(self, model: str, microseconds: float) -> None:
        """Counts one run of the graph."""
        self._runtime(model, "Predict", "TF1").observe(microseconds)

    def count_reconstruction_error(
        self, model: str, version: int, total: float, images: int
    ) -> None:
        """Adds up the ``reconstruction_error`` that went out with answers."""
        self._error_sum(model).inc(total)
        self._error_count(model).inc(images)
        self._version_sum(model, str(version)).inc(total)
        self._version_count(model, str(version)).inc(images)

    def render(self) -> str:
        """The metrics as Prometheus's text format."""
        self._version.clear()
        for model, versions in self._versions().items():
            for version in versions:
                self._version.labels(model, str(version)).set(version)
        text = generate_latest(self._registry).decode()
        return _SUFFIX.sub("", _CREATED.sub("", text))
