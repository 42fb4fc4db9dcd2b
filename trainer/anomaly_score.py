"""How strange an image is to a trained autoencoder, as one number.

The reconstruction error alone misses what is easy to reconstruct: a blurred or
half covered digit has a smaller error than many a good one. So three things are
looked at: whether the code is one of those that training images have (a Gaussian
mixture), and whether error and sharpness are such as they have together (another).
"""

from __future__ import annotations

import functools
import warnings

import numpy as np
import tensorflow as tf
from scipy import stats

from trainer.data import Examples, Preprocessor, evaluation_batches
from trainer.models.base import Autoencoder, per_image_mse

# Images that a density is fitted to, at most: more cost time and change nothing.
SAMPLE = 20_000
# Directions of a code that are looked at: a mixture's parameters grow with their square.
_MAX_DIMENSIONS = 32
_IMAGES_A_COMPONENT = 300
_MAX_COMPONENTS = 60
_ITERATIONS = 30
# Keeps a component from shrinking to a point, in whitened units.
_REGULARISATION = 1e-2
# Variance below which, beside the largest, there is none.
_DEAD = 1e-9
# That the stated rate of alarms is not exceeded on other images, but for chance.
_CONFIDENCE = 0.9
# The code tells more than error and sharpness do (docs/uses.md).
_CODE_WEIGHT = 2.0


