"""What a shard's file holds, and that it is there whole or not at all."""

import numpy as np
import pytest

from components.image_sources import IdxSource, RecordSource
from components.mnist_example_gen import idx
from serving.uses import columns, shards


@pytest.fixture
def model(built):
    return str(built / "autoencoder" / "1")


def test_an_empty_shard_has_its_columns(model, tmp_path):
    path = tmp_path / f"none-{idx.IMAGES}"
    idx.write_idx(str(path), np.zeros((0, 28, 28), np.uint8))
    shard = shards.Shard(
        str(tmp_path / "part.parquet"),
        IdxSource(idx.SplitFiles(str(path), None), 0, 0),
        ("code",),
        with_images=True,
    )
    assert shards.write_shard(shard, model) == 0
    found = columns.read_columns([shard.path], ("image", "code", "label"))
    assert found["image"].shape == (0, 28, 28) and found["code"].shape == (0, 32)


def test_a_failed_shard_leaves_nothing(model, tmp_path):
    path = tmp_path / "broken.tfrecord"
    path.write_bytes(b"not a record" * 10)
    shard = shards.Shard(str(tmp_path / "out" / "part.parquet"), RecordSource(str(path)), ("code",))
    (tmp_path / "out").mkdir()
    with pytest.raises(idx.DataError, match=r"broken\.tfrecord"):
        shards.write_shard(shard, model)
    assert list((tmp_path / "out").iterdir()) == []


def test_a_missing_column_is_said(model, tmp_path, digits_folder):
    shard = shards.Shard(
        str(tmp_path / "part.parquet"),
        IdxSource(idx.SplitFiles(str(digits_folder / f"t10k-{idx.IMAGES}"), None), 5, 25),
        ("is_anomaly",),
    )
    assert shards.write_shard(shard, model) == 20
    rows = columns.read_columns([shard.path], ("row", "label"))
    np.testing.assert_array_equal(rows["row"], np.arange(5, 25))
    assert set(rows["label"]) == {-1}
    with pytest.raises(KeyError):
        columns.read_columns([shard.path], ("code",))
