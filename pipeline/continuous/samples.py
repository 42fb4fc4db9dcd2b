"""The closed loop: images that clients sampled become a span.

A client leaves ``*.npy`` files in ``<root>/samples`` (``--sample-fraction`` of
``mnist-ae predict`` and the others, :mod:`serving.sampling`). Here they are
gathered until they are enough for a span, or until the served reconstruction
error says that it is time.
"""

from __future__ import annotations

import os
import pathlib
import shutil
import time

import numpy as np

from pipeline.config import PipelineConfig
from pipeline.continuous import prometheus, spans
from pipeline.continuous.events import Events
from pipeline.continuous.state import State
from pipeline.continuous.watch_options import WatchOptions
from serving import locate

_BATCH = ".batch"
# Fewer answers since the last look say nothing.
_MIN_ANSWERS = 100


class ServedImages:
    """Makes spans of sampled requests.

    Args:
      config: Of the runs.
      options: Where the server's metrics are.
      events: Told about a rising error.
    """

    def __init__(self, config: PipelineConfig, options: WatchOptions, events: Events) -> None:
        self._config = config
        self._options = options
        self._events = events
        self._folder = locate.samples_path(pathlib.Path(os.path.abspath(config.root)))

    def step(self, state: State) -> spans.Published | None:
        """One look; gives the span that was made, if one was."""
        url = self._options.metrics_url
        rising = self._error_rises(state, url) if url else False
        batch = self._folder / _BATCH
        if not batch.is_dir():
            try:
                names = sorted(n for n in os.listdir(self._folder) if n.endswith(".npy"))
            except OSError:
                return None
            files = [self._folder / name for name in names if name[0] != "."]
            count = sum(_count(path) for path in files)
            wanted = self._config.continuous.sample_images
            if count < (spans.MIN_IMAGES if rising else wanted):
                return None
            # Set aside first: after a kill the same images make the same span,
            # which is then known by its digest.
            aside = self._folder / f"{_BATCH}.new"
            shutil.rmtree(aside, ignore_errors=True)
            aside.mkdir()
            for path in files:
                os.link(path, aside / path.name)
            aside.rename(batch)
        images = [image for path in sorted(batch.iterdir()) if (image := _read(path)) is not None]
        done = None
        if images and sum(map(len, images)) >= spans.MIN_IMAGES:
            done = spans.publish(
                self._config.root,
                np.concatenate(images),
                None,
                source={"kind": "served", "images": str(self._folder)},
            )
        for path in batch.iterdir():
            (self._folder / path.name).unlink(missing_ok=True)
        shutil.rmtree(batch, ignore_errors=True)
        return done

    def _error_rises(self, state: State, url: str) -> bool:
        """Whether the errors served since the last look are above the limit."""
        found = prometheus.served_errors(url, self._config.servable)
        if not found:
            return False
        total, count = found[""]
        now = {"sum": total, "count": count, "time": time.time()}
        before = state.served
        answers = count - before.get("count", 0.0)
        if answers < 0:
            # The server was started anew.
            state.served = now
            return False
        if answers < _MIN_ANSWERS:
            return False
        mean = (total - before.get("sum", 0.0)) / answers
        state.served = now
        usual = state.gauges.get("golden_mse") or _last_golden(state)
        if not usual:
            return False
        ratio = mean / usual
        state.gauges["served_error_ratio"] = ratio
        limit = self._config.continuous.max_served_ratio
        if ratio <= limit:
            return False
        self._events.tell(
            "served_error",
            ratio=round(ratio, 3),
            reason=f"served errors are {ratio:.2f} times the golden set's (limit {limit:g})",
        )
        return True


def _last_golden(state: State) -> float | None:
    pushed = [r for r in state.spans.values() if r.get("status") == "pushed" and r.get("golden")]
    return max(pushed, key=lambda r: r.get("decided", 0))["golden"]["after"] if pushed else None


def _count(path: pathlib.Path) -> int:
    """Images in a file, from its header."""
    try:
        with open(path, "rb") as f:
            version = np.lib.format.read_magic(f)
            if version != (1, 0):
                return 0
            shape, _, _ = np.lib.format.read_array_header_1_0(f)
    except (OSError, ValueError):
        return 0
    return int(shape[0]) if len(shape) == 3 else 0


def _read(path: pathlib.Path) -> np.ndarray | None:
    try:
        images = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return None
    if images.dtype != np.uint8 or images.shape[1:] != (28, 28):
        return None
    return images
