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
def _make_class() -> Any:
    """What makes a class of a descriptor of the pool."""
    from google.protobuf import message_factory

    if hasattr(message_factory, "GetMessageClass"):  # protobuf 4 and newer
        return message_factory.GetMessageClass
    return message_factory.MessageFactory(pool()).GetPrototype


def __getattr__(name: str) -> Any:
    for package in ("tensorflow.serving", "tensorflow"):
        try:
            descriptor = pool().FindMessageTypeByName(f"{package}.{name}")
        except KeyError:
            continue
        globals()[name] = cls = _make_class()(descriptor)
        return cls
    raise AttributeError(f"module {__name__!r} has no message {name!r}")
