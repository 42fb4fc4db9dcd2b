import pathlib

import numpy as np
import pyarrow as pa
import pytest
import tensorflow_data_validation as tfdv
from google.protobuf import text_format
from tensorflow_data_validation.statistics import stats_impl
from tensorflow_metadata.proto.v0 import anomalies_pb2, schema_pb2, statistics_pb2
from tfx.types import artifact_utils, standard_artifacts

from components import data_gate, features


@pytest.fixture(scope="module")
def schema():
    return text_format.Parse(features.SCHEMA_FILE.read_text(), schema_pb2.Schema())


def statistics(schema, images, labels):
    """TFDV's statistics of examples, as StatisticsGen makes them."""
    table = {features.IMAGE: pa.array([[i] for i in images], pa.list_(pa.binary()))}
    if labels is not None:
        table[features.LABEL] = pa.array([[v] for v in labels], pa.list_(pa.int64()))
    batch = pa.RecordBatch.from_arrays(list(table.values()), list(table))
    return stats_impl.generate_statistics_in_memory(batch, tfdv.StatsOptions(schema=schema))


def gate(tmp_path, schema, images, labels):
    """Runs the gate's own function on real statistics and anomalies of a split."""
    stats = statistics(schema, images, labels)
    anomalies = tfdv.validate_statistics(stats, schema)
    artifacts = {}
    for name, kind, file, proto in (
        ("statistics", standard_artifacts.ExampleStatistics, "FeatureStats.pb", stats),
        ("anomalies", standard_artifacts.ExampleAnomalies, "SchemaDiff.pb", anomalies),
    ):
        artifact = kind()
        artifact.uri = str(tmp_path / name)
        artifact.split_names = artifact_utils.encode_split_names(["train"])
        folder = pathlib.Path(artifact_utils.get_split_uri([artifact], "train"))
        folder.mkdir(parents=True)
        (folder / file).write_bytes(proto.SerializeToString())
        artifacts[name] = artifact
    data_gate.DataGate.test_call(**artifacts)


GOOD = [np.full(784, i, np.uint8).tobytes() for i in range(10)]
DIGITS = list(range(10))


def test_good_digits_pass(tmp_path, schema):
    gate(tmp_path, schema, GOOD, DIGITS)


def test_unlabelled_digits_pass(tmp_path, schema):
    gate(tmp_path, schema, GOOD, None)


@pytest.mark.parametrize(
    "images, labels, feature, reason",
    [
        (GOOD[:9] + [GOOD[9][:-1]], DIGITS, "image", "783 to 784 bytes, expected 784"),
        ([i + b"x" for i in GOOD], DIGITS, "image", "785 to 785 bytes"),
        (GOOD, [0] * 9 + [12], "label", "12"),
        (GOOD, [-1] + [0] * 9, "label", "-1"),
    ],
    ids=["short image", "long images", "label 12", "label -1"],
)
def test_bad_digits_end_the_run_by_feature_and_reason(
    tmp_path, schema, images, labels, feature, reason
):
    with pytest.raises(data_gate.DataAnomalyError) as error:
        gate(tmp_path, schema, images, labels)
    assert f"train split, feature {feature!r}" in str(error.value)
    assert reason in str(error.value)
    assert error.value.exit_code == 2


def test_a_missing_image_is_an_anomaly():
    nothing = statistics_pb2.DatasetFeatureStatisticsList()
    assert data_gate.length_anomalies(nothing, "eval") == ["eval split, feature 'image': missing"]


def test_dataset_anomalies_are_reported():
    anomalies = anomalies_pb2.Anomalies()
    anomalies.dataset_anomaly_info.description = "too few examples"
    assert data_gate.schema_anomalies(anomalies, "train") == ["train split: too few examples"]
