"""The Parquet files of batch inference: their columns, and how they are read.

Neither TensorFlow nor TFX is imported, so that a search answers at once.
"""

from __future__ import annotations

from collections.abc import Sequence
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


def read_columns(paths: Sequence[str], names: Sequence[str]) -> dict[str, np.ndarray]:
    """Columns of Parquet shards as arrays, in the order of the paths.

    Args:
      paths: The files; all have the same columns.

    Returns:
      By name: images uint8 [n, 28, 28], codes float32 [n, d], labels int64 [n]
      with -1 where unknown, or whatever is stored [n].

    Raises:
      KeyError: A column is not there.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    files = []
    for path in paths:
        with open_anywhere(path) as f:
            files.append(pq.ParquetFile(pa.BufferReader(f.read())))
    total = sum(file.metadata.num_rows for file in files)
    empty = files[0].schema_arrow.empty_table()
    found = {}
    for name in names:
        like = _array(empty[name].combine_chunks())
        found[name] = np.empty((total, *like.shape[1:]), like.dtype)
    # Straight to their place: the images of a large set must not lie in memory twice.
    row = 0
    for file in files:
        for batch in file.iter_batches(_BATCH_ROWS, columns=list(names)):
            for name in names:
                found[name][row : row + len(batch)] = _array(batch.column(name))
            row += len(batch)
    return found


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
