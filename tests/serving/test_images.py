"""Pictures in, pictures out."""

from __future__ import annotations

import gzip
import os
import pathlib
import struct
import zlib
from typing import Any

import numpy as np
import pytest
from PIL import Image

from serving import errors, images


def digit() -> Any:
    """A bright bar on dark ground."""
    array = np.zeros((28, 28), np.uint8)
    array[4:24, 12:16] = 250
    return array


def save(path: pathlib.Path, array: Any, mode: str | None = None) -> pathlib.Path:
    Image.fromarray(array, mode).save(path)
    return path


def test_28x28_grey_is_taken_as_it_is(tmp_path: pathlib.Path) -> None:
    loaded = images.load(save(tmp_path / "a.png", digit()))
    np.testing.assert_array_equal(loaded.images, digit()[None])
    assert not loaded.inverted


def test_ink_on_paper_is_recognised_and_inverted(tmp_path: pathlib.Path) -> None:
    path = save(tmp_path / "a.png", 255 - digit())
    loaded = images.load(path)
    assert loaded.inverted
    np.testing.assert_array_equal(loaded.images[0], digit())
    np.testing.assert_array_equal(images.load(path, "no").images[0], 255 - digit())
    np.testing.assert_array_equal(
        images.load(save(tmp_path / "b.png", digit()), "yes").images[0], 255 - digit()
    )


@pytest.mark.parametrize("size", [(280, 280), (14, 14), (100, 40), (1, 1), (3, 500)])
@pytest.mark.parametrize("kind", ["png", "jpg", "rgb", "rgba", "palette", "16 bit"])
def test_any_size_and_colour(tmp_path: pathlib.Path, size: tuple[int, int], kind: str) -> None:
    picture = Image.fromarray(digit()).resize(size)
    if kind in ("rgb", "jpg"):
        picture = picture.convert("RGB")
    elif kind == "rgba":
        picture = picture.convert("RGBA")
    elif kind == "palette":
        picture = picture.convert("P")
    elif kind == "16 bit":
        picture = Image.fromarray(np.asarray(picture).astype(np.uint16) * 257)
    path = tmp_path / ("a.jpg" if kind == "jpg" else "a.png")
    picture.save(path)
    loaded = images.load(path)
    assert loaded.images.shape == (1, 28, 28) and loaded.images.dtype == np.uint8
    if size == (280, 280):
        assert abs(loaded.images[0].astype(int) - digit()).mean() < 6


def test_transparent_paper(tmp_path: pathlib.Path) -> None:
    for ink in (0, 255):
        array = np.zeros((28, 28, 4), np.uint8)
        array[..., :3] = ink
        array[..., 3] = digit()
        loaded = images.load(save(tmp_path / "a.png", array))
        assert loaded.images[0][10, 14] > 200 and loaded.images[0][0, 0] < 20
        assert loaded.inverted == (ink == 0)


def test_idx(tmp_path: pathlib.Path) -> None:
    array = np.random.default_rng(0).integers(0, 256, (5, 28, 28), dtype=np.uint8)
    data = struct.pack(">HBBIII", 0, 8, 3, 5, 28, 28) + array.tobytes()
    (tmp_path / "plain").write_bytes(data)
    (tmp_path / "zipped.gz").write_bytes(gzip.compress(data))
    for name in ("plain", "zipped.gz"):
        np.testing.assert_array_equal(images.load(tmp_path / name).images, array)


@pytest.mark.skipif(not os.environ.get("MNIST_DATA_DIR"), reason="MNIST_DATA_DIR is not set")
def test_the_real_mnist() -> None:
    folder = pathlib.Path(os.environ["MNIST_DATA_DIR"])
    loaded = images.load(folder / "t10k-images-idx3-ubyte.gz")
    assert loaded.images.shape == (10_000, 28, 28)
    assert not loaded.inverted


def bad_files() -> dict[str, bytes]:
    png = pathlib.Path(__file__)
    buffer = __import__("io").BytesIO()
    Image.fromarray(digit().repeat(20, 0).repeat(20, 1)).save(buffer, "PNG")
    whole = buffer.getvalue()
    idx = struct.pack(">HBBIII", 0, 8, 3, 5, 28, 28)
    return {
        "text.png": png.read_bytes(),
        "empty.png": b"",
        "cut.png": whole[: len(whole) // 2],
        "header.png": whole[:20],
        "cut.idx": idx + bytes(100),
        "huge.idx": struct.pack(">HBBIII", 0, 8, 3, 2**31, 2**31, 28),
        "flat.idx": struct.pack(">HBBIII", 0, 8, 3, 5, 0, 28),
        "cut.gz": gzip.compress(idx + bytes(5 * 784))[:-20],
        "labels.gz": gzip.compress(struct.pack(">HBBI", 0, 8, 1, 3) + b"abc"),
        "other.gz": gzip.compress(b"hello"),
        "bad.gz": b"\x1f\x8b" + bytes(30),
    }


@pytest.mark.parametrize("name", sorted(bad_files()))
def test_what_is_no_image_is_one_clear_line(tmp_path: pathlib.Path, name: str) -> None:
    path = tmp_path / name
    path.write_bytes(bad_files()[name])
    with pytest.raises(errors.InputError) as caught:
        images.load(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_missing_and_folder(tmp_path: pathlib.Path) -> None:
    with pytest.raises(errors.InputError, match="No such file"):
        images.load(tmp_path / "nobody.png")
    with pytest.raises(errors.InputError, match="is a folder"):
        images.load(tmp_path)


def test_a_decompression_bomb(tmp_path: pathlib.Path) -> None:
    def chunk(name: bytes, data: bytes) -> bytes:
        sum_ = zlib.crc32(name + data)
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", sum_)

    path = tmp_path / "bomb.png"
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", struct.pack(">IIBBBBB", 60_000, 60_000, 1, 0, 0, 0, 0))
        + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")
    )  # fmt: skip
    with pytest.raises(errors.InputError, match="too many pixels"):
        images.load(path)


def test_a_sheet_shows_the_images(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "deep" / "sheet.png"
    images.write_sheet(path, np.stack([digit(), 255 - digit(), digit()]), 2)
    sheet = np.asarray(Image.open(path))
    assert sheet.shape == (2 * 30 * 4 + 8, 2 * 30 * 4 + 8)
    np.testing.assert_array_equal(sheet[8 : 8 + 112 : 4, 8 : 8 + 112 : 4], digit())
    np.testing.assert_array_equal(sheet[8 : 8 + 112 : 4, 128 : 128 + 112 : 4], 255 - digit())
