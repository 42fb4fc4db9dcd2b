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

from trainer import strategy
from trainer.models.keras_api import keras

_logger = logging.getLogger(__name__)

_PROGRESS, _STATE, _BEST = "progress", "state", "best"


class Checkpointer(keras.callbacks.Callback):
    """Remembers the best weights, stops early, and saves all of it now and then.

    A checkpoint is one file with all that a training changes, so that one that
    was killed goes on as if it had not been. The chief of several workers
    writes it, whenever it likes to, since all of them hold the same; it reads
    it, too, and hands it to the others.

    Attributes:
      phase: Index of the phase to go on with.
      epoch: Epochs of that phase that are done.
      history: Logs by epoch, of all phases.
    """

    def __init__(self, path: str, *, monitor: str | None, patience: int, min_seconds: float = 5.0):
        """Makes the callback.

        Args:
          path: The checkpoint, the same for every try of a training.
          monitor: The log to minimise; None keeps the last weights.
          patience: Epochs without a new minimum before stopping; 0 never stops.
          min_seconds: Time between two checkpoints.
        """
        super().__init__()
        self._path = path
        self._monitor = monitor
        self._patience = patience
        self._min_seconds = min_seconds
        self._saved_at = time.monotonic()
        self._best: float | None = None
        self._waited = 0
        self._best_weights: list[np.ndarray] | None = None
        self._restored: list[np.ndarray] | None = None
        self._watching = False
        self.phase = 0
        self.epoch = 0
        self.history: list[dict[str, Any]] = []

    def restore_progress(self, distribution: tf.distribute.Strategy) -> None:
        """Reads where an interrupted training stood, if there was one; every worker has to."""
        content = b""
        if strategy.is_chief() and tf.io.gfile.exists(self._path):
            with tf.io.gfile.GFile(self._path, "rb") as f:
                content = f.read()
        content = strategy.of_chief(distribution, content)
        if not content:
            return
        with np.load(io.BytesIO(content)) as saved:
            progress = json.loads(str(saved[_PROGRESS]))
            arrays = {
                kind: [saved[name] for name in saved.files if name.startswith(f"{kind} ")]
                for kind in (_STATE, _BEST)
            }
        self.phase, self.epoch = progress["phase"], progress["epoch"]
        self._best, self._waited = progress["best"], progress["waited"]
        self.history = progress["history"]
        self._restored, self._best_weights = arrays[_STATE], arrays[_BEST] or None
        _logger.info("resuming from phase %d, epoch %d", self.phase, self.epoch)

    def begin_phase(self, phase: int, *, last: bool) -> None:
        """Prepares for a phase; only the last one is watched for its best epoch.

        Call it on a compiled model: the phase that was interrupted goes on with its
        weights and optimizers.
        """
        self._watching = last and self._monitor is not None
        if phase != self.phase:
            self.phase, self.epoch = phase, 0
        elif self._restored is not None:
            for variable, value in zip(self.model.state(), self._restored, strict=True):
                variable.assign(value)
            self._restored = None

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
        if self.stopped:
            self.model.stop_training = True
        if strategy.is_chief() and time.monotonic() - self._saved_at >= self._min_seconds:
            self.save()

    def on_train_end(self, logs: dict[str, Any] | None = None) -> None:
        """Puts the best weights back."""
        if self._watching and self._best_weights is not None:
            self.model.set_weights(self._best_weights)

    @property
    def stopped(self) -> bool:
        """True where patience has run out, in this process or before an interruption."""
        return bool(self._watching and self._patience and self._waited >= self._patience)

    def save(self) -> None:
        """Writes a checkpoint in the place of the one before it."""
        progress = {
            "phase": self.phase,
            "epoch": self.epoch,
            "best": self._best,
            "waited": self._waited,
            "history": self.history,
        }
        state = [variable.numpy() for variable in self.model.state()]
        buffer = io.BytesIO()
        np.savez(
            buffer,
            **{_PROGRESS: np.array(json.dumps(progress))},
            **{f"{_STATE} {i}": value for i, value in enumerate(state)},
            **{f"{_BEST} {i}": value for i, value in enumerate(self._best_weights or ())},
        )
        tf.io.gfile.makedirs(os.path.dirname(self._path))
        partial = self._path + ".partial"
        with tf.io.gfile.GFile(partial, "wb") as f:
            f.write(buffer.getvalue())
        tf.io.gfile.rename(partial, self._path, overwrite=True)
        self._saved_at = time.monotonic()

    def discard(self) -> None:
        """Removes the checkpoint: the training is done and exported."""
        if tf.io.gfile.exists(self._path):
            tf.io.gfile.remove(self._path)