class Density(tf.Module):
    """A Gaussian mixture over whitened vectors."""

    def __init__(self, samples: np.ndarray, *, components: int, seed: int):
        """Fits it.

        Args:
          samples: Float [n, d].
          components: Normal distributions of the mixture.
          seed: Of where they begin.
        """
        # scikit-learn is not needed where no model is exported.
        from sklearn.exceptions import ConvergenceWarning
        from sklearn.mixture import GaussianMixture

        super().__init__()
        # A single image is a density, too.
        samples = np.concatenate([samples, samples[:1]]).astype(np.float64)
        mean = samples.mean(axis=0)
        centred = samples - mean
        variances, directions = np.linalg.eigh(np.atleast_2d(np.cov(centred.T, bias=True)))
        # A unit that is dead has no direction of its own.
        kept = variances > _DEAD * variances[-1]
        kept[:-_MAX_DIMENSIONS], kept[-1] = False, True
        whitening = directions[:, kept] / np.sqrt(np.maximum(variances[kept], _DEAD))
        mixture = GaussianMixture(
            components,
            reg_covar=max(_REGULARISATION, whitening.shape[1] / len(samples)),
            max_iter=_ITERATIONS,
            random_state=seed,
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            mixture.fit(centred @ whitening)
        # Where a row lies from each component's centre, in that one's own units: one product.
        roots = mixture.precisions_cholesky_
        maps = np.einsum("de,kef->dkf", whitening, roots)
        centres = np.einsum("ke,kef->kf", mixture.means_ + mean @ whitening, roots)
        determinants = np.diagonal(roots, axis1=1, axis2=2)
        self._components = components
        self._maps = tf.constant(maps.reshape(len(mean), -1), tf.float32)
        self._centres = tf.constant(centres.ravel(), tf.float32)
        self._constants = tf.constant(
            np.log(mixture.weights_) + np.log(determinants).sum(axis=1), tf.float32
        )

    def surprise(self, rows: tf.Tensor) -> tf.Tensor:
        """Minus the logarithm of the density, but for a constant: float [n, d] to [n]."""
        places = tf.matmul(rows, self._maps) - self._centres
        dimensions = places.shape[1] // self._components
        squares = tf.square(tf.reshape(places, (-1, self._components, dimensions)))
        return -tf.reduce_logsumexp(self._constants - tf.reduce_sum(squares, axis=2) / 2, axis=1)


def sharpness(images: tf.Tensor) -> tf.Tensor:
    """The mean squared difference of neighbouring pixels: float [n, 28, 28] to [n]."""
    down = tf.reduce_mean(tf.square(images[:, 1:] - images[:, :-1]), axis=(1, 2))
    right = tf.reduce_mean(tf.square(images[:, :, 1:] - images[:, :, :-1]), axis=(1, 2))
    return down + right


class AnomalyScore(tf.Module):
    """Scores images by their code's density and by their error and sharpness."""

    def __init__(self, codes: np.ndarray, looks: np.ndarray, *, seed: int):
        """Fits both densities.

        Args:
          codes: Of training images, float [n, d].
          looks: Theirs by :meth:`look`, float [n, 2].
          seed: Of the fit.
        """
        super().__init__()
        components = min(max(1, len(codes) // _IMAGES_A_COMPONENT), _MAX_COMPONENTS)
        self._codes = Density(codes, components=components, seed=seed)
        self._looks = Density(looks, components=min(4, components), seed=seed)
        surprises = self._codes.surprise(tf.constant(codes, tf.float32)).numpy()
        self._mean = tf.constant(surprises.mean(), tf.float32)
        self._stddev = tf.constant(surprises.std() + 1e-6, tf.float32)

    @staticmethod
    def look(images: tf.Tensor, error: tf.Tensor) -> tf.Tensor:
        """Logarithms of reconstruction error and sharpness: [n, 2]."""
        return tf.math.log(tf.stack([error, sharpness(images)], axis=1) + 1e-6)

    def __call__(self, images: tf.Tensor, code: tf.Tensor, error: tf.Tensor) -> tf.Tensor:
        """The higher, the stranger: float [n].

        Args:
          images: Float [n, 28, 28] in [0, 1].
          code: Their codes, float [n, d].
          error: Their reconstruction errors, float [n].
        """
        of_code = (self._codes.surprise(code) - self._mean) / self._stddev
        return _CODE_WEIGHT * of_code + self._looks.surprise(self.look(images, error))

    def of(self, model: Autoencoder, images: tf.Tensor) -> tf.Tensor:
        """The scores of images float [n, 28, 28] by what a model makes of them: float [n]."""
        code = tf.cast(model.encode(images), tf.float32)
        return self(images, code, per_image_mse(images, model(images)))


def fit(model: Autoencoder, batches: tf.data.Dataset, *, seed: int = 0) -> AnomalyScore:
    """The score by what a trained model makes of training images.

    Args:
      model: The autoencoder.
      batches: Of training images, ``(images, labels)``.
      seed: Of the fit.
    """

    @tf.function(autograph=False)
    def describe(images: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        code = tf.cast(model.encode(images), tf.float32)
        return code, AnomalyScore.look(images, per_image_mse(images, model(images)))

    codes, looks = zip(*(describe(images) for images, _ in batches))
    return AnomalyScore(np.concatenate(codes), np.concatenate(looks), seed=seed)


def threshold(
    score: AnomalyScore,
    model: Autoencoder,
    validation: Examples,
    preprocess: Preprocessor,
    quantile: float,
) -> float:
    """The :func:`upper_limit` of the scores of held-out training images."""
    of = tf.function(functools.partial(score.of, model), autograph=False)
    batches = evaluation_batches(validation, preprocess)
    return upper_limit(np.concatenate([of(images) for images, _ in batches]), quantile)


def upper_limit(scores: np.ndarray, quantile: float) -> float:
    """A bound below which the share ``quantile`` of all scores lies, not only of these.

    A sample's own quantile is exceeded too often in every other case; this bound, a
    one-sided tolerance limit (Wilks 1941), in about one of ten. Of a sample that is
    too small for it, the highest score.

    Args:
      scores: Float [n], n at least 1.
      quantile: From 0 to 1.
    """
    # As many as are above the sought bound in all but a tenth of samples.
    above = int(stats.binom.ppf(1 - _CONFIDENCE, len(scores), 1 - quantile))
    return float(np.sort(scores)[max(0, len(scores) - 1 - above)])
