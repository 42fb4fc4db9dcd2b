"""The distribution strategy of a training."""

from __future__ import annotations

import json
import logging
import os

import tensorflow as tf

from trainer.job import StrategyName
from trainer.models.keras_api import keras

_logger = logging.getLogger(__name__)


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
    _grow_memory(gpus)
    if name == "none" or (name == "auto" and len(gpus) < 2):
        return tf.distribute.get_strategy()
    if name in ("auto", "mirrored"):
        kind = "GPU" if gpus else "CPU"
        devices = [device.name for device in tf.config.list_logical_devices(kind)]
        return tf.distribute.MirroredStrategy(devices)
    if not os.environ.get("TF_CONFIG"):
        raise ValueError(
            "strategy multi_worker needs the environment variable TF_CONFIG, such as "
            '{"cluster": {"worker": ["host1:2222", "host2:2222"]}, '
            '"task": {"type": "worker", "index": 0}}'
        )
    return tf.distribute.MultiWorkerMirroredStrategy()


def is_chief() -> bool:
    """True in the process that writes the outputs: the first worker, or the only one."""
    task = json.loads(os.environ.get("TF_CONFIG") or "{}").get("task", {})
    return task.get("type", "chief") == "chief" or task.get("index", 0) == 0


def set_precision(mixed: bool) -> None:
    """Chooses the precision of layers made from now on.

    Args:
      mixed: float16 on GPUs, bfloat16 on CPUs, with float32 variables.
    """
    policy = "float32"
    if mixed:
        gpu = bool(tf.config.list_physical_devices("GPU"))
        policy = "mixed_float16" if gpu else "mixed_bfloat16"
    keras.mixed_precision.set_global_policy(policy)


def _grow_memory(gpus: list) -> None:
    for gpu in gpus:
        try:
            tf.config.experimental.set_memory_growth(gpu, True)
        except RuntimeError:
            # The GPU is in use already, in this very process.
            _logger.debug("memory growth of %s was decided before", gpu.name)
