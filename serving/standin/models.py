"""All served models: watched, handed to requests, configured anew."""

from __future__ import annotations

import contextlib
import copy
import logging
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping

from serving.standin.lifecycle import Loader, Model, Serving, Version
from serving.standin.servable import Servable
from serving.standin.settings import ModelSettings, ServerOptions, located
from serving.standin.status import Code, StatusError

_log = logging.getLogger(__name__)


class Models:
    """Keeps the configured models loaded and hands them to requests.

    Args:
      loader: Loads versions.
      options: How often to look at the folders, and how to reload.
    """

    def __init__(self, loader: Loader, options: ServerOptions) -> None:
        self._loader = loader
        self._poll_interval = options.poll_interval
        self._real_reloads = options.real_reloads
        self._config_file = options.config_file
        self._models: dict[str, Model] = {}
        self._changed = threading.Condition(threading.RLock())
        self._reloading = threading.Lock()
        self._wake = threading.Event()
        self._stopping = threading.Event()
        self._watcher = threading.Thread(target=self._watch, name="versions", daemon=True)

    # Requests.

    @contextlib.contextmanager
    def lease(
        self, name: str, version: int | None = None, label: str | None = None
    ) -> Iterator[Servable]:
        """Lends a servable, which stays loaded until the block ends.

        Args:
          name: The model.
          version: A number, or None for the latest.
          label: A version label; excludes ``version``.

        Raises:
          StatusError: As TensorFlow Serving for an unknown name, version or label.
        """
        while True:
            model = self._models.get(name)
            serving = model.serving if model is not None else Serving()
            servable = serving.choose(name, version, label)
            if servable.acquire():
                break
            # It was retired between the look and the grab; another one serves now.
        try:
            yield servable
        finally:
            servable.release()

    def versions(self, name: str, version: int | None = None) -> list[Version]:
        """The versions of a model that were ever seen, highest first, as they are now.

        Raises:
          StatusError: NOT_FOUND, with TensorFlow Serving's text.
        """
        with self._changed:
            model = self._models.get(name)
            known = model.versions if model is not None else {}
            if version is not None and version not in known:
                text = f"Could not find version {version} of model {name}"
                raise StatusError(Code.NOT_FOUND, text)
            if not known:
                text = f"Could not find any versions of model {name}"
                raise StatusError(Code.NOT_FOUND, text)
            chosen = sorted(known, reverse=True) if version is None else [version]
            return [copy.copy(known[number]) for number in chosen]

    def available(self) -> dict[str, list[int]]:
        """Model name to the version numbers that answer, ascending."""
        answering = {name: sorted(model.serving.servables) for name, model in self._models.items()}
        return {name: numbers for name, numbers in answering.items() if numbers}

    # Configuration.

    def start(self, models: Mapping[str, ModelSettings]) -> None:
        """Begins to watch and load; returns at once."""
        with self._changed:
            self._configure(models)
            for name, settings in models.items():
                self._models[name].set_labels(settings.labels)
        self._watcher.start()

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
        if not self._reloading.acquire(timeout=timeout):
            raise StatusError(Code.DEADLINE_EXCEEDED, "Another reload is still waiting.")
        try:
            if not still_wanted():
                return
            with self._changed:
                known = {name for name, model in self._models.items() if not model.removed}
                if self._real_reloads:
                    self._refuse_labels({name: self._models[name].labels for name in known}, models)
                # Labels move before the policy can unload what they leave, and
                # in the same instant for requests: a rollback loses none.
                for name in known & models.keys():
                    labels = models[name].labels
                    if self._real_reloads or not self._models[name].unavailable(labels):
                        self._models[name].set_labels(labels)
                self._configure(models)
            if not self._real_reloads:
                self._wake.set()
            self._await_new([name for name in models if name not in known], deadline)
            with self._changed:
                if not self._real_reloads:
                    self._refuse_labels({name: {} for name in models}, models)
                for name, settings in models.items():
                    self._models[name].set_labels(settings.labels)
        finally:
            self._reloading.release()

    def _configure(self, models: Mapping[str, ModelSettings]) -> None:
        for name in self._models.keys() - models.keys():
            self._models[name].remove()
        for name, settings in models.items():
            if self._config_file is not None:
                settings = located(settings, os.path.dirname(os.path.abspath(self._config_file)))
            if name in self._models:
                self._models[name].configure(settings)
            else:
                # A new mapping: requests walk the old one without a lock.
                model = Model(settings, self._loader, self._changed)
                self._models = {**self._models, name: model}

    def _await_new(self, names: list[str], deadline: float) -> None:
        def waiting() -> list[str]:
            models = ((name, self._models[name]) for name in names)
            return [name for name, model in models if model.pending() or not model.aspired]

        with self._changed:
            self._changed.wait_for(
                lambda: not waiting() or self._stopping.is_set(), deadline - time.monotonic()
            )
            if late := waiting():
                raise StatusError(
                    Code.DEADLINE_EXCEEDED,
                    f"{', '.join(late)} did not become available in time; check that base_path "
                    "exists and holds a numbered SavedModel",
                )
            failed = [(name, item) for name in names for item in self._models[name].failures()]
        if failed:
            count = len({name for name, _ in failed})
            errors = "".join(
                f"{{{{name: {name} version: {item.number}}} due to error: {item.error}}}, "
                for name, item in failed
            )
            raise StatusError(Code.UNKNOWN, f"{count} model(s) did not become available: {errors}")

    def _refuse_labels(
        self, before: Mapping[str, Mapping[str, int]], models: Mapping[str, ModelSettings]
    ) -> None:
        """Refuses labels that come to a version which does not answer.

        Args:
          before: The labels by model; with ``real_reloads`` one that was
            nowhere may go anywhere, as the flag of that name has it.
          models: Whose labels are to be moved; those not in ``before`` are not looked at.
        """
        for name in before.keys() & models.keys():
            moved = {
                label: number
                for label, number in models[name].labels.items()
                if not self._real_reloads or before[name].get(label, number) != number
            }
            if missing := self._models[name].unavailable(moved):
                raise StatusError(
                    Code.FAILED_PRECONDITION,
                    f"Request to assign label to version {missing[0]} of model {name}, which "
                    "is not currently available for inference",
                )

    # Waiting and watching.

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
            model = self._models[name]
            if model.serving.servables:
                return not model.label_pending()
            return not model.pending()

        self.wait_for(settled, timeout)
        return bool(self._models[name].serving.servables)

    def wait_for(self, condition: Callable[[], bool], timeout: float | None = None) -> bool:
        """Waits for a condition, looked at again after every state change."""
        with self._changed:
            return self._changed.wait_for(condition, timeout)

    def _watch(self) -> None:
        while not self._stopping.is_set():
            for model in list(self._models.values()):
                try:
                    model.look()
                except Exception:
                    _log.exception("looking for versions failed; trying again")
            self._wake.wait(self._poll_interval)
            self._wake.clear()

    def stop(self) -> None:
        """Stops watching and closes every version once its users are done."""
        self._stopping.set()
        self._wake.set()
        with self._changed:
            self._changed.notify_all()
        if self._watcher.is_alive():
            self._watcher.join()
        self._loader.stop()
        with self._changed:
            for model in self._models.values():
                model.drop()
