import concurrent.futures
import gzip
import json
import os
import resource
import subprocess
import sys
import time

import numpy as np
import pytest
from PIL import Image

from components.mnist_example_gen import idx
from pipeline import cli
from pipeline.continuous import spans

SOURCE = {"kind": "numpy", "images": "-"}


@pytest.fixture
def ingest(capsys, tmp_path):
    """``mnist-ae ingest`` in this process: exit code, JSON or None, stderr."""

    def run(*arguments):
        code = cli.main(
            ["ingest", *map(str, arguments), "--root", str(tmp_path / "runs"), "--json"]
        )
        out, err = capsys.readouterr()
        return code, json.loads(out) if out else None, err

    return run


def published(folder):
    """Sorted rows of all images of a published span, and the labels in that order."""
    images, labels = [], []
    for prefix in idx.SPLIT_PREFIXES.values():
        images.append(spans.read_images(str(folder / f"{prefix}-{idx.IMAGES}")))
        if (folder / f"{prefix}-{idx.LABELS}").exists():
            labels.append(spans.read_labels(str(folder / f"{prefix}-{idx.LABELS}")))
    rows = np.concatenate(images).reshape(-1, 784)
    order = np.lexsort(rows.T)
    return rows[order], np.concatenate(labels)[order] if labels else None


@pytest.mark.parametrize("form", ["idx", "gzip", "npy", "npz", "float", "flat", "png", "digits"])
def test_every_form_gives_the_same_span(digits, tmp_path, ingest, form):
    images, labels = (values[:60] for values in digits["train"])
    path, arguments = tmp_path / "in", []
    label_file = tmp_path / "labels"
    idx.write_idx(str(label_file), labels)
    if form in ("idx", "gzip"):
        idx.write_idx(str(path), images)
        if form == "gzip":
            path.write_bytes(gzip.compress(path.read_bytes()))
        arguments = ["--labels", label_file]
    elif form == "npz":
        with open(path, "wb") as f:
            np.savez(f, images=images, labels=labels)
    elif form in ("npy", "float", "flat"):
        array = {"npy": images, "float": images / 255, "flat": images.reshape(-1, 784)}[form]
        with open(path, "wb") as f:
            np.save(f, array)
        arguments = ["--labels", label_file]
    else:
        for number, (image, label) in enumerate(zip(images, labels)):
            folder = path / str(label) if form == "digits" else path
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(folder / f"{number:03d}.png")
        if form == "png":
            arguments = ["--labels", label_file]
    code, manifest, _ = ingest(path, *arguments)
    assert code == 0
    assert (manifest["span"], manifest["version"], manifest["count"]) == (1, 1, 60)
    assert manifest["train"] + manifest["eval"] == 60 and manifest["eval"] >= 1
    expected = images.reshape(-1, 784)
    order = np.lexsort(expected.T)
    rows, found = published(spans.version_folder(tmp_path / "runs", 1, 1))
    np.testing.assert_array_equal(rows, expected[order])
    np.testing.assert_array_equal(found, labels[order])
    assert manifest["label_counts"] == np.bincount(labels, minlength=10).tolist()
    # The same digits in another form and order are no news.
    with open(tmp_path / "again", "wb") as f:
        np.savez(f, images=images[::-1], labels=labels[::-1])
    assert ingest(tmp_path / "again")[1]["duplicate"]
    assert len(spans.scan(tmp_path / "runs")) == 1


def test_numbers_versions_and_gaps(digits, tmp_path, capsys):
    root = tmp_path / "runs"
    images, labels = digits["train"]
    for number, (span, start) in enumerate([(9, 0), (None, 50), (12, 100), (9, 150)]):
        done = spans.publish(
            root, images[start : start + 50], labels[start : start + 50], source=SOURCE, span=span
        )
        assert not done.duplicate, number
    assert [m.key for m in spans.scan(root)] == ["9.1", "9.2", "10.1", "12.1"]
    assert [m.key for m in spans.newest_versions(spans.scan(root))] == ["9.2", "10.1", "12.1"]
    assert spans.missing(spans.scan(root)) == [11]
    assert spans.gaps(spans.scan(root)) == [(11, 11)]
    assert cli.main(["spans", "--root", str(root)]) == 0
    assert "no span 11" in capsys.readouterr().out
    # What a correction replaced may come back as a correction.
    assert not spans.publish(root, images[:50], labels[:50], source=SOURCE, span=9).duplicate


def test_an_image_is_set_aside_wherever_it_comes(digits, tmp_path):
    images = digits["train"][0]
    first = spans.publish(tmp_path, images[:300], None, source=SOURCE)
    second = spans.publish(tmp_path, images[100:500], None, source=SOURCE)
    held = [
        {row.tobytes() for row in spans.read_images(str(p.folder / f"t10k-{idx.IMAGES}"))}
        for p in (first, second)
    ]
    common = {row.tobytes() for row in images[100:300]}
    assert held[0] & common == held[1] & common
    assert 10 <= len(held[0]) <= 60


