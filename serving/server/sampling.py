"""Keeps a sample of the images in requests, for a later training.

Off unless asked for. A request is never delayed: its images are copied into a
queue, and where that is full, or the folder is, they are dropped. A thread
writes ``*.npy`` files, uint8 [n, 28, 28], each appearing by a rename.
"""

from __future__ import annotations

import dataclasses
import logging
import os
import pathlib
import queue
import random
import threading
import time
import uuid
from collections.abc import Mapping
from typing import Any

import numpy as np

from serving import contract, protos

_log = logging.getLogger(__name__)

_QUEUE = 256
_FILE_IMAGES = 256
_FLUSH_SECONDS = 5.0
# What a watcher asks to compare versions is nobody's request.
_NOT_SAMPLED = frozenset({contract.EVALUATE})


@dataclasses.dataclass(frozen=True)
class SamplingOptions:
    """What is kept of requests.

    Attributes:
      folder: Where the files go.
      rate: Part of the images, above 0 to 1.
      max_bytes: Of all files in the folder; beyond, images are dropped.
    """

    folder: str
    rate: float
    max_bytes: int


class Sampler:
    """Copies images of requests to files, beside the answers' way.

    Args:
      options: What is kept.
    """

    def __init__(self, options: SamplingOptions) -> None:
        self._options = options
        self._folder = pathlib.Path(options.folder)
        self._queue: queue.Queue[tuple[str, Any] | None] = queue.Queue(_QUEUE)
        self._random = random.Random()
        self._complained = False
        self.kept = 0
        self.dropped = 0
        self._thread = threading.Thread(target=self._work, name="sampling", daemon=True)
        self._thread.start()

    def offer(self, signature: str, inputs: Mapping[str, np.ndarray[Any, Any]]) -> None:
        """Perhaps keeps some images of a request that was answered; never waits."""
        alias = contract.IMAGES if contract.IMAGES in inputs else contract.EXAMPLES
        rows = inputs.get(alias)
        if rows is None or signature in _NOT_SAMPLED or not rows.ndim:
            return
        rate = self._options.rate
        chosen = [row for row in range(len(rows)) if self._random.random() < rate]
        if not chosen:
            return
        try:
            # A copy: the request's memory goes with the request.
            self._queue.put_nowait((alias, rows[chosen].copy()))
        except queue.Full:
            self.dropped += len(chosen)

    def close(self) -> None:
        """Writes what is left."""
        try:
            self._queue.put(None, timeout=1)
        except queue.Full:
            return
        self._thread.join(_FLUSH_SECONDS)

    def _work(self) -> None:
        waiting: list[np.ndarray[Any, Any]] = []
        since = time.monotonic()
        while True:
            try:
                item = self._queue.get(timeout=_FLUSH_SECONDS)
            except queue.Empty:
                item = ("", None)
            if item is not None and item[1] is not None:
                if not waiting:
                    since = time.monotonic()
                images = _images(*item)
                if len(images):
                    waiting.append(images)
            count = sum(map(len, waiting))
            late = time.monotonic() - since >= _FLUSH_SECONDS
            if waiting and (item is None or count >= _FILE_IMAGES or late):
                self._write(np.concatenate(waiting))
                waiting = []
            if item is None:
                return

    def _write(self, images: np.ndarray[Any, Any]) -> None:
        temporary = self._folder / f".{uuid.uuid4().hex}"
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            used = sum(entry.stat().st_size for entry in os.scandir(self._folder)
                       if entry.is_file())  # fmt: skip
            if used + images.nbytes > self._options.max_bytes:
                self.dropped += len(images)
                self._complain(f"it holds {used:,} bytes, the limit is {self._options.max_bytes:,}")
                return
            with temporary.open("wb") as file:
                np.save(file, images)
            temporary.rename(self._folder / f"{time.time_ns()}-{os.getpid()}.npy")
            self.kept += len(images)
            self._complained = False
        except OSError as error:
            self.dropped += len(images)
            self._complain(str(error.strerror))
            try:
                temporary.unlink(missing_ok=True)
            except OSError:
                return

    def _complain(self, reason: str) -> None:
        if not self._complained:
            _log.warning("requests are not sampled into %s: %s", self._folder, reason)
        self._complained = True


def _images(alias: str, rows: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """The images among a request's rows, uint8 [n, 28, 28]; others are left out."""
    shape = (contract.IMAGE_HEIGHT, contract.IMAGE_WIDTH)
    if alias == contract.IMAGES:
        good = rows.dtype == np.uint8 and rows.shape[1:] == shape
        return rows if good else np.zeros((0, *shape), np.uint8)
    found = []
    for row in rows.reshape(-1):
        try:
            feature = protos.Example.FromString(row).features.feature[contract.IMAGE_FEATURE]
            (value,) = feature.bytes_list.value
        except Exception:  # protobuf's DecodeError has no stable home
            continue
        if len(value) == contract.IMAGE_PIXELS:
            found.append(np.frombuffer(value, np.uint8).reshape(shape))
    return np.stack(found) if found else np.zeros((0, *shape), np.uint8)
