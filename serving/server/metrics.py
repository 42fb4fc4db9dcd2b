"""Counters and histograms under TensorFlow Serving's names.

The text is Prometheus's exposition format. ``prometheus_client`` is not used:
it renames counters to ``..._total``, and the names here are TensorFlow
Serving's, so that one dashboard fits both.
"""

from __future__ import annotations

import bisect
import threading
from collections.abc import Callable, Iterable

PATH = "/monitoring/prometheus/metrics"

# monitoring.cc: exponential buckets, 10 microseconds times 1.8 to the i.
_BOUNDS = tuple(10 * 1.8**i for i in range(33))
_Labels = tuple[tuple[str, str], ...]
# Names come from the network; beyond this many the rest are counted together.
_MAX_SERIES = 500


def _quote(value: str) -> str:
    return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


def _series(name: str, labels: _Labels, value: float) -> str:
    text = ",".join(f'{key}="{_quote(item)}"' for key, item in labels)
    return f"{name}{{{text}}} {value:.17g}\n"


class _Histogram:
    __slots__ = ("buckets", "count", "total")

    def __init__(self) -> None:
        self.buckets = [0] * (len(_BOUNDS) + 1)
        self.count = 0
        self.total = 0.0

    def add(self, value: float) -> None:
        self.buckets[bisect.bisect_left(_BOUNDS, value)] += 1
        self.count += 1
        self.total += value


class Metrics:
    """What one server counts.

    Args:
      versions: Returns the answering versions of each model, for the gauge.
    """

    def __init__(self, versions: Callable[[], dict[str, list[int]]] = dict) -> None:
        self._versions = versions
        self._lock = threading.Lock()
        self._requests: dict[tuple[str, str], int] = {}
        self._latency: dict[tuple[str, str, str], _Histogram] = {}
        self._runtime: dict[str, _Histogram] = {}
        self._errors: dict[tuple[str, int], list[float]] = {}

    def count_request(
        self, model: str, status: str, api: str, entrypoint: str, microseconds: float
    ) -> None:
        """Counts one answered request.

        Args:
          model: The model's name as asked for.
          status: The canonical code's name.
          api: ``predict``, ``classify``, ``regress`` or ``multi_inference``.
          entrypoint: ``GRPC`` or ``REST``.
          microseconds: From arrival to answer.
        """
        with self._lock:
            key = (model, status)
            if key not in self._requests and len(self._requests) >= _MAX_SERIES:
                model = "(other)"
                key = (model, status)
            self._requests[key] = self._requests.get(key, 0) + 1
            if status == "OK":
                histogram = self._latency.get((model, api, entrypoint))
                if histogram is None:
                    histogram = self._latency[model, api, entrypoint] = _Histogram()
                histogram.add(microseconds)

    def count_run(self, model: str, microseconds: float) -> None:
        """Counts one run of the graph."""
        with self._lock:
            histogram = self._runtime.get(model)
            if histogram is None:
                histogram = self._runtime[model] = _Histogram()
            histogram.add(microseconds)

    def count_reconstruction_error(
        self, model: str, total: float, images: int, version: int = 0
    ) -> None:
        """Adds up the ``reconstruction_error`` that went out with answers."""
        with self._lock:
            entry = self._errors.setdefault((model, version), [0.0, 0])
            entry[0] += total
            entry[1] += images

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
        out: list[str] = []
        with self._lock:
            out.append("# TYPE :tensorflow:serving:request_count counter\n")
            for (model, status), count in sorted(self._requests.items()):
                counted = (("model_name", model), ("status", status))
                out.append(_series(":tensorflow:serving:request_count", counted, count))
            _render_histograms(
                out,
                ":tensorflow:serving:request_latency",
                (
                    ((("model_name", key[0]), ("API", key[1]), ("entrypoint", key[2])), histogram)
                    for key, histogram in sorted(self._latency.items())
                ),
            )
            _render_histograms(
                out,
                ":tensorflow:serving:runtime_latency",
                (
                    ((("model_name", model), ("API", "Predict"), ("runtime", "TF1")), histogram)
                    for model, histogram in sorted(self._runtime.items())
                ),
            )
            out.append("# TYPE mnist_ae:serving:reconstruction_error summary\n")
            for model in sorted({name for name, _ in self._errors}):
                entries = [entry for (name, _), entry in self._errors.items() if name == model]
                named = (("model_name", model),)
                for part, position in (("sum", 0), ("count", 1)):
                    value = sum(entry[position] for entry in entries)
                    out.append(
                        _series(f"mnist_ae:serving:reconstruction_error_{part}", named, value)
                    )
            out.append("# TYPE mnist_ae:serving:version_reconstruction_error summary\n")
            for (model, version), entry in sorted(self._errors.items()):
                exact = (("model_name", model), ("version", str(version)))
                for part, value in zip(("sum", "count"), entry):
                    name = f"mnist_ae:serving:version_reconstruction_error_{part}"
                    out.append(_series(name, exact, value))
        out.append("# TYPE mnist_ae:serving:model_version gauge\n")
        for model, versions in sorted(self._versions().items()):
            for version in versions:
                labels = (("model_name", model), ("version", str(version)))
                out.append(_series("mnist_ae:serving:model_version", labels, version))
        return "".join(out)


def _render_histograms(
    out: list[str], name: str, histograms: Iterable[tuple[_Labels, _Histogram]]
) -> None:
    out.append(f"# TYPE {name} histogram\n")
    for labels, histogram in histograms:
        running = 0
        for bound, count in zip((*_BOUNDS, float("inf")), histogram.buckets, strict=True):
            running += count
            le = "+Inf" if bound == float("inf") else f"{bound:.6g}"
            out.append(_series(f"{name}_bucket", (*labels, ("le", le)), running))
        out.append(_series(f"{name}_sum", labels, histogram.total))
        out.append(_series(f"{name}_count", labels, histogram.count))