@pytest.mark.parametrize(
    "damage, words",
    [
        ("truncated", "bytes short"),
        ("magic", "magic"),
        ("labels", "50 labels for 60"),
        ("label", "label 11"),
        ("empty", "no images"),
        ("size", "30x30"),
        ("nan", "0 and 1"),
        ("shape", "shape"),
        ("missing", "cannot be read"),
        ("notpng", "not a readable picture"),
        ("few", "at least 3"),
    ],
)
def test_what_cannot_be_used_is_refused_and_nothing_is_written(
    digits, tmp_path, ingest, damage, words
):
    images, labels = (values[:60] for values in digits["train"])
    path, arguments = tmp_path / "in", []
    idx.write_idx(str(path), images)
    if damage == "truncated":
        path.write_bytes(path.read_bytes()[:-1])
    elif damage == "magic":
        path.write_bytes(b"\0\0\x0d\3" + path.read_bytes()[4:])
    elif damage in ("labels", "label"):
        wrong = labels[:50] if damage == "labels" else np.where(np.arange(60) == 7, 11, labels)
        idx.write_idx(str(tmp_path / "labels"), wrong)
        arguments = ["--labels", tmp_path / "labels"]
    elif damage == "empty":
        idx.write_idx(str(path), images[:0])
    elif damage == "few":
        idx.write_idx(str(path), images[:2])
    elif damage in ("size", "notpng"):
        path.unlink()
        path.mkdir()
        Image.fromarray(np.zeros((30, 30), np.uint8)).save(path / "a.png")
        if damage == "notpng":
            (path / "a.png").write_bytes(b"no picture")
    elif damage in ("nan", "shape"):
        array = np.full((9, 28, 28), np.nan) if damage == "nan" else np.zeros((9, 5))
        with open(path, "wb") as f:
            np.save(f, array)
    else:
        path.unlink()
    code, _, error = ingest(path, *arguments)
    assert code == 2
    assert words in error and error.count("\n") == 1
    assert not (tmp_path / "runs").exists()


_INGEST = [sys.executable, "-m", "pipeline.cli", "ingest"]


def test_a_full_disk_publishes_nothing(digits, tmp_path):
    idx.write_idx(str(tmp_path / "in"), digits["train"][0])

    def small_disk():
        resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, 1_000_000))
        import signal

        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)

    command = [*_INGEST, str(tmp_path / "in"), "--root", str(tmp_path / "runs")]
    done = subprocess.run(
        command, capture_output=True, text=True, preexec_fn=small_disk, check=False
    )
    assert done.returncode == 2, done.stderr
    assert "nothing was published" in done.stderr and done.stderr.count("\n") == 1
    assert [p.name for p in (tmp_path / "runs/spans").iterdir()] == [".lock"]
    assert subprocess.run(command, check=False).returncode == 0
    assert [m.key for m in spans.scan(tmp_path / "runs")] == ["1.1"]


def test_a_killed_ingestion_leaves_nothing_that_counts(digits, tmp_path):
    idx.write_idx(str(tmp_path / "in"), np.tile(digits["train"][0], (8, 1, 1)))
    root = tmp_path / "runs"
    command = [*_INGEST, str(tmp_path / "in"), "--root", str(root)]
    process = subprocess.Popen(command)
    while process.poll() is None:
        if list((root / "spans").glob(".staging-*/train-images*")):
            break
        time.sleep(0.001)
    process.kill()
    process.wait()
    left = spans.scan(root)
    assert left == [] or left[0].count == 36_000
    spans.publish(root, digits["train"][0][:100], None, source=SOURCE, span=5)
    assert not list((root / "spans").glob(".staging-*"))


def test_ten_thousand_images_in_seconds(digits, tmp_path, ingest):
    images = np.concatenate(
        [digits["train"][0], digits["train"][0] // 2, digits["eval"][0] // 3, digits["eval"][0]]
    )
    assert len(images) == 10_000
    idx.write_idx(str(tmp_path / "in"), images)
    started = time.process_time()
    code, manifest, _ = ingest(tmp_path / "in")
    assert code == 0 and manifest["count"] == 10_000
    assert time.process_time() - started < 5  # of the processor


def test_ingestions_at_the_same_time_get_numbers_of_their_own(digits, tmp_path):
    images = digits["train"][0]

    def one(number):
        return spans.publish(
            tmp_path, images[number * 50 : number * 50 + 50], None, source=SOURCE
        ).manifest.span

    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        assert sorted(pool.map(one, range(8))) == list(range(1, 9))


def test_the_golden_set_is_fixed_until_it_is_given_anew(digits, tmp_path, ingest):
    images, labels = digits["eval"]
    for count, version in ((100, 1), (100, 1), (200, 2)):
        np.savez(tmp_path / "golden.npz", images=images[:count], labels=labels[:count])
        code, manifest, _ = ingest(tmp_path / "golden.npz", "--golden")
        assert (code, manifest["version"], manifest["eval"]) == (0, version, count)
    assert spans.golden(tmp_path / "runs")[0].count == 200
    assert spans.scan(tmp_path / "runs") == []


@pytest.mark.parametrize("damage", ["bytes", "missing", "labels"])
def test_a_span_that_went_bad_is_found(digits, tmp_path, damage):
    images, labels = (values[:200] for values in digits["train"])
    done = spans.publish(tmp_path, images, labels, source=SOURCE)
    spans.check(done.folder, done.manifest)
    path = done.folder / f"train-{idx.LABELS if damage == 'labels' else idx.IMAGES}"
    if damage == "bytes":
        data = bytearray(path.read_bytes())
        data[5_000] ^= 255
        path.write_bytes(data)
    else:
        os.unlink(path)
    with pytest.raises(idx.DataError):
        spans.check(done.folder, done.manifest)
    # Ingested again, the same images mend it.
    again = spans.publish(tmp_path, images, labels, source=SOURCE)
    assert (again.duplicate, again.manifest.key) == (False, "1.2")
    assert spans.publish(tmp_path, images, labels, source=SOURCE).duplicate
