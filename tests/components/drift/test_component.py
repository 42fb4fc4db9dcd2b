import json
import os

import numpy as np
import pytest
import tensorflow as tf
from tfx.types import artifact_utils, standard_artifacts

from components import features
from components.drift import comparison, component
from components.mnist_example_gen import executor as example_gen

LIMITS = comparison.Limits(
    max_distance=0.3,
    max_code_distance=0.4,
    max_error_ratio=2.0,
    skip_overlap=0.98,
    skip_distance=0.0,
)


@pytest.fixture
def examples(tmp_path):
    """Images as an Examples artifact with an eval split alone."""

    def write(images, number):
        artifact = standard_artifacts.Examples()
        artifact.uri = str(tmp_path / f"out{number}")
        artifact.split_names = artifact_utils.encode_split_names([features.EVAL_SPLIT])
        folder = artifact_utils.get_split_uri([artifact], features.EVAL_SPLIT)
        os.makedirs(folder)
        path = os.path.join(folder, "data_tfrecord-00000-of-00001.gz")
        with tf.io.TFRecordWriter(path, "GZIP") as writer:
            for example in example_gen.encode_examples(images.reshape(-1, 784), None):
                writer.write(example)
        artifact.set_int_custom_property("span", number)
        artifact.set_int_custom_property("version", 1)
        return artifact

    return write


def monitor(span, golden, reference, tmp_path, *, model=None, accepted=0):
    report = component.DriftReportArtifact()
    report.uri = str(tmp_path / "report")
    os.makedirs(report.uri, exist_ok=True)
    inputs = {"examples": [span], "golden": [golden], "reference": reference}
    if model is not None:
        artifact = standard_artifacts.Model()
        artifact.uri = str(model)
        inputs["model"] = [artifact]
    component.DriftMonitor.EXECUTOR_SPEC.executor_class().Do(
        inputs, {"report": [report]}, {"limits": LIMITS.to_json(), "accepted": accepted}
    )
    with open(os.path.join(report.uri, component.REPORT_FILE)) as f:
        found = json.load(f)
    assert report.get_string_custom_property("verdict") == found["verdict"]
    assert report.get_int_custom_property("span") == span.get_int_custom_property("span")
    return found


@pytest.fixture(scope="module")
def served_model(trained_run, tmp_path_factory):
    """A Model artifact's folder with the shared run's model."""
    folder = tmp_path_factory.mktemp("model")
    os.symlink(trained_run.model_path, folder / "Format-Serving")
    return folder


def test_verdicts_on_real_digits(digits, examples, tmp_path, served_model):
    images, labels = digits["train"]
    golden = examples(digits["eval"][0], 0)
    window = [examples(images[:1500], 1), examples(images[1500:3000], 2)]
    cases = {
        "usual": (images[3000:], "train"),
        "inverted": (255 - images[3000:], "stop"),
        "half size": (np.pad(images[3000:, ::2, ::2], ((0, 0), (7, 7), (7, 7))), "stop"),
        "seen": (images[1000:2500], "skip"),
        "fewer digits": (images[3000:][labels[3000:] < 5], "train"),
    }
    got = {}
    for number, (name, (span, _)) in enumerate(cases.items(), start=10):
        got[name] = monitor(examples(span, number), golden, window, tmp_path, model=served_model)
    summary = {
        name: {key: g[key] for key in ("verdict", "distance", "code_distance", "error_ratio")}
        for name, g in got.items()
    }
    assert {name: g["verdict"] for name, g in got.items()} == {
        name: verdict for name, (_, verdict) in cases.items()
    }, summary
    usual = got["usual"]
    # TFDV's comparators were fed, both of them, with pixels, codes and errors.
    measured = {"ink", "centre_x", "code_0", "reconstruction_error"}
    for against in ("window", "golden"):
        assert measured <= set(usual["distances"][against])
    assert usual["errors"]["span"]["0.5"] == pytest.approx(
        usual["errors"]["window"]["0.5"], rel=0.2
    )
    inverted = got["inverted"]
    assert "limit" in inverted["reason"] and inverted["distance"] > 0.8
    assert usual["golden_overlap"] == 0 and "golden" not in usual["reason"]
    leaked = np.concatenate([images[3000:], digits["eval"][0][:150]])
    found = monitor(examples(leaked, 90), golden, window, tmp_path)
    assert found["verdict"] == "train" and "9.1% of its images" in found["reason"]


def test_a_person_lets_in_what_was_too_strange():
    found = {
        "distance": 0.9,
        "feature": "ink",
        "against": "window",
        "code_distance": 0.1,
        "error_ratio": 1.0,
        "overlap": 0.0,
        "golden_overlap": 0.0,
    }
    assert comparison.judge(found, LIMITS, accepted=False)[0] == "stop"
    verdict, reason = comparison.judge(found, LIMITS, accepted=True)
    assert verdict == "train" and "by hand" in reason and "ink" in reason


def test_a_first_strange_span_is_found_by_the_golden_set(digits, examples, tmp_path):
    golden = examples(digits["eval"][0], 0)
    found = monitor(examples(255 - digits["train"][0][:500], 1), golden, [], tmp_path)
    assert found["verdict"] == "stop" and found["against"] == "golden"
    assert (
        monitor(examples(digits["train"][0][:500], 2), golden, [], tmp_path)["verdict"] == "train"
    )
