"""Keeps a sample of the images that a client sends, for a later training.

Off unless asked for, and the same for every server. A call is never delayed:
its images are copied into a queue, and where that is full, or the folder is,
they are dropped. A thread writes ``*.npy`` files, uint8 [n, 28, 28], each
appearing by a rename; pipeline.continuous.samples gathers them.
"""

from __future__ import annotations

import logging
import os
import pathlib
import queue
import random
import threading
import time
from collections.abc import Mapping
from typing import Any

import numpy as np

from serving import contract, files, protos
from serving.errors import InputError

_log = logging.getLogger(__name__)

Array = np.ndarray[Any, Any]

_QUEUE = 256
_FILE_IMAGES = 256
_FLUSH_SECONDS = 5.0
DEFAULT_MAX_BYTES = 64 * 2**20
# What a watcher asks to compare versions is nobody's request.
_NOT_SAMPLED = frozenset({contract.EVALUATE})


class Sampler:
    """Copies images of requests to files, beside the answers' way.

    Args:
      fraction: Of the images, above 0 to 1.
      max_bytes: Of all files in the folder; beyond, images are dropped.

    Attributes:
      kept: Images written.
      dropped: Images chosen and not written.

    Raises:
      InputError: A fraction that is none.
    """

    def __init__(
        self, folder: str | os.PathLike[str], fraction: float, max_bytes: int = DEFAULT_MAX_BYTES
    ) -> None:
        if not 0 < fraction <= 1:
            raise InputError(f"sample_fraction {fraction} is not above 0 and at most 1")
        self._folder = pathlib.Path(folder)
        self._fraction = fraction
        self._max_bytes = max_bytes
        self._queue: queue.Queue[tuple[str, Array] | None] = queue.Queue(_QUEUE)
        self._random = random.Random()
        self._complained = False
        self.kept = 0
        self.dropped = 0
        self._thread = threading.Thread(target=self._work, name="sampling", daemon=True)
        self._thread.start()

    def offer(self, signature: str, inputs: Mapping[str, Array]) -> None:
        """Perhaps keeps some images of a request that was answered; never waits."""
        alias = contract.IMAGES if contract.IMAGES in inputs else contract.EXAMPLES
        rows = inputs.get(alias)
        if rows is None or signature in _NOT_SAMPLED or not rows.ndim:
            return
        chosen = [row for row in range(len(rows)) if self._random.random() < self._fraction]
        if not chosen:
            return
        try:
            self._queue.put_nowait((alias, rows[chosen]))  # a copy: the caller may change his
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
        waiting: list[Array] = []
        flush = time.monotonic() + _FLUSH_SECONDS
        ended = False
        while not ended:
            try:
                item = self._queue.get(timeout=_FLUSH_SECONDS)
                ended = item is None
            except queue.Empty:
                item = None
            if item is not None and len(images := _images(*item)):
                if not waiting:
                    flush = time.monotonic() + _FLUSH_SECONDS
                waiting.append(images)
            full = sum(map(len, waiting)) >= _FILE_IMAGES
            if waiting and (ended or full or time.monotonic() >= flush):
                self._write(np.concatenate(waiting))
                waiting = []

    def _write(self, images: Array) -> None:
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            used = sum(item.stat().st_size for item in os.scandir(self._folder) if item.is_file())
            if used + images.nbytes > self._max_bytes:
                self.dropped += len(images)
                self._complain(f"it holds {used:,} bytes, the limit is {self._max_bytes:,}")
                return
            with files.replacing(self._folder / f"{time.time_ns()}-{os.getpid()}.npy") as file:
                np.save(file, images)
        except OSError as error:
            self.dropped += len(images)
            self._complain(str(error.strerror))
        else:
            self.kept += len(images)
            self._complained = False

    def _complain(self, reason: str) -> None:
        if not self._complained:
            _log.warning("requests are not sampled into %s: %s", self._folder, reason)
        self._complained = True


def _images(alias: str, rows: Array) -> Array:
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
