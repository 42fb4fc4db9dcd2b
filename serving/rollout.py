"""Moves version labels: canary, promote, rollback.

The state is one file, TensorFlow Serving's model configuration
(``--model_config_file``), ``<root>/serving/models.config``: every server polls
it and applies it again at every poll, so that an order which is not in it is
undone seconds later. A rollout therefore writes the file first, then asks every
server behind the name to read it, and reports when each of them says so.

Labels: ``stable`` is what callers should use. ``canary`` is the candidate, and
equals ``stable`` while there is none, so that calls to it never fail.
``previous`` is where a rollback after a promotion goes; it stays loaded.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import pathlib
import socket
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from serving import files, locate, protos
from serving.errors import (
    ModelNotFoundError,
    RolloutError,
    ServerUnavailableError,
    ServingError,
)
from serving.grpc_transport import GrpcTransport
from serving.transport import Address, VersionStatus

STABLE, CANARY, PREVIOUS = "stable", "canary", "previous"
DEFAULT_KEEP = 3
# One call to one server; a server that is slower is asked again.
_CALL_SECONDS = 10.0
_ASK_AGAIN_SECONDS = 1.0
# Servers look at their folders every second, and at the file every five at most as shipped.
_LOOK_SECONDS = 2.0
_POLL_SECONDS = 10.0


@dataclasses.dataclass(frozen=True)
class Labels:
    """Where the labels of one model are."""

    stable: int
    canary: int
    previous: int | None = None

    def as_dict(self) -> dict[str, int]:
        """Label to version."""
        labels = {STABLE: self.stable, CANARY: self.canary}
        return labels if self.previous is None else {**labels, PREVIOUS: self.previous}


class ConfigFile:
    """The served model configuration as a file, replaced as a whole.

    Args:
      path: The file; need not exist.
    """

    def __init__(self, path: pathlib.Path) -> None:
        self.path = path

    def read(self) -> Any:
        """The ``ModelServerConfig``; empty when there is no file.

        Raises:
          RolloutError: It is not one.
        """
        from google.protobuf import text_format

        config = protos.ModelServerConfig()
        try:
            text = self.path.read_text()
        except FileNotFoundError:
            config.model_config_list.SetInParent()
            return config
        except (OSError, UnicodeDecodeError) as error:
            raise RolloutError(f"cannot read {self.path}: {error}") from None
        try:
            text_format.Parse(text, config, descriptor_pool=protos.pool())
        except text_format.ParseError as error:
            raise RolloutError(
                f"{self.path} is not a model configuration (line {error.GetLine()}): "
                f"{' '.join(str(error).split())}"
            ) from None
        config.model_config_list.SetInParent()
        return config

    def write(self, config: Any) -> None:
        """Replaces the file in one step.

        Raises:
          RolloutError: It cannot be written.
        """
        from google.protobuf import text_format

        try:
            files.write_atomically(self.path, text_format.MessageToString(config))
        except OSError as error:
            raise RolloutError(f"cannot write {self.path}: {error.strerror}") from None


def entry_of(config: Any, model: str) -> Any | None:
    """A model's ``ModelConfig`` in a configuration, or None."""
    for item in config.model_config_list.config:
        if item.name == model:
            return item
    return None


def labels_of(entry: Any | None) -> Labels | None:
    """The labels of a ``ModelConfig``, or None before the first rollout."""
    if entry is None or STABLE not in entry.version_labels:
        return None
    labels = dict(entry.version_labels)
    return Labels(labels[STABLE], labels.get(CANARY, labels[STABLE]), labels.get(PREVIOUS))


def _listed(entry: Any) -> set[int]:
    """The versions that a ``ModelConfig`` names, none where it takes the newest."""
    return set(entry.model_version_policy.specific.versions)


def ensure_listed(folder: locate.ModelFolder, file: ConfigFile) -> None:
    """Adds a model to the configuration, newest version served, where it is not in it yet.

    Raises:
      RolloutError: The file is no model configuration, or cannot be written.
    """
    config = file.read()
    if entry_of(config, folder.name) is None:
        file.write(_with_entry(config, folder, [], {}))


def _with_entry(
    config: Any,
    folder: locate.ModelFolder,
    versions: Sequence[int],
    labels: Mapping[str, int],
    base_path: str | None = None,
) -> Any:
    """A copy of a configuration with a model's versions (none: the newest) and labels set."""
    changed = protos.ModelServerConfig()
    changed.CopyFrom(config)
    entry = entry_of(changed, folder.name)
    if entry is None:
        entry = changed.model_config_list.config.add(
            name=folder.name, base_path=str(folder.path), model_platform="tensorflow"
        )
    # An entry keeps the path by which its servers know the folder.
    entry.base_path = base_path or entry.base_path
    entry.model_version_policy.Clear()
    if versions:
        entry.model_version_policy.specific.versions.extend(versions)
    entry.version_labels.clear()
    entry.version_labels.update(labels)
    return changed


