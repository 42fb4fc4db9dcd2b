"""After the push: canary, a soak, then promotion or rollback.

The labels are moved by :mod:`serving.rollout` on live servers. While a canary
soaks, the same images go to both versions, and where the server counts errors
by version, its own traffic decides. Only what was seen of the canary is held
against it: more error on enough images, or a failure while the stable version
answers. All else (a server that is away, a full disk) is waited out.

What is under way is part of the watcher's state, the verdict from the moment
that there is one, so that a kill only delays it; it is forgotten when the file
and every server were seen to be right.
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
from pipeline.continuous.job import WatchOptions
from pipeline.continuous.state import State
from serving import contract, errors, locate
from serving.errors import RolloutError, ServingError

if TYPE_CHECKING:
    from serving.locate import ModelFolder
    from serving.rollout import Labels, Rollout

_PROBES = 256
# No verdict from fewer images, probed or served.
_MIN_IMAGES = 100
_TIMEOUT = 10.0
# A canary that could not be compared for that many soaks keeps no run waiting any more.
_PATIENCE = 3
# What a server that starts, stops or is overloaded says of a good version, too.
_OPERATIONAL = (
    errors.ServerUnavailableError,
    errors.DeadlineExceededError,
    errors.ServerBusyError,
    errors.ModelNotFoundError,
)


class UnfitError(ServingError):
    """The canary was seen to fail while the stable version answered."""


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
    """Moves the labels of one servable."""

    def __init__(self, config: PipelineConfig, options: WatchOptions, events: Events) -> None:
        self._config = config
        self._options = options
        self._events = events
        self._root = pathlib.Path(config.root).absolute()

    def begin(self, state: State, version: int) -> None:
        """A version was pushed."""
        state.rollout = {"version": version, "pushed": time.time(), "checks": []}

    def holds(self, state: State) -> bool:
        """Whether no run is to start: a canary soaks that can be compared."""
        return bool(state.rollout) and not state.rollout.get("undecided")

    def seconds_to_check(self, state: State) -> float:
        """Seconds until the next look at the canary, by a clock that nobody sets."""
        own, rollout = self._config.continuous, state.rollout
        if rollout.get("boot") != _boot():
            return 0.0
        interval = min(own.soak_seconds / own.soak_checks, self._options.interval)
        return max(rollout["monotonic"] + interval - time.monotonic(), 0.0)

    def step(self, state: State, save: Callable[[], None]) -> bool:
        """Takes the rollout a step further; whether that changed anything.

        Raises:
          OSError: ``save`` was refused; nothing was moved that is not in the state.
        """
        rollout = state.rollout
        if not rollout or self.seconds_to_check(state) > 0:
            return False
        _tick(rollout)
        try:
            if "verdict" not in rollout:
                self._look(state)
            save()
            if "verdict" in rollout:
                self._carry_out(state)
        except ServingError as e:
            self._wait(rollout, e)
            return False
        for key in ("waiting_since", "undecided"):
            rollout.pop(key, None)
        return True

    def _wait(self, rollout: dict[str, Any], error: ServingError) -> None:
        """Leaves all as it is; tells it once, and once more when it lasts."""
        told = {"version": rollout["version"], "reason": str(error)}
        if "waiting_since" not in rollout:
            rollout["waiting_since"] = rollout["elapsed"]
            self._events.tell("waiting", **told)
        waited = rollout["elapsed"] - rollout["waiting_since"]
        patience = _PATIENCE * max(self._config.continuous.soak_seconds, 60.0)
        if waited >= patience and not rollout.get("undecided"):
            rollout["undecided"] = True
            told["reason"] += "; it goes on when that is mended, runs start meanwhile"
            self._events.tell("undecided", **told)

    def _look(self, state: State) -> None:
        """Begins the soak, or compares once more; leaves a verdict where there is one."""
        from serving.rollout import LoadError

        try:
            if "started" not in state.rollout:
                self._start(state)
            else:
                self._check(state)
        except UnfitError as e:
            state.rollout["verdict"] = {"event": "rolled_back", "reason": str(e)}
        except LoadError as e:
            if e.version != state.rollout["version"]:
                raise
            self._error(state.rollout.get("stable"), self._probes())
            state.rollout["verdict"] = {"event": "rolled_back", "reason": str(e)}

    def _start(self, state: State) -> None:
        version = state.rollout["version"]
        with self._rollout() as rollout:
            older = [number for number in self._folder().versions if number < version]
            labels = rollout.labels
        if labels is None and not older:
            # The first version of all: a server that is not there yet finds the file.
            with self._rollout(live=False) as rollout:
                rollout.canary(version)
            self._end(state, "promoted", "there was none before", version)
            return
        if labels is not None:
            state.rollout["stable"] = labels.stable
        with self._rollout() as rollout:
            labels = rollout.canary(version)
        state.rollout.update(
            started=time.time(),
            soaking_since=state.rollout["elapsed"],
            stable=labels.stable,
            served=self._served(),
        )
        state.serving = labels.stable
        self._events.tell("canary", version=version, stable=labels.stable)

    def _check(self, state: State) -> None:
        rollout, own = state.rollout, self._config.continuous
        with self._rollout() as moving:
            labels = moving.labels
        if labels is None:
            raise RolloutError(f"{locate.config_path(self._root)} has no labels any more")
        if labels.canary != rollout["version"] or labels.stable == rollout["version"]:
            by_hand = f"moved by hand: stable {labels.stable}, canary {labels.canary}"
            event = "promoted" if labels.stable == rollout["version"] else "undecided"
            self._end(state, event, by_hand, labels.stable)
            return
        try:
            found = self.compare(rollout)
        except errors.ModelNotFoundError:
            # A server that was started anew, perhaps; a version that it cannot load is evidence.
            with self._rollout() as moving:
                moving.settle()
            raise
        rollout["checked"] = time.time()
        checks = [*rollout["checks"], found][-max(own.soak_checks, 100) :]
        rollout["checks"] = checks
        ratio = sum(c["canary"] for c in checks) / max(sum(c["stable"] for c in checks), 1e-12)
        if "served_canary" in found and "served_stable" in found:
            ratio = max(ratio, found["served_canary"] / max(found["served_stable"], 1e-12))
        soaked = rollout["elapsed"] - rollout.get("soaking_since", 0.0)
        text = f"errors are {ratio - 1:+.1%} against version {rollout['stable']}'s"
        if not np.isfinite(ratio) or ratio > 1 + own.soak_tolerance:
            raise UnfitError(f"{text} (limit {own.soak_tolerance:+.1%})")
        if len(checks) >= own.soak_checks and soaked >= own.soak_seconds:
            rollout["verdict"] = {"event": "promoted", "reason": text}

    def compare(self, rollout: dict[str, Any]) -> dict[str, float]:
        """Mean error of canary and stable, of served requests where there are enough.

        Raises:
          UnfitError: The canary fails, the stable version answers before and after.
          ServingError: Anything else that keeps them from being compared.
        """
        images = self._probes()
        found = {"stable": self._error(rollout["stable"], images)}
        try:
            found["canary"] = self._error(rollout["version"], images)
        except _OPERATIONAL:
            raise
        except ServingError as e:
            self._error(rollout["stable"], images)
            raise UnfitError(f"the canary does not answer: {e}") from e
        now, before = self._served(), rollout.get("served") or {}
        answered = rollout.setdefault("answered", {})
        for label, version in (("canary", rollout["version"]), ("stable", rollout["stable"])):
            sums = answered.setdefault(str(version), [0.0, 0.0])
            if before and str(version) in now:
                added = prometheus.increase(before.get(str(version)), now[str(version)])
                sums[:] = sums[0] + added[0], sums[1] + added[1]
            if sums[1] >= _MIN_IMAGES:
                found[f"served_{label}"] = sums[0] / sums[1]
        rollout["served"] = now or before
        return found

    def _error(self, version: int | None, images: np.ndarray) -> float:
        """The mean error of a version; of the latest where None."""
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
        folders = [found[1]] if (found := spans.golden(self._root)) is not None else []
        for manifest in spans.newest_versions(spans.scan(self._root))[-1:]:
            folders.append(spans.version_folder(self._root, manifest.span, manifest.version))
        parts = [np.zeros((0, idx.SIDE, idx.SIDE), np.uint8)]
        for folder in folders:
            with contextlib.suppress(OSError, idx.DataError, IndexError):
                path = sorted(folder.glob(f"{idx.SPLIT_PREFIXES['eval']}-{idx.IMAGES}"))[0]
                parts.append(spans.read_images(str(path))[:_PROBES])
        images = np.concatenate(parts)
        if len(images) < _MIN_IMAGES:
            raise ServingError(
                f"{len(images)} evaluation images to compare the versions with, fewer than "
                f"{_MIN_IMAGES}; ingest a larger golden set"
            )
        return images

    def _served(self) -> dict[str, tuple[float, float]]:
        """Sum and count of served errors by version, where the server has them."""
        url = self._options.metrics_url
        return prometheus.served_errors(url, self._config.servable, by_version=True) if url else {}

    def _carry_out(self, state: State) -> None:
        """Does what the verdict says, however far that was done before."""
        version, verdict = state.rollout["version"], state.rollout["verdict"]
        promoting = verdict["event"] == "promoted"
        if not promoting:
            # First: whatever happens to the labels, nothing is trained from it.
            self._withdraw(version)
        with self._rollout() as rollout:
            labels: Labels | None = rollout.labels
            if labels is not None and labels.canary == version != labels.stable:
                labels = rollout.promote() if promoting else rollout.rollback()
            elif labels is not None:
                labels = rollout.settle()
        stable = state.rollout.get("stable") if labels is None else labels.stable
        if not promoting:
            for record in state.spans.values():
                if record.get("pushed_version") == str(version):
                    record["rolled_back"] = verdict["reason"]
        self._end(state, verdict["event"], verdict["reason"], stable)

    def _withdraw(self, version: int) -> None:
        command = [sys.executable, "-m", "pipeline.continuous.withdraw", self._config.root]
        done = subprocess.run([*command, str(version)], capture_output=True, text=True, check=False)
        if done.returncode:
            why = (done.stderr.strip() or f"code {done.returncode}").splitlines()[-1]
            raise ServingError(f"version {version} cannot be withdrawn in ML Metadata: {why}")

    def _end(self, state: State, event: str, reason: str, stable: int | None) -> None:
        version = state.rollout["version"]
        state.rollout = {}
        state.serving = stable if stable is not None else state.serving
        if event != "undecided":
            counter = "promotions" if event == "promoted" else "rollbacks"
            state.counters[counter] = state.counters.get(counter, 0) + 1
        self._events.tell(event, version=version, reason=reason)

    @contextlib.contextmanager
    def _rollout(self, *, live: bool = True) -> Iterator[Rollout]:
        from serving.rollout import ConfigFile, Rollout

        with contextlib.closing(
            Rollout(
                self._folder(),
                ConfigFile(locate.config_path(self._root)),
                target=self._options.target if live else None,
                base_path=self._options.base_path,
            )
        ) as rollout:
            yield rollout

    def _folder(self) -> ModelFolder:
        return locate.find(self._config.servable, self._root)


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
