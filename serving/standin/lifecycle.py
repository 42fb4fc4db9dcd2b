"""One served model: the life of its versions, and which of them answers.

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
import dataclasses
import enum
import logging
import threading
import time
from collections.abc import Callable, Mapping

from serving.standin import versions as version_folders
from serving.standin.servable import Servable
from serving.standin.settings import ModelSettings
from serving.standin.status import Code, StatusError, from_exception, invalid_argument

_log = logging.getLogger(__name__)


class VersionState(enum.IntEnum):
    """``ModelVersionStatus.State``."""

    UNKNOWN = 0
    START = 10
    LOADING = 20
    AVAILABLE = 30
    UNLOADING = 40
    END = 50


# States that a load ends in.
_DECIDED = (VersionState.AVAILABLE, VersionState.END)


@dataclasses.dataclass
class Version:
    """A version that was seen, from its first look on.

    Attributes:
      number: Its number.
      path: Its folder.
      state: Where in its life it is.
      error: Why the last load failed; None when it did not.
      servable: What answers while it is AVAILABLE.
      fingerprint: Of its files when the last load began.
    """

    number: int
    path: str
    state: VersionState = VersionState.START
    error: StatusError | None = None
    servable: Servable | None = None
    fingerprint: tuple[tuple[str, int, int], ...] = ()


@dataclasses.dataclass(frozen=True)
class Serving:
    """What requests see of a model; replaced whole, never changed, read without a lock."""

    servables: Mapping[int, Servable] = dataclasses.field(default_factory=dict)
    labels: Mapping[str, int] = dataclasses.field(default_factory=dict)

    def choose(self, name: str, version: int | None, label: str | None) -> Servable:
        """The servable that a request means.

        Raises:
          StatusError: As TensorFlow Serving for an unknown name, version or label.
        """
        if label is not None:
            version = self.labels.get(label)
            if version is None:
                raise invalid_argument(f"Unrecognized servable version label: {label}")
        number = max(self.servables, default=None) if version is None else version
        servable = None if number is None else self.servables.get(number)
        if servable is None:
            what = f"Latest({name})" if version is None else f"Specific({name}, {version})"
            raise StatusError(Code.NOT_FOUND, f"Servable not found for request: {what}")
        return servable


class Loader:
    """Loads versions in threads of its own, so that no load blocks the watching.

    Args:
      warm_up: Called with a loaded servable before it takes traffic; an
        exception fails the load.
      retries: Further tries after a failed load.
      interval: Seconds between them.
    """

    def __init__(self, warm_up: Callable[[Servable], None], retries: int, interval: float) -> None:
        self._warm_up = warm_up
        self._retries = retries
        self._interval = interval
        self._pool = concurrent.futures.ThreadPoolExecutor(2, "load")
        self._stopping = threading.Event()

    def load(self, model: Model, version: Version) -> None:
        """Begins a load; returns at once."""
        if not self._stopping.is_set():
            self._pool.submit(self._load, model, version)

    def stop(self) -> None:
        """Waits for loads under way; those not begun are dropped."""
        self._stopping.set()
        self._pool.shutdown(wait=True, cancel_futures=True)

    def _load(self, model: Model, version: Version) -> None:
        name = model.settings.name
        model.loading(version)
        tries = 1 + self._retries
        for attempt in range(1, tries + 1):
            version.fingerprint = version_folders.fingerprint(version.path)
            started = time.monotonic()
            try:
                servable = self._try(name, version)
            except Exception as raised:
                error = from_exception(raised)
            else:
                model.loaded(version, servable)
                _log.info(
                    f"model {name} version {version.number} is available "
                    f"({time.monotonic() - started:.1f} s, {version.path})"
                )
                return
            _log.warning(
                f"model {name} version {version.number} failed to load "
                f"(try {attempt} of {tries}): {error.one_line}"
            )
            if attempt < tries and self._stopping.wait(self._interval):
                break
            if not model.wanted(version):
                break
        model.failed(version, error)

    def _try(self, name: str, version: Version) -> Servable:
        servable = Servable(name, version.number, version.path)
        try:
            self._warm_up(servable)
        except BaseException:
            servable.retire()
            raise
        return servable


class Model:
    """A configured model: its versions, its labels, and what requests see of them.

    Everything but :attr:`serving` is for holders of ``changed``.

    Args:
      settings: What to serve.
      loader: Loads versions.
      changed: Held while states change, and notified then.

    Attributes:
      settings: What to serve, as configured last.
      labels: Label to version, as they answer.
      versions: Every version ever seen, by number.
      aspired: The versions to serve, number to path.
      removed: Whether it is no longer configured.
      seen: Whether its folder was listed at least once.
      serving: What requests see.
    """

    def __init__(
        self, settings: ModelSettings, loader: Loader, changed: threading.Condition
    ) -> None:
        self.settings = settings
        self.labels: dict[str, int] = {}
        self.versions: dict[int, Version] = {}
        self.aspired: dict[int, str] = {}
        self.removed = False
        self.seen = False
        self.serving = Serving()
        self._loader = loader
        self._changed = changed
        self._complaint = ""

    # Configuration.

    def configure(self, settings: ModelSettings) -> None:
        """Serves other settings from the next look on; labels stay as they are."""
        self.settings, self.removed = settings, False

    def remove(self) -> None:
        """Serves nothing from the next look on."""
        self.removed = True
        self.set_labels({})

    def set_labels(self, labels: Mapping[str, int]) -> None:
        """Moves the labels, in one instant for requests."""
        self.labels = dict(labels)
        self._publish()

    def unavailable(self, labels: Mapping[str, int]) -> list[int]:
        """The versions that labels should go to and that do not answer."""
        return [number for number in labels.values() if number not in self.serving.servables]

    # Versions.

    def look(self) -> None:
        """Lists the folder, and loads and unloads what differs; takes the lock itself."""
        with self._changed:
            settings, removed = self.settings, self.removed
        available: dict[int, str] = {}
        if not removed:
            try:
                available = version_folders.list_versions(settings.base_path)
            except OSError as error:
                self._complain(f"cannot list {settings.base_path!r}: {error.strerror}")
                return
            empty = f"no numbered versions in {settings.base_path!r}; waiting for one"
            self._complain("" if available else empty)
        with self._changed:
            if (self.settings, self.removed) == (settings, removed):  # else: soon again
                self.seen = True
                self.aspired = settings.policy.choose(available)
                self._reconcile()

    def drop(self) -> None:
        """Unloads everything, once its users are done."""
        self.aspired = {}
        self._reconcile()

    def pending(self) -> bool:
        """Whether a version that is to be served may still come up."""
        return not self.seen or any(map(self._undecided, self.aspired))

    def failures(self) -> list[Version]:
        """The versions to be served that did not load."""
        return [
            version
            for number, version in self.versions.items()
            if number in self.aspired and version.error is not None
        ]

    def label_pending(self) -> bool:
        """Whether a version that is to get a label is still on its way."""
        labelled = self.aspired.keys() & set(self.settings.labels.values())
        return any(map(self._undecided, labelled))

    def _undecided(self, number: int) -> bool:
        return number not in self.versions or self.versions[number].state not in _DECIDED

    def _reconcile(self) -> None:
        for number, path in self.aspired.items():
            version = self.versions.get(number)
            if version is None:
                version = self.versions[number] = Version(number, path)
            elif version.state is not VersionState.END or not _worth_loading(version, path):
                continue
            version.path, version.error, version.state = path, None, VersionState.START
            self._loader.load(self, version)
        for number in self.versions.keys() - self.aspired.keys():
            # One that failed, went and comes again is tried again.
            self.versions[number].fingerprint = ()
        # The old ones leave when a new one answers, or when none is wanted.
        if not self.aspired or self.serving.servables.keys() & self.aspired.keys():
            for number in self.serving.servables.keys() - self.aspired.keys():
                self._unload(self.versions[number])
        self._publish()

    def _unload(self, version: Version) -> None:
        servable, version.servable = version.servable, None
        assert servable is not None
        version.state = VersionState.UNLOADING
        self._publish()

        def closed() -> None:
            with self._changed:
                version.state = VersionState.END
                self._changed.notify_all()
            _log.info(f"model {servable.name} version {servable.version} was unloaded")

        # Outside the lock of whoever waits for states: closing takes a while.
        threading.Thread(target=servable.retire, args=(closed,), name="unload").start()

    def _publish(self) -> None:
        answering = {
            number: version.servable
            for number, version in self.versions.items()
            if version.servable is not None
        }
        self.serving = Serving(answering, dict(self.labels))
        self._changed.notify_all()

    def _complain(self, message: str) -> None:
        if message and self._complaint != message:
            _log.warning(f"model {self.settings.name}: {message}")
        self._complaint = message

    # How loads go, told by the loader's threads.

    def loading(self, version: Version) -> None:
        """Notes that a load began."""
        with self._changed:
            version.state = VersionState.LOADING
            self._changed.notify_all()

    def loaded(self, version: Version, servable: Servable) -> None:
        """Lets a version answer, and the ones before it go."""
        with self._changed:
            version.servable = servable
            version.state = VersionState.AVAILABLE
            self._publish()
            self._reconcile()

    def failed(self, version: Version, error: StatusError) -> None:
        """Notes why a version does not load."""
        with self._changed:
            version.error, version.state = error, VersionState.END
            self._changed.notify_all()

    def wanted(self, version: Version) -> bool:
        """Whether a version is still to be served."""
        with self._changed:
            return version.number in self.aspired


def _worth_loading(version: Version, path: str) -> bool:
    """Whether a version that ended may load: it never failed, or its files changed."""
    return version.error is None or version_folders.fingerprint(path) != version.fingerprint
