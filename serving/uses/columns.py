"""The Parquet files of batch inference: their columns, and how they are read.

Neither TensorFlow nor TFX is imported, so that a search answers at once.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from serving import contract
from serving.files import open_anywhere

# Columns beside the model's outputs, which are called as in the contract.
SOURCE = "source"
ROW = "row"
IMAGE = contract.IMAGE_FEATURE
LABEL = contract.LABEL_FEATURE
# The classifier's ``label``; that name is the known one's.
PREDICTED = "predicted_label"

# Few enough to be small, many enough to be fast.
_BATCH_ROWS = 16_384

_SHAPE = (-1, contract.IMAGE_HEIGHT, contract.IMAGE_WIDTH)


def read_blocks(paths: Sequence[str], names: Sequence[str]) -> Iterator[dict[str, np.ndarray]]:
    """Columns of Parquet shards, up to 16,384 rows at a time, in the order of the paths.

    Args:
      paths: The files; all have the same columns.

    Yields:
      By name: images uint8 [n, 28, 28], codes float32 [n, d], labels int64 [n]
      with -1 where unknown, or whatever is stored [n].

    Raises:
      KeyError: A column is not there.
    """
    for path in paths:
        with _parquet(path) as file:
            missing = set(names) - set(file.schema_arrow.names)
            if missing:
                raise KeyError(f"{path} has no column {', '.join(sorted(missing))}")
            for batch in file.iter_batches(_BATCH_ROWS, columns=list(names)):
                yield {name: _array(batch.column(name)) for name in names}


def read_columns(
    paths: Sequence[str], names: Sequence[str], rows: np.ndarray | None = None
) -> dict[str, np.ndarray]:
    """Columns of Parquet shards as arrays; see :func:`read_blocks`.

    Args:
      paths: The files, at least one; all have the same columns.
      rows: Those wanted, ascending, counted over all files; None is all.
    """
    total = 0
    for path in paths:
        with _parquet(path) as file:
            total += file.metadata.num_rows
            empty = file.schema_arrow.empty_table()
    found = {}
    for name in names:
        like = _array(empty[name].combine_chunks())
        found[name] = np.empty((total if rows is None else len(rows), *like.shape[1:]), like.dtype)
    # Straight to their place: the images of a large set must not lie in memory twice.
    start = filled = 0
    for block in read_blocks(paths, names):
        stop = start + len(block[names[0]])
        chosen: slice | np.ndarray = slice(None)
        if rows is not None:
            chosen = rows[slice(*np.searchsorted(rows, (start, stop)))] - start
        for name in names:
            part = block[name][chosen]
            found[name][filled : filled + len(part)] = part
        start, filled = stop, filled + len(part)
    return found


@contextlib.contextmanager
def _parquet(path: str) -> Iterator[Any]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    with open_anywhere(path) as f:
        # TensorFlow's remote files are not whole files to Arrow.
        yield pq.ParquetFile(pa.BufferReader(f.read()) if "://" in path else f)


def _array(column: Any) -> np.ndarray:
    import pyarrow as pa

    if isinstance(column, pa.ChunkedArray):
        column = pa.concat_arrays(column.chunks)
    if pa.types.is_fixed_size_binary(column.type):
        size = column.type.byte_width
        data = np.frombuffer(
            column.buffers()[1], np.uint8, len(column) * size, column.offset * size
        )
        return data.reshape(_SHAPE)
    if pa.types.is_fixed_size_list(column.type):
        return column.flatten().to_numpy(False).reshape(-1, column.type.list_size)
    if column.null_count:
        column = column.fill_null(contract.NO_LABEL)
    return column.to_numpy(zero_copy_only=False)
