"""Images as quantised codes, and back."""

import json

import numpy as np
import pytest

from components.mnist_example_gen import idx
from serving.errors import InputError
from serving.uses import codecs, compress


@pytest.mark.parametrize("bits", [1, 3, 8, 11, 16])
def test_packing_loses_nothing(bits):
    rng = np.random.default_rng(bits)
    levels = rng.integers(0, 2**bits, (7, 5)).astype(np.uint16)
    packed = compress.pack(levels, bits)
    assert packed.dtype == np.uint8 and len(packed) == -(-7 * 5 * bits // 8)
    np.testing.assert_array_equal(compress.unpack(packed, bits, levels.shape), levels)


@pytest.mark.parametrize("bits", [2, 8, 16])
def test_codes_come_back_within_half_a_step(bits):
    codes = np.random.default_rng(0).normal(size=(50, 6)).astype(np.float32)
    codes[:, 3] = 0.5
    levels, low, high = compress.quantise(codes, bits)
    back = compress.Compressed("m", 1, "d", bits, low, high, levels).codes
    step = (codes.max(axis=0) - codes.min(axis=0)) / (2**bits - 1)
    assert np.all(np.abs(back - codes) <= step / 2 + 1e-5)
    np.testing.assert_array_equal(back[:, 3], codes[:, 3])


def test_figures_by_hand():
    images = np.zeros((2, 28, 28), np.uint8)
    shown = np.full_like(images, 51)
    found = codecs.figures("c", 196, images, shown)
    assert found.ratio == 8 and found.bits_per_pixel == 1
    assert found.psnr == pytest.approx(-20 * np.log10(0.2))
    same = codecs.figures("c", 196, shown, shown)
    assert same.psnr is None and same.ssim == pytest.approx(1)


@pytest.mark.parametrize("form", ["JPEG", "WEBP"])
def test_better_pictures_take_more_bits(form, digits):
    images = digits["eval"][0][:30]
    low, high = (codecs.of_pictures(images, form, quality) for quality in (10, 90))
    assert low.codec == f"{form}, quality 10"
    assert 0 < low.bits_per_pixel < high.bits_per_pixel < 8
    assert 10 < low.psnr < high.psnr and 0 < low.ssim < high.ssim < 1


def test_files_that_are_none_are_refused(tmp_path):
    path = tmp_path / "file.npz"
    with pytest.raises(InputError, match="cannot be read"):
        compress.load(path)
    path.write_bytes(b"not a zip")
    with pytest.raises(InputError, match="mnist-ae compress"):
        compress.load(path)
    np.savez(path, other=np.zeros(3))
    with pytest.raises(InputError, match="mnist-ae compress"):
        compress.load(path)


def test_there_and_back_on_the_command_line(trained_run, digits, digits_folder, tmp_path, cli):
    root = str(trained_run.root)
    source = str(digits_folder / f"t10k-{idx.IMAGES}")
    packed, back = tmp_path / "digits.npz", tmp_path / "back-idx3-ubyte"
    done = cli(
        "compress", source, "-o", str(packed), "--bits", "6", "--root", root, "--model", "simple",
        "--json",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    figures = json.loads(done.stdout)
    assert figures["bytes"] == packed.stat().st_size
    assert figures["ratio"] == pytest.approx(500 * 784 / packed.stat().st_size)
    assert figures["bits_per_pixel"] < 32 * 6 / 784 * 1.2
    assert cli("decompress", str(packed), "-o", str(back), "--root", root).returncode == 0
    shown = next(idx.read_images(str(back))).reshape(-1, 28, 28)
    original = digits["eval"][0]
    mse = np.mean(np.square((shown.astype(float) - original) / 255))
    assert figures["psnr"] == pytest.approx(-10 * np.log10(mse), abs=1e-6)
    # Six bits a float cost little against the uncompressed code.
    assert mse < trained_run.result["metrics"]["overall"]["mse"] * 1.1
    own, jpeg, png, lossless = figures["beside"]
    assert jpeg["codec"].startswith("JPEG") and png["codec"].startswith("PNG")
    assert lossless["psnr"] is None and lossless["ssim"] == pytest.approx(1)
    assert own["bytes"] < lossless["bytes"]


def test_other_weights_are_refused(trained_run, digits_folder, tmp_path, cli):
    root, packed = str(trained_run.root), tmp_path / "digits.npz"
    levels = np.zeros((1, 32), np.uint16)
    compress.save(
        packed,
        compress.Compressed("simple", 1, "0" * 16, 8, np.zeros(32), np.ones(32), levels),
    )
    done = cli("decompress", str(packed), "-o", str(tmp_path / "out.png"), "--root", root)
    assert done.returncode == 2 and "other weights" in done.stderr
    assert not (tmp_path / "out.png").exists()
