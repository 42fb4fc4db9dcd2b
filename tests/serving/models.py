"""Small SavedModels for the serving tests, written in a second.

``python -m tests.serving.models DIR`` writes the conformance model, so that a
real TensorFlow Serving can serve it to ``SERVING_TARGET``.
"""

from __future__ import annotations

import json
import pathlib
import sys
from typing import Any

import numpy as np

CONFORMANCE = "conformance"


def write_conformance(folder: pathlib.Path, version: int, offset: float = 2.0) -> pathlib.Path:
    """y = x / 2 + offset, with predict, classify and regress signatures; no TF2 in it."""
    import tensorflow as tf

    v1 = tf.compat.v1
    path = folder / str(version)
    with v1.Graph().as_default(), v1.Session() as session:
        serialized = v1.placeholder(tf.string, [None], name="tf_example")
        parsed = v1.io.parse_example(serialized, {"x": tf.io.FixedLenFeature([1], tf.float32)})
        x = tf.identity(parsed["x"], name="x")
        a = v1.get_variable("a", initializer=0.5)
        b = v1.get_variable("b", initializer=float(offset))
        y = tf.add(tf.multiply(a, x), b, name="y")
        left = v1.placeholder(tf.float32, [None], name="left")
        right = v1.placeholder(tf.float32, [None], name="right")
        total = tf.add(left, right, name="total")
        doubled = tf.multiply(total, 2.0, name="doubled")
        flat = v1.placeholder(tf.float32, [None, 784], name="flat")
        weights = v1.get_variable("weights", shape=[784, 2], initializer=v1.ones_initializer())
        product = tf.matmul(flat, weights, name="product")
        pixels = v1.placeholder(tf.uint8, [None, 2], name="pixels")
        brighter = tf.cast(pixels, tf.int32) + 1
        words = v1.placeholder(tf.string, [None], name="words")
        echo = tf.identity(words, name="echo")
        session.run(v1.global_variables_initializer())
        info = v1.saved_model.build_tensor_info
        signature = v1.saved_model.build_signature_def
        predict = "tensorflow/serving/predict"
        builder = v1.saved_model.Builder(str(path))
        builder.add_meta_graph_and_variables(
            session,
            ["serve"],
            signature_def_map={
                "serving_default": signature({"x": info(x)}, {"y": info(y)}, predict),
                "add": signature(
                    {"a": info(left), "b": info(right)},
                    {"sum": info(total), "twice": info(doubled)},
                    predict,
                ),
                "matmul": signature({"flat": info(flat)}, {"product": info(product)}, predict),
                "pixels": signature({"pixels": info(pixels)}, {"out": info(brighter)}, predict),
                "words": signature(
                    {"words": info(words)},
                    {"echo": info(echo), "echo_bytes": info(echo)},
                    predict,
                ),
                "classify_x_to_y": signature(
                    {"inputs": info(serialized)},
                    {"scores": info(y)},
                    "tensorflow/serving/classify",
                ),
                "regress_x_to_y": signature(
                    {"inputs": info(serialized)},
                    {"outputs": info(y)},
                    "tensorflow/serving/regress",
                ),
            },
        )
        builder.save()
    return path


