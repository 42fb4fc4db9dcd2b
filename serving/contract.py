"""What a pushed autoencoder offers: signature names and tensor keys.

The trainer writes SavedModels to this contract, servers and clients speak it.
The module imports nothing, so that a client pays nothing for it.

Every signature is row-wise: the first dimension ``n`` of every input and
output is the number of images and may be 0.

==================  ============================  ======================================
signature           inputs                        outputs
==================  ============================  ======================================
``serving_default`` ``examples`` string [n]       ``reconstruction``,
                    (tf.Example with ``image``)   ``reconstruction_error``, ``code``,
                                                  ``anomaly_score``, ``is_anomaly``
``reconstruct``     ``images`` uint8 [n,28,28]    as ``serving_default``
``encode``          ``images`` uint8 [n,28,28]    ``code`` float [n,d]
``decode``          ``code`` float [n,d] (and     ``reconstruction`` float [n,28,28]
                    ``label`` int64 [n] where
                    the decoder needs a digit)
``score``           ``images`` uint8 [n,28,28]    ``reconstruction_error`` float [n],
                                                  ``anomaly_score`` float [n],
                                                  ``is_anomaly`` bool [n]
``generate``        ``seed`` int64 [n]            ``images`` float [n,28,28]
``classify``        ``images`` uint8 [n,28,28]    ``probabilities`` float [n,10],
                                                  ``label`` int64 [n]
``evaluate``        ``examples`` string [n]       ``mse`` float [n], ``bce`` float [n]
==================  ============================  ======================================

Images in are grey levels 0 to 255, bright ink on dark ground as in MNIST.
Images out are grey levels in [0, 1]. ``reconstruction_error`` is the mean
squared error per pixel, on that scale. ``anomaly_score`` is the higher, the
stranger code, error and sharpness are together; above the metadata's threshold
it ``is_anomaly``. Models of earlier releases lack it. ``generate`` and
``classify`` exist only where the model can do it.
"""

IMAGE_HEIGHT = 28
IMAGE_WIDTH = 28
IMAGE_PIXELS = IMAGE_HEIGHT * IMAGE_WIDTH
NUM_CLASSES = 10

# Signatures.
SERVING_DEFAULT = "serving_default"
RECONSTRUCT = "reconstruct"
ENCODE = "encode"
DECODE = "decode"
SCORE = "score"
GENERATE = "generate"
CLASSIFY = "classify"
EVALUATE = "evaluate"

# Inputs.
EXAMPLES = "examples"
IMAGES = "images"
SEED = "seed"

# Inputs or outputs.
CODE = "code"
LABEL = "label"

# Outputs.
RECONSTRUCTION = "reconstruction"
RECONSTRUCTION_ERROR = "reconstruction_error"
ANOMALY_SCORE = "anomaly_score"
IS_ANOMALY = "is_anomaly"
PROBABILITIES = "probabilities"
MSE = "mse"
BCE = "bce"

# The tf.Example feature that holds the 784 raw bytes of an image.
IMAGE_FEATURE = "image"
LABEL_FEATURE = "label"
# Where a digit is not known.
NO_LABEL = -1

# Facts about a SavedModel that signatures cannot say (name, code size, prior,
# anomaly threshold), as JSON, in a place that TF Serving ignores.
METADATA_FILE = "assets.extra/autoencoder.json"
