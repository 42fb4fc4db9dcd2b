"""What people see of a training: TensorBoard logs and live progress."""

from __future__ import annotations

import logging
import time
from typing import Any

import tensorflow as tf

from trainer.models.base import Autoencoder
from trainer.models.keras_api import keras

# Records carry ``done`` and ``total`` epochs; the command line shows them live.
PROGRESS_LOGGER = "mnist_ae.progress"

_PICTURES = 16
_PICTURE_EPOCHS = 10


class ProgressLog(keras.callbacks.Callback):
    """Reports how far the training is, a few times a second at most.

    Attributes:
      epoch_seconds: How long each epoch trained, without its validation.
    """

    def __init__(self, epochs: int, steps: int, min_seconds: float = 0.2):
        super().__init__()
        self._epochs, self._steps = epochs, steps
        self._min_seconds = min_seconds
        self._next = 0.0
        self._epoch = 0
        self._started = 0.0
        self.epoch_seconds: list[float] = []
        self._logger = logging.getLogger(PROGRESS_LOGGER)

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Starts the epoch's clock."""
        self._epoch = epoch
        self._started = time.monotonic()

    def on_test_begin(self, logs: dict[str, Any] | None = None) -> None:
        """Stops it: the epoch's training is over, its validation begins."""
        self.epoch_seconds.append(time.monotonic() - self._started)

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        """Reports a fraction of an epoch, if the last report is old enough."""
        if time.monotonic() >= self._next:
            self._next = time.monotonic() + self._min_seconds
            self._report(self._epoch + (batch + 1) / self._steps, logs or {})

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Reports the epoch with the losses of its validation."""
        self._report(epoch + 1, logs or {})

    def _report(self, done: float, logs: dict[str, Any]) -> None:
        shown = "  ".join(f"{key} {float(value):.4f}" for key, value in logs.items())
        self._logger.info(
            "epoch %d/%d  %s",
            min(int(done) + (done != int(done)), self._epochs),
            self._epochs,
            shown,
            extra={"done": done, "total": self._epochs},
        )


class Pictures(keras.callbacks.Callback):
    """Writes reconstructions and code histograms to TensorBoard.

    At the first epoch, every tenth, and the end of the training; of the first of
    ``images``, float [n, 28, 28] in [0, 1].
    """

    def __init__(self, log_dir: str, images: tf.Tensor):
        super().__init__()
        self._writer = tf.summary.create_file_writer(log_dir)
        self._images = images[:_PICTURES]
        self._epoch = 0

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Writes pictures of every tenth epoch."""
        self._epoch = epoch
        if epoch % _PICTURE_EPOCHS == 0:
            self._write()

    def on_train_end(self, logs: dict[str, Any] | None = None) -> None:
        """Writes the last pictures."""
        self._write()
        self._writer.close()

    def _write(self) -> None:
        model: Autoencoder = self.model
        code = model.encode(self._images)
        pairs = tf.concat([self._images, model(self._images)], axis=1)
        with self._writer.as_default(step=self._epoch):
            tf.summary.image("reconstructions", pairs[..., tf.newaxis], max_outputs=_PICTURES)
            tf.summary.histogram("code", code)


def tensorboard(log_dir: str) -> keras.callbacks.Callback:
    """TensorBoard's scalars, by epoch."""
    return keras.callbacks.TensorBoard(
        log_dir, write_graph=False, update_freq="epoch", profile_batch=0
    )
