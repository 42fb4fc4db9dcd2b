"""The served models: their folders watched, versions loaded, lent to requests, labelled.

A version goes START, LOADING, AVAILABLE, UNLOADING, END. A new version takes
traffic only after it was loaded and warmed up, and only then does the old one
leave; a version that fails to load takes none, keeps its error for the status,
and the old one stays.

Deviations from TensorFlow Serving, all in docs/serving.md: loads never block
the watching of other models, a failed version is tried again once its files
change, and a vanished folder stops nothing but its own model.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import copy
import dataclasses
import logging
import os
import threading
import time
from collections.abc import Callable, Iterable, Mapping

from serving.standin import versions as version_folders
from serving.standin.predict import warm_up
from serving.standin.servable import Servable
from serving.standin.settings import ModelSettings, ServerOptions, located
from serving.standin.status import Code, StatusError, from_exception, invalid_argument
from serving.standin.versions import Version, VersionState

_log = logging.getLogger(__name__)


@dataclasses.dataclass
class _Model:
    """A model that is or was configured.

    Attributes:
      settings: What to serve; None when nothing any more.
      labels: Label to version, as they answer.
      versions: Every version ever seen, by number.
      aspired: The versions to serve, number to path.
      servables: The versions that answer; as the labels replaced, never changed,
        since requests read both without the lock.
      seen: Whether its folder was listed at least once.
      complaint: What was last logged about its folder.
    """

    settings: ModelSettings | None
    labels: dict[str, int] = dataclasses.field(default_factory=dict)
    versions: dict[int, Version] = dataclasses.field(default_factory=dict)
    aspired: dict[int, str] = dataclasses.field(default_factory=dict)
    servables: dict[int, Servable] = dataclasses.field(default_factory=dict)
    seen: bool = False
    complaint: str = ""

    def pending(self, numbers: Iterable[int]) -> bool:
        """Whether one of these versions may still come up."""
        known = self.versions
        decided = (VersionState.AVAILABLE, VersionState.END)
        return any(number not in known or known[number].state not in decided for number in numbers)

    def move_labels(self, name: str, labels: Mapping[str, int], *, anywhere: bool = False) -> None:
        """Moves the labels, all or none.

        Raises:
          StatusError: FAILED_PRECONDITION for a version that does not answer, with
            ``anywhere`` only where the label was at another one before.
        """
        for label, number in labels.items():
            stays = anywhere and self.labels.get(label, number) == number
            if number not in self.servables and not stays:
                raise StatusError(
                    Code.FAILED_PRECONDITION,
                    f"Request to assign label to version {number} of model {name}, which is not "
                    "currently available for inference",
                )
        self.labels = dict(labels)


class Models:
    """Keeps the configured models loaded and lends them to requests.

    Args:
      options: How often to look at the folders, and how often to try a load.

    Attributes:
      ordering: Held while a configuration is applied.
    """

    def __init__(self, options: ServerOptions) -> None:
        self._options = options
        self._models: dict[str, _Model] = {}
        # Guards every _Model; notified when a state changes.
        self._changed = threading.Condition(threading.RLock())
        self.ordering = threading.RLock()
        self._wake = threading.Event()
        self._stopping = threading.Event()
        # Loads have threads of their own, so that none blocks the watching.
        self._loaders = concurrent.futures.ThreadPoolExecutor(2, "load")
        self._watcher = threading.Thread(target=self._watch, name="versions", daemon=True)

    # Requests.

    def lease(self, name: str, version: int | None = None, label: str | None = None) -> Servable:
        """Lends a servable, which stays loaded until the ``with`` block that takes it ends.

        Args:
          version: A number, or None for the latest.
          label: A version label; excludes ``version``.

        Raises:
          StatusError: As TensorFlow Serving for an unknown name, version or label.
        """
        try:
            servable = self._choose(name, version, label)
            held = servable.acquire()
        except StatusError:
            held = False
        if not held:  # perhaps only now: what was looked at without the lock was on its way out
            with self._changed:
                servable = self._choose(name, version, label)
                servable.acquire()
        return servable

    def _choose(self, name: str, version: int | None, label: str | None) -> Servable:
        model = self._models.get(name) or _Model(None)
        servables = model.servables
        if label is not None:
            version = model.labels.get(label)
            if version is None:
                raise invalid_argument(f"Unrecognized servable version label: {label}")
        number = max(servables, default=None) if version is None else version
        servable = None if number is None else servables.get(number)
        if servable is None:
            what = f"Latest({name})" if version is None else f"Specific({name}, {version})"
            raise StatusError(Code.NOT_FOUND, f"Servable not found for request: {what}")
        return servable

    def versions(self, name: str, version: int | None = None) -> list[Version]:
        """The versions of a model that were ever seen, highest first, as they are now.

        Raises:
          StatusError: NOT_FOUND, with TensorFlow Serving's text.
        """
        with self._changed:
            known = self._models[name].versions if name in self._models else {}
            if version is None or not known:
                chosen, what = sorted(known, reverse=True), "any versions"
            else:
                chosen, what = [version] if version in known else [], f"version {version}"
            if not chosen:
                raise StatusError(Code.NOT_FOUND, f"Could not find {what} of model {name}")
            return [copy.copy(known[number]) for number in chosen]

    def available(self) -> dict[str, list[int]]:
        """Model name to the version numbers that answer, ascending."""
        with self._changed:
            models = self._models.items()
            return {name: sorted(model.servables) for name, model in models if model.servables}

    # Configuration.

    def start(self) -> None:
        """Begins to watch and load; returns at once."""
        self._configure(self._options.models)
        for name, settings in self._options.models.items():
            self._models[name].labels = dict(settings.labels)
        self._watcher.start()

    def reload(self, models: Mapping[str, ModelSettings], timeout: float) -> None:
        """Replaces the whole configuration and waits for models that are new.

        Raises:
          StatusError: FAILED_PRECONDITION for a label on a version that is not
            available (nothing else of the order is undone, as in TensorFlow
            Serving), UNKNOWN if a new model does not come up,
            DEADLINE_EXCEEDED if it takes too long.
        """
        deadline = time.monotonic() + timeout
        if not self.ordering.acquire(timeout=max(timeout, 0.0)):
            raise StatusError(Code.DEADLINE_EXCEEDED, "Another reload is still waiting.")
        try:
            with self._changed:
                real = self._options.real_reloads
                known = {name for name, model in self._models.items() if model.settings}
                # Labels move before the policy can unload what they leave, and
                # in the same instant for requests: a rollback loses none.
                for name in known & models.keys():
                    with contextlib.nullcontext() if real else contextlib.suppress(StatusError):
                        labels = models[name].labels
                        self._models[name].move_labels(name, labels, anywhere=real)
                self._configure(models)
                if not real:
                    self._wake.set()
                self._await_new({n: self._models[n] for n in models.keys() - known}, deadline)
                for name, settings in models.items():
                    self._models[name].move_labels(name, settings.labels, anywhere=real)
                self._changed.notify_all()
        finally:
            self.ordering.release()

    def _configure(self, models: Mapping[str, ModelSettings]) -> None:
        """Serves other models from the next look on."""
        for name in self._models.keys() - models.keys():
            self._models[name].settings, self._models[name].labels = None, {}
        file = self._options.config_file
        for name, settings in models.items():
            if file is not None:
                settings = located(settings, os.path.dirname(os.path.abspath(file)))
            self._models.setdefault(name, _Model(settings)).settings = settings

    def _await_new(self, models: Mapping[str, _Model], deadline: float) -> None:
        def late() -> list[str]:
            return [n for n, m in models.items() if not m.aspired or m.pending(m.aspired)]

        left = deadline - time.monotonic()
        self._changed.wait_for(lambda: not late() or self._stopping.is_set(), left)
        if late():
            raise StatusError(
                Code.DEADLINE_EXCEEDED,
                f"{', '.join(late())} did not become available in time; check that base_path "
                "exists and holds a numbered SavedModel",
            )
        failed = {
            name: f"{{{{name: {name} version: {number}}} due to error: {error}}}, "
            for name, model in models.items()
            for number in model.aspired
            if (error := model.versions[number].error) is not None
        }
        if failed:
            what = f"{len(failed)} model(s) did not become available: {''.join(failed.values())}"
            raise StatusError(Code.UNKNOWN, what)

    # Waiting.

    def wait_until_available(self, name: str, timeout: float | None = None) -> bool:
        """Waits until a model answers, under every label, or until all its versions failed.

        A label whose version failed to load is not waited for.

        Args:
          timeout: Seconds; None waits as long as it takes.

        Returns:
          Whether it answers.
        """
        model = self._models[name]

        def settled() -> bool:
            if not model.servables:
                return model.seen and not model.pending(model.aspired)
            labels = model.settings.labels.values() if model.settings else ()
            return not model.pending(model.aspired.keys() & set(labels))

        self.wait_for(settled, timeout)
        return bool(model.servables)

    def wait_for(self, condition: Callable[[], bool], timeout: float | None = None) -> bool:
        """Waits for a condition, looked at again after every state change."""
        with self._changed:
            return self._changed.wait_for(condition, timeout)

    def stop(self) -> None:
        """Stops watching and closes every version once its users are done."""
        self._stopping.set()
        self._wake.set()
        with self._changed:
            self._changed.notify_all()
        if self._watcher.is_alive():
            self._watcher.join()
        self._loaders.shutdown(wait=True, cancel_futures=True)
        with self._changed:
            for name, model in self._models.items():
                model.aspired = {}
                self._reconcile(name, model)

    # The life of versions, in the threads of the watcher and the loaders.

    def _watch(self) -> None:
        while not self._stopping.is_set():
            for name, model in list(self._models.items()):
                try:
                    self._look(name, model)
                except Exception:
                    _log.exception("looking for versions failed; trying again")
            self._wake.wait(self._options.poll_interval)
            self._wake.clear()

    def _look(self, name: str, model: _Model) -> None:
        """Lists a model's folder, and loads and unloads what differs."""
        settings, complaint = model.settings, ""
        available: dict[int, str] | None = {}
        if settings is not None:
            try:
                available = version_folders.list_versions(settings.base_path)
                if not available:
                    complaint = f"no numbered versions in {settings.base_path!r}; waiting for one"
            except OSError as error:
                complaint = f"cannot list {settings.base_path!r}: {error.strerror}"
                available = None
        if complaint != model.complaint:
            model.complaint = complaint
            if complaint:
                _log.warning(f"model {name}: {complaint}")
        with self._changed:
            if available is not None and model.settings is settings:  # else: soon again
                model.seen = True
                model.aspired = settings.choose(available) if settings else {}
                self._reconcile(name, model)

    def _reconcile(self, name: str, model: _Model) -> None:
        for number, path in model.aspired.items() if not self._stopping.is_set() else ():
            version = model.versions.get(number)
            if version is None:
                version = model.versions[number] = Version(number, path)
            elif version.state is not VersionState.END or (
                version.error and version_folders.fingerprint(path) == version.fingerprint
            ):
                continue
            version.path, version.error, version.state = path, None, VersionState.START
            self._loaders.submit(self._load, name, model, version)
        for number in model.versions.keys() - model.aspired.keys():
            # One that failed, went and comes again is tried again.
            model.versions[number].fingerprint = frozenset()
        # The old ones leave when a new one answers, or when none is wanted.
        if not model.aspired or model.servables.keys() & model.aspired.keys():
            for number in model.servables.keys() - model.aspired.keys():
                self._unload(model, number)
        self._changed.notify_all()

    def _load(self, name: str, model: _Model, version: Version) -> None:
        self._set(version, VersionState.LOADING)
        tries = 1 + self._options.max_load_retries
        for attempt in range(1, tries + 1):
            version.fingerprint = version_folders.fingerprint(version.path)
            started = time.monotonic()
            try:
                servable = Servable(name, version.number, version.path)
                try:
                    warm_up(servable)
                except BaseException:
                    servable.retire()
                    raise
            except Exception as raised:
                error = from_exception(raised)
                _log.warning(
                    f"model {name} version {version.number} failed to load "
                    f"(try {attempt} of {tries}): {error.one_line}"
                )
            else:
                with self._changed:
                    version.state = VersionState.AVAILABLE
                    model.servables = {**model.servables, version.number: servable}
                    self._reconcile(name, model)
                took = time.monotonic() - started
                _log.info(
                    f"model {name} version {version.number} is available ({took:.1f} s, "
                    f"{version.path})"
                )
                return
            if attempt < tries and self._stopping.wait(self._options.load_retry_interval):
                break
            if version.number not in model.aspired:
                break
        version.error = error
        self._set(version, VersionState.END)

    def _unload(self, model: _Model, number: int) -> None:
        servable = model.servables[number]
        model.servables = {n: s for n, s in model.servables.items() if n != number}
        self._set(model.versions[number], VersionState.UNLOADING)

        def closed() -> None:
            self._set(model.versions[number], VersionState.END)
            _log.info(f"model {servable.name} version {servable.version} was unloaded")

        # Outside the lock of whoever waits for states: closing takes a while.
        threading.Thread(target=servable.retire, args=(closed,), name="unload").start()

    def _set(self, version: Version, state: VersionState) -> None:
        with self._changed:
            version.state = state
            self._changed.notify_all()
