"""The watcher's figures for Prometheus, over HTTP and as a text file, and a server's.

Everything is read from the state, so that ``watch --once`` in cron shows the
same as a watcher that runs for months; the text file is for node_exporter's
textfile collector.
"""

from __future__ import annotations

import collections
import os
import pathlib
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from prometheus_client import CollectorRegistry, start_http_server, write_to_textfile
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.parser import text_string_to_metric_families

from pipeline.continuous.state import State

TEXT_FILE = "metrics.prom"
_PREFIX = "mnist_ae_watch_"
_TIMEOUT = 10.0


class Collector:
    """Turns the state into metrics whenever it is asked."""

    def __init__(self, state: Callable[[], State]) -> None:
        self._state = state

    def collect(self) -> Iterator[Any]:
        """The metrics, as prometheus_client asks for them."""
        state = self._state()
        spans = GaugeMetricFamily(_PREFIX + "spans", "Spans by status", labels=["status"])
        counts = collections.Counter(map(state.status, list(state.spans)))
        for status, count in sorted(counts.items()):
            spans.add_metric([status], count)
        yield spans
        for name, text in (
            ("wakeups", "Looks at the spans"),
            ("runs", "Runs that were started"),
            ("run_errors", "Runs that failed through no span's fault"),
            ("promotions", "Canaries that were promoted"),
            ("rollbacks", "Canaries that were rolled back"),
        ):
            yield CounterMetricFamily(_PREFIX + name, text, value=state.counters.get(name, 0))
        for name, text in (
            ("last_wakeup_timestamp_seconds", "When the spans were last looked at"),
            ("last_run_timestamp_seconds", "When a run last ended"),
            ("last_run_seconds", "How long it took"),
            ("golden_mse", "Loss of the last blessed model on the golden set"),
            ("served_error_ratio", "Served reconstruction error, relative to the golden set's"),
            ("run_under_way", "Whether a run is under way"),
            ("soaking", "Whether a canary is being compared"),
        ):
            value = state.gauges.get(name)
            if value is not None:
                yield GaugeMetricFamily(_PREFIX + name, text, value=value)
        if state.serving is not None:
            text = "Version that callers of stable get"
            yield GaugeMetricFamily(_PREFIX + "serving_version", text, value=state.serving)
        seen = state.gauges.get("last_wakeup_timestamp_seconds")
        if seen is not None:
            yield GaugeMetricFamily(
                _PREFIX + "seconds_since_wakeup", "Age of the last look", value=time.time() - seen
            )


def served_errors(
    url: str, servable: str, *, by_version: bool = False
) -> dict[str, tuple[float, float]]:
    """Sum and count of the reconstruction errors that a server has answered with.

    Args:
      url: The server's metrics.

    Returns:
      By version, or under "" for all; empty where the server does not say.
    """
    name = f"mnist_ae:serving:{'version_' if by_version else ''}reconstruction_error"
    try:
        with urllib.request.urlopen(url, timeout=_TIMEOUT) as answer:
            families = list(text_string_to_metric_families(answer.read().decode()))
    except (OSError, ValueError):
        return {}
    found: dict[str, dict[str, float]] = {"sum": {}, "count": {}}
    for sample in (sample for family in families for sample in family.samples):
        series, _, kind = sample.name.rpartition("_")
        if sample.labels.get("model_name") == servable and series == name and kind in found:
            found[kind][sample.labels.get("version", "")] = sample.value
    return {v: (found["sum"].get(v, 0.0), count) for v, count in found["count"].items()}


def increase(before: Sequence[float] | None, now: tuple[float, float]) -> tuple[float, float]:
    """What was added to sum and count since a reading; where one fell, the server began anew."""
    if before is None or now[1] < before[1] or now[0] < before[0]:
        return now
    return now[0] - before[0], now[1] - before[1]


def registry(state: Callable[[], State]) -> CollectorRegistry:
    """A registry with the watcher's figures alone."""
    found = CollectorRegistry()
    found.register(Collector(state))  # type: ignore[arg-type]
    return found


def write_text(found: CollectorRegistry, folder: pathlib.Path) -> None:
    """Writes the text file, in one step; a full disk is no reason to end."""
    try:
        write_to_textfile(str(folder / TEXT_FILE), found)
    except OSError:
        for left in folder.glob(f"{TEXT_FILE}.*"):
            left.unlink(missing_ok=True)


def serve(found: CollectorRegistry, port: int) -> Any:
    """Serves the figures on ``port`` of this machine, from a thread.

    Raises:
      OSError: The port is taken.
    """
    host = os.environ.get("MNIST_AE_METRICS_HOST", "127.0.0.1")
    return start_http_server(port, addr=host, registry=found)
