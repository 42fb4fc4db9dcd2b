"""Early stopping, best weights, and checkpoints that survive a kill."""

from __future__ import annotations

import io
import json
import logging
import os
import time
from typing import Any

import numpy as np
import tensorflow as tf

from trainer.models.keras_api import keras

_logger = logging.getLogger(__name__)

_STATE = "state.json"
_WEIGHTS = "weights"
_BEST = "best.npz"


class Checkpointer(keras.callbacks.Callback):
    """Remembers the best weights, stops early, and saves all of it now and then.

    A checkpoint holds weights, optimizers, the best weights so far and where
    the training stood, so that a training that was killed goes on as if it had
    not been. It is a folder that its last file, ``state.json``, makes valid.

    Attributes:
      phase: Index of the phase to go on with.
      epoch: Epochs of that phase that are done.
      history: Logs by epoch, of all phases.
    """

    def __init__(
        self,
        folder: str,
        *,
        monitor: str | None,
        patience: int,
        min_seconds: float = 5.0,
    ):
        """Makes the callback.

        Args:
          folder: Where checkpoints go, the same for every try of a training.
          monitor: The log to minimise; None keeps the last weights.
          patience: Epochs without a new minimum before stopping; 0 never stops.
          min_seconds: Time between two checkpoints.
        """
        super().__init__()
        self._folder = folder
        self._monitor = monitor
        self._patience = patience
        self._min_seconds = min_seconds
        self._saved_at = time.monotonic()
        self._best: float | None = None
        self._waited = 0
        self._best_weights: list[np.ndarray] | None = None
        self._watching = False
        self.phase = 0
        self.epoch = 0
        self.history: list[dict[str, Any]] = []

    def restore_progress(self) -> None:
        """Reads where an interrupted training stood, if there was one."""
        newest = self._newest()
        if newest is None:
            return
        with tf.io.gfile.GFile(os.path.join(newest, _STATE)) as f:
            state = json.load(f)
        self.phase, self.epoch = state["phase"], state["epoch"]
        self._best, self._waited = state["best"], state["waited"]
        self.history = state["history"]
        best = os.path.join(newest, _BEST)
        if tf.io.gfile.exists(best):
            with tf.io.gfile.GFile(best, "rb") as f, np.load(io.BytesIO(f.read())) as saved:
                self._best_weights = [saved[key] for key in saved.files]
        _logger.info("resuming from phase %d, epoch %d", self.phase, self.epoch)

    def begin_phase(self, phase: int, *, last: bool) -> None:
        """Prepares for a phase; only the last one is watched for its best epoch.

        Args:
          phase: Its index. The phase that was interrupted goes on with its
            weights and optimizers; call it on a compiled model.
          last: Whether it is the last.
        """
        self._watching = last and self._monitor is not None
        if phase == self.phase and (newest := self._newest()) is not None:
            checkpoint = tf.train.Checkpoint(model=self.model)
            # Optimizer slots are made by the first step and then filled.
            checkpoint.read(os.path.join(newest, _WEIGHTS)).expect_partial()
        elif phase != self.phase:
            self.phase, self.epoch = phase, 0

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Judges the epoch, stops where patience has run out, and saves now and then."""
        logs = {key: float(value) for key, value in (logs or {}).items()}
        self.epoch = epoch + 1
        self.history.append(logs)
        judged = self._monitor if self._watching and self._monitor else "loss"
        value = logs[judged]
        if not np.isfinite(value):
            raise FloatingPointError(
                f"{judged} is {value} after epoch {epoch + 1}: the training diverged; "
                "lower trainer.learning_rate"
            )
        if self._watching:
            if self._best is None or value < self._best:
                self._best, self._waited = value, 0
                self._best_weights = self.model.get_weights()
            else:
                self._waited += 1
                if self._patience and self._waited >= self._patience:
                    self.model.stop_training = True
        if time.monotonic() - self._saved_at >= self._min_seconds:
            self.save()

    def on_train_end(self, logs: dict[str, Any] | None = None) -> None:
        """Puts the best weights back."""
        if self._watching and self._best_weights is not None:
            self.model.set_weights(self._best_weights)

    @property
    def stopped(self) -> bool:
        """True where patience had run out already when the training was interrupted."""
        return bool(self._watching and self._patience and self._waited >= self._patience)

    def save(self) -> None:
        """Writes a checkpoint and removes the ones before it."""
        folder = os.path.join(self._folder, f"{self.phase:03d}-{self.epoch:06d}")
        tf.io.gfile.makedirs(folder)
        tf.train.Checkpoint(model=self.model).write(os.path.join(folder, _WEIGHTS))
        if self._best_weights is not None:
            buffer = io.BytesIO()
            np.savez(buffer, *self._best_weights)
            with tf.io.gfile.GFile(os.path.join(folder, _BEST), "wb") as f:
                f.write(buffer.getvalue())
        state = {
            "phase": self.phase,
            "epoch": self.epoch,
            "best": self._best,
            "waited": self._waited,
            "history": self.history,
        }
        partial = os.path.join(folder, _STATE + ".partial")
        with tf.io.gfile.GFile(partial, "w") as f:
            json.dump(state, f)
        tf.io.gfile.rename(partial, os.path.join(folder, _STATE), overwrite=True)
        for other in self._folders():
            if other != folder:
                tf.io.gfile.rmtree(other)
        self._saved_at = time.monotonic()

    def discard(self) -> None:
        """Removes all checkpoints: the training is done and exported."""
        if tf.io.gfile.exists(self._folder):
            tf.io.gfile.rmtree(self._folder)

    def _folders(self) -> list[str]:
        if not tf.io.gfile.exists(self._folder):
            return []
        names = sorted(name.rstrip("/") for name in tf.io.gfile.listdir(self._folder))
        return [os.path.join(self._folder, name) for name in names]

    def _newest(self) -> str | None:
        valid = [f for f in self._folders() if tf.io.gfile.exists(os.path.join(f, _STATE))]
        return valid[-1] if valid else None
