"""What every autoencoder of the catalogue has in common."""

from __future__ import annotations

import dataclasses
import zlib
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from trainer.models.catalogue import TrainingDefaults
from trainer.models.hyperparameters import Hyperparameters
from trainer.models.keras_api import keras

IMAGE_SHAPE = (28, 28)
PIXELS = 28 * 28
# Keras's own epsilon: a probability of exactly 0 or 1 costs 16, not infinity.
_EPSILON = 1e-7


@dataclasses.dataclass(frozen=True)
class Phase:
    """A part of a training with its own loss; most models have one.

    Attributes:
      name: What it is called in logs and checkpoints.
      epochs: Its length.
      main: Whether the autoencoder as a whole is trained in it, so that its
        losses are those of the model.
    """

    name: str
    epochs: int
    main: bool = True


_WHOLE = Phase("train", 0)


def per_image_bce(images: tf.Tensor, reconstruction: tf.Tensor) -> tf.Tensor:
    """Binary cross-entropy per image, averaged over pixels.

    Args:
      images: Targets, float [n, 28, 28] in [0, 1].
      reconstruction: Float [n, 28, 28]; clipped into (0, 1).

    Returns:
      Float [n], in nats a pixel.
    """
    p = tf.clip_by_value(reconstruction, _EPSILON, 1 - _EPSILON)
    bce = -(images * tf.math.log(p) + (1 - images) * tf.math.log1p(-p))
    return tf.reduce_mean(bce, axis=(1, 2))


@tf.custom_gradient
def per_image_bce_from_logits(
    images: tf.Tensor, logits: tf.Tensor
) -> tuple[tf.Tensor, Callable[[tf.Tensor], tuple[None, tf.Tensor]]]:
    """As :func:`per_image_bce`, from the sigmoid's input: exact and stable.

    The same as ``tf.nn.sigmoid_cross_entropy_with_logits`` with fewer passes over
    the pixels: the sigmoid serves loss and gradient; of it and its complement the
    larger, at least one half, goes into the logarithm, by the product of a row,
    which cannot underflow.
    """
    probability = tf.sigmoid(logits)
    confidence = tf.reduce_prod(tf.maximum(probability, 1.0 - probability), axis=2)
    linear = tf.reduce_sum(tf.nn.relu(logits) - logits * images, axis=(1, 2))
    loss = (linear - tf.reduce_sum(tf.math.log(confidence), axis=1)) / PIXELS

    def gradient(upstream: tf.Tensor) -> tuple[None, tf.Tensor]:
        return None, (probability - images) * (upstream / PIXELS)[:, tf.newaxis, tf.newaxis]

    return loss, gradient


def per_image_mse(images: tf.Tensor, reconstruction: tf.Tensor) -> tf.Tensor:
    """Squared error per image, averaged over pixels: float [n]."""
    return tf.reduce_mean(tf.math.squared_difference(images, reconstruction), axis=(1, 2))


