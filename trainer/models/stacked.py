"""Greedy layer-wise training, then the whole, then a classifier."""

from __future__ import annotations

from collections.abc import Sequence

import tensorflow as tf

from trainer.models.base import IMAGE_SHAPE, PIXELS, Autoencoder, Phase
from trainer.models.generative import DIGITS
from trainer.models.hyperparameters import StackedHyperparameters
from trainer.models.keras_api import keras
from trainer.models.layers import dense_layers
from trainer.models.semi_supervised import classification_terms

_PRETRAIN, _FINE_TUNE, _CLASSIFY = "pretrain", "fine-tune", "classify"


class Stacked(Autoencoder):
    """784-500-250-32 and back, sigmoid units (004; Vincent et al. 2010).

    Each layer first learns, alone, to reconstruct the output of those below;
    then the whole is trained as one, which from scratch it hardly is: sigmoid
    units pass little gradient. A copy of the encoder with a softmax on top is
    then trained on the few labelled images, so that the autoencoder stays as it
    is.
    """

    hp: StackedHyperparameters
    term_names = ("loss", "accuracy")

    def __init__(self, hyperparameters: StackedHyperparameters, *, seed: int = 0):
        super().__init__(hyperparameters, seed=seed)
        hp = hyperparameters
        if self.uses_labels:
            self.labelled_batch_size = hp.labelled_batch_size
            # The last phase trains the classifier, and held-out images have no labels.
            self.monitor = None
        widths = (*hp.hidden, hp.code_size)
        self.encoder_layers = self._sigmoid_layers(widths)
        # From the image to the code, too: decoder_layers[k] undoes encoder_layers[k].
        self.decoder_layers = [
            *dense_layers(self, (PIXELS,), last_activation=None),
            *self._sigmoid_layers(widths[:-1]),
        ]
        self.classifier_layers: list[keras.layers.Layer] = []
        if self.uses_labels:
            self.classifier_layers = [
                *self._sigmoid_layers(widths),
                *dense_layers(self, (DIGITS,), last_activation=None),
            ]

    def _sigmoid_layers(self, widths: Sequence[int]) -> list[keras.layers.Layer]:
        return dense_layers(self, widths, activation="sigmoid", last_activation="sigmoid")

    def build_variables(self) -> None:
        """Creates the classifier's variables, too."""
        super().build_variables()
        if self.uses_labels:
            self.classify_probabilities(tf.zeros((1, *IMAGE_SHAPE)))

    def encode(self, images: tf.Tensor, training: bool = False) -> tf.Tensor:
        """Codes through all encoder layers."""
        return _through(self.encoder_layers, tf.reshape(images, (-1, PIXELS)))

    def decode_output(self, code: tf.Tensor, training: bool = False) -> tf.Tensor:
        """Logits through all decoder layers."""
        return tf.reshape(_through(self.decoder_layers[::-1], code), (-1, *IMAGE_SHAPE))

    def classify_logits(self, images: tf.Tensor) -> tf.Tensor:
        """Images float [n, 28, 28] to logits [n, 10]."""
        logits = _through(self.classifier_layers, tf.reshape(images, (-1, PIXELS)))
        return tf.cast(logits, tf.float32)

    def classify_probabilities(self, images: tf.Tensor) -> tf.Tensor:
        """Images float [n, 28, 28] to the digits' probabilities [n, 10]."""
        return tf.nn.softmax(self.classify_logits(images))

    # Phases.

    def phases(self, epochs: int) -> Sequence[Phase]:
        """One phase for each layer, one for all, one for the classifier."""
        phases = [Phase(_FINE_TUNE, epochs)]
        if self.hp.pretraining_epochs:
            pretraining = [
                Phase(f"{_PRETRAIN} {i + 1}", self.hp.pretraining_epochs, main=False)
                for i in range(len(self.encoder_layers))
            ]
            phases = pretraining + phases
        if self.uses_labels:
            phases.append(Phase(_CLASSIFY, self.hp.classifier_epochs, main=False))
        return phases

    def begin_phase(self, phase: Phase) -> None:
        """Starts a phase; the classifier starts from the trained encoder."""
        super().begin_phase(phase)
        if phase.name == _CLASSIFY:
            for layer, trained in zip(self.classifier_layers, self.encoder_layers):
                layer.kernel.assign(trained.kernel)
                layer.bias.assign(trained.bias)

    def _pretrained_layer(self) -> int | None:
        """Which layer is trained alone in this phase, from 0; None outside of pre-training."""
        kind, _, number = self.phase.name.partition(" ")
        return int(number) - 1 if kind == _PRETRAIN else None

    def phase_variables(self) -> list[tf.Variable]:
        """The layers that are trained in this phase."""
        k = self._pretrained_layer()
        if self.phase.name == _CLASSIFY:
            layers = self.classifier_layers
        elif k is None:
            layers = [*self.encoder_layers, *self.decoder_layers]
        else:
            layers = [self.encoder_layers[k], self.decoder_layers[k]]
        return [v for layer in layers for v in layer.trainable_variables]

    def loss_terms(
        self, images: tf.Tensor, labels: tf.Tensor, training: bool
    ) -> dict[str, tf.Tensor]:
        """The phase's loss: a layer's, the whole's, or in training the classifier's."""
        if training and self.uses_labels:
            appended = self.labelled_batch_size
            if self.phase.name == _CLASSIFY:
                logits = self.classify_logits(images[-appended:])
                loss, accuracy = classification_terms(logits, labels[-appended:])
                return {"loss": loss, "accuracy": accuracy}
            images = images[:-appended]
        k = self._pretrained_layer()
        if k is None:
            loss = super().loss_terms(images, labels, training)["loss"]
        else:
            loss = self._layer_loss(images, k)
        return {"loss": loss, "accuracy": tf.zeros_like(loss)}

    def _layer_loss(self, images: tf.Tensor, k: int) -> tf.Tensor:
        below = tf.stop_gradient(
            _through(self.encoder_layers[:k], tf.reshape(images, (-1, PIXELS)))
        )
        output = tf.cast(self.decoder_layers[k](self.encoder_layers[k](below)), tf.float32)
        below = tf.cast(below, tf.float32)
        if k == 0:
            bce = tf.nn.sigmoid_cross_entropy_with_logits(labels=below, logits=output)
            return tf.reduce_mean(bce, axis=1)
        return tf.reduce_mean(tf.math.squared_difference(below, output), axis=1)


def _through(layers: Sequence[keras.layers.Layer], inputs: tf.Tensor) -> tf.Tensor:
    for layer in layers:
        inputs = layer(inputs)
    return inputs
