"""The closed loop: images that clients sampled become a span.

A client leaves ``*.npy`` files in ``<root>/samples`` (``--sample-fraction`` of
``mnist-ae predict`` and the others, :mod:`serving.sampling`). Here they are
gathered until they are enough for a span. A rising served reconstruction error
makes it a smaller one, one at a time.
"""

from __future__ import annotations

import os
import pathlib
import shutil

import numpy as np

from pipeline.config import PipelineConfig
from pipeline.continuous import prometheus, spans
from pipeline.continuous.events import Events
from pipeline.continuous.job import WatchOptions
from pipeline.continuous.state import OPEN, State
from serving import locate

_BATCH = ".batch"
_NONE = np.zeros((0, 28, 28), np.uint8)
# Fewer answers since the last reading say nothing.
_MIN_ANSWERS = 100
# A rising error makes a span of that part of the images that one has else, and no smaller one
# than that many: a tenth of them is what the new model is judged on.
_TRIGGERED_PART, _MIN_TRIGGERED = 4, 100


class ServedImages:
    """Makes spans of sampled requests."""

    def __init__(self, config: PipelineConfig, options: WatchOptions, events: Events) -> None:
        self._config = config
        self._options = options
        self._events = events
        self._folder = locate.samples_path(pathlib.Path(os.path.abspath(config.root)))
        self._silent = False

    def step(self, state: State) -> spans.Published | None:
        """One look; gives the span that was made, if one was."""
        if self._options.metrics_url:
            self._read_errors(state, self._options.metrics_url)
        batch = self._folder / _BATCH
        if not batch.is_dir():
            try:
                names = sorted(n for n in os.listdir(self._folder) if n.endswith(".npy"))
            except OSError:
                return None
            files = [self._folder / name for name in names if name[0] != "."]
            count = sum(len(_open(path)) for path in files)
            wanted = max(self._config.continuous.sample_images, spans.MIN_IMAGES)
            if state.served.get("rising") and not self._under_way(state):
                wanted = min(wanted, max(_MIN_TRIGGERED, wanted // _TRIGGERED_PART))
            if count < wanted:
                return None
            # Set aside first: after a kill the same images make the same span,
            # which is then known by its digest.
            aside = self._folder / f"{_BATCH}.new"
            shutil.rmtree(aside, ignore_errors=True)
            aside.mkdir()
            for path in files:
                os.link(path, aside / path.name)
            aside.rename(batch)
        images = np.concatenate([_NONE, *(_open(path) for path in sorted(batch.iterdir()))])
        done = None
        if len(images) >= spans.MIN_IMAGES:
            source = {"kind": "served", "images": str(self._folder)}
            done = spans.publish(self._config.root, images, None, source=source)
        for path in batch.iterdir():
            (self._folder / path.name).unlink(missing_ok=True)
        shutil.rmtree(batch, ignore_errors=True)
        return done

    def _under_way(self, state: State) -> bool:
        """Whether a span of served requests, or the model of one, is yet to be decided on."""
        served = [m for m in spans.scan(self._config.root) if m.source.get("kind") == "served"]
        return bool(state.rollout) or any(state.status(m.key) in OPEN for m in served)

    def _read_errors(self, state: State, url: str) -> None:
        """Notes whether the errors served since the last reading are above the limit."""
        found = prometheus.served_errors(url, self._config.servable)
        if not found:
            if not self._silent:
                reason = f"{url} does not answer, or counts no errors: only `mnist-ae serve` does"
                self._events.tell("no_served_errors", reason=reason)
            self._silent = True
            return
        self._silent = False
        before = state.served
        total, answers = prometheus.increase(
            (before["sum"], before["count"]) if before else None, found[""]
        )
        if answers < _MIN_ANSWERS:
            return
        state.served = {"sum": found[""][0], "count": found[""][1]}
        usual = state.gauges.get("golden_mse") or _last_golden(state)
        if not usual:
            return
        ratio = total / answers / usual
        state.gauges["served_error_ratio"] = ratio
        limit = self._config.continuous.max_served_ratio
        if ratio > limit:
            state.served["rising"] = True
            if not before.get("rising"):
                self._events.tell(
                    "served_error",
                    ratio=round(ratio, 3),
                    reason=f"served errors are {ratio:.2f} times the golden set's (limit "
                    f"{limit:g})",
                )


def _last_golden(state: State) -> float | None:
    pushed = [r for r in state.spans.values() if r.get("status") == "pushed" and r.get("golden")]
    return max(pushed, key=lambda r: r.get("decided", 0))["golden"]["after"] if pushed else None


def _open(path: pathlib.Path) -> np.ndarray:
    """The images in a file, read when they are used; none where it holds none."""
    try:
        images = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError):
        images = _NONE
    good = isinstance(images, np.ndarray) and images.dtype == np.uint8
    return images if good and images.shape[1:] == (28, 28) else _NONE
