"""tf.data input of the training, from the examples and Transform's graph.

The raw bytes of all images are held in memory (784 bytes an image and 16 more,
47 MB for MNIST) and every epoch draws its own permutation of them, so that shuffling is
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
    pixels = np.empty((0, features.IMAGE_BYTES), np.uint8)
    labels = []
    for batch in dataset.as_numpy_iterator():
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
    labels = tf.constant(examples.labels)
    known = tf.constant(np.flatnonzero(examples.labels != features.NO_LABEL))

    def rows_of_epoch(epoch: tf.Tensor) -> tf.data.Dataset:
        order = tf.random.experimental.stateless_shuffle(
            tf.range(count, dtype=tf.int64), seed=tf.stack([tf.constant(seed, tf.int64), epoch])
        )
        # A set smaller than a batch is repeated to fill it.
        order = tf.gather(order, tf.range(steps * replicas * batch_size) % count)
        rows = tf.reshape(order, (steps * replicas, batch_size))
        if labelled_batch_size:
            shape = (steps * replicas, labelled_batch_size)
            rows = tf.concat([rows, tf.gather(known, _draws(shape, known, seed, epoch))], axis=1)
        return tf.data.Dataset.from_tensor_slices(rows)

    def images_of(rows: np.ndarray) -> np.ndarray:
        return examples.take(rows).images()

    def batch_of_rows(rows: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        # TensorFlow would hold every image as a string of its own, beside these.
        images = tf.numpy_function(images_of, [rows], tf.string, stateful=False)
        images = tf.ensure_shape(images, (batch_size + labelled_batch_size,))
        return _transformed(preprocess, images, tf.gather(labels, rows))

    return (
        tf.data.Dataset.range(first_epoch, epochs)
        .flat_map(rows_of_epoch)
        .shard(context.num_input_pipelines, context.input_pipeline_id)
        .map(batch_of_rows, num_parallel_calls=tf.data.AUTOTUNE)
        .prefetch(tf.data.AUTOTUNE)
    )


def _draws(shape: tuple[int, int], known: tf.Tensor, seed: int, epoch: tf.Tensor) -> tf.Tensor:
    """Which labelled examples are appended to the batches of an epoch: int64 of ``shape``."""
    return tf.random.stateless_uniform(
        shape,
        seed=tf.stack([tf.constant(seed + 1, tf.int64), epoch]),
        maxval=tf.maximum(tf.size(known, tf.int64), 1),
        dtype=tf.int64,
    )


def _transformed(
    preprocess: Preprocessor, images: tf.Tensor, labels: tf.Tensor
) -> tuple[tf.Tensor, tf.Tensor]:
    """Raw images string [b] and labels int64 [b] as a model takes them."""
    out = preprocess({features.IMAGE: images, features.LABEL: labels})
    (width,) = images.shape
    return (
        tf.ensure_shape(out[features.IMAGE], (width, 28, 28)),
        tf.ensure_shape(out[features.LABEL], (width,)),
    )


@dataclasses.dataclass(frozen=True)
class Stream:
    """Training examples that stay on disk, every ``stride``-th set aside.

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


def open_stream(
    patterns: Sequence[str], fraction: float, budget: int | None, seed: int
) -> tuple[Stream, Examples]:
    """Splits examples on disk, reading them once for their labels and once for those it keeps.

    Args:
      patterns: Of the files.
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
        parsed = _records(file).batch(_READ_BATCH).map(lambda s: tf.io.parse_example(s, label))
        found = [np.zeros(0, np.int64), *(b[features.LABEL] for b in parsed.as_numpy_iterator())]
        labels.append(np.concatenate(found))
        trained.append(np.arange(len(labels[-1])) % stride != 0)
    rows = np.flatnonzero(np.concatenate(trained))
    labelled = None
    if budget:
        known = mask_labels(np.concatenate(labels)[rows], budget, seed) != features.NO_LABEL
        wanted = np.zeros(sum(map(len, labels)), bool)
        wanted[rows[known]] = True
        chosen = _records(list(files)).enumerate().filter(lambda i, _: tf.gather(wanted, i))
        labelled = _collect(chosen.map(lambda _, record: record))
    stream = Stream(files, stride, len(rows), budget is None, labelled)
    records = stream.records(tf.constant(files), validation=True)
    validation = _collect(records.take(_STREAM_VALIDATION))
    return stream, validation if budget is None else validation.without_labels()


def streamed_batches(
    stream: Stream,
    preprocess: Preprocessor,
    *,
    batch_size: int,
    labelled_batch_size: int = 0,
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
    appended = (tf.constant([], tf.string), tf.constant([], tf.int64))
    if labelled_batch_size:
        assert stream.labelled is not None
        appended = tf.constant(stream.labelled.images()), tf.constant(stream.labelled.labels)

    def epoch_of(epoch: tf.Tensor) -> tf.data.Dataset:
        # Dataset.shuffle takes no seed from a graph when TensorFlow's own seed is 0.
        key = tf.stack([tf.constant(seed, tf.int64), epoch])
        order = tf.random.experimental.stateless_shuffle(tf.constant(stream.files), seed=key)
        batches = (
            stream.records(order, validation=False)
            .batch(_STREAM_SHUFFLE)
            .map(lambda block: tf.random.experimental.stateless_shuffle(block, seed=key))
            .unbatch()
            .repeat()
            .batch(batch_size, drop_remainder=True)
            .take(steps * context.num_replicas_in_sync)
        )
        shape = (steps * context.num_replicas_in_sync, labelled_batch_size)
        draws = tf.data.Dataset.from_tensor_slices(_draws(shape, appended[1], seed, epoch))
        return tf.data.Dataset.zip((batches, draws))

    def parse(serialized: tf.Tensor, draws: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        parsed = tf.io.parse_example(serialized, features.feature_spec())
        labels = parsed[features.LABEL]
        if not stream.shows_labels:
            labels = tf.fill((batch_size,), tf.constant(features.NO_LABEL, tf.int64))
        images = tf.concat([parsed[features.IMAGE], tf.gather(appended[0], draws)], axis=0)
        labels = tf.concat([labels, tf.gather(appended[1], draws)], axis=0)
        return _transformed(preprocess, images, labels)

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
    dataset = tf.data.Dataset.from_tensor_slices((examples.images(), examples.labels))
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
