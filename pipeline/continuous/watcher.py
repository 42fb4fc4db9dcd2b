"""The watcher: looks at the spans, runs the pipeline, remembers what came of it.

It never imports TFX. A look at the spans costs milliseconds; a run is a process
of its own (:mod:`pipeline.continuous.runner`). Whatever is killed, the next
look finds the state as it was before the step, and repeating a step changes
nothing that was done: runs are answered from the cache, pushes know their
origin.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import pathlib
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from pipeline.config import PipelineConfig
from pipeline.continuous import prometheus, samples, spans, story
from pipeline.continuous import state as state_lib
from pipeline.continuous.events import Events
from pipeline.continuous.job import EXIT_BUSY, EXIT_NO_SPACE, RunnerJob, WatchOptions
from pipeline.continuous.promotion import Promotion
from pipeline.errors import UserError
from serving import files

_LOCK = ".lock"
_JOB_FILE = "job.json"
_RESULT_FILE = "result.json"
_SETTLE_SECONDS = 0.5
_MAX_SETTLE_SECONDS = 5.0
_MAX_PAUSE_SECONDS = 3_600.0
_MAX_DOUBLINGS = 30
# A run that is told to stop has this long before it is killed.
_STOP_SECONDS = 10.0
# Statuses that put a span's images into windows.
_USED = (state_lib.PUSHED, state_lib.REFUSED, state_lib.COALESCED, state_lib.SUBMITTED)


@contextlib.contextmanager
def watching(root: str) -> Iterator[bool]:
    """Keeps other watchers out of a root; gives False where one is at work there.

    Raises:
      UserError: The folder cannot be written.
    """
    folder = state_lib.folder_of(root)
    with contextlib.ExitStack() as stack:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            stack.enter_context(files.locked(folder / _LOCK, wait=False))
            alone = True
        except files.LockedError:
            alone = False
        except OSError as e:
            raise UserError(f"{folder}: cannot be written ({e.strerror})") from None
        yield alone


def owner(root: str) -> int | None:
    """The process that watches a root, or None; asking keeps no watcher out."""
    return files.lock_owner(state_lib.folder_of(root) / _LOCK)


def status(root: str) -> dict[str, Any]:
    """What the watcher of a root is doing, as plain data.

    Returns:
      ``root``, ``process`` (or None), ``run_under_way``, ``waiting`` (spans),
      ``set_aside`` (span to reason), ``window``, ``rollout``, ``serving``
      (version), ``paused_until`` (Unix time, or None), ``last`` (decision).
    """
    known = state_lib.read(root)
    process = owner(root)
    statuses = {m.key: known.status(m.key) for m in spans.newest_versions(spans.scan(root))}
    aside = (state_lib.QUARANTINED, state_lib.FAILED)
    return {
        "root": root,
        "process": process,
        "run_under_way": bool(process and known.gauges.get("run_under_way")),
        "waiting": [key for key, status in statuses.items() if status in state_lib.OPEN],
        "set_aside": {
            key: known.spans[key].get("reason", "")
            for key, status in statuses.items()
            if status in aside
        },
        "window": known.window,
        "rollout": known.rollout,
        "serving": known.serving,
        "paused_until": known.paused_until or None,
        "last": story.last(known),
    }


class Watcher:
    """Decides what to do next, and does it.

    Args:
      runner: The command that a job's file is appended to; for tests.
    """

    def __init__(
        self,
        config: PipelineConfig,
        options: WatchOptions,
        events: Events,
        runner: Sequence[str] | None = None,
    ) -> None:
        module = "runner" if options.submit is None else "sensor"
        self._runner = runner or (sys.executable, "-m", f"pipeline.continuous.{module}")
        self.config = config
        self.options = options
        self.root = os.path.abspath(config.root)
        self.folder = state_lib.folder_of(self.root)
        self.state = state_lib.read(self.root)
        self.state.gauges["run_under_way"] = 0
        self.stopping = threading.Event()
        self._events = events
        self._child: subprocess.Popen[bytes] | None = None
        self._registry = prometheus.registry(lambda: self.state)
        self._promotion = Promotion(config, options, events) if options.auto_promote else None
        self._samples = samples.ServedImages(config, options, events)
        self._written: dict[str, Any] = {}
        # What the disk refused at the last look, as an event.
        self._trouble: str | None = None

    # The life of a watcher.

    def once(self) -> int:
        """Does all that is due now.

        Returns:
          0, or 1 where a run failed through no span's fault.
        """
        errors = self.state.counters.get("run_errors", 0)
        while not self.stopping.is_set() and self.look():
            pass
        return int(self.state.counters.get("run_errors", 0) > errors)

    def watch(self) -> None:
        """Looks and works until it is told to stop."""
        self._events.tell("started", process=os.getpid(), root=self.root)
        if self.options.metrics_port is not None:
            try:
                prometheus.serve(self._registry, self.options.metrics_port)
            except OSError as e:
                raise UserError(
                    f"cannot listen on port {self.options.metrics_port} ({e.strerror}); "
                    "choose another --metrics-port"
                ) from None
        with _file_events(spans.folder_of(self.root), self.folder) as news:
            while not self.stopping.is_set():
                news.clear()
                if not self.look():
                    self._wait(news)
        self._events.tell("stopped")

    def stop(self) -> None:
        """Ends the watch soon; a run under way is ended and repeated next time."""
        self.stopping.set()
        child = self._child
        if child is not None and child.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGTERM)

    def look(self) -> bool:
        """:meth:`wake_up`, where the disk may refuse anything at any time.

        That is waited out, with growing pauses, and told once. What was decided
        in the meantime is kept in memory and written later.
        """
        errors = self.state.errors
        try:
            worked = self.wake_up()
        except (OSError, UserError) as e:
            self.state.gauges["run_under_way"] = 0
            event = "disk_full" if files.is_disk_full(e) else "run_error"
            self._pause(event, str(e), tell=self._trouble != event)
            self._trouble = event
            return False
        if self._trouble is not None and self.state.errors == errors:
            self.state.errors, self.state.paused_until = 0, 0.0
        self._trouble = None
        return worked

    def wake_up(self) -> bool:
        """One look, and one step where there is something to do.

        Returns:
          Whether something was done, so that it is worth looking again at once.
        """
        self._count("wakeups")
        self.state.gauges["last_wakeup_timestamp_seconds"] = time.time()
        self._take_samples()
        manifests = spans.scan(self.root)
        self._take_notice(manifests)
        worked = False
        if self._promotion is not None:
            worked = self._promotion.step(self.state, self.save)
        held = self._promotion is not None and self._promotion.holds(self.state)
        if not worked and not held and not self._paused():
            batch = self._due(manifests)
            if batch:
                worked = self._run(batch)
        self.state.gauges["soaking"] = float(bool(self.state.rollout))
        self.save()
        prometheus.write_text(self._registry, self.folder)
        return worked

    def save(self, *, whole: bool = False) -> None:
        """Writes the state, where it says anything new; ``whole``: in any case."""
        values = dataclasses.asdict(self.state)
        for kept in ("counters", "gauges"):
            # They change at every look and may be lost.
            values.pop(kept)
        if values == self._written and not whole:
            return
        state_lib.write(self.root, self.state)
        self._written = json.loads(json.dumps(values))

    # What there is to do.

    def _take_notice(self, manifests: list[spans.Manifest]) -> None:
        state = self.state
        for manifest in manifests:
            if manifest.key not in state.spans:
                state.spans[manifest.key] = {"status": state_lib.NEW}
                self._events.tell(
                    "arrived",
                    span=manifest.key,
                    images=manifest.count,
                    labelled=manifest.labelled,
                    digest=manifest.digest[:12],
                    source=manifest.source.get("kind"),
                )
        newest = {m.span: m.version for m in spans.newest_versions(manifests)}
        for manifest in manifests:
            replaced = manifest.version < newest[manifest.span]
            undone = (*state_lib.OPEN, state_lib.FAILED, state_lib.QUARANTINED)
            if replaced and state.status(manifest.key) in undone:
                reason = f"replaced by version {newest[manifest.span]}"
                self._decide(manifest.key, state_lib.SUPERSEDED, reason)
        gaps = [list(gap) for gap in spans.gaps(manifests)]
        for gap in gaps:
            if gap not in state.seen_gaps:
                text = spans.gap_text(*gap)
                self._events.tell("gap", span=text, reason=f"there is no span {text}")
        state.seen_gaps = gaps
        broken = [str(path) for path in spans.unpublished(self.root)]
        for path in broken:
            if path not in state.seen_unpublished:
                self._events.tell("ignored", reason=f"{path} has no {spans.MANIFEST}")
        state.seen_unpublished = broken
        for key in state_lib.accepted(self.root):
            if state.status(key) in state_lib.SET_ASIDE:
                record = state.spans[key]
                times = record.get("accepted", 0) + 1
                record.update(status=state_lib.NEW, accepted=times, tries=0, reason="")
                self._events.tell("accepted", span=key)
                self.save()
            state_lib.forget_acceptance(self.root, key)

    def _due(self, manifests: list[spans.Manifest]) -> list[spans.Manifest]:
        """The next spans to look at together: as many as a window holds."""
        used = {
            int(key.split(".")[0])
            for key, record in self.state.spans.items()
            if record.get("status") in _USED and not record.get("harmful")
        }
        due = []
        for manifest in spans.newest_versions(manifests):
            record = self.state.spans[manifest.key]
            if self.state.status(manifest.key) not in state_lib.OPEN:
                continue
            if _seconds_until(record.get("next_try", 0), record.get("pause")) > 0:
                continue
            later = sum(number > manifest.span for number in used)
            if later >= self.config.continuous.window and not record.get("accepted"):
                reason = "nothing to do: it is older than the window"
                self._decide(manifest.key, state_lib.SKIPPED, reason)
                continue
            due.append(manifest)
        return due[: self.config.continuous.window]

    def _decide(self, key: str, status: str, reason: str) -> None:
        """Settles a span without a run."""
        self.state.spans[key].update(status=status, reason=reason)
        self._events.tell(status, span=key, reason=reason)

    def _wait(self, news: threading.Event) -> None:
        """Sleeps until there is news, a retry is due, or the interval is over."""
        pauses = [self.options.interval]
        pauses += [
            _seconds_until(record["next_try"], record.get("pause"))
            for record in self.state.spans.values()
            if record.get("status") == state_lib.RETRY and "next_try" in record
        ]
        if self._paused():
            pauses.append(_seconds_until(self.state.paused_until))
        if self._promotion is not None and self.state.rollout:
            pauses.append(self._promotion.seconds_to_check(self.state))
        if self._trouble is not None:
            # News would be met by the same refusal.
            pauses = [_seconds_until(self.state.paused_until)]
        end = time.monotonic() + max(min(pauses), 0.05)
        while not self.stopping.is_set() and time.monotonic() < end:
            if not news.wait(min(0.5, max(end - time.monotonic(), 0.01))):
                continue
            if self._trouble is not None:
                self.stopping.wait(0.5)
                continue
            settled = time.monotonic() + _MAX_SETTLE_SECONDS
            while news.is_set() and time.monotonic() < settled:
                # A burst is one piece of news.
                news.clear()
                self.stopping.wait(_SETTLE_SECONDS)
            return

    def _take_samples(self) -> None:
        done = self._samples.step(self.state)
        if done is not None and not done.duplicate:
            self._events.tell(
                "sampled",
                span=done.manifest.key,
                images=done.manifest.count,
                reason="requests that were served",
            )

    # Runs.

    def _run(self, batch: list[spans.Manifest]) -> bool:
        """Runs the pipeline for a batch; whether it is worth looking again at once."""
        keys = [manifest.key for manifest in batch]
        known = {key: self.state.spans[key] for key in keys}
        result_path = self.folder / _RESULT_FILE
        result_path.unlink(missing_ok=True)
        job = RunnerJob(
            options=self.options,
            batch=keys,
            accepted={key: r["accepted"] for key, r in known.items() if r.get("accepted")},
            result=str(result_path),
            run_ids={key: r["started"] for key, r in known.items() if r.get("started")},
        )
        logs = pathlib.Path(self.root) / "logs"
        job.write(self.folder / _JOB_FILE)
        logs.mkdir(parents=True, exist_ok=True)
        log_path = logs / f"watch-{time.strftime('%Y%m%d-%H%M%S')}-{keys[-1]}.log"
        with open(log_path, "ab") as log:
            self._count("runs")
            self.state.gauges["run_under_way"] = 1
            # Before the run, so that a kill finds what was noticed, and `status` the run.
            self.save(whole=True)
            prometheus.write_text(self._registry, self.folder)
            self._events.tell("run", spans=" ".join(keys), log=str(log_path))
            started = time.monotonic()
            code = self._call(self.folder / _JOB_FILE, log)
        self.state.gauges["run_under_way"] = 0
        self.state.gauges["last_run_timestamp_seconds"] = time.time()
        self.state.gauges["last_run_seconds"] = time.monotonic() - started
        return self._conclude(keys, code, result_path, log_path)

    def _call(self, job: pathlib.Path, log: Any) -> int:
        command = [*self._runner, str(job)]
        # A session of its own: Ctrl-C at the terminal comes here alone.
        self._child = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
        )
        try:
            while not self.stopping.is_set():
                with contextlib.suppress(subprocess.TimeoutExpired):
                    return self._child.wait(timeout=0.2)
            self.stop()
            try:
                return self._child.wait(timeout=_STOP_SECONDS)
            except subprocess.TimeoutExpired:
                os.killpg(self._child.pid, signal.SIGKILL)
                return self._child.wait()
        finally:
            self._child = None

    def _conclude(
        self, keys: list[str], code: int, result_path: pathlib.Path, log_path: pathlib.Path
    ) -> bool:
        try:
            result = json.loads(result_path.read_bytes())
        except (OSError, ValueError):
            result = {"outcomes": {}, "current": None, "window": [], "done": False}
        outcomes = result["outcomes"]
        if code == EXIT_BUSY:
            self._events.tell("busy", reason="another run is at work in this root")
            self.state.paused_until = time.time() + min(self.options.interval, 5.0)
            return False
        if not result["done"]:
            # A span that waited for the run of its batch was not trained on yet.
            waiting = state_lib.COALESCED
            outcomes = {k: o for k, o in outcomes.items() if o.get("status") != waiting}
        for key, outcome in outcomes.items():
            self.state.spans.setdefault(key, {}).pop("started", None)
            self._settle(key, outcome)
        for key, run_id in result.get("run_ids", {}).items():
            if self.state.status(key) in state_lib.OPEN:
                self.state.spans.setdefault(key, {})["started"] = run_id
        if result["window"]:
            self.state.window = result["window"]
        if result["done"]:
            self.state.errors, self.state.paused_until = 0, 0.0
        elif self.stopping.is_set():
            self._events.tell("interrupted", reason="the run goes on from there next time")
        elif code < 0 and result["current"]:
            reason = f"the run was killed by signal {-code}"
            self._settle(result["current"], {"status": "error", "reason": reason})
        elif code == EXIT_NO_SPACE:
            self._pause("disk_full", f"no space left on the disk; see {log_path}")
            return False
        else:
            self._pause("run_error", f"{_last_line(log_path)} (log: {log_path})")
            return False
        return True

    def _settle(self, key: str, outcome: dict[str, Any]) -> None:
        """Takes over what came of a span."""
        record = self.state.spans.setdefault(key, {})
        own = self.config.continuous
        if outcome["status"] == "error":
            tries, reason = record.get("tries", 0) + 1, outcome["reason"]
            record.update(tries=tries, reason=reason)
            if tries < own.tries:
                pause = own.retry_seconds * 2 ** (tries - 1)
                record.update(status=state_lib.RETRY, next_try=time.time() + pause, pause=pause)
                self._events.tell("retry", span=key, tries=tries, seconds=pause, reason=reason)
                return
            record.update(status=state_lib.FAILED)
            record.pop("started", None)
            _forget_pause(record)
            reason += "; 'mnist-ae spans accept' tries again"
            self._events.tell("set_aside", span=key, tries=tries, reason=reason)
            return
        record.update(outcome, tries=0, decided=time.time())
        _forget_pause(record)
        shown = {k: outcome[k] for k in ("run_id", "pushed_version") if outcome.get(k)}
        golden = outcome.get("golden")
        if golden:
            shown.update(golden_before=golden["before"], golden_after=golden["after"])
        self._events.tell(outcome["status"], span=key, reason=outcome.get("reason"), **shown)
        if outcome["status"] == state_lib.PUSHED and golden:
            self.state.gauges["golden_mse"] = golden["after"]
            self.state.serving = int(outcome["pushed_version"])
            if self._promotion is not None:
                self._promotion.begin(self.state, int(outcome["pushed_version"]))

    def _pause(self, event: str, reason: str, *, tell: bool = True) -> None:
        """After a failure that is no span's fault: later, and ever later."""
        self._count("run_errors")
        self.state.errors += 1
        doublings = min(self.state.errors - 1, _MAX_DOUBLINGS)
        pause = min(self.config.continuous.retry_seconds * 2**doublings, _MAX_PAUSE_SECONDS)
        self.state.paused_until = time.time() + pause
        if tell:
            self._events.tell(event, seconds=pause, reason=reason)

    def _paused(self) -> bool:
        return _seconds_until(self.state.paused_until) > 0

    def _count(self, name: str) -> None:
        self.state.counters[name] = self.state.counters.get(name, 0) + 1