def write_autoencoder(
    folder: pathlib.Path,
    version: int,
    *,
    seed: int = 0,
    gain: float = 1.0,
    broken: str = "",
    without: tuple[str, ...] = (),
) -> pathlib.Path:
    """784-32-784 with the whole serving contract.

    Args:
      folder: The model's folder.
      version: The version's folder name.
      seed: Of the weights.
      gain: Multiplies the reconstruction, to tell versions apart.
      broken: ``nan`` makes reconstructions NaN; ``shape`` drops a dimension.
      without: Signatures that it lacks.
    """
    import tensorflow as tf

    from serving import contract

    random = np.random.default_rng(seed)
    module: Any = tf.Module()
    module.encoder = tf.Variable(random.normal(0, 0.05, (784, 32)).astype("f4"))
    module.decoder = tf.Variable(random.normal(0, 0.05, (32, 784)).astype("f4"))
    module.head = tf.Variable(random.normal(0, 0.05, (32, 10)).astype("f4"))

    def to_code(images: Any) -> Any:
        pixels = tf.reshape(tf.cast(images, tf.float32) / 255.0, [-1, 784])
        return tf.nn.relu(pixels @ module.encoder)

    def to_images(code: Any) -> Any:
        images = tf.reshape(tf.sigmoid(code @ module.decoder) * gain, [-1, 28, 28])
        if broken == "nan":
            images = images * np.float32("nan")
        return images[:, :, 0] if broken == "shape" else images

    def reconstruct(images: Any) -> dict[str, Any]:
        code = to_code(images)
        out = to_images(code)
        pixels = tf.cast(images, tf.float32) / 255.0
        if broken == "shape":
            error = tf.reduce_mean(code, axis=1)
        else:
            error = tf.reduce_mean(tf.square(tf.reshape(out - pixels, [-1, 784])), axis=1)
        return {
            contract.RECONSTRUCTION: out,
            contract.RECONSTRUCTION_ERROR: error,
            contract.CODE: code,
            contract.IS_ANOMALY: error > 0.2,
        }

    def parse(examples: Any) -> Any:
        features = tf.io.parse_example(
            examples, {contract.IMAGE_FEATURE: tf.io.FixedLenFeature([], tf.string)}
        )
        return tf.reshape(
            tf.io.decode_raw(features[contract.IMAGE_FEATURE], tf.uint8, fixed_length=784),
            [-1, 28, 28],
        )

    def score(images: Any) -> dict[str, Any]:
        out = reconstruct(images)
        return {k: out[k] for k in (contract.RECONSTRUCTION_ERROR, contract.IS_ANOMALY)}

    def evaluate(examples: Any) -> dict[str, Any]:
        error = reconstruct(parse(examples))[contract.RECONSTRUCTION_ERROR]
        return {contract.MSE: error, contract.BCE: error}

    def generate(seed: Any) -> dict[str, Any]:
        steps = tf.cast(tf.range(32, dtype=tf.int64), tf.float32)
        return {contract.IMAGES: to_images(tf.sin(tf.cast(seed, tf.float32)[:, None] + steps))}

    def classify(images: Any) -> dict[str, Any]:
        probabilities = tf.nn.softmax(to_code(images) @ module.head)
        return {
            contract.PROBABILITIES: probabilities,
            contract.LABEL: tf.argmax(probabilities, axis=1),
        }

    images_spec = tf.TensorSpec([None, 28, 28], tf.uint8, contract.IMAGES)
    examples_spec = tf.TensorSpec([None], tf.string, contract.EXAMPLES)
    functions = {
        contract.SERVING_DEFAULT: (lambda examples: reconstruct(parse(examples)), examples_spec),
        contract.RECONSTRUCT: (reconstruct, images_spec),
        contract.ENCODE: (lambda images: {contract.CODE: to_code(images)}, images_spec),
        contract.DECODE: (
            lambda code: {contract.RECONSTRUCTION: to_images(code)},
            tf.TensorSpec([None, 32], tf.float32, contract.CODE),
        ),
        contract.SCORE: (score, images_spec),
        contract.GENERATE: (generate, tf.TensorSpec([None], tf.int64, contract.SEED)),
        contract.CLASSIFY: (classify, images_spec),
        contract.EVALUATE: (evaluate, examples_spec),
    }
    path = folder / str(version)
    signatures = {
        name: tf.function(function).get_concrete_function(spec)
        for name, (function, spec) in functions.items()
        if name not in without
    }
    tf.saved_model.save(module, str(path), signatures=signatures)
    metadata = path / contract.METADATA_FILE
    metadata.parent.mkdir(exist_ok=True)
    metadata.write_text(json.dumps({"name": folder.name, "code_size": 32}))
    return path


if __name__ == "__main__":
    write_conformance(pathlib.Path(sys.argv[1]) / CONFORMANCE, 123)
