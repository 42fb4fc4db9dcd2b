"""The one place that decides which Keras runs.

It is the legacy Keras 2 (``tf_keras``): a Keras 3 model trains, loads in Python
and then fails on every request in TensorFlow Serving, and cannot train under
MultiWorkerMirroredStrategy (docs/versions.md has the measurements). Importing
it by name makes the choice independent of ``TF_USE_LEGACY_KERAS`` and of the
order of imports.
"""

import tf_keras as keras

__all__ = ["keras"]
