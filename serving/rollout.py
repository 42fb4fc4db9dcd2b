"""Moves version labels: canary, promote, rollback.

The state is one file, TensorFlow Serving's model configuration
(``--model_config_file``), ``<root>/serving/models.config``. A live server is
told with HandleReloadConfigRequest, and reads the file when it starts again.

Labels: ``stable`` is what callers should use. ``canary`` is the candidate, and
equals ``stable`` while there is none, so that calls to it never fail.
``previous`` is where a rollback after a promotion goes; it stays loaded.
"""

from __future__ import annotations

import dataclasses
import pathlib
import time
from collections.abc import Callable, Sequence
from typing import Any

from serving import files, locate, protos
from serving.errors import ModelNotFoundError, RolloutError
from serving.grpc_transport import GrpcTransport
from serving.transport import Address, VersionStatus

STABLE, CANARY, PREVIOUS = "stable", "canary", "previous"
DEFAULT_KEEP = 3


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


class Rollout:
    """Moves the labels of one pushed model.

    Args:
      folder: The model.
      config_file: The state.
      target: ``host:port`` of a live server's gRPC, or None to change the
        file only.
      keep: How many versions stay loaded, those with a label included.
      timeout: Seconds for a version to become available.
      base_path: The model's folder as the server sees it; the folder's own
        path by default. Containers see another.
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
        connect: Callable[[Address], GrpcTransport] = GrpcTransport,
    ) -> None:
        if keep < 1:
            raise RolloutError("keep at least 1 version")
        self._folder = folder
        self._file = config_file
        self._keep = keep
        self._timeout = timeout
        self._base_path = base_path
        self._config = config_file.read()
        self._server = (
            connect(Address(target, folder.name, timeout=timeout)) if target is not None else None
        )

    def close(self) -> None:
        """Lets go of the server."""
        if self._server is not None:
            self._server.close()

    @property
    def labels(self) -> Labels | None:
        """Where the labels are, or None before the first rollout."""
        return labels_of(entry_of(self._config, self._folder.name))

    def canary(self, version: int) -> Labels:
        """Loads a version beside the stable one and labels it ``canary``.

        Raises:
          RolloutError: There is no such version, or it does not become
            available; nothing was changed then.
        """
        self._folder.version_path(version)
        old = self.labels
        stable = old.stable if old is not None else self._present(version)
        labels = Labels(stable, version, old.previous if old is not None else None)
        self._apply(labels, old)
        return labels

    def promote(self) -> Labels:
        """Makes the canary the stable version; the stable one becomes ``previous``.

        Raises:
          RolloutError: There is no canary.
        """
        old = self._known()
        if old.canary == old.stable:
            raise RolloutError(
                f"model {self._folder.name!r} has no canary; begin with `rollout canary VERSION`"
            )
        labels = Labels(old.canary, old.canary, old.stable)
        self._apply(labels, old)
        return labels

    def rollback(self) -> Labels:
        """Withdraws the canary; without one, returns to ``previous``.

        Raises:
          RolloutError: There is neither.
        """
        old = self._known()
        if old.canary != old.stable:
            labels = Labels(old.stable, old.stable, old.previous)
        elif old.previous is not None:
            labels = Labels(old.previous, old.previous)
        else:
            raise RolloutError(
                f"model {self._folder.name!r} has neither a canary nor a previous version to "
                "return to"
            )
        self._apply(labels, old)
        return labels

    def states(self) -> dict[int, VersionStatus]:
        """What the live server says of each version; empty without a server."""
        if self._server is None:
            return {}
        try:
            return {item.version: item for item in self._server.status()}
        except ModelNotFoundError:
            return {}

    def _known(self) -> Labels:
        labels = self.labels
        if labels is None:
            raise RolloutError(
                f"model {self._folder.name!r} has no rollout yet; begin with "
                "`rollout canary VERSION`"
            )
        return labels

    def _present(self, candidate: int) -> int:
        """The version that is stable before the first rollout."""
        answering = [
            item.version
            for item in self.states().values()
            if item.state == "AVAILABLE" and item.version != candidate
        ]
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

    def _apply(self, labels: Labels, old: Labels | None) -> None:
        for version in labels.as_dict().values():
            self._folder.version_path(version)
        wanted = self._entry(self._loaded(labels), labels.as_dict())
        if self._server is not None:
            needed = set(labels.as_dict().values())
            if not self._available(needed):
                both = set(self._loaded(labels)) | (
                    set(self._loaded(old)) if old is not None else {self._present(labels.canary)}
                )
                before = old.as_dict() if old is not None else {}
                self._server.reload(self._entry(sorted(both), before))
                self._await(needed, lambda: self._server_back(old))
            self._server.reload(wanted)
        self._config = wanted
        self._file.write(wanted)

    def _server_back(self, old: Labels | None) -> None:
        """Undoes the first half of an order whose second half cannot be given."""
        assert self._server is not None
        if old is not None:
            self._server.reload(self._entry(self._loaded(old), old.as_dict()))
        elif self._config.model_config_list.config:
            self._server.reload(self._config)
        else:
            self._server.reload(self._entry([], {}))

    def _entry(self, versions: Sequence[int], labels: dict[str, int]) -> Any:
        config = protos.ModelServerConfig()
        config.CopyFrom(self._config)
        entry = entry_of(config, self._folder.name)
        if entry is None:
            entry = config.model_config_list.config.add(
                name=self._folder.name,
                base_path=self._base_path or str(self._folder.path),
                model_platform="tensorflow",
            )
        if self._base_path:
            entry.base_path = self._base_path
        entry.model_version_policy.Clear()
        if versions:
            entry.model_version_policy.specific.versions.extend(versions)
        entry.version_labels.clear()
        entry.version_labels.update(labels)
        return config

    def _available(self, versions: set[int]) -> bool:
        states = self.states()
        return all(
            version in states and states[version].state == "AVAILABLE" for version in versions
        )

    def _await(self, versions: set[int], undo: Callable[[], None]) -> None:
        end = time.monotonic() + self._timeout
        while True:
            states = self.states()
            for version in versions:
                status = states.get(version)
                if status is not None and status.state == "END" and status.error:
                    undo()
                    raise RolloutError(
                        f"version {version} of model {self._folder.name!r} does not load: "
                        f"{' '.join(status.error.split())[:300]}; labels stay as they were"
                    )
            if self._available(versions):
                return
            if time.monotonic() > end:
                undo()
                missing = ", ".join(
                    str(version) for version in sorted(versions) if version not in states
                )
                raise RolloutError(
                    f"version {missing or sorted(versions)} of model {self._folder.name!r} did not "
                    f"become available within {self._timeout:g} s; labels stay as they were"
                )
            time.sleep(0.05)
