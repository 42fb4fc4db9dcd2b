"""Shards of images through a SavedModel, one output file each, on Beam.

The image index and :mod:`serving.uses.infer` share it. A shard is read, predicted and
written batch by batch, so memory does not grow with its size, and its file
appears by one rename: a shard is there whole or not at all, whatever is killed
or retried.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import io
import json
import os
import typing
import uuid
from collections.abc import Iterator, Mapping, Sequence
from concurrent import futures
from typing import Any

import apache_beam as beam
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import tensorflow as tf
from tfx.dsl.io import fileio
from tfx_bsl.coders import example_coder

from serving import contract
from serving.uses.columns import IMAGE, LABEL, PREDICTED, ROW, SOURCE

PARQUET = "parquet"
TFRECORD = "tfrecord"
SUFFIXES = {PARQUET: ".parquet", TFRECORD: ".tfrecord.gz"}

# What can be asked for: column to the signature's key.
OUTPUTS = {
    contract.CODE: contract.CODE,
    contract.RECONSTRUCTION: contract.RECONSTRUCTION,
    contract.RECONSTRUCTION_ERROR: contract.RECONSTRUCTION_ERROR,
    contract.ANOMALY_SCORE: contract.ANOMALY_SCORE,
    contract.IS_ANOMALY: contract.IS_ANOMALY,
    PREDICTED: contract.LABEL,
    contract.PROBABILITIES: contract.PROBABILITIES,
}
_CLASSIFIED = (PREDICTED, contract.PROBABILITIES)
_SCORED = (contract.RECONSTRUCTION_ERROR, contract.ANOMALY_SCORE, contract.IS_ANOMALY)

# Images a call of the model: enough to keep a small one busy, few enough for the
# maps of a convolution.
BATCH = 1_024
# Images that are read, and handed from thread to thread, together.
CHUNK = 4 * BATCH
SHAPE = (-1, contract.IMAGE_HEIGHT, contract.IMAGE_WIDTH)


@dataclasses.dataclass(frozen=True)
class Batch:
    """Some images of one source.

    Attributes:
      images: uint8 [n, 28, 28].
      labels: int64 [n], -1 where unknown.
      names: Where each comes from, or None for the source and its row.
    """

    images: np.ndarray
    labels: np.ndarray
    names: Sequence[str] | None = None


class Source(typing.Protocol):
    """Images of one shard; pickled to Beam's workers."""

    @property
    def name(self) -> str:
        """Where they come from, for the column ``source``."""

    @property
    def start(self) -> int:
        """Row of the first image."""

    def batches(self) -> Iterator[Batch]:
        """All of them, in order."""

    def identity(self) -> str:
        """What the shard holds, so that a changed input is noticed."""


class Predictor:
    """A SavedModel's outputs as columns.

    It calls the cheapest signature that gives what is asked for.
    """

    def __init__(self, path: str, outputs: Sequence[str]):
        """Loads the model.

        Args:
          path: The SavedModel, which is kept loaded for other predictors.
          outputs: Keys of :data:`OUTPUTS`.

        Raises:
          ValueError: The model has no such output.
        """
        self.outputs = tuple(outputs)
        signatures = load_model(path).signatures
        available = available_outputs(signatures)
        missing = [name for name in outputs if name not in available]
        if missing:
            raise ValueError(
                f"the model gives no {', '.join(missing)}; it gives {', '.join(available)}"
            )
        plain = [name for name in outputs if name not in _CLASSIFIED]
        cheapest = contract.SCORE if set(plain) <= set(_SCORED) else contract.RECONSTRUCT
        calls = {
            contract.ENCODE if plain == [contract.CODE] else cheapest: plain,
            contract.CLASSIFY: [name for name in outputs if name in _CLASSIFIED],
        }
        self._calls = [(signatures[key], names) for key, names in calls.items() if names]

    def __call__(self, images: np.ndarray) -> dict[str, np.ndarray]:
        """Images uint8 [n, 28, 28] to arrays [n, ...] by output, any n above 0."""
        parts: dict[str, list[np.ndarray]] = {name: [] for name in self.outputs}
        for start in range(0, len(images), BATCH):
            tensor = tf.constant(images[start : start + BATCH])
            for signature, names in self._calls:
                answer = signature(images=tensor)
                for name in names:
                    parts[name].append(answer[OUTPUTS[name]].numpy())
        return {name: np.concatenate(of) if of[1:] else of[0] for name, of in parts.items()}


@functools.lru_cache(maxsize=1)
def load_model(path: str) -> Any:
    """A SavedModel; the last one stays loaded, for the process's next use of it."""
    return tf.saved_model.load(path)


def available_outputs(signatures: Mapping[str, Any]) -> list[str]:
    """The columns that a model with these signatures can fill."""
    given = {
        key
        for name in (contract.RECONSTRUCT, contract.CLASSIFY)
        if name in signatures
        for key in signatures[name].structured_outputs
    }
    return [name for name, key in OUTPUTS.items() if key in given]


def read_metadata(model_path: str) -> dict[str, Any]:
    """What a SavedModel says of itself, from :data:`contract.METADATA_FILE`."""
    with fileio.open(os.path.join(model_path, contract.METADATA_FILE), "r") as f:
        return json.load(f)


@dataclasses.dataclass(frozen=True)
class Shard:
    """One output file.

    Attributes:
      outputs: Columns that the model fills.
      with_images: Whether the images themselves are a column, too.
      file_format: ``parquet`` or ``tfrecord``.
    """

    path: str
    source: Source
    outputs: tuple[str, ...]
    with_images: bool = False
    file_format: str = PARQUET


