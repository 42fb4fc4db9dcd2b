"""The life of versions: found, loaded, warmed up, served, drained, gone.

A version goes START, LOADING, AVAILABLE, UNLOADING, END. The policy preserves
availability: a new version takes traffic only after it was loaded and warmed
up, and only then does the old one leave; a version that fails to load takes
none, keeps its error for the status, and the old one stays.

Deviations from TensorFlow Serving, all in docs/serving.md: loads never block
the watching of other models, a failed version is tried again once its files
change, and a vanished folder stops nothing but its own model.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import dataclasses
import enum
import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping

from serving.server import config as config_lib
from serving.server import storage
from serving.server.config import ModelSettings
from serving.server.servable import Servable
from serving.server.status import Code, StatusError, from_exception, invalid_argument

_log = logging.getLogger(__name__)


class State(enum.IntEnum):
    """``ModelVersionStatus.State``."""

    UNKNOWN = 0
    START = 10
    LOADING = 20
    AVAILABLE = 30
    UNLOADING = 40
    END = 50


@dataclasses.dataclass(frozen=True)
class VersionStatus:
    """What GetModelStatus says about one version."""

    version: int
    state: State
    error: StatusError | None


@dataclasses.dataclass
class _Version:
    number: int
    path: str
    state: State = State.START
    error: StatusError | None = None
    servable: Servable | None = None
    fingerprint: tuple[tuple[str, int, int], ...] = ()


@dataclasses.dataclass
class _Model:
    settings: ModelSettings
    versions: dict[int, _Version] = dataclasses.field(default_factory=dict)
    aspired: dict[int, str] = dataclasses.field(default_factory=dict)
    labels: dict[str, int] = dataclasses.field(default_factory=dict)
    removed: bool = False
    seen: bool = False  # whether its folder was listed at least once
    complained: str = ""


@dataclasses.dataclass(frozen=True)
class _Served:
    """What requests see of a model; replaced whole, never changed."""

    versions: Mapping[int, Servable]
    latest: Servable
    labels: Mapping[str, int]


class ModelManager:
    """Keeps the configured models loaded and hands them to requests.

    Args:
      warm_up: Called with a loaded servable before it takes traffic; an
        exception fails the load.
      poll_interval: Seconds between looks at the folders.
      load_threads: Versions loaded at the same time.
      max_load_retries: Further tries after a failed load.
      load_retry_interval: Seconds between them.
      on_change: Called without arguments after any state change.
    """

    def __init__(
        self,
        *,
        warm_up: Callable[[Servable], None] = lambda servable: None,
        poll_interval: float = 1.0,
        load_threads: int = 2,
        max_load_retries: int = 2,
        load_retry_interval: float = 1.0,
        on_change: Callable[[], None] = lambda: None,
    ) -> None:
        self._warm_up = warm_up
        self._poll_interval = poll_interval
        self._max_load_retries = max_load_retries
        self._load_retry_interval = load_retry_interval
        self._on_change = on_change
        self._models: dict[str, _Model] = {}
        self._served: dict[str, _Served] = {}
        self._changed = threading.Condition(threading.RLock())
        self._reload_lock = threading.Lock()
        self._wake = threading.Event()
        self._stopping = threading.Event()
        self._loaders = concurrent.futures.ThreadPoolExecutor(load_threads, "load")
        self._thread = threading.Thread(target=self._watch, name="versions", daemon=True)

    # Requests.

    @contextlib.contextmanager
    def lease(
        self, name: str, version: int | None = None, label: str | None = None
    ) -> Iterator[Servable]:
        """Lends a servable; it stays loaded until the block ends.

        Args:
          name: The model.
          version: A number, or None for the latest.
          label: A version label; excludes ``version``.

        Raises:
          StatusError: As TensorFlow Serving for an unknown name, version or label.
        """
        servable = self.acquire(name, version, label)
        try:
            yield servable
        finally:
            servable.release()

    def acquire(self, name: str, version: int | None = None, label: str | None = None) -> Servable:
        """As :meth:`lease`; the caller must call ``release()`` on what it gets."""
        while True:
            served = self._served.get(name)
            if label is not None:
                number = served.labels.get(label) if served is not None else None
                if number is None:
                    raise invalid_argument(f"Unrecognized servable version label: {label}")
                version = number
            if version is None:
                servable = served.latest if served is not None else None
            else:
                servable = served.versions.get(version) if served is not None else None
            if servable is None:
                what = f"Latest({name})" if version is None else f"Specific({name}, {version})"
                raise StatusError(Code.NOT_FOUND, f"Servable not found for request: {what}")
            if servable.acquire():
                return servable
            # It was retired between the look and the grab; the map is newer now.

    def status(self, name: str, version: int | None = None) -> list[VersionStatus]:
        """The versions of a model that were ever seen, highest first.

        Raises:
          StatusError: NOT_FOUND, with TensorFlow Serving's text.
        """
        with self._changed:
            model = self._models.get(name)
            versions = model.versions if model is not None else {}
            if version is not None:
                if version not in versions:
                    raise StatusError(
                        Code.NOT_FOUND, f"Could not find version {version} of model {name}"
                    )
                chosen = [versions[version]]
            else:
                if not versions:
                    raise StatusError(
                        Code.NOT_FOUND, f"Could not find any versions of model {name}"
                    )
                chosen = [versions[number] for number in sorted(versions, reverse=True)]
            return [VersionStatus(item.number, item.state, item.error) for item in chosen]

    def available(self) -> dict[str, list[int]]:
        """Model name to the version numbers that answer, ascending."""
        return {name: sorted(served.versions) for name, served in self._served.items()}

    # Configuration.

    def start(self, models: Mapping[str, ModelSettings]) -> None:
        """Begins to watch and load; returns at once."""
        with self._changed:
            self._apply(models)
            for model in self._models.values():
                model.labels = dict(model.settings.labels)
            self._publish()
        self._thread.start()

    def reload(
        self,
        models: Mapping[str, ModelSettings],
        timeout: float,
        still_wanted: Callable[[], bool] = lambda: True,
    ) -> None:
        """Replaces the whole configuration and waits for models that are new.

        Args:
          models: What to serve from now on.
          timeout: Seconds to wait for new models.
          still_wanted: Asked once no other reload is under way; False drops
            the order.

        Raises:
          StatusError: FAILED_PRECONDITION for a label on a version that is not
            available (nothing else of the order is undone, as in TensorFlow
            Serving), UNKNOWN if a new model does not come up,
            DEADLINE_EXCEEDED if it takes too long.
        """
        deadline = time.monotonic() + timeout
        if not self._reload_lock.acquire(timeout=timeout):
            raise StatusError(Code.DEADLINE_EXCEEDED, "Another reload is still waiting.")
        try:
            if not still_wanted():
                return
            with self._changed:
                new = [
                    name
                    for name in models
                    if name not in self._models or self._models[name].removed
                ]
                # Labels move before the policy can unload what they leave, and
                # in the same instant for requests: a rollback loses none.
                for name, settings in models.items():
                    if name not in new and not self._unavailable(settings):
                        self._models[name].labels = dict(settings.labels)
                self._apply(models)
                self._publish()
            self._wake.set()
            self._wait_for_new(new, deadline)
            self._assign_labels(models)
        finally:
            self._reload_lock.release()

    def wait_until_available(self, name: str, timeout: float | None = None) -> bool:
        """Waits until a model answers, under every label, or until all its versions failed.

        A label whose version failed to load is not waited for.

        Args:
          name: A configured model.
          timeout: Seconds; None waits as long as it takes.

        Returns:
          Whether it answers.
        """

        def settled() -> bool:
            answers = name in self._served and not self._labelled_loading(name)
            return answers or self._settled(name)

        with self._changed:
            self._changed.wait_for(settled, timeout)
            return name in self._served

    def wait_for(self, condition: Callable[[], bool], timeout: float | None = None) -> bool:
        """Waits for a condition, looked at again after every state change."""
        with self._changed:
            return self._changed.wait_for(condition, timeout)

    def poll_now(self) -> None:
        """Looks at the folders without waiting for the next round."""
        self._wake.set()

    def stop(self) -> None:
        """Stops watching and closes every version once its users are done."""
        self._stopping.set()
        self._wake.set()
        if self._thread.is_alive():
            self._thread.join()
        self._loaders.shutdown(wait=True, cancel_futures=True)
        with self._changed:
            for model in self._models.values():
                model.aspired = {}
                for version in model.versions.values():
                    if version.state is State.AVAILABLE:
                        self._unload(model, version)
            self._publish()

    # Inside. Everything below that touches a _Model holds self._changed.

    def _apply(self, models: Mapping[str, ModelSettings]) -> None:
        for name, model in self._models.items():
            if name not in models:
                model.removed = True
                model.labels = {}
        for name, settings in models.items():
            model = self._models.setdefault(name, _Model(settings))
            if model.settings.base_path != settings.base_path:
                model.complained = ""
            model.settings = settings
            model.removed = False

    def _assign_labels(self, models: Mapping[str, ModelSettings]) -> None:
        with self._changed:
            for name, settings in models.items():
                missing = self._unavailable(settings)
                if missing:
                    raise config_lib.label_error(missing[0], name)
            for name, settings in models.items():
                self._models[name].labels = dict(settings.labels)
            self._publish()

    def _unavailable(self, settings: ModelSettings) -> list[int]:
        """The versions that labels should go to and that do not answer."""
        served = self._served.get(settings.name)
        answering = served.versions if served is not None else {}
        return [version for version in settings.labels.values() if version not in answering]

    def _wait_for_new(self, names: list[str], deadline: float) -> None:
        with self._changed:
            while True:
                waiting = [
                    name
                    for name in names
                    if not self._models[name].seen
                    or not self._models[name].aspired
                    or any(
                        number not in self._models[name].versions
                        or self._models[name].versions[number].state
                        not in (State.AVAILABLE, State.END)
                        for number in self._models[name].aspired
                    )
                ]
                if not waiting:
                    break
                left = deadline - time.monotonic()
                if left <= 0 or self._stopping.is_set():
                    raise StatusError(
                        Code.DEADLINE_EXCEEDED,
                        f"{', '.join(waiting)} did not become available in time; check that "
                        "base_path exists and holds a numbered SavedModel",
                    )
                self._changed.wait(left)
            failed = [
                f"{{{{name: {name} version: {number}}} due to error: {version.error}}}, "
                for name in names
                for number, version in self._models[name].versions.items()
                if number in self._models[name].aspired and version.error is not None
            ]
            count = sum(
                any(
                    version.error is not None and number in self._models[name].aspired
                    for number, version in self._models[name].versions.items()
                )
                for name in names
            )
        if failed:
            raise StatusError(
                Code.UNKNOWN, f"{count} model(s) did not become available: {''.join(failed)}"
            )

    def _watch(self) -> None:
        while not self._stopping.is_set():
            try:
                self._poll()
            except Exception:
                _log.exception("looking for versions failed; trying again")
            self._wake.wait(self._poll_interval)
            self._wake.clear()

    def _poll(self) -> None:
        with self._changed:
            models = list(self._models.values())
        for model in models:
            settings, removed = model.settings, model.removed
            available: dict[int, str] | None = {}
            if not removed:
                try:
                    available = storage.list_versions(settings.base_path)
                except OSError as error:
                    available = None
                    self._complain(model, f"cannot list {settings.base_path!r}: {error.strerror}")
                else:
                    if not available:
                        self._complain(
                            model,
                            f"no numbered versions in {settings.base_path!r}; waiting for one",
                        )
                    else:
                        model.complained = ""
            with self._changed:
                if model.settings is not settings or model.removed is not removed:
                    self._wake.set()  # reconfigured meanwhile: look again
                    continue
                if available is not None:
                    model.seen = True
                    model.aspired = storage.aspired_versions(available, settings.policy)
                    self._reconcile(model)
                    self._changed.notify_all()

    def _complain(self, model: _Model, message: str) -> None:
        if model.complained != message:
            model.complained = message
            _log.warning("model %s: %s", model.settings.name, message)

    def _reconcile(self, model: _Model) -> None:
        for number, path in model.aspired.items():
            version = model.versions.get(number)
            if version is None:
                version = model.versions[number] = _Version(number, path)
                self._begin_load(model, version)
            elif version.state is State.END and self._worth_loading(version, path):
                version.path, version.error = path, None
                self._begin_load(model, version)
        answering = any(
            number in model.versions and model.versions[number].state is State.AVAILABLE
            for number in model.aspired
        )
        if answering or not model.aspired:
            for version in model.versions.values():
                if version.state is State.AVAILABLE and version.number not in model.aspired:
                    self._unload(model, version)
        self._publish()

    @staticmethod
    def _worth_loading(version: _Version, path: str) -> bool:
        return version.error is None or storage.fingerprint(path) != version.fingerprint

    def _begin_load(self, model: _Model, version: _Version) -> None:
        version.state = State.START
        self._loaders.submit(self._load, model, version)

    def _load(self, model: _Model, version: _Version) -> None:
        name = model.settings.name
        self._set_state(version, State.LOADING)
        error: StatusError | None = None
        for attempt in range(1 + self._max_load_retries):
            if attempt and (
                self._stopping.wait(self._load_retry_interval)
                or version.number not in model.aspired
            ):
                break
            version.fingerprint = storage.fingerprint(version.path)
            started = time.monotonic()
            try:
                servable = Servable(name, version.number, version.path)
                try:
                    self._warm_up(servable)
                except BaseException:
                    servable.retire(lambda: None)
                    raise
            except Exception as raised:
                error = from_exception(raised)
                _log.warning(
                    "model %s version %d failed to load (try %d of %d): %s",
                    name, version.number, attempt + 1, 1 + self._max_load_retries,
                    str(error).replace("\n", " ")[:500],
                )  # fmt: skip
            else:
                self._loaded(model, version, servable, time.monotonic() - started)
                return
        self._set_state(version, State.END, error)

    def _loaded(self, model: _Model, version: _Version, servable: Servable, seconds: float) -> None:
        with self._changed:
            version.servable = servable
            version.error = None
            self._set_state(version, State.AVAILABLE)
            self._reconcile(model)
            if self._stopping.is_set():
                self._unload(model, version)
                self._publish()
        _log.info(
            "model %s version %d is available (%.1f s, %s)",
            version.servable.name if version.servable else model.settings.name,
            version.number, seconds, version.path,
        )  # fmt: skip

    def _unload(self, model: _Model, version: _Version) -> None:
        servable = version.servable
        assert servable is not None
        version.servable = None
        self._set_state(version, State.UNLOADING)
        self._publish_model(model)

        def closed() -> None:
            self._set_state(version, State.END)
            _log.info("model %s version %d was unloaded", servable.name, servable.version)

        # Outside the lock of whoever waits for states: closing takes a while.
        threading.Thread(target=servable.retire, args=(closed,), name="unload").start()

    def _set_state(self, version: _Version, state: State, error: StatusError | None = None) -> None:
        with self._changed:
            version.state = state
            if state is State.END and error is not None:
                version.error = error
            self._changed.notify_all()
        self._on_change()

    def _settled(self, name: str) -> bool:
        model = self._models[name]
        return model.seen and all(
            number in model.versions and model.versions[number].state is State.END
            for number in model.aspired
        )

    def _labelled_loading(self, name: str) -> bool:
        """Whether a version with a label is still on its way."""
        model = self._models[name]
        return any(
            number in model.aspired
            and (
                number not in model.versions
                or model.versions[number].state not in (State.AVAILABLE, State.END)
            )
            for number in model.settings.labels.values()
        )

    def _publish(self) -> None:
        for model in self._models.values():
            self._publish_model(model)
        self._changed.notify_all()

    def _publish_model(self, model: _Model) -> None:
        answering = {
            number: version.servable
            for number, version in model.versions.items()
            if version.servable is not None
        }
        name = model.settings.name
        if not answering:
            self._served.pop(name, None)
            return
        self._served[name] = _Served(answering, answering[max(answering)], dict(model.labels))
