"""Which strategy a name stands for here, and who writes the outputs."""

import json

import pytest
import tensorflow as tf

from trainer import strategy


def test_without_gpus_auto_is_tensorflow_s_default():
    assert strategy.make_strategy("auto") is tf.distribute.get_strategy()
    assert strategy.make_strategy("none") is tf.distribute.get_strategy()


def test_mirrored_takes_the_logical_cpu_devices():
    devices = tf.config.list_logical_devices("CPU")
    assert strategy.make_strategy("mirrored").num_replicas_in_sync == len(devices)


def test_several_workers_have_to_know_each_other(monkeypatch):
    monkeypatch.delenv("TF_CONFIG", raising=False)
    with pytest.raises(ValueError, match="TF_CONFIG"):
        strategy.make_strategy("multi_worker")


TWO = {"worker": ["a:1", "b:1"]}
WITH_CHIEF = {"chief": ["a:1"], "worker": ["b:1"]}


@pytest.mark.parametrize(
    "cluster, task, chief",
    [
        (None, None, True),
        (TWO, ("worker", 0), True),
        (TWO, ("worker", 1), False),
        (WITH_CHIEF, ("chief", 0), True),
        (WITH_CHIEF, ("worker", 0), False),
    ],
)
def test_one_process_writes(monkeypatch, cluster, task, chief):
    monkeypatch.delenv("TF_CONFIG", raising=False)
    if task is not None:
        config = {"cluster": cluster, "task": {"type": task[0], "index": task[1]}}
        monkeypatch.setenv("TF_CONFIG", json.dumps(config))
    assert strategy.is_chief() == chief


def test_mixed_precision_is_bfloat16_without_a_gpu():
    from trainer.models.keras_api import keras

    try:
        strategy.set_precision(True)
        assert keras.mixed_precision.global_policy().name == "mixed_bfloat16"
    finally:
        strategy.set_precision(False)
    assert keras.mixed_precision.global_policy().name == "float32"