class Autoencoder(keras.Model):
    """Base class: images in [0, 1] to a code and back.

    A subclass sets ``self.encoder`` (images [n, 28, 28] to code [n, d]) and
    ``self.decoder`` (code [n, d] to logits or values [n, 28, 28]) in its
    constructor, or overrides :meth:`encode` and :meth:`decode_output`; and
    overrides :meth:`loss_terms` where the loss is not plain reconstruction.
    Whoever trains it calls ``phases`` and for each of them ``begin_phase`` and
    ``configure``, then Keras's ``fit`` on batches ``(images, labels)`` with
    label -1 for unknown.

    Attributes:
      hp: Its hyper-parameters.
      seed: Seed of everything random in it.
      phase: The phase that it is in.
      sigmoid_output: Whether ``decode_output`` gives logits (else values).
      loss_kind: "bce", of logits, or "mse": the reconstruction loss.
      monitor: The log whose minimum in the last phase tells the best epoch; None
        where nothing can tell, so that the last epoch counts.
      decoder_uses_labels: Whether ``decode`` takes a digit beside the code.
      labelled_batch_size: How many labelled examples every training batch of a
        replica ends with, behind the ``batch_size`` others; 0 for none.
      term_names: Keys of :meth:`loss_terms`, each logged as a training metric.
    """

    sigmoid_output: bool = True
    loss_kind: str = "bce"
    monitor: str | None = "val_loss"
    decoder_uses_labels: bool = False
    labelled_batch_size: int = 0
    term_names: tuple[str, ...] = ("loss",)

    def __init_subclass__(cls, **kwargs: Any):
        """Keeps AutoGraph away from the training steps.

        It would rewrite them and all of tf_keras below them, which TensorFlow
        does not know as a library: some 15 CPU-seconds a training. Steps use
        TensorFlow's own control flow where they need any.
        """
        super().__init_subclass__(**kwargs)
        for name in ("train_step", "test_step"):
            if name in cls.__dict__:
                setattr(cls, name, tf.autograph.experimental.do_not_convert(cls.__dict__[name]))

    def __init__(self, hyperparameters: Hyperparameters, *, seed: int = 0):
        super().__init__()
        # What train_step returns is reduced over all replicas already; Keras's
        # default would add up the equal results of several workers.
        self.distribute_reduction_method = "first"
        self.hp = hyperparameters
        self.seed = seed
        self.phase = _WHOLE
        self._seed_count = 0
        self._trackers = {name: keras.metrics.Mean(name=name) for name in self.term_names}
        self._mse_tracker = keras.metrics.Mean(name="mse")

    # What a model is.

    @property
    def uses_labels(self) -> bool:
        """True where training looks at labels."""
        return self.hp.label_budget != 0

    @property
    def prior(self) -> dict[str, Any] | None:
        """What codes are drawn from, as plain values for the metadata; None where unknown."""
        return None

    def encode(self, images: tf.Tensor, training: bool = False) -> tf.Tensor:
        """Images float [n, 28, 28] in [0, 1] to codes float [n, d], deterministic."""
        return self.encoder(images, training=training)

    def decode_output(self, code: tf.Tensor, training: bool = False) -> tf.Tensor:
        """Codes float [n, d] to the decoder's raw output [n, 28, 28]."""
        return self.decoder(code, training=training)

    def decode(self, code: tf.Tensor) -> tf.Tensor:
        """Codes float [n, d] to images float [n, 28, 28] in [0, 1]."""
        return self.to_image(self.decode_output(code))

    def call(self, images: tf.Tensor, training: bool = False) -> tf.Tensor:
        """The reconstruction, float [n, 28, 28] in [0, 1]."""
        return self.to_image(self.decode_output(self.encode(images, training), training))

    def loss_terms(
        self, images: tf.Tensor, labels: tf.Tensor, training: bool
    ) -> dict[str, tf.Tensor]:
        """Per-image losses, float [n] each, under the keys ``term_names``.

        ``loss`` is what is minimised.
        """
        output = self.decode_output(self.encode(images, training), training)
        return {"loss": self.reconstruction_loss(images, output)}

    def phases(self, epochs: int) -> Sequence[Phase]:
        """The parts of a training of ``epochs`` epochs, in order."""
        return (Phase(_WHOLE.name, epochs),)

    def begin_phase(self, phase: Phase) -> None:
        """Called under the strategy's scope before each phase is configured.

        A resumed training calls it for the phase that it resumes as well, before
        the weights are restored.
        """
        self.phase = phase

    def phase_variables(self) -> list[tf.Variable]:
        """What ``self.optimizer`` changes in this phase."""
        return self.trainable_variables

    def configure(
        self, training: TrainingDefaults, *, total_steps: int, steps_per_execution: int = 1
    ) -> None:
        """Compiles the model for a phase; call it under the strategy's scope.

        Args:
          training: Learning rate and XLA.
          total_steps: Optimizer steps of the phase, for schedules.
          steps_per_execution: Steps a call of the training function.
        """
        self.compile(
            optimizer=self.make_optimizer(training.learning_rate, total_steps),
            jit_compile=training.xla and not tf.distribute.has_strategy(),
            steps_per_execution=steps_per_execution,
        )
        # Now rather than in the first step, so that a checkpoint finds the slots.
        self.optimizer.build(self.phase_variables())

    def make_optimizer(self, learning_rate: float, total_steps: int) -> keras.optimizers.Optimizer:
        """The optimizer of a phase."""
        del total_steps
        return keras.optimizers.Adam(learning_rate)

    # Helpers for subclasses.

    def to_image(self, output: tf.Tensor) -> tf.Tensor:
        """The decoder's raw output as grey levels in [0, 1]."""
        output = tf.cast(output, tf.float32)
        if self.sigmoid_output:
            return tf.sigmoid(output)
        return tf.clip_by_value(output, 0.0, 1.0)

    def reconstruction_loss(self, images: tf.Tensor, output: tf.Tensor) -> tf.Tensor:
        """Reconstruction loss per image, [n], of the decoder's raw output."""
        output = tf.cast(output, tf.float32)
        if self.loss_kind == "bce":
            return per_image_bce_from_logits(images, output)
        return per_image_mse(images, tf.sigmoid(output) if self.sigmoid_output else output)

    def initializer(self, kind: str = "glorot_uniform") -> keras.initializers.Initializer:
        """A weight initializer with a seed of its own, derived from the model's."""
        return keras.initializers.get({"class_name": kind, "config": {"seed": self.next_seed()}})

    def next_seed(self) -> int:
        """Another seed at each call, derived from the model's: for initial weights."""
        self._seed_count += 1
        return self.seed * 1_000 + self._seed_count

    def step_seed(self, stream: int = 0) -> tf.Tensor:
        """A seed, int64 [2], that differs by step, replica and ``stream``.

        For ``tf.random.stateless_*``: draws are fresh in every step, yet the
        same when a training is repeated or resumed. Phases differ too, since
        each counts its steps from 0.
        """
        replica = tf.distribute.get_replica_context().replica_id_in_sync_group
        step = tf.cast(self.optimizer.iterations, tf.int64)
        phase = zlib.crc32(self.phase.name.encode()) << 24
        key = tf.constant(phase + self.seed * 1_009 + stream, tf.int64)
        return tf.stack([key, step * 1_024 + tf.cast(replica, tf.int64)])

    def replica_mean(self, per_image: tf.Tensor) -> tf.Tensor:
        """The replica's part of the global batch mean, a scalar.

        Gradients are summed over replicas, so each divides by their number.
        """
        replicas = tf.distribute.get_strategy().num_replicas_in_sync
        return tf.reduce_mean(per_image) / replicas

    def build_variables(self) -> None:
        """Creates every variable by a call on one black image.

        A model with parts that reconstruction does not touch extends it.
        """
        self(tf.zeros((1, *IMAGE_SHAPE)))

    # Keras's training loop.

    @property
    def metrics(self) -> list[keras.metrics.Metric]:
        """What Keras resets at the start of an epoch."""
        return [*self._trackers.values(), self._mse_tracker]

    @property
    def weights(self) -> list[tf.Variable]:
        """Weights alone: the state of the running means is no part of a model."""
        return self._without_means(super().weights)

    def state(self) -> list[tf.Variable]:
        """All that a compiled model's training changes: weights and what optimizers keep."""
        found = tf.train.TrackableView(self).descendants()
        return self._without_means(v for v in found if isinstance(v, tf.Variable))

    def _without_means(self, variables: Iterable[tf.Variable]) -> list[tf.Variable]:
        running = {id(variable) for metric in self.metrics for variable in metric.variables}
        return [variable for variable in variables if id(variable) not in running]

    def track(self, terms: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        """Adds a batch to the running means and returns them."""
        for name, value in terms.items():
            self._trackers[name].update_state(value)
        return {name: self._trackers[name].result() for name in terms}

    @tf.autograph.experimental.do_not_convert
    def train_step(self, data: tuple[tf.Tensor, tf.Tensor]) -> dict[str, tf.Tensor]:
        """One optimizer step on a batch ``(images, labels)``."""
        images, labels = data
        with tf.GradientTape() as tape:
            terms = self.loss_terms(images, labels, training=True)
            loss = self.replica_mean(terms["loss"])
        self.optimizer.minimize(loss, self.phase_variables(), tape=tape)
        return self.track(terms)

    @tf.autograph.experimental.do_not_convert
    def test_step(self, data: tuple[tf.Tensor, tf.Tensor]) -> dict[str, tf.Tensor]:
        """The losses of a batch, uncorrupted, and the served reconstruction's MSE."""
        images, labels = data
        logs = self.track(self.loss_terms(images, labels, training=False))
        self._mse_tracker.update_state(per_image_mse(images, self(images)))
        return {**logs, "mse": self._mse_tracker.result()}

    def parameter_count(self) -> int:
        """Number of trainable weights."""
        return int(sum(np.prod(v.shape) for v in self.trainable_variables))
