"""preprocessing_fn for Transform: raw bytes to floats in [0, 1].

Training, evaluation and ``serving_default`` run the graph that Transform
traces from here; the signatures that take pixels call :func:`scale_pixels`.
"""

from __future__ import annotations

import tensorflow as tf

from components import features

IMAGE_SHAPE = (28, 28)


def scale_pixels(pixels: tf.Tensor) -> tf.Tensor:
    """Grey levels uint8 0..255 to float32 [0, 1], any shape."""
    return tf.cast(pixels, tf.float32) / 255.0


def preprocessing_fn(inputs: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
    """Transforms a batch of raw examples.

    Args:
      inputs: ``image`` string [n], 784 raw bytes each; ``label`` int64 [n],
        -1 where unknown.

    Returns:
      ``image`` float32 [n, 28, 28] in [0, 1]; ``label`` unchanged.
    """
    images = inputs[features.IMAGE]
    # Not with a fixed length, which cuts or fills up what is no image.
    pixels = tf.io.decode_raw(images, tf.uint8)
    shape = tf.concat([tf.shape(images), IMAGE_SHAPE], axis=0)
    return {
        features.IMAGE: scale_pixels(tf.reshape(pixels, shape)),
        features.LABEL: tf.identity(inputs[features.LABEL]),
    }
