import os

import numpy as np
import pytest
import tensorflow as tf
from tfx.components.example_gen import driver
from tfx.types import artifact_utils, standard_artifacts, standard_component_specs

from components import features
from components.mnist_example_gen import executor as example_gen
from components.mnist_example_gen import idx, slices
from components.mnist_example_gen.component import MnistExampleGen


def ingest(folder, output, pattern="", keep_labels=None, **options):
    """Runs driver and executor of MnistExampleGen on a folder."""
    component = MnistExampleGen(str(folder), pattern=pattern, keep_labels=keep_labels, **options)
    properties = dict(component.exec_properties)
    properties = driver.FileBasedDriver(None).resolve_exec_properties(properties, None, None)
    artifact = standard_artifacts.Examples()
    artifact.uri = str(output)
    example_gen.IdxExecutor(
        example_gen.IdxExecutor.Context(
            beam_pipeline_args=["--runner=DirectRunner", "--direct_running_mode=in_memory"],
            tmp_dir=str(output) + "-tmp",
            unique_id="1",
        )
    ).Do({}, {standard_component_specs.EXAMPLES_KEY: [artifact]}, properties)
    return artifact, properties


def read(artifact, split):
    """Images [n, 784] and labels [n] of a split, in the order of its files."""
    uri = artifact_utils.get_split_uri([artifact], split)
    files = sorted(tf.io.gfile.glob(os.path.join(uri, "*.gz")))
    images, labels = [], []
    for record in tf.data.TFRecordDataset(files, "GZIP").as_numpy_iterator():
        example = tf.train.Example.FromString(record).features.feature
        (image,) = example[features.IMAGE].bytes_list.value
        images.append(np.frombuffer(image, np.uint8))
        labels.append(list(example[features.LABEL].int64_list.value))
    return np.array(images), labels


def write_folder(folder, digits, count, labels=True):
    folder.mkdir(parents=True)
    for split, prefix in idx.SPLIT_PREFIXES.items():
        idx.write_idx(str(folder / f"{prefix}-{idx.IMAGES}"), digits[split][0][:count])
        if labels:
            idx.write_idx(str(folder / f"{prefix}-{idx.LABELS}"), digits[split][1][:count])
    return folder


def test_every_image_arrives_unchanged_with_its_label(digits_folder, digits, tmp_path, monkeypatch):
    monkeypatch.setattr(slices, "SLICE_IMAGES", 1_000)
    artifact, _ = ingest(digits_folder, tmp_path / "out")
    assert artifact_utils.decode_split_names(artifact.split_names) == ["train", "eval"]
    for split, count in (("train", 4_500), ("eval", 500)):
        images, labels = read(artifact, split)
        np.testing.assert_array_equal(images, digits[split][0].reshape(count, 784))
        assert labels == [[label] for label in digits[split][1]]
    assert artifact.get_string_custom_property("dataset") == "mnist-5k"
    assert artifact.get_int_custom_property("count_train") == 4_500
    assert len(artifact.get_string_custom_property("digest")) == 64
    assert len(os.listdir(os.path.join(artifact.uri, "Split-train"))) == 5


def test_unknown_labels_are_absent(digits, tmp_path):
    folder = write_folder(tmp_path / "in", digits, 25, labels=False)
    artifact, _ = ingest(folder, tmp_path / "out")
    images, labels = read(artifact, "train")
    assert len(images) == 25
    assert labels == [[]] * 25
    assert artifact.get_int_custom_property("labelled") == 0


def test_one_class_keeps_the_chosen_digits_and_holds_out_the_rest(digits_folder, digits, tmp_path):
    artifact, _ = ingest(digits_folder, tmp_path / "out", keep_labels=[3, 8])
    names = artifact_utils.decode_split_names(artifact.split_names)
    assert names == ["train", "eval", "held_out"]
    wanted = np.isin(digits["train"][1], [3, 8])
    np.testing.assert_array_equal(
        read(artifact, "train")[0], digits["train"][0][wanted].reshape(-1, 784)
    )
    held_out = read(artifact, "held_out")[1]
    assert len(held_out) == 400
    assert not {3, 8} & {label for (label,) in held_out}
    assert artifact.get_int_custom_property("count_eval") == 100


def test_one_class_needs_labels(digits, tmp_path):
    folder = write_folder(tmp_path / "in", digits, 25, labels=False)
    with pytest.raises(idx.DataError, match="no labels"):
        ingest(folder, tmp_path / "out", keep_labels=[1])


def test_the_latest_span_and_version_by_number_are_taken(digits, tmp_path):
    for name, count in (("9/v1", 9), ("10/v2", 12), ("10/v10", 14)):
        span, version = name.split("/")
        write_folder(tmp_path / "in" / f"span-{span}" / version, digits, count)
    artifact, properties = ingest(
        tmp_path / "in", tmp_path / "out", pattern="span-{SPAN}/v{VERSION}"
    )
    assert (properties["span"], properties["version"]) == (10, 10)
    assert artifact.get_int_custom_property("count_train") == 14


def test_a_file_that_goes_bad_after_the_check_stops_the_ingestion(digits, tmp_path):
    folder = write_folder(tmp_path / "in", digits, 25)
    path = folder / f"train-{idx.IMAGES}"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(idx.DataError, match="1 bytes short"):
        ingest(folder, tmp_path / "out")


def test_an_only_split_stays_whole(digits, tmp_path):
    folder = write_folder(tmp_path / "in", digits, 25)
    artifact, _ = ingest(folder, tmp_path / "out", splits=("eval",))
    assert artifact_utils.decode_split_names(artifact.split_names) == ["eval"]
    assert len(read(artifact, "eval")[0]) == 25
