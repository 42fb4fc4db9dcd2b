"""Batch inference: every kind of input and output, and what a killed one left."""

import dataclasses
import gzip
import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pyarrow.parquet as pq
import pytest
import tensorflow as tf
from PIL import Image

from components.image_sources import find_sources
from components.mnist_example_gen import idx
from components.mnist_example_gen.executor import encode_examples
from serving.errors import InputError
from serving.uses import infer, shards
from serving.uses.columns import read_columns
from tests.serving.models import write_autoencoder

BEAM = ["--runner=DirectRunner", "--direct_running_mode=in_memory", "--direct_num_workers=1"]


def files(folder, suffix=".parquet"):
    return sorted(str(path) for path in folder.iterdir() if path.name.endswith(suffix))


@pytest.fixture
def job(built, digits_folder, tmp_path):
    model = str(built / "autoencoder" / "1")
    sources = find_sources(str(digits_folder))
    return infer.InferenceJob(str(digits_folder), sources, str(tmp_path / "out"), model)


def of(job, folder, **options):
    """The same job for another input."""
    sources = find_sources(str(folder), options.pop("invert", "auto"))
    return dataclasses.replace(job, input=str(folder), sources=sources, **options)


@pytest.fixture(scope="module")
def expected(built, digits):
    model = tf.saved_model.load(str(built / "autoencoder" / "1"))
    found = {}
    for split, (images, _) in digits.items():
        answer = model.signatures["reconstruct"](images=tf.constant(images))
        found[split] = {key: value.numpy() for key, value in answer.items()}
    return found


def test_idx_files_give_what_the_model_gives(job, expected, digits, tmp_path):
    result = infer.run(job, BEAM)
    assert (result.shards, result.done_before, result.images) == (2, 0, 5_000)
    # Any reader of Parquet takes the folder as one table.
    assert pq.read_table(tmp_path / "out").num_rows == 5_000
    names = ("source", "row", "label", "code", "reconstruction_error", "is_anomaly")
    found = read_columns(files(tmp_path / "out"), names)
    assert len(found["row"]) == 5_000
    for split, prefix in idx.SPLIT_PREFIXES.items():
        rows = [os.path.basename(s).startswith(prefix) for s in found["source"]]
        np.testing.assert_array_equal(found["row"][rows], np.arange(len(digits[split][1])))
        np.testing.assert_array_equal(found["label"][rows], digits[split][1])
        for name in ("code", "reconstruction_error"):
            np.testing.assert_allclose(found[name][rows], expected[split][name], atol=1e-5)


def test_a_second_run_does_only_what_is_missing(job, tmp_path):
    infer.run(job, BEAM)
    first, second = files(tmp_path / "out")
    before = os.stat(second).st_mtime_ns
    os.remove(first)
    # What was being written when an earlier one was killed.
    (tmp_path / "out" / f".{os.path.basename(first)}.123").write_bytes(b"half")
    result = infer.run(job, BEAM)
    assert (result.shards, result.done_before) == (2, 1)
    assert os.stat(second).st_mtime_ns == before
    assert not [name for name in os.listdir(tmp_path / "out") if name.startswith(".part")]
    assert infer.run(job, BEAM).images == 0


def test_another_inference_in_the_same_folder_is_refused(job, tmp_path):
    infer.run(job, BEAM)
    with pytest.raises(InputError, match="another inference"):
        infer.run(dataclasses.replace(job, outputs=("code",)), BEAM)
    other = tmp_path / "other"
    other.mkdir()
    (other / "letter.txt").write_text("dear")
    with pytest.raises(InputError, match="not empty"):
        infer.run(dataclasses.replace(job, output=str(other)), BEAM)


def test_outputs_that_the_model_lacks_are_refused_and_nothing_is_written(job, tmp_path):
    plain = write_autoencoder(tmp_path / "plain", 1, without=("classify",))
    asked = dataclasses.replace(job, model_path=str(plain), outputs=("probabilities",))
    with pytest.raises(InputError, match="gives no probabilities; it gives code"):
        infer.run(asked, BEAM)
    assert not (tmp_path / "out").exists()
    with pytest.raises(InputError, match="no images"):
        find_sources(str(plain))


