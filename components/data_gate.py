"""The gate: anomalies in the data end a run before anything is trained."""

# No postponed annotations here: @component reads them.
from tensorflow_metadata.proto.v0 import anomalies_pb2, statistics_pb2
from tfx.dsl.component.experimental.annotations import InputArtifact
from tfx.dsl.component.experimental.decorators import component
from tfx.dsl.io import fileio
from tfx.types import artifact_utils, standard_artifacts

from components import features
from components.errors import DataAnomalyError


def schema_anomalies(anomalies: anomalies_pb2.Anomalies, split: str) -> list[str]:
    """ExampleValidator's findings, a line each: split, feature and reason."""
    lines = [
        f"{split} split, feature {name!r}: {info.description or info.short_description}"
        for name, info in sorted(anomalies.anomaly_info.items())
    ]
    if anomalies.HasField("dataset_anomaly_info"):
        lines.append(f"{split} split: {anomalies.dataset_anomaly_info.description}")
    return lines


def length_anomalies(
    statistics: statistics_pb2.DatasetFeatureStatisticsList, split: str
) -> list[str]:
    """Images that are not 784 bytes long, which a schema cannot express."""
    for dataset in statistics.datasets:
        for feature in dataset.features:
            if list(feature.path.step) == [features.IMAGE]:
                shortest = feature.bytes_stats.min_num_bytes
                longest = feature.bytes_stats.max_num_bytes
                if shortest == longest == features.IMAGE_BYTES:
                    return []
                return [
                    f"{split} split, feature {features.IMAGE!r}: images of {shortest:g} to "
                    f"{longest:g} bytes, expected {features.IMAGE_BYTES}"
                ]
    return [f"{split} split, feature {features.IMAGE!r}: missing"]


@component
def DataGate(  # noqa: N802: components are named like classes
    statistics: InputArtifact[standard_artifacts.ExampleStatistics],
    anomalies: InputArtifact[standard_artifacts.ExampleAnomalies],
) -> None:
    """Fails when ExampleValidator found an anomaly or an image has a wrong length.

    Nodes that must not run on bad data name it as an upstream node.

    Raises:
      DataAnomalyError: Naming split, feature and reason.
    """
    found: list[str] = []
    for split in artifact_utils.decode_split_names(anomalies.split_names):
        uri = artifact_utils.get_split_uri([anomalies], split)
        with fileio.open(f"{uri}/SchemaDiff.pb", "rb") as f:
            found += schema_anomalies(anomalies_pb2.Anomalies.FromString(f.read()), split)
        uri = artifact_utils.get_split_uri([statistics], split)
        with fileio.open(f"{uri}/FeatureStats.pb", "rb") as f:
            stats = statistics_pb2.DatasetFeatureStatisticsList.FromString(f.read())
        found += length_anomalies(stats, split)
    if found:
        raise DataAnomalyError("the data does not fit the schema: " + "; ".join(found))
