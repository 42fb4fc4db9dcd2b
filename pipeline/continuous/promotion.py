"""After the push: canary, a soak, then promotion or rollback.

The labels are moved by :mod:`serving.rollout` on a live server. While a canary
soaks, the same images go to both versions, and where the server counts errors
by version, its own traffic decides. What is under way is part of the watcher's
state, so that a kill only delays it.
"""

from __future__ import annotations

import contextlib
import pathlib
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from components.mnist_example_gen import idx
from pipeline.config import PipelineConfig
from pipeline.continuous import prometheus, spans
from pipeline.continuous.events import Events
from pipeline.continuous.state import State
from pipeline.continuous.watch_options import WatchOptions
from serving import contract, locate
from serving.errors import RolloutError, ServingError

if TYPE_CHECKING:
    from serving.locate import ModelFolder
    from serving.rollout import Rollout

_PROBES = 256
_MIN_SERVED = 100
_TIMEOUT = 10.0
# A canary that could not be compared for that many soaks is left where it is.
_PATIENCE = 3


def _boot() -> str:
    """Tells apart the times since which ``time.monotonic`` counts; it is one for all processes."""
    try:
        return pathlib.Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return "unknown"


def _tick(rollout: dict[str, Any]) -> None:
    """Adds the time since the last look; a clock that is set, or a reboot, adds nothing."""
    now, boot = time.monotonic(), _boot()
    since = now - rollout["monotonic"] if rollout.get("boot") == boot else 0.0
    rollout.update(elapsed=rollout.get("elapsed", 0.0) + since, monotonic=now, boot=boot)


