"""tf.data input of the training, from the examples and Transform's graph.

The raw bytes of all images are held in memory (784 bytes an image and 16 more,
47 MB for MNIST) and every epoch draws its own permutation of them, so that shuffling is
perfect, costs nothing an element, and depends on seed and epoch alone: a
resumed training sees what an undisturbed one would have seen. Batches then run
through Transform's graph. ``streaming`` keeps memory flat instead.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import pandas as pd
import tensorflow as tf

from components import features

_READ_BATCH = 2_000
_EVAL_BATCH = 1_000
_STREAM_SHUFFLE = 50_000
_STREAM_VALIDATION = 10_000

Batch = tuple[tf.Tensor, tf.Tensor]


@dataclasses.dataclass(frozen=True)
class Examples:
    """Raw examples in memory; parts of them share their pixels.

    Attributes:
      pixels: uint8 [m, 784], of these examples and maybe of others.
      rows: Which of them are these, int64 [n].
      labels: int64 [n], -1 where unknown.
    """

    pixels: np.ndarray
    rows: np.ndarray
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, rows: np.ndarray) -> Examples:
        """The chosen rows, in that order."""
        return Examples(self.pixels, self.rows[rows], self.labels[rows])

    def images(self) -> np.ndarray:
        """The images as they came, bytes: object [n]."""
        return np.array([image.tobytes() for image in self.pixels[self.rows]], object)

    def with_labels(self, labels: np.ndarray) -> Examples:
        """The same images with other labels."""
        return Examples(self.pixels, self.rows, labels)

    def without_labels(self) -> Examples:
        """The same images with every label unknown."""
        return self.with_labels(np.full_like(self.labels, features.NO_LABEL))

    @property
    def labelled(self) -> Examples:
        """Those whose label is known."""
        return self.take(np.flatnonzero(self.labels != features.NO_LABEL))

    def batches(self, key: tf.Tensor, batch_size: int, count: int) -> tf.data.Dataset:
        """``count`` batches of row numbers, from a permutation that ``key`` decides."""
        numbers = tf.range(len(self), dtype=tf.int64)
        order = tf.random.experimental.stateless_shuffle(numbers, seed=key)
        # A set smaller than a batch is repeated to fill it.
        order = tf.gather(order, tf.range(count * batch_size) % len(self))
        return tf.data.Dataset.from_tensor_slices(tf.reshape(order, (count, batch_size)))

    def load(self, batch: tf.Tensor) -> Batch:
        """Images as bytes, and labels, of a batch of row numbers."""

        def look_up(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            chosen = self.take(rows)
            return chosen.images(), chosen.labels

        # TensorFlow would hold every image as a string of its own, beside these.
        return tf.numpy_function(look_up, [batch], (tf.string, tf.int64), stateful=False)


@dataclasses.dataclass(frozen=True)
class Stream:
    """Training examples that stay on disk, every ``stride``-th set aside.

    Memory stays flat whatever their number; the shuffle is as good as its
    buffer, the rate a third to a half.

    Attributes:
      files: TFRecords of examples.
      stride: One record in so many is for validation.
      count: Number of the others.
      shows_labels: Whether their labels may be seen.
      labelled: Those few, in memory, whose labels may be seen where the others' may not.
    """

    files: tuple[str, ...]
    stride: int
    count: int
    shows_labels: bool
    labelled: Examples | None

    def __len__(self) -> int:
        return self.count

    def records(self, files: tf.Tensor, *, validation: bool) -> tf.data.Dataset:
        """Serialized examples of one of the two parts, file by file."""

        def part_of_file(file: tf.Tensor) -> tf.data.Dataset:
            numbered = _records(file).enumerate()
            chosen = numbered.filter(lambda i, _: (i % self.stride == 0) == validation)
            return chosen.map(lambda _, record: record)

        return tf.data.Dataset.from_tensor_slices(files).interleave(part_of_file, cycle_length=4)

    def batches(self, key: tf.Tensor, batch_size: int, count: int) -> tf.data.Dataset:
        """``count`` batches of serialized examples, in an order that ``key`` decides."""
        files = tf.random.experimental.stateless_shuffle(tf.constant(self.files), seed=key)
        return (
            self.records(files, validation=False)
            .batch(_STREAM_SHUFFLE)
            # Dataset.shuffle takes no seed from a graph when TensorFlow's own seed is 0.
            .map(lambda block: tf.random.experimental.stateless_shuffle(block, seed=key))
            .unbatch()
            .repeat()
            .batch(batch_size, drop_remainder=True)
            .take(count)
        )

    def load(self, batch: tf.Tensor) -> Batch:
        """Images as bytes, and labels, of a batch of serialized examples."""
        parsed = tf.io.parse_example(batch, features.feature_spec())
        labels = parsed[features.LABEL]
        if not self.shows_labels:
            labels = tf.fill(tf.shape(labels), tf.constant(features.NO_LABEL, tf.int64))
        return parsed[features.IMAGE], labels


class Preprocessor:
    """Transform's graph, as a function of raw features.

    Loaded from the SavedModel that Transform wrote, without a Keras layer, and
    a Trackable, so that an exported model can carry it.
    """

    def __init__(self, transform_savedmodel_dir: str):
        """Loads the graph from Transform's ``transform_fn`` folder."""
        self.trackable = tf.saved_model.load(transform_savedmodel_dir)

    def __call__(self, images: tf.Tensor, labels: tf.Tensor) -> Batch:
        """Raw bytes string [n] to float32 [n, 28, 28] in [0, 1], and labels int64 [n]."""
        out = self.trackable.transform_fn({features.IMAGE: images, features.LABEL: labels})
        return out[features.IMAGE], out[features.LABEL]

    def images(self, raw_images: tf.Tensor) -> tf.Tensor:
        """Raw bytes string [n] to float32 [n, 28, 28] in [0, 1]."""
        labels = tf.fill(tf.shape(raw_images), tf.constant(features.NO_LABEL, tf.int64))
        return self(raw_images, labels)[0]


