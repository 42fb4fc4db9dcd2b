"""What the SavedModel offers; names and keys are in serving/contract.py."""

from __future__ import annotations

import json
import os
from typing import Any

import tensorflow as tf

from components import features
from components.preprocessing import scale_pixels
from serving import contract
from trainer.anomaly_score import AnomalyScore
from trainer.data import Preprocessor
from trainer.models.base import Autoencoder, per_image_bce, per_image_mse
from trainer.models.catalogue import Ability, ModelSpec

_IMAGES = tf.TensorSpec([None, contract.IMAGE_HEIGHT, contract.IMAGE_WIDTH], tf.uint8)
_STRINGS = tf.TensorSpec([None], tf.string)
_INTS = tf.TensorSpec([None], tf.int64)


class ServedAutoencoder(tf.Module):
    """A trained autoencoder with Transform's graph, an anomaly score and its threshold.

    Attributes:
      threshold: Images whose score is above it are anomalies.
    """

    def __init__(
        self, model: Autoencoder, preprocess: Preprocessor, score: AnomalyScore, threshold: float
    ):
        super().__init__()
        self._anomaly_score = score
        # Held by a function, which is not tracked: Keras would trace every layer
        # once more to save it as a Keras model. The signatures and the variables
        # that they read are all that a server needs.
        self._get_model = lambda: model
        self.threshold = tf.constant(threshold, tf.float32)
        self._preprocess = preprocess
        # Tracked, so that the export carries Transform's graph.
        self._transform = preprocess.trackable

    @property
    def model(self) -> Autoencoder:
        """The autoencoder."""
        return self._get_model()

    def signatures(self, abilities: tuple[Ability, ...]) -> dict[str, Any]:
        """Concrete functions by signature name.

        The variables that they read become attributes, to be saved.
        """
        code = tf.TensorSpec([None, self.model.hp.code_size], tf.float32, name=contract.CODE)
        images = tf.TensorSpec.from_spec(_IMAGES, contract.IMAGES)
        examples = tf.TensorSpec.from_spec(_STRINGS, contract.EXAMPLES)

        def function(body, *inputs):
            # AutoGraph would rewrite all of tf_keras, for seconds and nothing.
            return tf.function(body, list(inputs), autograph=False)

        functions = {
            contract.SERVING_DEFAULT: function(self._serve_examples, examples),
            contract.RECONSTRUCT: function(self._reconstruct_pixels, images),
            contract.ENCODE: function(self._encode, images),
            contract.SCORE: function(self._score, images),
            contract.EVALUATE: function(self._evaluate, examples),
        }
        if self.model.decoder_uses_labels:
            label = tf.TensorSpec.from_spec(_INTS, contract.LABEL)
            functions[contract.DECODE] = function(self._decode_labelled, code, label)
        else:
            functions[contract.DECODE] = function(self._decode, code)
        if Ability.GENERATE in abilities:
            seed = tf.TensorSpec.from_spec(_INTS, contract.SEED)
            functions[contract.GENERATE] = function(self._generate, seed)
        if Ability.CLASSIFY in abilities:
            functions[contract.CLASSIFY] = function(self._classify, images)
        concrete = {name: f.get_concrete_function() for name, f in functions.items()}
        read = {v.ref(): v for f in concrete.values() for v in f.graph.variables}
        self.read_variables = list(read.values())
        return concrete

    def _images_of(self, examples: tf.Tensor) -> tf.Tensor:
        spec = {features.IMAGE: features.feature_spec()[features.IMAGE]}
        return self._preprocess.images(tf.io.parse_example(examples, spec)[features.IMAGE])

    def _outputs(self, images: tf.Tensor) -> dict[str, tf.Tensor]:
        reconstruction = self.model(images)
        error = per_image_mse(images, reconstruction)
        code = tf.cast(self.model.encode(images), tf.float32)
        score = self._anomaly_score(images, code, error)
        return {
            contract.RECONSTRUCTION: reconstruction,
            contract.RECONSTRUCTION_ERROR: error,
            contract.ANOMALY_SCORE: score,
            contract.IS_ANOMALY: score > self.threshold,
            contract.CODE: code,
        }

    def _serve_examples(self, examples: tf.Tensor) -> dict[str, tf.Tensor]:
        return self._outputs(self._images_of(examples))

    def _reconstruct_pixels(self, images: tf.Tensor) -> dict[str, tf.Tensor]:
        return self._outputs(scale_pixels(images))

    def _encode(self, images: tf.Tensor) -> dict[str, tf.Tensor]:
        return {contract.CODE: tf.cast(self.model.encode(scale_pixels(images)), tf.float32)}

    def _score(self, images: tf.Tensor) -> dict[str, tf.Tensor]:
        outputs = self._outputs(scale_pixels(images))
        keys = (contract.RECONSTRUCTION_ERROR, contract.ANOMALY_SCORE, contract.IS_ANOMALY)
        return {key: outputs[key] for key in keys}

    def _evaluate(self, examples: tf.Tensor) -> dict[str, tf.Tensor]:
        images = self._images_of(examples)
        reconstruction = self.model(images)
        return {
            contract.MSE: per_image_mse(images, reconstruction),
            contract.BCE: per_image_bce(images, reconstruction),
        }

    def _decode(self, code: tf.Tensor) -> dict[str, tf.Tensor]:
        return {contract.RECONSTRUCTION: self.model.decode(code)}

    def _decode_labelled(self, code: tf.Tensor, label: tf.Tensor) -> dict[str, tf.Tensor]:
        return {contract.RECONSTRUCTION: self.model.decode(code, label)}  # type: ignore[call-arg]

    def _generate(self, seed: tf.Tensor) -> dict[str, tf.Tensor]:
        return {contract.IMAGES: self.model.generate(seed)}

    def _classify(self, images: tf.Tensor) -> dict[str, tf.Tensor]:
        probabilities = self.model.classify_probabilities(scale_pixels(images))
        return {
            contract.PROBABILITIES: probabilities,
            contract.LABEL: tf.argmax(probabilities, axis=1, output_type=tf.int64),
        }


def export(served: ServedAutoencoder, spec: ModelSpec, path: str, *, facts: dict[str, Any]) -> None:
    """Writes the SavedModel and its metadata.

    Args:
      served: What to export.
      spec: Its catalogue entry.
      path: Folder to write, local or remote.
      facts: More entries of the metadata file, such as data and configuration.
    """
    abilities = spec.abilities_of(served.model.hp)
    tf.saved_model.save(served, path, signatures=served.signatures(abilities))
    metadata = {
        "name": spec.name,
        "source": spec.source,
        "code_size": served.model.hp.code_size,
        "abilities": [ability.value for ability in abilities],
        "hyperparameters": served.model.hp.model_dump(),
        "parameters": served.model.parameter_count(),
        "prior": served.model.prior,
        "anomaly_threshold": float(served.threshold),
        **facts,
    }
    target = os.path.join(path, contract.METADATA_FILE)
    tf.io.gfile.makedirs(os.path.dirname(target))
    with tf.io.gfile.GFile(target, "w") as f:
        json.dump(metadata, f, indent=2, sort_keys=True)