def test_pictures_and_records_are_read_too(job, digits, expected, tmp_path):
    images = digits["eval"][0][:5]
    folder = tmp_path / "in"
    (folder / "deeper").mkdir(parents=True)
    for i, image in enumerate(images[:3]):
        Image.fromarray(image).save(folder / "deeper" / f"{i}.png")
    with tf.io.TFRecordWriter(str(folder / "some.tfrecord.gz"), "GZIP") as writer:
        for example in encode_examples(images[3:].reshape(2, -1), None):
            writer.write(example)
    (folder / "notes.txt").write_text("not an image")
    (folder / "zipped.gz").write_bytes(gzip.compress(b"nor this"))
    outputs = ("reconstruction_error", "reconstruction")
    chosen = of(job, folder, invert="no", with_images=True, outputs=outputs)
    assert infer.run(chosen, BEAM).images == 5
    columns = ("source", "image", "reconstruction_error", "reconstruction", "label")
    found = read_columns(files(tmp_path / "out"), columns)
    order = [3, 4, 0, 1, 2]
    np.testing.assert_array_equal(found["image"], images[order])
    assert list(found["source"][2:]) == [f"deeper/{i}.png" for i in range(3)]
    assert set(found["label"]) == {-1}
    errors = expected["eval"]["reconstruction_error"]
    np.testing.assert_allclose(found["reconstruction_error"], errors[order], atol=1e-5)
    shown = expected["eval"]["reconstruction"][order]
    np.testing.assert_allclose(found["reconstruction"] / 255, shown, atol=0.003)


def test_records_can_be_written(job, expected, digits, tmp_path):
    chosen = dataclasses.replace(job, file_format=shards.TFRECORD)
    infer.run(chosen, BEAM)
    paths = files(tmp_path / "out", ".tfrecord.gz")
    records = list(tf.data.TFRecordDataset(paths[:1], "GZIP").as_numpy_iterator())
    assert len(records) == 500
    example = tf.train.Example.FromString(records[7]).features.feature
    code = example["code"].float_list.value
    np.testing.assert_allclose(code, expected["eval"]["code"][7], atol=1e-5)
    assert example["label"].int64_list.value == [digits["eval"][1][7]]
    assert example["row"].int64_list.value == [7]


def test_damaged_files_are_named(job, tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / "bad.tfrecord").write_bytes(b"rubbish" * 20)
    with pytest.raises(InputError, match=r"bad\.tfrecord: no TFRecord file[^{\[]*$"):
        infer.run(of(job, folder), BEAM)
    assert files(tmp_path / "out") == []


def test_a_damaged_picture_is_one_line_on_the_command_line(pushed, tmp_path, cli):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "torn.png").write_bytes(b"not a picture")
    done = cli(
        "infer", "--input", str(tmp_path / "in"), "--output", str(tmp_path / "out"), "--root",
        str(pushed), "--model", "autoencoder",
    )  # fmt: skip
    assert done.returncode == 2
    assert "torn.png" in done.stderr.splitlines()[-1] and "Traceback" not in done.stderr
    assert files(tmp_path / "out") == []


@pytest.mark.e2e
def test_killed_and_started_again_it_completes_without_duplicates(pushed, tmp_path):
    count = 200_000
    rng = np.random.default_rng(0)
    (tmp_path / "in").mkdir()
    idx.write_idx(
        str(tmp_path / "in" / f"many-{idx.IMAGES}"),
        rng.integers(0, 256, (count, 28, 28)).astype(np.uint8),
    )
    out = tmp_path / "out"
    command = [
        sys.executable, "-m", "pipeline.cli", "infer", "--input", str(tmp_path / "in"),
        "--output", str(out), "--root", str(pushed), "--model", "autoencoder", "--json",
    ]  # fmt: skip
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, start_new_session=True)
    while not (out.exists() and len(files(out)) >= 3):
        assert process.poll() is None
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    done = len(files(out))
    result = json.loads(subprocess.run(command, capture_output=True, check=True).stdout)
    assert result["done_before"] >= 3 and result["images"] == count - 10_000 * done
    rows = read_columns(files(out), ("row",))["row"]
    np.testing.assert_array_equal(np.sort(rows), np.arange(count))