def read_examples(patterns: Sequence[str]) -> Examples:
    """Reads gzip-compressed TFRecords of examples, in the order of their names.

    Raises:
      ValueError: No file matches, or the files hold nothing.
    """
    return _collect(_records(_files(patterns)))


def _collect(records: tf.data.Dataset) -> Examples:
    """Serialized examples into memory."""
    pixels = np.empty((0, features.IMAGE_BYTES), np.uint8)
    labels = []
    for batch in _parsed(records, features.feature_spec()):
        new = np.frombuffer(b"".join(batch[features.IMAGE]), np.uint8)
        new = new.reshape(-1, features.IMAGE_BYTES)
        # In place: at no time is there a second copy of them all.
        pixels.resize((len(pixels) + len(new), features.IMAGE_BYTES), refcheck=False)
        pixels[len(pixels) - len(new) :] = new
        labels.append(batch[features.LABEL])
    if not labels:
        raise ValueError("the files of the training split hold no examples")
    return Examples(pixels, np.arange(len(pixels)), np.concatenate(labels))


def split_validation(examples: Examples, fraction: float, seed: int) -> tuple[Examples, Examples]:
    """Sets ``fraction`` of the examples aside, at least one of each part.

    Returns:
      Training and validation examples; the choice depends on ``seed`` alone.

    Raises:
      ValueError: Fewer than two examples.
    """
    if len(examples) < 2:
        raise ValueError(f"{len(examples)} training example(s): at least 2 are needed")
    order = np.random.default_rng(seed).permutation(len(examples))
    held_out = min(max(1, round(fraction * len(examples))), len(examples) - 1)
    return examples.take(np.sort(order[held_out:])), examples.take(np.sort(order[:held_out]))


def mask_labels(labels: np.ndarray, count: int, seed: int) -> np.ndarray:
    """Keeps ``count`` labels, as many of each digit as possible, and hides the rest.

    Args:
      labels: int64 [n], -1 where unknown.
      count: How many to keep.
      seed: Which ones.

    Returns:
      int64 [n], -1 where hidden.

    Raises:
      ValueError: Fewer than ``count`` labels are known.
    """
    known = np.flatnonzero(labels != features.NO_LABEL)
    if count > len(known):
        raise ValueError(f"labels={count}, but only {len(known)} training images have one")
    order = np.random.default_rng(seed).permutation(known)
    # The k-th image of every digit comes before any digit's (k+1)-th.
    rank = pd.Series(order).groupby(labels[order]).cumcount()
    kept = order[np.argsort(rank, kind="stable")[:count]]
    masked = np.full_like(labels, features.NO_LABEL)
    masked[kept] = labels[kept]
    return masked


def hide_labels(
    training: Examples, validation: Examples, budget: int | None, seed: int
) -> tuple[Examples, Examples]:
    """Hides the labels that a model must not see.

    Args:
      training: The training examples.
      validation: Those that are set aside. They choose the best epoch, so their
        labels would be learnt from, too.
      budget: How many labels the model may see; None is all.
      seed: Which ones.

    Returns:
      Training examples with ``budget`` labels, and validation examples with none.

    Raises:
      ValueError: Fewer labels are known.
    """
    if budget is None:
        return training, validation
    masked = mask_labels(training.labels, budget, seed)
    return training.with_labels(masked), validation.without_labels()


