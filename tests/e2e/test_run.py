"""The whole sentence: digits in, a served model out. One trained run is shared."""

import json
import os
import pathlib
import re
import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf

from components import features
from pipeline import history

COMPONENTS = [
    "ImportSchemaGen",
    "MnistExampleGen",
    "StatisticsGen",
    "ExampleValidator",
    "DataGate",
    "PcaReference",
    "Transform",
    "Trainer",
    "ImageIndex",
    "Evaluator",
    "ServingValidator",
    "Pusher",
    "RunReport",
]


def store_of(root):
    return history.open_store(os.path.join(root, "metadata.sqlite"))


def artifacts_of(trained_run, type_name):
    """The artifacts of a type that belong to the shared run."""
    store = store_of(trained_run.root)
    context = store.get_context_by_type_and_name("pipeline_run", trained_run.result["run_id"])
    return [a for a in store.get_artifacts_by_context(context.id) if a.type == type_name]


def expected_losses(model_path, digits):
    """MSE of every eval image, by the pushed model itself."""
    signature = tf.saved_model.load(model_path).signatures["reconstruct"]
    return signature(images=tf.constant(digits["eval"][0]))["reconstruction_error"].numpy()


def test_json_says_all_there_is_to_say(trained_run):
    result = trained_run.result
    assert {
        "run_id",
        "model",
        "dataset",
        "metrics",
        "blessed",
        "pushed_version",
        "pushed_path",
        "components",
    } <= set(result)
    assert result["dataset"] == {
        "name": "mnist-5k",
        "digest": result["dataset"]["digest"],
        "train": 4_500,
        "eval": 500,
    }
    assert sorted(c["id"] for c in result["components"]) == sorted(COMPONENTS)
    assert not any(c["cached"] for c in result["components"])
    assert set(result["metrics"]["by_label"]) == set("0123456789")
    assert result["blessed"]
    assert result["pushed_version"] == os.path.basename(result["pushed_path"])
    assert os.path.isabs(result["pushed_path"])


def test_the_reported_losses_are_those_of_the_pushed_model(trained_run, digits):
    errors = expected_losses(trained_run.model_path, digits)
    metrics = trained_run.result["metrics"]
    assert metrics["overall"]["mse"] == pytest.approx(errors.mean(), rel=1e-4)
    assert metrics["overall"]["mse_std"] == pytest.approx(errors.std(), rel=1e-3)
    assert metrics["overall"]["example_count"] == 500
    for digit in range(10):
        of_digit = errors[digits["eval"][1] == digit]
        assert metrics["by_label"][str(digit)]["mse"] == pytest.approx(of_digit.mean(), rel=1e-4)
    # A collapsed model reaches .0675 at best.
    assert metrics["overall"]["mse"] < 0.03
    assert metrics["pca_mse"] < metrics["overall"]["mse"]


def test_executions_and_artifacts_are_in_the_metadata(trained_run):
    store = store_of(trained_run.root)
    record = history.run(store, trained_run.result["run_id"])
    assert record.state == "complete"
    ran = {component.id: component.state for component in record.components}
    assert set(ran) == {*COMPONENTS, "BaselineResolver"}
    assert set(ran.values()) == {"complete"}
    for name in (
        "Examples", "Schema", "ExampleStatistics", "ExampleAnomalies", "TransformGraph",
        "PcaReference", "ImageIndex", "CodeMetrics", "Model", "ModelRun", "ModelEvaluation",
        "ModelBlessing", "InfraBlessing", "PushedModel", "RunReport",
    ):  # fmt: skip
        (artifact,) = artifacts_of(trained_run, name)
        assert os.path.exists(artifact.uri), name
    (examples,) = artifacts_of(trained_run, "Examples")
    digest = examples.custom_properties["digest"].string_value
    assert digest == trained_run.result["dataset"]["digest"]
    assert examples.custom_properties["count_train"].int_value == 4_500


def test_the_terminal_shows_progress_figures_and_what_comes_next(trained_run):
    for name in COMPONENTS:
        assert re.search(rf"^  {name} +\d+\.\d s$", trained_run.log, re.M), trained_run.log
    metrics = trained_run.result["metrics"]
    for words in (
        f"{metrics['overall']['mse']:.5f}",
        f"{metrics['pca_mse']:.5f}",
        "worst digit",
        trained_run.model_path,
        "next   mnist-ae serve simple",
    ):
        assert words in trained_run.log
    assert "WARNING" not in trained_run.log
    assert "Traceback" not in trained_run.log


def test_tensorboard_logs_are_in_the_model_run(trained_run):
    (artifact,) = artifacts_of(trained_run, "ModelRun")
    assert list(pathlib.Path(artifact.uri).rglob("events.out.tfevents.*"))


def test_examples_and_pixels_give_the_same_answer(trained_run, digits):
    model = tf.saved_model.load(trained_run.model_path)
    images = digits["eval"][0][:20]
    examples = [
        tf.train.Example(
            features=tf.train.Features(
                feature={
                    features.IMAGE: tf.train.Feature(
                        bytes_list=tf.train.BytesList(value=[image.tobytes()])
                    )
                }
            )
        ).SerializeToString()
        for image in images
    ]
    by_example = model.signatures["serving_default"](examples=tf.constant(examples))
    by_pixel = model.signatures["reconstruct"](images=tf.constant(images))
    assert set(by_example) == set(by_pixel)
    for key, value in by_pixel.items():
        np.testing.assert_allclose(by_example[key], value, atol=1e-6, err_msg=key)
    decoded = model.signatures["decode"](code=by_pixel["code"])["reconstruction"]
    np.testing.assert_allclose(decoded, by_pixel["reconstruction"], atol=1e-6)
    encoded = model.signatures["encode"](images=tf.constant(images))["code"]
    np.testing.assert_allclose(encoded, by_pixel["code"], atol=1e-6)


_IN_A_V1_SESSION = """
import sys, numpy as np, tensorflow as tf
images = np.load(sys.argv[2])
with tf.compat.v1.Session(graph=tf.Graph()) as session:
    meta = tf.compat.v1.saved_model.load(session, ["serve"], sys.argv[1])
    signature = meta.signature_def["reconstruct"]
    error = signature.outputs["reconstruction_error"].name
    np.save(sys.argv[3], session.run(error, {signature.inputs["images"].name: images}))
"""


def test_the_pushed_model_answers_in_tf_servings_runtime(trained_run, digits, tmp_path):
    np.save(tmp_path / "images.npy", digits["eval"][0])
    subprocess.run(
        [
            sys.executable,
            "-c",
            _IN_A_V1_SESSION,
            trained_run.model_path,
            str(tmp_path / "images.npy"),
            str(tmp_path / "errors.npy"),
        ],
        check=True,
        capture_output=True,
    )
    errors = np.load(tmp_path / "errors.npy")
    np.testing.assert_allclose(errors, expected_losses(trained_run.model_path, digits), atol=1e-6)


def test_the_model_says_what_it_is(trained_run):
    with open(os.path.join(trained_run.model_path, "assets.extra", "autoencoder.json")) as f:
        facts = json.load(f)
    assert facts["name"] == "simple"
    assert facts["code_size"] == 32
    assert facts["anomaly_threshold"] == trained_run.result["anomaly_threshold"]
