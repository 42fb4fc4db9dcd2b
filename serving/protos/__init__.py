"""TensorFlow Serving's messages without TensorFlow.

``tensorflow-serving-api`` imports all of TensorFlow to define a dozen
messages. This package holds the same descriptors as a file, exported from that
package by ``python -m serving.protos.export``, and loads them into a private
descriptor pool, so that both can live in one process. A test keeps the two
equal.

The classes are attributes, made when first asked for::

    from serving import protos
    request = protos.PredictRequest()
"""

from __future__ import annotations

import functools
import pathlib
from typing import Any

DESCRIPTOR_FILE = pathlib.Path(__file__).with_name("tensorflow_serving.binpb")

_SERVING = "tensorflow.serving."
_CORE = "tensorflow."
_FULL_NAMES = {
    **{
        name: _SERVING + name
        for name in (
            "ClassificationRequest",
            "ClassificationResponse",
            "GetModelMetadataRequest",
            "GetModelMetadataResponse",
            "GetModelStatusRequest",
            "GetModelStatusResponse",
            "ModelConfig",
            "ModelServerConfig",
            "ModelSpec",
            "ModelVersionStatus",
            "MultiInferenceRequest",
            "MultiInferenceResponse",
            "PredictRequest",
            "PredictResponse",
            "PredictionLog",
            "RegressionRequest",
            "RegressionResponse",
            "ReloadConfigRequest",
            "ReloadConfigResponse",
            "SignatureDefMap",
        )
    },
    **{
        name: _CORE + name
        for name in ("Example", "SignatureDef", "TensorProto", "TensorShapeProto")
    },
}


@functools.cache
def pool() -> Any:
    """The private descriptor pool with every file of the descriptor set."""
    from google.protobuf import descriptor_pb2, descriptor_pool

    files = descriptor_pb2.FileDescriptorSet.FromString(DESCRIPTOR_FILE.read_bytes())
    result = descriptor_pool.DescriptorPool()
    for file in files.file:
        result.AddSerializedFile(file.SerializeToString())
    return result


@functools.cache
def message(full_name: str) -> Any:
    """The class of one message, such as ``"tensorflow.serving.ModelSpec"``.

    Raises:
      KeyError: No such message.
    """
    return _class_of(pool().FindMessageTypeByName(full_name), pool())


@functools.cache
def batching_parameters_class() -> Any:
    """``BatchingParameters`` of TensorFlow Serving's session_bundle_config.proto.

    tensorflow-serving-api does not ship that file; only its text form is read
    here, so the names and types are all that matters.
    """
    from google.protobuf import descriptor_pb2, descriptor_pool, wrappers_pb2

    file = descriptor_pb2.FileDescriptorProto(
        name="mnist_ae/batching_parameters.proto", package="mnist_ae", syntax="proto3"
    )
    file.dependency.append(wrappers_pb2.DESCRIPTOR.name)
    kinds = descriptor_pb2.FieldDescriptorProto
    message_type = file.message_type.add(name="BatchingParameters")
    for number, (name, wrapper) in enumerate(
        (
            ("max_batch_size", "Int64Value"),
            ("batch_timeout_micros", "Int64Value"),
            ("max_enqueued_batches", "Int64Value"),
            ("num_batch_threads", "Int64Value"),
            ("thread_pool_name", "StringValue"),
            ("allowed_batch_sizes", None),
            ("pad_variable_length_inputs", None),
            ("enable_large_batch_splitting", "BoolValue"),
        ),
        start=1,
    ):
        entry = message_type.field.add(name=name, number=number, label=kinds.LABEL_OPTIONAL)
        if wrapper is not None:
            entry.type, entry.type_name = kinds.TYPE_MESSAGE, f".google.protobuf.{wrapper}"
        elif name == "allowed_batch_sizes":
            entry.type, entry.label = kinds.TYPE_INT64, kinds.LABEL_REPEATED
        else:
            entry.type = kinds.TYPE_BOOL
    result = descriptor_pool.DescriptorPool()
    result.AddSerializedFile(wrappers_pb2.DESCRIPTOR.serialized_pb)
    result.AddSerializedFile(file.SerializeToString())
    return _class_of(result.FindMessageTypeByName("mnist_ae.BatchingParameters"), result)


def _class_of(descriptor: Any, owner: Any) -> Any:
    from google.protobuf import message_factory

    if hasattr(message_factory, "GetMessageClass"):  # protobuf 4 and newer
        return message_factory.GetMessageClass(descriptor)
    return _factory(owner).GetPrototype(descriptor)


@functools.cache
def _factory(owner: Any) -> Any:
    from google.protobuf import message_factory

    return message_factory.MessageFactory(owner)


def __getattr__(name: str) -> Any:
    full_name = _FULL_NAMES.get(name)
    if full_name is None:
        raise AttributeError(f"module {__name__!r} has no message {name!r}")
    cls = message(full_name)
    globals()[name] = cls
    return cls