def _seconds_until(moment: float, pause: float | None = None) -> float:
    """Seconds until a Unix time that was set ``pause`` seconds ahead; never negative.

    A moment further ahead than that was set by a clock that has been put back
    since: it has come.
    """
    seconds = moment - time.time()
    return 0.0 if seconds > (pause or _MAX_PAUSE_SECONDS) else max(seconds, 0.0)


def _forget_pause(record: dict[str, Any]) -> None:
    record.pop("next_try", None)
    record.pop("pause", None)


def _last_line(path: pathlib.Path) -> str:
    """The last line of a log that says what was wrong."""
    with open(path, "rb") as f:
        f.seek(max(0, os.path.getsize(path) - 8_192))
        lines = f.read().decode(errors="replace").strip().splitlines()
    errors = [line for line in lines if line.startswith("error: ")]
    return (errors or lines or ["the run ended without a word"])[-1].removeprefix("error: ")[:500]


@contextlib.contextmanager
def _file_events(*folders: pathlib.Path) -> Iterator[threading.Event]:
    """An event that is set when something in the folders changes.

    Where the file system gives no events (network file systems, too few
    inotify watches), the interval alone wakes the watcher.
    """
    news = threading.Event()
    try:
        for folder in folders:
            folder.mkdir(parents=True, exist_ok=True)
        from watchdog.events import FileSystemEvent, FileSystemEventHandler
        from watchdog.observers import Observer

        class Handler(FileSystemEventHandler):
            """Notices what appears; the watcher's own reads and writes are no news."""

            def on_any_event(self, event: FileSystemEvent) -> None:
                moved = event.event_type == "moved"
                path = pathlib.Path(os.fsdecode(event.dest_path if moved else event.src_path))
                published = moved and path.name.startswith(("version-", "span-"))
                accepted = moved and path.parent.name == state_lib.ACCEPTED
                written = event.event_type in ("created", "moved") and path.name == spans.MANIFEST
                if published or accepted or written:
                    news.set()

        observer = Observer()
        for folder in folders:
            observer.schedule(Handler(), str(folder), recursive=True)
        observer.start()
    except (ImportError, OSError):
        yield news
        return
    try:
        yield news
    finally:
        observer.stop()
        observer.join(5)


def make_events(config: PipelineConfig, say: Callable[[dict[str, Any]], None]) -> Events:
    """The events of a root, with the configuration's receivers."""
    own = config.continuous
    return Events(
        state_lib.folder_of(config.root), say, command=own.notify_command, url=own.notify_url
    )