def write_shard(shard: Shard, model_path: str) -> int:
    """Predicts and writes a shard.

    Returns:
      Number of images.
    """
    folder, name = os.path.split(shard.path)
    temporary = os.path.join(folder, f".{name}.{uuid.uuid4().hex}")
    predictor = Predictor(model_path, shard.outputs)
    write = _write_parquet if shard.file_format == PARQUET else _write_records
    try:
        count = write(temporary, ahead(_tables(shard, predictor)))
        fileio.rename(temporary, shard.path, overwrite=True)
    except BaseException:
        with contextlib.suppress(OSError, tf.errors.OpError):
            fileio.remove(temporary)
        raise
    return count


@beam.ptransform_fn
def WriteShards(  # noqa: N802: Beam names transforms so
    shards: beam.PCollection, model_path: str
) -> beam.PCollection:
    """Writes every :class:`Shard`, wherever the runner likes; numbers of images come out."""
    return shards | "Spread" >> beam.Reshuffle() | "Write" >> beam.Map(write_shard, model_path)


def ahead(items: Iterator[Any]) -> Iterator[Any]:
    """The same items, each made while the one before is dealt with."""
    done = object()
    with futures.ThreadPoolExecutor(1) as pool:
        coming = pool.submit(next, items, done)
        while (item := coming.result()) is not done:
            coming = pool.submit(next, items, done)
            yield item


def _tables(shard: Shard, predictor: Predictor) -> Iterator[pa.RecordBatch]:
    first = row = shard.source.start
    for batch in ahead(shard.source.batches()):
        yield _table(shard, predictor, batch, row)
        row += len(batch.images)
    if row == first:
        # An empty shard still has its columns.
        black = Batch(np.zeros((1, *SHAPE[1:]), np.uint8), np.array([contract.NO_LABEL]))
        yield _table(shard, predictor, black, row).slice(0, 0)


def _table(shard: Shard, predictor: Predictor, batch: Batch, row: int) -> pa.RecordBatch:
    count = len(batch.images)
    if batch.names is None:
        names = pa.repeat(pa.scalar(shard.source.name, pa.string()), count)
    else:
        names = pa.array(batch.names, pa.string())
    rows = np.arange(row, row + count) if batch.names is None else np.zeros(count, np.int64)
    columns: dict[str, pa.Array] = {
        SOURCE: names,
        ROW: pa.array(rows),
        LABEL: pa.array(batch.labels, pa.int64(), mask=batch.labels == contract.NO_LABEL),
    }
    if shard.with_images:
        columns[IMAGE] = _fixed_binary(batch.images)
    for name, values in predictor(batch.images).items():
        columns[name] = _column(name, values)
    return pa.RecordBatch.from_arrays(list(columns.values()), list(columns))


def _column(name: str, values: np.ndarray) -> pa.Array:
    if name == contract.RECONSTRUCTION:
        # As images are stored: grey levels 0 to 255, a quarter of the floats' size.
        return _fixed_binary(np.clip(np.rint(values * 255), 0, 255).astype(np.uint8))
    if values.ndim == 2:
        flat = pa.array(np.ascontiguousarray(values, np.float32).ravel())
        return pa.FixedSizeListArray.from_arrays(flat, values.shape[1])
    return pa.array(values)


def _fixed_binary(images: np.ndarray) -> pa.Array:
    data = pa.py_buffer(np.ascontiguousarray(images).tobytes())
    return pa.FixedSizeBinaryArray.from_buffers(
        pa.binary(contract.IMAGE_PIXELS), len(images), [None, data]
    )


class _Sink(io.RawIOBase):
    """A remote file as Arrow wants one: TensorFlow's does not say whether it is closed."""

    def __init__(self, file: Any):
        self._file = file
        self._size = 0

    def writable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._size

    def write(self, data: Any) -> int:
        self._file.write(bytes(data))
        self._size += len(data)
        return len(data)


def _write_parquet(path: str, batches: Iterator[pa.RecordBatch]) -> int:
    count = 0
    with fileio.open(path, "wb") as f, contextlib.ExitStack() as stack:
        sink = _Sink(f)
        writer = None
        for batch in batches:
            if writer is None:
                images = {IMAGE, contract.RECONSTRUCTION} & set(batch.schema.names)
                writer = stack.enter_context(
                    pq.ParquetWriter(
                        sink,
                        batch.schema,
                        # Images shrink to a quarter; floats hardly, whatever it costs.
                        compression="zstd" if images else "snappy",
                        compression_level=1 if images else None,
                        use_dictionary=[SOURCE],
                        write_statistics=False,
                    )
                )
            writer.write_batch(batch)
            count += len(batch)
    return count


def _write_records(path: str, batches: Iterator[pa.RecordBatch]) -> int:
    options = tf.io.TFRecordOptions("GZIP", compression_level=1)
    count = 0
    with tf.io.TFRecordWriter(path, options) as writer:
        for batch in batches:
            for example in example_coder.RecordBatchToExamples(_as_features(batch)):
                writer.write(example)
            count += len(batch)
    return count


def _as_features(batch: pa.RecordBatch) -> pa.RecordBatch:
    """A batch whose columns are lists of what a tf.Example holds."""
    columns = []
    for column in batch.columns:
        if pa.types.is_boolean(column.type):
            column = column.cast(pa.int64())
        elif pa.types.is_string(column.type) or pa.types.is_fixed_size_binary(column.type):
            column = column.cast(pa.binary())
        if pa.types.is_fixed_size_list(column.type):
            offsets = np.arange(len(column) + 1, dtype=np.int32) * column.type.list_size
            columns.append(pa.ListArray.from_arrays(pa.array(offsets), column.flatten()))
            continue
        offsets = np.concatenate([[0], np.cumsum(column.is_valid().to_numpy(False))])
        columns.append(pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), column.drop_null()))
    return pa.RecordBatch.from_arrays(columns, batch.schema.names)