class Promotion:
    """Moves the labels of one servable.

    Args:
      config: Of the runs.
      options: Where the server is.
      events: Told what happens.
    """

    def __init__(self, config: PipelineConfig, options: WatchOptions, events: Events) -> None:
        self._config = config
        self._options = options
        self._events = events

    def begin(self, state: State, version: int) -> None:
        """A version was pushed."""
        state.rollout = {"version": version, "pushed": time.time(), "checks": []}

    def seconds_to_check(self, state: State) -> float:
        """Seconds until the next look at the canary, by a clock that nobody sets."""
        own, rollout = self._config.continuous, state.rollout
        if rollout.get("boot") != _boot():
            return 0.0
        interval = min(own.soak_seconds / own.soak_checks, self._options.interval)
        return max(rollout["monotonic"] + interval - time.monotonic(), 0.0)

    def step(self, state: State, save: Callable[[], None]) -> bool:
        """Takes the rollout a step further; whether that changed anything."""
        rollout = state.rollout
        if not rollout or self.seconds_to_check(state) > 0:
            return False
        _tick(rollout)
        try:
            if "started" not in rollout:
                return self._start(state, save)
            return self._check(state)
        except RolloutError as e:
            self._roll_back(state, str(e))
            return True
        except ServingError as e:
            if not rollout.get("complained"):
                rollout["complained"] = True
                self._events.tell(
                    "waiting", version=rollout["version"], reason=f"the server does not answer: {e}"
                )
            if rollout["elapsed"] > _PATIENCE * max(self._config.continuous.soak_seconds, 60.0):
                self._events.tell(
                    "undecided",
                    version=rollout["version"],
                    reason="the server did not answer; move the labels with 'mnist-ae rollout'",
                )
                state.rollout = {}
                return True
            return False

    def _start(self, state: State, save: Callable[[], None]) -> bool:
        version = state.rollout["version"]
        with self._rollout(self._options.target) as rollout:
            older = [number for number in self._folder().versions if number < version]
            first = rollout.labels is None and not older
        # The first version of all: a server that is not there yet finds the file.
        with self._rollout(None if first else self._options.target) as rollout:
            labels = rollout.canary(version)
        if labels.canary == labels.stable:
            self._events.tell("promoted", version=version, reason="there was none before")
            state.counters["promotions"] = state.counters.get("promotions", 0) + 1
            state.rollout, state.serving = {}, version
            return True
        state.rollout.update(
            started=time.time(),
            soaking_since=state.rollout["elapsed"],
            stable=labels.stable,
            served=self._served(),
            complained=False,
        )
        state.serving = labels.stable
        self._events.tell("canary", version=version, stable=labels.stable)
        save()
        return True

    def _check(self, state: State) -> bool:
        rollout, own = state.rollout, self._config.continuous
        found = self.compare(rollout)
        rollout["checked"] = time.time()
        rollout["checks"] = [*rollout["checks"], found][-max(own.soak_checks, 100) :]
        ratio = sum(c["canary"] for c in rollout["checks"]) / max(
            sum(c["stable"] for c in rollout["checks"]), 1e-12
        )
        if "served_canary" in found and "served_stable" in found:
            ratio = max(ratio, found["served_canary"] / max(found["served_stable"], 1e-12))
        soaked = rollout["elapsed"] - rollout.get("soaking_since", 0.0)
        text = f"errors are {ratio - 1:+.1%} against version {rollout['stable']}'s"
        if not np.isfinite(ratio) or ratio > 1 + own.soak_tolerance:
            self._roll_back(state, f"{text} (limit {own.soak_tolerance:+.1%})")
        elif len(rollout["checks"]) >= own.soak_checks and soaked >= own.soak_seconds:
            self._promote(state, text)
        return True

    def compare(self, rollout: dict[str, Any]) -> dict[str, float]:
        """Mean error of canary and stable, of served requests where there are enough."""
        served, before = self._served(), rollout.get("served") or {}
        means = {}
        for label, version in (("canary", rollout["version"]), ("stable", rollout["stable"])):
            total, count = served.get(str(version), (0.0, 0.0))
            old_total, old_count = before.get(str(version), (0.0, 0.0))
            if count - old_count >= _MIN_SERVED:
                means[label] = (total - old_total) / (count - old_count)
        probed = self._probe(rollout)
        return {**probed, **{f"served_{label}": mean for label, mean in means.items()}}

    def _probe(self, rollout: dict[str, Any]) -> dict[str, float]:
        """The same images to both versions."""
        images = self._probes()
        stable = self._error(rollout["stable"], images)
        try:
            canary = self._error(rollout["version"], images)
        except ServingError as e:
            # The server answers for the other version.
            raise RolloutError(f"the canary does not answer: {e}") from e
        return {"canary": canary, "stable": stable}

    def _error(self, version: int, images: np.ndarray) -> float:
        from serving.client import ReconstructionClient

        with ReconstructionClient(
            str(self._options.target),
            model=self._config.servable,
            version=version,
            timeout=_TIMEOUT,
        ) as client:
            answers = [
                # Not `score`: the server counts the errors of users' requests.
                client.call(contract.EVALUATE, {contract.EXAMPLES: part}, (contract.MSE,))
                for part in np.array_split(_examples(images), max(1, len(images) // _PROBES))
            ]
            return float(np.concatenate([a[contract.MSE] for a in answers]).mean())

    def _probes(self) -> np.ndarray:
        """Evaluation images of the golden set and of the newest span."""
        folders = []
        golden = spans.golden(self._config.root)
        if golden is not None:
            folders.append(golden[1])
        for manifest in spans.newest_versions(spans.scan(self._config.root))[-1:]:
            root = self._config.root
            folders.append(spans.version_folder(root, manifest.span, manifest.version))
        parts = []
        for folder in folders:
            with contextlib.suppress(OSError, idx.DataError, IndexError):
                path = next(iter(sorted(folder.glob(f"{idx.SPLIT_PREFIXES['eval']}-{idx.IMAGES}"))))
                parts.append(spans.read_images(str(path))[:_PROBES])
        if not parts:
            raise ServingError("there are no images to compare the versions with")
        return np.concatenate(parts)

    def _served(self) -> dict[str, tuple[float, float]]:
        """Sum and count of served errors by version, where the server has them."""
        url = self._options.metrics_url
        return prometheus.served_errors(url, self._config.servable, by_version=True) if url else {}

    def _promote(self, state: State, reason: str) -> None:
        version = state.rollout["version"]
        with self._rollout(self._options.target) as rollout:
            labels = rollout.labels
            if labels is not None and labels.stable != version:
                rollout.promote()
        state.rollout, state.serving = {}, version
        state.counters["promotions"] = state.counters.get("promotions", 0) + 1
        self._events.tell("promoted", version=version, reason=reason)

    def _roll_back(self, state: State, reason: str) -> None:
        version = state.rollout["version"]
        # Withdrawn first: whatever happens to the labels, nothing is trained from it.
        subprocess.run(
            [sys.executable, "-m", "pipeline.continuous.withdraw", self._config.root, str(version)],
            check=False,
            capture_output=True,
        )
        with contextlib.suppress(ServingError), self._rollout(self._options.target) as rollout:
            labels = rollout.labels
            if labels is not None and labels.canary == version != labels.stable:
                rollout.rollback()
        state.serving = state.rollout.get("stable", state.serving)
        state.rollout = {}
        state.counters["rollbacks"] = state.counters.get("rollbacks", 0) + 1
        for record in state.spans.values():
            if record.get("pushed_version") == str(version):
                record["rolled_back"] = reason
        self._events.tell("rolled_back", version=version, reason=reason)

    @contextlib.contextmanager
    def _rollout(self, target: str | None) -> Iterator[Rollout]:
        from serving.rollout import ConfigFile, Rollout

        file = ConfigFile(locate.config_path(pathlib.Path(self._config.root).absolute()))
        base_path = self._options.base_path
        with contextlib.closing(
            Rollout(self._folder(), file, target=target, base_path=base_path)
        ) as rollout:
            yield rollout

    def _folder(self) -> ModelFolder:
        return locate.find(self._config.servable, pathlib.Path(self._config.root).absolute())


def _examples(images: np.ndarray) -> np.ndarray:
    """Images as serialized tf.Examples, object [n]."""
    from serving import protos

    rows = np.empty(len(images), object)
    for i, image in enumerate(images):
        example = protos.Example()
        feature = example.features.feature[contract.IMAGE_FEATURE]
        feature.bytes_list.value.append(image.tobytes())
        rows[i] = example.SerializeToString()
    return rows
