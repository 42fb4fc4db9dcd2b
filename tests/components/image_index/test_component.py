"""What an index's codes are found to be worth."""

from __future__ import annotations

import pathlib
import tracemalloc

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from components.image_index import component

DIGITS = np.repeat(np.arange(10), 20)
ONE_HOT = np.eye(10, dtype=np.float32)[DIGITS]


def write_split(
    index: pathlib.Path, split: str, labels: np.ndarray, codes: np.ndarray, **more: np.ndarray
) -> None:
    """A split as batch inference writes it; images are all of the label's grey."""
    images = np.repeat(labels.astype(np.uint8)[:, np.newaxis] * 20, 784, axis=1)
    columns = {
        "image": pa.array([image.tobytes() for image in images], pa.binary(784)),
        "label": pa.array(labels, pa.int64(), mask=labels < 0),
        "code": pa.FixedSizeListArray.from_arrays(pa.array(codes.ravel()), codes.shape[1]),
        **{name: pa.array(values) for name, values in more.items()},
    }
    folder = index / f"Split-{split}"
    folder.mkdir(parents=True)
    pq.write_table(pa.table(columns), folder / "part.parquet")


def measure(index: pathlib.Path) -> dict:
    """With PCA as the identity; the model is not asked where there is a held-out split."""
    return component.measure(str(index), "no model", np.zeros(784), np.eye(784))


@pytest.fixture
def index(tmp_path: pathlib.Path) -> pathlib.Path:
    errors = np.linspace(0.01, 0.02, len(DIGITS))
    predicted = np.where(DIGITS == 9, 4, DIGITS)
    write_split(tmp_path, "train", DIGITS, ONE_HOT)
    write_split(tmp_path, "eval", DIGITS, ONE_HOT, anomaly_score=errors, predicted_label=predicted)
    write_split(tmp_path, "held_out", DIGITS, ONE_HOT, anomaly_score=errors + 0.5)
    return tmp_path


def test_codes_that_tell_digits_apart_find_them(index: pathlib.Path) -> None:
    found = measure(index)["search"]
    assert found["precision_at_10"] == found["knn_accuracy"] == 1.0
    assert (found["queries"], found["indexed"]) == (200, 200)
    assert found["pca"]["components"] == 10 and found["pca"]["precision_at_10"] == 1.0


def test_digits_never_seen_are_anomalies(index: pathlib.Path) -> None:
    found = measure(index)["anomaly"]
    assert found["against"] == "held_out" and found["auroc"] == 1.0
    assert set(found["by_kind"]) == set("0123456789")


def test_the_classifier_is_compared_with_the_labels(index: pathlib.Path) -> None:
    found = measure(index)["classification"]
    assert found["accuracy"] == pytest.approx(0.9)
    assert found["confusion"][9][4] == 20 and found["confusion"][9][9] == 0


def test_units_that_never_change_are_not_active(tmp_path: pathlib.Path) -> None:
    codes = np.concatenate([ONE_HOT, np.ones_like(ONE_HOT)], axis=1)
    errors = np.full(len(DIGITS), 0.1)
    write_split(tmp_path, "train", DIGITS, codes)
    for split in ("eval", "held_out"):
        write_split(tmp_path, split, DIGITS, codes, anomaly_score=errors)
    found = measure(tmp_path)
    assert found["code"]["active_units"] == 10 and found["code"]["size"] == 20
    assert found["classification"] is None


@pytest.mark.parametrize("labels", [np.full(200, -1), np.full(200, 3)], ids=["none", "all a 3"])
def test_without_different_labels_search_cannot_be_measured(
    tmp_path: pathlib.Path, labels: np.ndarray
) -> None:
    errors = np.full(len(labels), 0.1)
    write_split(tmp_path, "train", labels, ONE_HOT)
    for split in ("eval", "held_out"):
        write_split(tmp_path, split, labels, ONE_HOT, anomaly_score=errors)
    assert measure(tmp_path)["search"] is None


def test_a_split_that_is_not_there_is_empty(index: pathlib.Path) -> None:
    assert component.read_split(str(index), "test", "code") == {}


def test_a_sample_is_of_rows_that_belong_together(index: pathlib.Path) -> None:
    columns = ("image", "label", "code")
    found = component.read_sample(str(index), "train", columns, 50)
    assert found["image"].shape == (50, 28, 28) and len(set(found["label"])) > 5
    np.testing.assert_array_equal(found["image"][:, 0, 0], found["label"] * 20)
    np.testing.assert_array_equal(found["code"].argmax(axis=1), found["label"])
    again = component.read_sample(str(index), "train", columns, 50)
    np.testing.assert_array_equal(found["label"], again["label"])
    assert len(component.read_sample(str(index), "train", columns, 200)["label"]) == 200
    assert component.read_sample(str(index), "test", columns, 50) == {}


def test_four_times_the_images_are_measured_in_the_same_memory(tmp_path: pathlib.Path) -> None:
    labels = np.arange(20_000) % 10
    codes = np.eye(10, dtype=np.float32)[labels]
    errors = np.linspace(0.01, 0.02, len(DIGITS))
    peaks = []
    for times in (2, 8):
        index = tmp_path / str(times)
        write_split(index, "train", labels, codes)
        part = index / "Split-train" / "part.parquet"
        for i in range(1, times):
            (part.parent / f"part-{i}.parquet").hardlink_to(part)
        for split in ("eval", "held_out"):
            write_split(index, split, DIGITS, ONE_HOT, anomaly_score=errors)
        tracemalloc.start()
        found = measure(index)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        assert found["search"]["indexed"] == times * len(labels)
        assert found["search"]["precision_at_10"] == 1.0
    # Of an image, its label stays: the images alone would be 94 MB more.
    assert peaks[1] - peaks[0] < 10e6
