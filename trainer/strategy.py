"""The distribution strategy of a training."""

from __future__ import annotations

import functools
import json
import os

import numpy as np
import tensorflow as tf

from trainer.job import StrategyName
from trainer.models.keras_api import keras


def make_strategy(name: StrategyName) -> tf.distribute.Strategy:
    """Makes the strategy called ``name``.

    Args:
      name: ``auto`` mirrors over all GPUs where there are several and is
        TensorFlow's default strategy otherwise; ``mirrored`` mirrors over all
        GPUs, or over all logical CPU devices where there is no GPU;
        ``multi_worker`` reads ``TF_CONFIG``; ``none`` is the default strategy.

    Raises:
      ValueError: ``multi_worker`` without ``TF_CONFIG``.
    """
    gpus = tf.config.list_physical_devices("GPU")
    if name == "none" or (name == "auto" and len(gpus) < 2):
        return tf.distribute.get_strategy()
    if name in ("auto", "mirrored"):
        kind = "GPU" if gpus else "CPU"
        return _mirrored(tuple(device.name for device in tf.config.list_logical_devices(kind)))
    if not os.environ.get("TF_CONFIG"):
        raise ValueError(
            "strategy multi_worker needs the environment variable TF_CONFIG, such as "
            '{"cluster": {"worker": ["host1:2222", "host2:2222"]}, '
            '"task": {"type": "worker", "index": 0}}'
        )
    return tf.distribute.MultiWorkerMirroredStrategy()


@functools.cache
def _mirrored(devices: tuple[str, ...]) -> tf.distribute.Strategy:
    """One for all trainings of a process: a second would take up the first's collectives."""
    return tf.distribute.MirroredStrategy(list(devices))


def is_chief() -> bool:
    """True in the one process that writes, the chief or else the first worker, as in TensorFlow."""
    config = json.loads(os.environ.get("TF_CONFIG") or "{}")
    task = config.get("task", {"type": "chief"})
    if task["type"] == "chief" or "chief" in config.get("cluster", {}):
        return task["type"] == "chief"
    return int(task["index"]) == 0


def of_chief(distribution: tf.distribute.Strategy, content: bytes) -> bytes:
    """The ``content`` that the chief of a multi-worker training calls this with.

    Every worker has to call it; without workers, ``content`` comes back.
    """
    if not isinstance(distribution, tf.distribute.MultiWorkerMirroredStrategy):
        return content
    # A variable of this strategy starts with the chief's value on every worker.
    with distribution.scope():
        size = int(tf.Variable(len(content), dtype=tf.int64).numpy())
        # At least one word: TensorFlow 2.16 crashes when it broadcasts none.
        padded = np.zeros((size // 8 + 1) * 8, np.uint8)
        if is_chief():
            padded[:size] = np.frombuffer(content, np.uint8)
        received = tf.Variable(padded.view(np.int64)).numpy()
    return received.tobytes()[:size]


def set_precision(mixed: bool) -> None:
    """Chooses the precision of layers made from now on.

    Args:
      mixed: float16 on GPUs, bfloat16 on CPUs, with float32 variables.
    """
    half = "mixed_float16" if tf.config.list_physical_devices("GPU") else "mixed_bfloat16"
    keras.mixed_precision.set_global_policy(half if mixed else "float32")
