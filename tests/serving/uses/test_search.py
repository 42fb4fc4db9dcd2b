"""Image search on the index of the shared run."""

import json

import numpy as np
from PIL import Image

from pipeline import runs
from serving.uses.neighbours import agreement, choose_queries, nearest


def test_neighbours_are_exact():
    rng = np.random.default_rng(0)
    codes, queries = rng.normal(size=(500, 8)), rng.normal(size=(20, 8))
    rows, found = nearest(codes.astype(np.float32), queries.astype(np.float32), 5)
    distances = np.linalg.norm(queries[:, None] - codes[None], axis=2)
    np.testing.assert_array_equal(rows, np.argsort(distances, axis=1)[:, :5])
    np.testing.assert_allclose(found, np.sort(distances, axis=1)[:, :5], rtol=1e-4)


def test_an_index_smaller_than_k_gives_all():
    codes = np.eye(3, dtype=np.float32)
    assert nearest(codes, codes)[0].shape == (3, 3)


def test_precision_and_accuracy_by_hand():
    codes = np.array([[0.0], [0.1], [0.2], [5.0], [5.1]], np.float32)
    labels = np.array([1, 1, 7, 7, 7])
    rows, _ = nearest(codes, np.array([[0.05], [5.0]], np.float32), k=3)
    precision, accuracy = agreement(labels[rows], np.array([1, 7]))
    # Of 1's three neighbours two are 1s, of 7's all are 7s.
    assert precision == (2 + 3) / 6 and accuracy == 1.0


def test_queries_are_drawn_from_labelled_images():
    labels = np.array([-1] * 3_000 + [4] * 2_500)
    rows = choose_queries(labels)
    assert len(rows) == 2_000 and rows.min() >= 3_000
    np.testing.assert_array_equal(rows, choose_queries(labels))
    assert len(choose_queries(labels[:3_000])) == 0


def test_a_training_image_finds_itself(trained_run, digits, tmp_path, cli):
    image = digits["train"][0][1_234]
    path = tmp_path / "digit.png"
    Image.fromarray(image).save(path)
    done = cli(
        "search", str(path), "--k", "5", "--invert", "no", "--root", str(trained_run.root), "--json"
    )
    assert done.returncode == 0, done.stderr
    (answer,) = json.loads(done.stdout)
    first, *others = answer["neighbours"]
    assert first["row"] == 1_234 and first["label"] == digits["train"][1][1_234]
    assert first["distance"] < 1e-2 < others[0]["distance"]
    assert [n["distance"] for n in others] == sorted(n["distance"] for n in others)
    done = cli(
        "search", str(path), "--root", str(trained_run.root), "--model", "simple", "--out",
        str(tmp_path / "out"),
    )  # fmt: skip
    assert "training image 1234" in done.stdout
    # The query, a gap, ten answers.
    with Image.open(tmp_path / "out" / "search.png") as sheet:
        assert sheet.width > 11 * sheet.height


def test_what_cannot_be_searched_is_said(trained_run, tmp_path, cli):
    done = cli("search", str(tmp_path / "none.png"), "--root", str(trained_run.root))
    assert done.returncode == 2 and "none.png" in done.stderr


def test_the_index_of_a_pushed_version_is_that_of_its_run(trained_run):
    root, version = str(trained_run.root), trained_run.result["pushed_version"]
    files = runs.index_of(root, "simple", int(version))
    assert files and all("ImageIndex" in file for file in files)
    assert runs.index_of(root, "simple", int(version) - 1) == []
    assert runs.index_of(root, "vae", int(version)) == []
