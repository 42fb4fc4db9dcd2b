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
            "GetModelMetadataRequest",
            "GetModelMetadataResponse",
            "GetModelStatusRequest",
            "GetModelStatusResponse",
            "ModelServerConfig",
            "ModelSpec",
            "ModelVersionStatus",
            "PredictRequest",
            "PredictResponse",
            "PredictionLog",
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
