"""Writes ``tensorflow_serving.binpb`` from the installed tensorflow-serving-api.

Run ``python -m serving.protos.export`` after an upgrade of that package. It is
the only place that imports it, and with it TensorFlow.
"""

from __future__ import annotations

import importlib
from typing import Any

from google.protobuf import descriptor_pb2

from serving.protos import DESCRIPTOR_FILE

ROOTS = (
    "tensorflow_serving.apis.predict_pb2",
    "tensorflow_serving.apis.classification_pb2",
    "tensorflow_serving.apis.regression_pb2",
    "tensorflow_serving.apis.inference_pb2",
    "tensorflow_serving.apis.get_model_metadata_pb2",
    "tensorflow_serving.apis.get_model_status_pb2",
    "tensorflow_serving.apis.model_management_pb2",
    "tensorflow_serving.apis.prediction_log_pb2",
    "tensorflow_serving.config.model_server_config_pb2",
)


def collect() -> descriptor_pb2.FileDescriptorSet:
    """Returns the descriptors of ROOTS and all they import, dependencies first."""
    files: dict[str, descriptor_pb2.FileDescriptorProto] = {}

    def walk(file: Any) -> None:
        if file.name in files:
            return
        for dependency in file.dependencies:
            walk(dependency)
        proto = descriptor_pb2.FileDescriptorProto()
        file.CopyToProto(proto)
        files[file.name] = proto

    for root in ROOTS:
        walk(importlib.import_module(root).DESCRIPTOR)
    return descriptor_pb2.FileDescriptorSet(file=files.values())


if __name__ == "__main__":
    DESCRIPTOR_FILE.write_bytes(collect().SerializeToString(deterministic=True))
    print(f"wrote {DESCRIPTOR_FILE}")