class LoadError(RolloutError):
    """A server tried to load a version and says why it cannot.

    Attributes:
      version: The version.
    """

    def __init__(self, message: str, version: int) -> None:
        super().__init__(message)
        self.version = version


class BehindError(ServingError):
    """The file is written, and not every server says yet that it follows it."""


@dataclasses.dataclass(frozen=True)
class Replica:
    """What one server says of the model.

    Attributes:
      address: ``host:port``.
      states: By version.
      labels: Of those asked for, the versions that answer.
      error: Why it does not answer; empty when it does.
    """

    address: str
    states: dict[int, VersionStatus] = dataclasses.field(default_factory=dict)
    labels: dict[str, int] = dataclasses.field(default_factory=dict)
    error: str = ""

    @property
    def available(self) -> set[int]:
        """The versions that answer."""
        return {number for number, item in self.states.items() if item.state == "AVAILABLE"}

    def disagreement(self, entry: Any, needed: Sequence[int] = ()) -> str:
        """What differs from a ``ModelConfig``, or ``needed`` versions that do not answer."""
        if self.error:
            return self.error
        for label, version in sorted(entry.version_labels.items()):
            if self.labels.get(label) != version:
                return f"{label} is {self.labels.get(label, 'no version')}, not {version}"
        for version in sorted({*needed, *entry.version_labels.values()} - self.available):
            state = self.states.get(version)
            return f"version {version} is {'not there' if state is None else state.state}"
        listed = _listed(entry)
        if listed and (extra := self.available - listed):
            return f"version {max(extra)} answers, too"
        return ""


class Replicas:
    """The servers behind one name, each asked by itself.

    Args:
      target: ``host:port``; all addresses of the name count, those of IPv6
        where it has no other.
      model: The model's name.
      timeout: Seconds for a call.
      connect: Makes the transport; for tests.
    """

    def __init__(
        self, target: str, model: str, timeout: float, connect: Callable[[Address], GrpcTransport]
    ) -> None:
        self._target = target
        self._model = model
        self._timeout = timeout
        self._connect = connect
        self._open: dict[str, GrpcTransport] = {}

    def look(self, labels: Sequence[str]) -> list[Replica]:
        """What each server says; the name is looked up anew, since servers come and go.

        Raises:
          ServerUnavailableError: None of them answers.
        """
        found = [self._ask(address, labels) for address in self._addresses()]
        if all(replica.error for replica in found):
            raise ServerUnavailableError(found[0].error)
        return found

    def reload(self, address: str, config: Any) -> None:
        """Asks one server to apply a configuration; what it does is seen by :meth:`look`."""
        if address:
            with contextlib.suppress(ServingError):
                self._transport(address).reload(config)

    def close(self) -> None:
        """Lets go of the servers."""
        for transport in self._open.values():
            transport.close()
        self._open.clear()

    def _addresses(self) -> list[str]:
        host, _, port = self._target.rpartition(":")
        try:
            found = socket.getaddrinfo(host.strip("[]"), port, type=socket.SOCK_STREAM)
        except (OSError, UnicodeError) as error:
            raise ServerUnavailableError(f"{self._target}: no such server ({error})") from None
        # A server with an address of each family is one server.
        family = min(item[0] for item in found)
        form = "{}:{}" if family == socket.AF_INET else "[{}]:{}"
        return sorted({form.format(item[4][0], port) for item in found if item[0] == family})

    def _ask(self, address: str, labels: Sequence[str]) -> Replica:
        server = self._transport(address)
        try:
            states = {item.version: item for item in server.status()}
            answering = {label: server.version_of(label) for label in labels}
        except ModelNotFoundError:
            return Replica(address)
        except ServingError as error:
            return Replica(address, error=str(error))
        return Replica(address, states, {k: v for k, v in answering.items() if v is not None})

    def _transport(self, address: str) -> GrpcTransport:
        if address not in self._open:
            self._open[address] = self._connect(
                Address(address, self._model, timeout=self._timeout, retries=0)
            )
        return self._open[address]


