"""The data contract: the keys of an example and the curated schema.

``image`` is 784 raw bytes, row by row, grey levels 0 (ground) to 255 (ink).
``label`` is the digit, absent where unknown and then read as :data:`NO_LABEL`.
"""

from __future__ import annotations

import pathlib

from serving import contract

IMAGE = contract.IMAGE_FEATURE
LABEL = contract.LABEL_FEATURE
IMAGE_BYTES = contract.IMAGE_PIXELS
NUM_CLASSES = contract.NUM_CLASSES

# What the schema fills in where an example has no label.
NO_LABEL = contract.NO_LABEL

TRAIN_SPLIT = "train"
EVAL_SPLIT = "eval"
# Eval images of the digits that a one-class model was not trained on.
HELD_OUT_SPLIT = "held_out"

# A folder: ImportSchemaGen copies the one file in it.
SCHEMA_FILE = pathlib.Path(__file__).parent / "schema" / "schema.pbtxt"


def feature_spec() -> dict:
    """The parsing spec of a serialized example, as the schema says it.

    Returns:
      Feature name to ``tf.io.FixedLenFeature``, both scalar.
    """
    import tensorflow as tf

    return {
        IMAGE: tf.io.FixedLenFeature([], tf.string),
        LABEL: tf.io.FixedLenFeature([], tf.int64, default_value=NO_LABEL),
    }
