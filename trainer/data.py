"""tf.data input of the training, from the examples and Transform's graph.

The raw bytes of all images are held in memory (784 bytes an image, 47 MB for
MNIST) and every epoch draws its own permutation of them, so that shuffling is
perfect, costs nothing an element, and depends on seed and epoch alone: a
resumed training sees what an undisturbed one would have seen. Batches then run
through Transform's graph. ``streaming`` keeps memory flat instead.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np
import tensorflow as tf

from components import features

_READ_BATCH = 2_000
_EVAL_BATCH = 1_000
_STREAM_SHUFFLE = 50_000
_STREAM_VALIDATION = 10_000

TransformFn = Callable[[dict[str, tf.Tensor]], dict[str, tf.Tensor]]


@dataclasses.dataclass(frozen=True)
class Examples:
    """Raw examples in memory.

    Attributes:
      images: Bytes, object [n].
      labels: int64 [n], -1 where unknown.
    """

    images: np.ndarray
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, rows: np.ndarray) -> Examples:
        """The chosen rows, in that order."""
        return Examples(self.images[rows], self.labels[rows])

    def with_labels(self, labels: np.ndarray) -> Examples:
        """The same images with other labels."""
        return Examples(self.images, labels)

    def without_labels(self) -> Examples:
        """The same images with every label unknown."""
        return self.with_labels(np.full_like(self.labels, features.NO_LABEL))


class Preprocessor:
    """Transform's graph, as a function of raw features.

    Loaded from the SavedModel that Transform wrote, without a Keras layer, and
    a Trackable, so that an exported model can carry it.
    """

    def __init__(self, transform_savedmodel_dir: str):
        """Loads the graph from Transform's ``transform_fn`` folder."""
        self.trackable = tf.saved_model.load(transform_savedmodel_dir)

    def __call__(self, raw: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        """Raw ``image`` string [n] and ``label`` int64 [n] to their transformed form."""
        return self.trackable.transform_fn(raw)

    def images(self, raw_images: tf.Tensor) -> tf.Tensor:
        """Raw bytes string [n] to float32 [n, 28, 28] in [0, 1]."""
        labels = tf.fill(tf.shape(raw_images), tf.constant(features.NO_LABEL, tf.int64))
        return self({features.IMAGE: raw_images, features.LABEL: labels})[features.IMAGE]


def read_examples(patterns: Sequence[str]) -> Examples:
    """Reads gzip-compressed TFRecords of examples, in the order of their names.

    Raises:
      ValueError: No file matches, or the files hold nothing.
    """
    return _collect(_records(_files(patterns)))


def _collect(records: tf.data.Dataset) -> Examples:
    """Serialized examples into memory."""
    dataset = records.batch(_READ_BATCH).map(
        lambda serialized: tf.io.parse_example(serialized, features.feature_spec())
    )
    batches = [(b[features.IMAGE], b[features.LABEL]) for b in dataset.as_numpy_iterator()]
    if not batches:
        raise ValueError("the files of the training split hold no examples")
    return Examples(*(np.concatenate(columns) for columns in zip(*batches)))


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
    rank = np.empty(len(order), np.int64)
    for digit in range(features.NUM_CLASSES):
        of_digit = labels[order] == digit
        rank[of_digit] = np.arange(of_digit.sum())
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


def steps_per_epoch(count: int, batch_size: int, replicas: int) -> int:
    """Optimizer steps an epoch; the remainder of each permutation is left out."""
    return max(1, count // (batch_size * replicas))


def training_batches(
    examples: Examples,
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
    count, replicas = len(examples), context.num_replicas_in_sync
    steps = steps_per_epoch(count, batch_size, replicas)
    images, labels = tf.constant(examples.images), tf.constant(examples.labels)
    known = tf.constant(np.flatnonzero(examples.labels != features.NO_LABEL))

    def rows_of_epoch(epoch: tf.Tensor) -> tf.data.Dataset:
        order = tf.random.experimental.stateless_shuffle(
            tf.range(count, dtype=tf.int64), seed=tf.stack([tf.constant(seed, tf.int64), epoch])
        )
        # A set smaller than a batch is repeated to fill it.
        order = tf.gather(order, tf.range(steps * replicas * batch_size) % count)
        rows = tf.reshape(order, (steps * replicas, batch_size))
        if labelled_batch_size:
            draws = tf.random.stateless_uniform(
                (steps * replicas, labelled_batch_size),
                seed=tf.stack([tf.constant(seed + 1, tf.int64), epoch]),
                maxval=tf.size(known, tf.int64),
                dtype=tf.int64,
            )
            rows = tf.concat([rows, tf.gather(known, draws)], axis=1)
        return tf.data.Dataset.from_tensor_slices(rows)

    def batch_of_rows(rows: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        raw = {features.IMAGE: tf.gather(images, rows), features.LABEL: tf.gather(labels, rows)}
        out = preprocess(raw)
        width = batch_size + labelled_batch_size
        return (
            tf.ensure_shape(out[features.IMAGE], (width, 28, 28)),
            tf.ensure_shape(out[features.LABEL], (width,)),
        )

    return (
        tf.data.Dataset.range(first_epoch, epochs)
        .flat_map(rows_of_epoch)
        .shard(context.num_input_pipelines, context.input_pipeline_id)
        .map(batch_of_rows, num_parallel_calls=tf.data.AUTOTUNE)
        .prefetch(tf.data.AUTOTUNE)
    )


@dataclasses.dataclass(frozen=True)
class Stream:
    """Training examples that stay on disk, every ``stride``-th set aside.

    Attributes:
      files: TFRecords of examples.
      stride: One record in so many is for validation.
      count: Number of the others.
    """

    files: tuple[str, ...]
    stride: int
    count: int

    def __len__(self) -> int:
        return self.count

    def records(self, files: tf.Tensor, *, validation: bool) -> tf.data.Dataset:
        """Serialized examples of one of the two parts, file by file."""

        def part_of_file(file: tf.Tensor) -> tf.data.Dataset:
            numbered = _records(file).enumerate()
            chosen = numbered.filter(lambda i, _: (i % self.stride == 0) == validation)
            return chosen.map(lambda _, record: record)

        return tf.data.Dataset.from_tensor_slices(files).interleave(part_of_file, cycle_length=4)


def open_stream(patterns: Sequence[str], fraction: float) -> tuple[Stream, Examples]:
    """Splits examples on disk, reading them once to count them.

    Returns:
      The training part, and up to 10,000 examples of the validation part.
    """
    files = tuple(_files(patterns))
    stride = max(2, round(1 / fraction))
    sizes = [int(_records(f).reduce(np.int64(0), lambda n, _: n + 1)) for f in files]
    stream = Stream(files, stride, sum(size - -(-size // stride) for size in sizes))
    validation = stream.records(tf.constant(files), validation=True).take(_STREAM_VALIDATION)
    return stream, _collect(validation)


def streamed_batches(
    stream: Stream,
    preprocess: Preprocessor,
    *,
    batch_size: int,
    seed: int,
    first_epoch: int,
    epochs: int,
    context: tf.distribute.InputContext,
) -> tf.data.Dataset:
    """As :func:`training_batches`, read from the files in every epoch.

    Memory stays flat whatever the number of images; the shuffle is as good as
    its buffer, the rate a third to a half.
    """
    steps = steps_per_epoch(len(stream), batch_size, context.num_replicas_in_sync)

    def epoch_of(epoch: tf.Tensor) -> tf.data.Dataset:
        # Dataset.shuffle takes no seed from a graph when TensorFlow's own seed is 0.
        key = tf.stack([tf.constant(seed, tf.int64), epoch])
        order = tf.random.experimental.stateless_shuffle(tf.constant(stream.files), seed=key)
        return (
            stream.records(order, validation=False)
            .batch(_STREAM_SHUFFLE)
            .map(lambda block: tf.random.experimental.stateless_shuffle(block, seed=key))
            .unbatch()
            .repeat()
            .batch(batch_size, drop_remainder=True)
            .take(steps * context.num_replicas_in_sync)
        )

    def parse(serialized: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        out = preprocess(tf.io.parse_example(serialized, features.feature_spec()))
        # Only models that look at no label are streamed.
        hidden = tf.fill((batch_size,), tf.constant(features.NO_LABEL, tf.int64))
        return tf.ensure_shape(out[features.IMAGE], (batch_size, 28, 28)), hidden

    return (
        tf.data.Dataset.range(first_epoch, epochs)
        .flat_map(epoch_of)
        .shard(context.num_input_pipelines, context.input_pipeline_id)
        .map(parse, num_parallel_calls=tf.data.AUTOTUNE)
        .prefetch(tf.data.AUTOTUNE)
    )


def evaluation_batches(examples: Examples, preprocess: Preprocessor) -> tf.data.Dataset:
    """All examples once, in order, in batches ``(images, labels)`` of up to 1,000.

    Under a strategy, Keras gives every worker and replica its part.
    """
    dataset = tf.data.Dataset.from_tensor_slices((examples.images, examples.labels))
    dataset = dataset.batch(_EVAL_BATCH)
    options = tf.data.Options()
    options.experimental_distribute.auto_shard_policy = tf.data.experimental.AutoShardPolicy.DATA
    dataset = dataset.with_options(options)

    def transform(images: tf.Tensor, labels: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        out = preprocess({features.IMAGE: images, features.LABEL: labels})
        return out[features.IMAGE], out[features.LABEL]

    return dataset.map(transform, num_parallel_calls=tf.data.AUTOTUNE).prefetch(tf.data.AUTOTUNE)


def _files(patterns: Sequence[str]) -> list[str]:
    files = sorted(path for pattern in patterns for path in tf.io.gfile.glob(pattern))
    if not files:
        raise ValueError(f"no file matches {', '.join(patterns)}")
    return files


def _records(files: list[str] | tf.Tensor) -> tf.data.TFRecordDataset:
    return tf.data.TFRecordDataset(files, compression_type="GZIP")