class Rollout:
    """Moves the labels of one pushed model.

    Args:
      folder: The model.
      config_file: The state.
      target: ``host:port`` of the live servers' gRPC, or None to change the
        file only, which they poll.
      keep: How many versions stay loaded, those with a label included.
      timeout: Seconds for every server to follow.
      base_path: The model's folder as the servers see it; what the file says,
        or the folder's own path, by default. Containers see another.
      poll: Seconds in which a server that cannot be asked looks at the file.
      connect: Makes the transport; for tests.
    """

    def __init__(
        self,
        folder: locate.ModelFolder,
        config_file: ConfigFile,
        *,
        target: str | None = None,
        keep: int = DEFAULT_KEEP,
        timeout: float = 60.0,
        base_path: str | None = None,
        poll: float = _POLL_SECONDS,
        connect: Callable[[Address], GrpcTransport] = GrpcTransport,
    ) -> None:
        if keep < 1:
            raise RolloutError("keep at least 1 version")
        self._folder = folder
        self._file = config_file
        self._keep = keep
        self._timeout = timeout
        self._base_path = base_path
        self._poll = poll
        self._config = config_file.read()
        self._replicas = None
        if target is not None:
            self._replicas = Replicas(target, folder.name, min(timeout, _CALL_SECONDS), connect)

    def close(self) -> None:
        """Lets go of the servers."""
        if self._replicas is not None:
            self._replicas.close()

    @property
    def path(self) -> pathlib.Path:
        """The file that says where the labels are."""
        return self._file.path

    @property
    def labels(self) -> Labels | None:
        """Where the labels are, or None before the first rollout."""
        return labels_of(self._entry)

    @property
    def _entry(self) -> Any | None:
        return entry_of(self._config, self._folder.name)

    def canary(self, version: int) -> Labels:
        """Loads a version beside the stable one and labels it ``canary``.

        Raises:
          RolloutError: There is no such version, or it does not become
            available (:class:`LoadError`: the server says why); the labels
            stay as they were.
          BehindError: The file is written, and a server does not follow.
        """

        def plan(old: Labels | None) -> Labels:
            if old is None:
                return Labels(self._present(version), version)
            return dataclasses.replace(old, canary=version)

        return self._order(plan)

    def promote(self) -> Labels:
        """Makes the canary the stable version; the stable one becomes ``previous``.

        Raises:
          RolloutError: There is no canary.
          BehindError: As for :meth:`canary`.
        """

        def plan(old: Labels | None) -> Labels:
            old = self._known(old)
            if old.canary == old.stable:
                raise RolloutError(
                    f"model {self._folder.name!r} has no canary; begin with `rollout canary "
                    "VERSION`"
                )
            return Labels(old.canary, old.canary, old.stable)

        return self._order(plan)

    def rollback(self) -> Labels:
        """Withdraws the canary; without one, returns to ``previous``.

        Raises:
          RolloutError: There is neither.
          BehindError: As for :meth:`canary`.
        """

        def plan(old: Labels | None) -> Labels:
            old = self._known(old)
            if old.canary != old.stable:
                return dataclasses.replace(old, canary=old.stable)
            if old.previous is None:
                raise RolloutError(
                    f"model {self._folder.name!r} has neither a canary nor a previous version to "
                    "return to"
                )
            return Labels(old.previous, old.previous)

        return self._order(plan)

    def settle(self) -> Labels:
        """Moves nothing: has the file list what its labels need, and every server follow it.

        Raises:
          RolloutError: There was no rollout yet.
          BehindError: As for :meth:`canary`.
        """
        return self._order(self._known)

    def replicas(self) -> list[Replica]:
        """What the live servers say; empty without a target."""
        return [] if self._replicas is None else self._replicas.look(self._label_names())

    def disagreements(self, replicas: Sequence[Replica]) -> dict[str, str]:
        """Address to what differs from the file, for the servers that do not follow it."""
        entry = self._entry
        if entry is None:
            return {}
        return {r.address: why for r in replicas if (why := r.disagreement(entry))}

    def _label_names(self) -> list[str]:
        return sorted(self._entry.version_labels) if self._entry is not None else []

    def _known(self, labels: Labels | None) -> Labels:
        if labels is None:
            raise RolloutError(
                f"model {self._folder.name!r} has no rollout yet; begin with "
                "`rollout canary VERSION`"
            )
        return labels

    def _present(self, candidate: int) -> int:
        """The version that is stable before the first rollout."""
        answering = {n for replica in self.replicas() for n in replica.available} - {candidate}
        older = [number for number in self._folder.versions if number < candidate]
        return max(answering or older or [candidate])

    def _loaded(self, labels: Labels) -> list[int]:
        """The versions to keep loaded: the labelled ones, then older ones up to N."""
        chosen = set(labels.as_dict().values())
        newest = max(labels.stable, labels.canary)
        for number in sorted(self._folder.versions, reverse=True):
            # A version above all labels is one that was rolled back or is yet
            # to be tried: loaded, it would take the calls without a label.
            if len(chosen) < self._keep and number < newest:
                chosen.add(number)
        return sorted(chosen)

    def _order(self, plan: Callable[[Labels | None], Labels]) -> Labels:
        """Carries an order out, alone; one that makes no sense writes nothing."""
        self._planned(plan)
        with self._alone():
            self._config = self._file.read()
            labels = self._planned(plan)
            self._move(labels)
        return labels

    def _planned(self, plan: Callable[[Labels | None], Labels]) -> Labels:
        labels = plan(self.labels)
        for version in labels.as_dict().values():
            self._folder.version_path(version)  # refuses one that is not there
        return labels

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        path = self._file.path
        lock = path.with_name(f".{path.name}.lock")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with files.locked(lock, wait=False):
                yield
        except files.LockedError as error:
            raise RolloutError(f"another rollout is under way ({error}); try again") from None
        except OSError as error:
            raise RolloutError(f"cannot write {lock}: {error.strerror}") from None

    def _move(self, labels: Labels) -> None:
        """Loads, then labels, then unloads: at no time is a label without its version."""
        old, wanted = self.labels, labels.as_dict()
        final = self._with(self._loaded(labels), wanted)
        both = {*self._loaded(labels), *(self._loaded(old) if old is not None else ())}
        if self._replicas is None:
            if old is not None and not set(wanted.values()) <= _listed(self._entry):
                # TensorFlow Serving refuses a file whole while one of its labels moves to a
                # version that is not loaded, and goes on to load what an earlier one listed.
                self._write(self._with(sorted(both), old.as_dict()))
                time.sleep(self._poll)
            self._write(final)
            return
        replicas = self._replicas.look([])
        if old is None:
            both.add(labels.stable)
        # One that is down keeps nobody from going back.
        up = [replica for replica in replicas if not replica.error]
        if not all(set(wanted.values()) <= replica.available for replica in up):
            self._load(sorted(both), old, sorted(set(wanted.values())), replicas)
        self._write(self._with(sorted(both), wanted))
        self._follow()
        if self._config != final:
            self._write(final)
            self._follow()

    def _load(
        self,
        versions: Sequence[int],
        old: Labels | None,
        needed: Sequence[int],
        before: Sequence[Replica],
    ) -> None:
        """Has every server load versions, with the labels where they are."""
        undo = self._config
        if self._entry is None:
            undo = self._with([], {})
        self._write(self._with(versions, old.as_dict() if old is not None else {}))
        try:
            self._follow(needed, before)
        except (RolloutError, BehindError) as error:
            self._write(undo)
            for replica in before:
                assert self._replicas is not None
                self._replicas.reload(replica.address, undo)
            # What failed is tried again only after a look at the folders without it.
            time.sleep(_LOOK_SECONDS)
            text = f"{error}; labels stay as they were"
            if isinstance(error, LoadError):
                raise LoadError(text, error.version) from None
            raise RolloutError(text) from None

    def _with(self, versions: Sequence[int], labels: Mapping[str, int]) -> Any:
        return _with_entry(self._config, self._folder, versions, labels, self._base_path)

    def _write(self, config: Any) -> None:
        if config != self._config:
            self._file.write(config)
            self._config = config

    def _follow(self, needed: Sequence[int] = (), before: Sequence[Replica] = ()) -> None:
        """Waits until every server does what the file says; asks those that do not.

        Args:
          needed: Versions that have to answer beside the labelled ones.
          before: What the servers said before the order: the failure of a
            version stays in its status until the server tries it again.

        Raises:
          LoadError: A needed version does not load.
          BehindError: Not all of them follow in time.
        """
        assert self._replicas is not None
        entry = self._entry
        stale = {(r.address, n): item.error for r in before for n, item in r.states.items()}
        end = time.monotonic() + self._timeout
        asked: dict[str, float] = {}
        while True:
            late = time.monotonic() > end
            try:
                found = self._replicas.look(self._label_names())
            except ServerUnavailableError as error:
                found = [Replica("", error=str(error))]
            behind = {r.address: why for r in found if (why := r.disagreement(entry, needed))}
            if not behind:
                return
            for replica, version in itertools.product(found, needed):
                status = replica.states.get(version)
                why = status.error if status is not None and status.state == "END" else ""
                if why and (late or why != stale.get((replica.address, version))):
                    raise LoadError(
                        f"version {version} of model {self._folder.name!r} does not load: "
                        f"{' '.join(why.split())[:300]} ({replica.address})",
                        version,
                    )
                if status is not None and not why:
                    stale.pop((replica.address, version), None)
            if late:
                said = "; ".join(f"{address}: {why}" for address, why in sorted(behind.items()))
                raise BehindError(
                    f"after {self._timeout:g} s not every server follows {self._file.path} ({said})"
                )
            for replica in found:
                if replica.address in behind and time.monotonic() >= asked.get(replica.address, 0):
                    self._replicas.reload(replica.address, self._config)
                    asked[replica.address] = time.monotonic() + _ASK_AGAIN_SECONDS
            time.sleep(0.05)
