import gzip
import os
import struct

import numpy as np
import pytest

from components.mnist_example_gen import datasets, idx


@pytest.fixture
def folder(tmp_path, digits):
    """A small good folder, to be damaged."""
    for split, prefix in idx.SPLIT_PREFIXES.items():
        images, labels = digits[split]
        idx.write_idx(str(tmp_path / f"{prefix}-{idx.IMAGES}"), images[:30])
        idx.write_idx(str(tmp_path / f"{prefix}-{idx.LABELS}"), labels[:30])
    return tmp_path


def compress(path):
    data = gzip.compress(path.read_bytes())
    path.unlink()
    target = path.with_name(path.name + ".gz")
    target.write_bytes(data)
    return target


def test_plain_and_compressed_files_are_the_same_set(folder):
    plain = datasets.check_folder(str(folder), "test")
    for path in list(folder.iterdir()):
        compress(path)
    compressed = datasets.check_folder(str(folder), "test")
    assert compressed.digest == plain.digest
    assert compressed.splits["train"].count == 30


def test_reading_a_range_gives_that_range(folder, digits):
    path = folder / f"train-{idx.IMAGES}"
    for source in (path, None):
        source = source or compress(path)
        chunks = list(idx.read_images(str(source), 7, 23, chunk=5))
        assert [len(c) for c in chunks] == [5, 5, 5, 1]
        np.testing.assert_array_equal(
            np.concatenate(chunks), digits["train"][0][7:23].reshape(-1, 784)
        )


def test_the_digest_depends_on_every_pixel(folder, digits):
    before = datasets.check_folder(str(folder), "test").digest
    images = digits["eval"][0][:30].copy()
    images[29, 27, 27] ^= 1
    idx.write_idx(str(folder / f"t10k-{idx.IMAGES}"), images)
    assert datasets.check_folder(str(folder), "test").digest != before


def test_labels_may_be_missing(folder):
    for prefix in idx.SPLIT_PREFIXES.values():
        (folder / f"{prefix}-{idx.LABELS}").unlink()
    found = datasets.check_folder(str(folder), "test")
    assert not found.splits["train"].labelled
    assert found.splits["train"].count == 30


def truncate_gzip(folder):
    path = compress(folder / f"train-{idx.IMAGES}")
    path.write_bytes(path.read_bytes()[:-100])
    return path, "truncated gzip"


def damage_gzip_checksum(folder):
    path = compress(folder / f"train-{idx.IMAGES}")
    data = bytearray(path.read_bytes())
    data[-6] ^= 0xFF
    path.write_bytes(data)
    return path, "gzip"


def truncate_plain(folder):
    path = folder / f"t10k-{idx.IMAGES}"
    path.write_bytes(path.read_bytes()[:-5])
    return path, "5 bytes short"


def wrong_magic(folder):
    path = folder / f"train-{idx.IMAGES}"
    path.write_bytes(b"\x00\x00\x0d\x03" + path.read_bytes()[4:])
    return path, "magic number 0x00000d03"


def wrong_size(folder):
    path = folder / f"train-{idx.IMAGES}"
    path.write_bytes(struct.pack(">IIII", 0x803, 1, 32, 32) + bytes(1024))
    return path, "32x32"


def fewer_labels(folder):
    path = folder / f"train-{idx.LABELS}"
    idx.write_idx(str(path), np.zeros(29))
    return path, "29 labels for the 30 images"


def label_ten(folder):
    path = folder / f"t10k-{idx.LABELS}"
    labels = np.zeros(30)
    labels[17] = 10
    idx.write_idx(str(path), labels)
    return path, "label 10 at position 17"


def no_images(folder):
    path = folder / f"t10k-{idx.IMAGES}"
    idx.write_idx(str(path), np.zeros((0, 28, 28)))
    return path, "holds no images"


def trailing_bytes(folder):
    path = folder / f"train-{idx.LABELS}"
    path.write_bytes(path.read_bytes() + b"x")
    return path, "longer than its header"


def empty_file(folder):
    path = folder / f"train-{idx.IMAGES}"
    path.write_bytes(b"")
    return path, "truncated"


def missing_file(folder):
    (folder / f"t10k-{idx.IMAGES}").unlink()
    return folder, f"eval split, t10k-*): no file *-{idx.IMAGES}"


DAMAGES = [
    truncate_gzip,
    damage_gzip_checksum,
    truncate_plain,
    wrong_magic,
    wrong_size,
    fewer_labels,
    label_ten,
    no_images,
    trailing_bytes,
    empty_file,
    missing_file,
]


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda d: d.__name__)
def test_damaged_input_is_refused_by_file_and_reason(folder, damage):
    path, reason = damage(folder)
    with pytest.raises(idx.DataError) as error:
        datasets.check_folder(str(folder), "test")
    assert str(path) in str(error.value)
    assert reason in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_an_unreadable_folder_is_named(folder):
    folder.chmod(0)
    try:
        with pytest.raises(idx.DataError, match=f"{folder}.*cannot be read"):
            datasets.check_folder(str(folder), "test")
    finally:
        folder.chmod(0o700)


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(idx.DataError, match="nowhere.*cannot be read"):
        datasets.check_folder(str(tmp_path / "nowhere"), "test")
