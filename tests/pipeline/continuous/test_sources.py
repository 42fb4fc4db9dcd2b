"""What can be ingested, and what is refused; test_spans.py has the way to a span."""

import numpy as np
import pytest
from PIL import Image

from components.mnist_example_gen import idx
from pipeline.continuous import sources
from pipeline.errors import UserError


@pytest.fixture
def few(digits):
    images, labels = digits["train"]
    return images[:6], labels[:6]


def png(path, image):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image).save(path)


def test_an_archive_has_images_and_labels(few, tmp_path):
    images, labels = few
    for keys in (("images", "labels"), ("x", "y")):
        path = tmp_path / f"{keys[0]}.npz"
        np.savez(path, **dict(zip(keys, (images, labels))))
        found, digits_, kind = sources.read(str(path))
        assert kind == "numpy"
        np.testing.assert_array_equal(found, images)
        np.testing.assert_array_equal(digits_, labels)


@pytest.mark.parametrize("form", ["flat", "channel", "float", "int64"])
def test_arrays_of_any_usual_form(few, tmp_path, form):
    images, _ = few
    array = {
        "flat": images.reshape(-1, 784),
        "channel": images[..., None],
        "float": images / np.float32(255),
        "int64": images.astype(np.int64),
    }[form]
    np.save(tmp_path / "in.npy", array)
    found, labels, _ = sources.read(str(tmp_path / "in.npy"))
    np.testing.assert_array_equal(found, images)
    assert labels is None


@pytest.mark.parametrize(
    "array, reason",
    [
        (np.zeros((3, 27, 28), np.uint8), r"shape \[3, 27, 28\]"),
        (np.full((3, 28, 28), 2.0), "between 0 and 1"),
        (np.full((3, 28, 28), np.nan), "between 0 and 1"),
        (np.full((3, 28, 28), 256), "between 0 and 255"),
        (np.full((3, 28, 28), "a"), "grey levels are numbers"),
    ],
)
def test_arrays_that_are_no_images_are_refused(tmp_path, array, reason):
    np.save(tmp_path / "in.npy", array)
    with pytest.raises(UserError, match=reason) as caught:
        sources.read(str(tmp_path / "in.npy"))
    assert "in.npy" in str(caught.value)


def test_folders_of_pictures(few, tmp_path):
    images, labels = few
    for i, image in enumerate(images):
        png(tmp_path / "plain" / f"{i}.png", image)
        png(tmp_path / "sorted" / str(labels[i]) / f"{i}.png", image)
    found, none, kind = sources.read(str(tmp_path / "plain"))
    np.testing.assert_array_equal(found, images)
    assert none is None and kind == "png"
    found, known, _ = sources.read(str(tmp_path / "sorted"))
    assert sorted(known) == sorted(labels) and len(found) == len(images)
    png(tmp_path / "sorted" / "9.png", images[0])
    with pytest.raises(UserError, match="one or the other"):
        sources.read(str(tmp_path / "sorted"))
    png(tmp_path / "large" / "1.png", np.zeros((30, 28), np.uint8))
    with pytest.raises(UserError, match="28x30 pixels"):
        sources.read(str(tmp_path / "large"))
    (tmp_path / "plain" / "broken.png").write_bytes(b"no picture")
    with pytest.raises(UserError, match="not a readable picture"):
        sources.read(str(tmp_path / "plain"))


def test_labels_of_their_own(few, tmp_path):
    images, labels = few
    np.save(tmp_path / "in.npy", images)
    idx.write_idx(str(tmp_path / "labels"), labels)
    _, found, _ = sources.read(str(tmp_path / "in.npy"), str(tmp_path / "labels"))
    np.testing.assert_array_equal(found, labels)
    for bad, reason in (
        (labels[:5], "5"),
        (np.full(6, 10), "label 10 at position 0"),
        (np.zeros(6), "whole numbers"),
    ):
        np.save(tmp_path / "bad.npy", bad)
        with pytest.raises(UserError, match=reason):
            sources.read(str(tmp_path / "in.npy"), str(tmp_path / "bad.npy"))


def test_what_is_not_there_or_holds_nothing_is_refused(tmp_path):
    with pytest.raises(UserError, match="nothing"):
        sources.read(str(tmp_path / "nothing"))
    with pytest.raises(UserError, match="neither IDX files"):
        sources.read(str(tmp_path))
    np.savez(tmp_path / "in.npz", other=np.zeros(3))
    with pytest.raises(UserError, match="no array 'images'; it has other"):
        sources.read(str(tmp_path / "in.npz"))