def open_stream(
    patterns: Sequence[str], fraction: float, budget: int | None, seed: int
) -> tuple[Stream, Examples]:
    """Splits examples on disk, reading them once for their labels and once for those it keeps.

    Args:
      patterns: Patterns of the files.
      fraction: Part that is set aside.
      budget: How many labels the model may see; None is all. See :func:`hide_labels`.
      seed: Which ones.

    Returns:
      The training part, and up to 10,000 examples of the validation part.
    """
    files = tuple(_files(patterns))
    stride = max(2, round(1 / fraction))
    label = {features.LABEL: features.feature_spec()[features.LABEL]}
    labels, trained = [], []
    for file in files:
        found = [batch[features.LABEL] for batch in _parsed(_records(file), label)]
        labels.append(np.concatenate([np.zeros(0, np.int64), *found]))
        trained.append(np.arange(len(labels[-1])) % stride != 0)
    in_training = np.concatenate(trained)
    labelled = None
    if budget:
        candidates = np.where(in_training, np.concatenate(labels), features.NO_LABEL)
        wanted = mask_labels(candidates, budget, seed) != features.NO_LABEL
        chosen = _records(list(files)).enumerate().filter(lambda i, _: tf.gather(wanted, i))
        labelled = _collect(chosen.map(lambda _, record: record))
    stream = Stream(files, stride, int(in_training.sum()), budget is None, labelled)
    records = stream.records(tf.constant(files), validation=True)
    validation = _collect(records.take(_STREAM_VALIDATION))
    return stream, validation if budget is None else validation.without_labels()


def steps_per_epoch(count: int, batch_size: int, replicas: int) -> int:
    """Optimizer steps an epoch; the remainder of each permutation is left out."""
    return max(1, count // (batch_size * replicas))


def training_batches(
    examples: Examples | Stream,
    preprocess: Preprocessor,
    *,
    batch_size: int,
    labelled_batch_size: int = 0,
    seed: int,
    first_epoch: int,
    epochs: int,
    context: tf.distribute.InputContext,
) -> tf.data.Dataset:
    """Batches of one replica, ``(images [b, 28, 28], labels [b])``, epoch after epoch.

    Args:
      examples: All training examples.
      preprocess: Transform's graph.
      batch_size: Images a replica and step.
      labelled_batch_size: Labelled examples appended to every batch, drawn
        anew from those whose label is known.
      seed: Seed of the permutations.
      first_epoch: Where to begin, for a resumed training.
      epochs: Where to end.
      context: Which input pipeline this is, of how many.
    """
    replicas = context.num_replicas_in_sync
    count = replicas * steps_per_epoch(len(examples), batch_size, replicas)
    width = batch_size + labelled_batch_size
    known = (tf.constant([], tf.string), tf.constant([], tf.int64))
    if labelled_batch_size:
        assert examples.labelled is not None
        known = (tf.constant(examples.labelled.images()), tf.constant(examples.labelled.labels))

    def batches_of_epoch(epoch: tf.Tensor) -> tf.data.Dataset:
        batches = examples.batches(
            tf.stack([tf.constant(seed, tf.int64), epoch]), batch_size, count
        )
        draws = tf.random.stateless_uniform(
            (count, labelled_batch_size),
            seed=tf.stack([tf.constant(seed + 1, tf.int64), epoch]),
            maxval=tf.maximum(tf.size(known[1], tf.int64), 1),
            dtype=tf.int64,
        )
        return tf.data.Dataset.zip((batches, tf.data.Dataset.from_tensor_slices(draws)))

    def load(batch: tf.Tensor, draws: tf.Tensor) -> Batch:
        images, labels = (
            tf.ensure_shape(tf.concat([part, tf.gather(appended, draws)], axis=0), (width,))
            for part, appended in zip(examples.load(batch), known)
        )
        images, labels = preprocess(images, labels)
        return tf.ensure_shape(images, (width, 28, 28)), tf.ensure_shape(labels, (width,))

    return (
        tf.data.Dataset.range(first_epoch, epochs)
        .flat_map(batches_of_epoch)
        .shard(context.num_input_pipelines, context.input_pipeline_id)
        .map(load, num_parallel_calls=tf.data.AUTOTUNE)
        .prefetch(tf.data.AUTOTUNE)
    )


def evaluation_batches(examples: Examples, preprocess: Preprocessor) -> tf.data.Dataset:
    """All examples once, in order, in batches ``(images, labels)`` of up to 1,000.

    Under a strategy, Keras gives every worker and replica its part.
    """
    dataset = tf.data.Dataset.from_tensor_slices((examples.images(), examples.labels))
    options = tf.data.Options()
    options.experimental_distribute.auto_shard_policy = tf.data.experimental.AutoShardPolicy.DATA
    dataset = dataset.batch(_EVAL_BATCH).with_options(options)
    return dataset.map(preprocess, num_parallel_calls=tf.data.AUTOTUNE).prefetch(tf.data.AUTOTUNE)


def _files(patterns: Sequence[str]) -> list[str]:
    files = sorted(path for pattern in patterns for path in tf.io.gfile.glob(pattern))
    if not files:
        raise ValueError(f"no file matches {', '.join(patterns)}")
    return files


def _records(files: list[str] | tf.Tensor) -> tf.data.TFRecordDataset:
    return tf.data.TFRecordDataset(files, compression_type="GZIP")


def _parsed(records: tf.data.Dataset, spec: Mapping) -> Iterator[dict[str, np.ndarray]]:
    """Batches of the features of serialized examples."""
    batches = records.batch(_READ_BATCH)
    return batches.map(lambda batch: tf.io.parse_example(batch, spec)).as_numpy_iterator()
