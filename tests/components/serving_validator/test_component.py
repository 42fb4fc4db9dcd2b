"""ServingValidator against good and bad candidates, and through TFX's Pusher."""

from __future__ import annotations

import json
import pathlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from tfx.components.pusher import executor as pusher_executor
from tfx.proto import pusher_pb2
from tfx.types import channel_utils, standard_artifacts
from tfx.utils import io_utils, proto_utils

from components.serving_validator import component
from serving import protos
from serving.standin.predict import read_warmup_requests, warm_up
from serving.standin.servable import Servable
from tests.serving import models

Validate = Callable[..., Any]


@pytest.fixture(scope="module")
def examples(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """An Examples artifact with an eval split of random digits."""
    uri = tmp_path_factory.mktemp("examples")
    split = uri / "Split-eval"
    split.mkdir()
    random = np.random.default_rng(0)
    options = tf.io.TFRecordOptions(compression_type="GZIP")
    with tf.io.TFRecordWriter(str(split / "data.gz"), options) as writer:
        for _ in range(40):
            example = tf.train.Example()
            pixels = random.integers(0, 256, 784, dtype=np.uint8).tobytes()
            example.features.feature["image"].bytes_list.value.append(pixels)
            example.features.feature["label"].int64_list.value.append(3)
            writer.write(example.SerializeToString())
    artifact = standard_artifacts.Examples()
    artifact.uri = str(uri)
    artifact.split_names = '["eval"]'
    return artifact


@pytest.fixture
def validate(tmp_path: pathlib.Path, examples: Any) -> Validate:
    """Runs the executor on a model folder; returns the blessing artifact."""

    def run(model_folder: pathlib.Path, **properties: Any) -> Any:
        model = standard_artifacts.Model()
        model.uri = str(model_folder)
        blessing = standard_artifacts.InfraBlessing()
        blessing.uri = str(tmp_path / "blessing")
        component.ServingValidator.EXECUTOR_SPEC.executor_class().Do(
            {"model": [model], "examples": [examples]},
            {"blessing": [blessing]},
            {
                "model_name": "tiny",
                "latency_budget_ms": 60_000.0,
                "num_examples": 8,
                **properties,
            },
        )
        return blessing

    return run


def write(folder: pathlib.Path, **options: Any) -> pathlib.Path:
    written = models.write_autoencoder(folder / "written", 1, **options)
    written.rename(folder / "Format-Serving")
    return folder


def report(blessing: Any) -> dict[str, Any]:
    return json.loads((pathlib.Path(blessing.uri) / component.REPORT_FILE).read_text())


def test_a_good_model_is_blessed_and_pushed_with_warm_up_requests(
    tmp_path: pathlib.Path, validate: Validate
) -> None:
    blessing = validate(write(tmp_path))
    assert blessing.get_int_custom_property("blessed") == 1
    assert (pathlib.Path(blessing.uri) / "INFRA_BLESSED").exists()
    found = report(blessing)
    assert found["problems"] == []
    assert set(found["signatures"]) >= {"serving_default", "reconstruct", "decode", "generate"}
    assert 0 < found["latency_ms"] < 60_000

    pushed = standard_artifacts.PushedModel()
    pushed.uri = str(tmp_path / "pushed")
    base = tmp_path / "serving" / "tiny"
    destination = pusher_pb2.PushDestination(
        filesystem=pusher_pb2.PushDestination.Filesystem(base_directory=str(base))
    )
    pusher_executor.Executor().Do(
        {"infra_blessing": [blessing]},
        {"pushed_model": [pushed]},
        {"push_destination": proto_utils.proto_to_json(destination)},
    )
    assert pushed.get_int_custom_property("pushed") == 1
    [version] = list(base.iterdir())
    records = list(read_warmup_requests(str(version)))
    asked = [
        protos.PredictionLog.FromString(record).predict_log.request.model_spec.signature_name
        for record in records
    ]
    assert set(asked) == set(found["signatures"])
    servable = Servable("tiny", 1, str(version))
    warm_up(servable)  # as the server will


@pytest.mark.parametrize(
    ("broken", "problem"),
    [
        ("nan", "reconstruct: reconstruction has 6272 values that are not finite"),
        pytest.param(
            "shape",
            "reconstruct: reconstruction has the shape [8, 28], not [8, 28, 28]",
            marks=pytest.mark.e2e,
        ),
    ],
)
def test_a_model_with_bad_answers_is_not_blessed(
    tmp_path: pathlib.Path, validate: Validate, broken: str, problem: str
) -> None:
    blessing = validate(write(tmp_path, broken=broken))
    assert blessing.get_int_custom_property("blessed") == 0
    assert (pathlib.Path(blessing.uri) / "INFRA_NOT_BLESSED").exists()
    assert any(text.startswith(problem) for text in report(blessing)["problems"])
    assert not blessing.get_int_custom_property("has_model")
    assert not blessing.has_custom_property("refused_for")


def test_a_model_without_variables_is_not_blessed(
    tmp_path: pathlib.Path, validate: Validate
) -> None:
    folder = write(tmp_path)
    io_utils.delete_dir(str(folder / "Format-Serving" / "variables"))
    blessing = validate(folder)
    assert blessing.get_int_custom_property("blessed") == 0
    assert "variables" in report(blessing)["problems"][0]


@pytest.mark.e2e
def test_a_slow_model_is_not_blessed(tmp_path: pathlib.Path, validate: Validate) -> None:
    blessing = validate(write(tmp_path), latency_budget_ms=0.001)
    assert blessing.get_int_custom_property("blessed") == 0
    assert "over the budget of 0.001 ms" in report(blessing)["problems"][0]


def test_a_refusal_for_latency_alone_is_marked(tmp_path: pathlib.Path, validate: Validate) -> None:
    # Another time it may pass: what caches verdicts has to know.
    blessing = validate(write(tmp_path), latency_budget_ms=0.001)
    assert blessing.get_string_custom_property("refused_for") == "latency"
    assert report(blessing)["refused_for"] == "latency"


def test_a_model_that_only_python_loads_is_not_blessed(
    tmp_path: pathlib.Path, validate: Validate
) -> None:
    module: Any = tf.Module()
    module.weight = tf.Variable(np.ones((784, 784), np.float32))
    module.table = tf.lookup.StaticHashTable(tf.lookup.KeyValueTensorInitializer([0], [1.0]), -1.0)

    def reconstruct(images: Any) -> dict[str, Any]:
        flat = tf.reshape(tf.cast(images, tf.float32), [-1, 784]) @ module.weight
        return {"reconstruction": tf.reshape(flat, [-1, 28, 28])}

    spec = tf.TensorSpec([None, 28, 28], tf.uint8, "images")
    signature = tf.function(reconstruct).get_concrete_function(spec)
    path = tmp_path / "Format-Serving"
    keys = ("serving_default", "reconstruct", "score")
    tf.saved_model.save(module, str(path), signatures={key: signature for key in keys})
    # Break the restore of the graph, leave that of the objects alone.
    from tensorflow.core.protobuf import saved_model_pb2

    file = path / "saved_model.pb"
    saved = saved_model_pb2.SavedModel.FromString(file.read_bytes())
    graph = saved.meta_graphs[0]
    graph.saver_def.restore_op_name = "NoOp"
    file.write_bytes(saved.SerializeToString())
    assert "reconstruct" in tf.saved_model.load(str(path)).signatures  # Python is content

    blessing = validate(tmp_path)
    assert blessing.get_int_custom_property("blessed") == 0
    assert report(blessing)["problems"]


def test_the_component_has_the_standard_channels() -> None:
    node = component.ServingValidator(
        model=channel_utils.as_channel([standard_artifacts.Model()]),
        examples=channel_utils.as_channel([standard_artifacts.Examples()]),
        model_name="simple",
        latency_budget_ms=250.0,
    )
    assert node.outputs["blessing"].type is standard_artifacts.InfraBlessing
    assert node.spec.exec_properties["latency_budget_ms"] == 250.0
