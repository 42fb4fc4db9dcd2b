"""PCA, the reference that every autoencoder is compared with.

A linear autoencoder trained to the optimum spans the principal components, so
a model whose reconstruction error is not below that of PCA with the same code
size has learnt nothing that linear algebra would not have told.
"""

# No postponed annotations here: @component reads them.
import io
import os
from collections.abc import Iterator
from typing import ClassVar

import numpy as np
import tensorflow as tf
from tfx.dsl.component.experimental.annotations import InputArtifact, OutputArtifact
from tfx.dsl.component.experimental.decorators import component
from tfx.dsl.io import fileio
from tfx.types import artifact_utils, standard_artifacts, system_artifacts
from tfx.types.artifact import Artifact, Property, PropertyType

from components import features

PCA_FILE = "pca.npz"
_BATCH = 5_000


class PcaReferenceArtifact(Artifact):
    """``pca.npz``: ``mean`` [784], ``components`` [784, 784] (rows, most
    important first), ``mse`` [785] and ``mse_by_label`` [10, 785], the eval
    split's mean squared error a pixel by number of components kept.
    """

    TYPE_NAME = "PcaReference"
    TYPE_ANNOTATION = system_artifacts.Statistics
    PROPERTIES: ClassVar = {"span": Property(type=PropertyType.INT)}


def read_reference(uri: str) -> dict[str, np.ndarray]:
    """The arrays of a PcaReference."""
    with fileio.open(os.path.join(uri, PCA_FILE), "rb") as f:
        return dict(np.load(io.BytesIO(f.read())))


def batches(split_uri: str) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yields images float32 [<=5000, 784] in [0, 1] and labels int64 of a split."""
    files = sorted(fileio.glob(os.path.join(split_uri, "*.gz")))
    dataset = tf.data.TFRecordDataset(files, "GZIP").batch(_BATCH)
    for serialized in dataset:
        parsed = tf.io.parse_example(serialized, features.feature_spec())
        pixels = tf.io.decode_raw(parsed[features.IMAGE], tf.uint8).numpy()
        yield pixels.astype(np.float32) / 255, parsed[features.LABEL].numpy()


def fit_pca(split_uri: str) -> tuple[np.ndarray, np.ndarray]:
    """Mean [784] and principal components [784, 784] of a split, in one pass."""
    total = np.zeros(features.IMAGE_BYTES)
    products = np.zeros((features.IMAGE_BYTES, features.IMAGE_BYTES))
    count = 0
    for images, _ in batches(split_uri):
        total += images.sum(axis=0)
        products += images.T @ images
        count += len(images)
    mean = total / count
    _, vectors = np.linalg.eigh(products / count - np.outer(mean, mean))
    return mean.astype(np.float32), vectors.T[::-1].astype(np.float32)


def error_by_size(
    split_uri: str, mean: np.ndarray, components: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Mean squared error a pixel of a split for 0 to 784 components.

    Returns:
      Overall [785], and by label [10, 785] (NaN for digits that do not occur).
    """
    sums = np.zeros((features.NUM_CLASSES + 1, features.IMAGE_BYTES + 1))
    counts = np.zeros(features.NUM_CLASSES + 1)
    for images, labels in batches(split_uri):
        centred = images - mean
        # What the first k components explain is their coefficients' squares.
        explained = np.cumsum((centred @ components.T) ** 2, axis=1, dtype=np.float64)
        energy = np.sum(centred.astype(np.float64) ** 2, axis=1, keepdims=True)
        errors = np.maximum(energy - np.pad(explained, ((0, 0), (1, 0))), 0) / features.IMAGE_BYTES
        sums[-1] += errors.sum(axis=0)
        counts[-1] += len(errors)
        for digit in range(features.NUM_CLASSES):
            sums[digit] += errors[labels == digit].sum(axis=0)
            counts[digit] += np.sum(labels == digit)
    with np.errstate(invalid="ignore"):
        means = sums / counts[:, np.newaxis]
    return means[-1], means[:-1]


@component
def PcaReference(  # noqa: N802: components are named like classes
    examples: InputArtifact[standard_artifacts.Examples],
    reference: OutputArtifact[PcaReferenceArtifact],
) -> None:
    """Fits PCA to the train split and measures it on the eval split.

    All code sizes at once, so that it is computed once for all models.
    """
    train = artifact_utils.get_split_uri([examples], features.TRAIN_SPLIT)
    evaluation = artifact_utils.get_split_uri([examples], features.EVAL_SPLIT)
    mean, components = fit_pca(train)
    mse, mse_by_label = error_by_size(evaluation, mean, components)
    fileio.makedirs(reference.uri)
    buffer = io.BytesIO()
    np.savez(buffer, mean=mean, components=components, mse=mse, mse_by_label=mse_by_label)
    with fileio.open(os.path.join(reference.uri, PCA_FILE), "wb") as f:
        f.write(buffer.getvalue())
