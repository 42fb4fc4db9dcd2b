"""Tensors on the wire, against TensorFlow's own reading of them."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from serving import protos, wire

ARRAYS = [
    np.random.default_rng(0).normal(size=(3, 4)).astype(np.float32),
    np.array([[1.5, -2.5]]),
    np.array([0, 1, 127, 128, 300, 2**40, -1, -(2**63)], np.int64),
    np.array([2**63 + 5, 0], np.uint64),
    np.array([-5, 7, 2**31 - 1], np.int32),
    np.array([-128, 127], np.int8),
    np.array([[200, 3], [0, 255]], np.uint8),
    np.array([2**16 - 1], np.uint16),
    np.array([2**32 - 1, 0], np.uint32),
    np.array([True, False, True]),
    np.array([1.0, 2.5, -0.1], np.float16),
    np.array([b"a", b"", b"\xff\x00"], object),
    np.array(3.25, np.float32),
    np.zeros((0, 784), np.float32),
    np.arange(6, dtype=np.float32).reshape(2, 3)[:, ::2],  # not contiguous
    np.array([1.0, 2.0], ">f4"),
]


@pytest.mark.parametrize("typed", [False, True], ids=["content", "typed"])
@pytest.mark.parametrize("array", ARRAYS, ids=lambda array: f"{array.dtype}{list(array.shape)}")
def test_arrays_come_back_and_tensorflow_reads_them_the_same(array: Any, typed: bool) -> None:
    import tensorflow as tf
    from tensorflow.core.framework import tensor_pb2

    proto = protos.TensorProto()
    wire.fill_tensor(proto, array, typed=typed)
    data = proto.SerializeToString()
    for back in (
        wire.decode_tensor(protos.TensorProto.FromString(data)),
        wire.read_tensor(memoryview(data)),
        tf.make_ndarray(tensor_pb2.TensorProto.FromString(data)),
    ):
        assert back.shape == array.shape
        assert back.dtype.kind == array.dtype.kind
        np.testing.assert_array_equal(back, array)


def test_a_response_is_the_message_that_protobuf_reads() -> None:
    large = [np.resize(array, (13, 7)) for array in ARRAYS[:12]]
    outputs = {f"output {index}": array for index, array in enumerate([*ARRAYS, *large])}
    for _ in range(2):  # the second time from what was kept of the first
        data = wire.predict_response("m", 7, "encode", outputs.items())
        answer = protos.PredictResponse.FromString(data)
        spec = answer.model_spec
        assert (spec.name, spec.version.value, spec.signature_name) == ("m", 7, "encode")
        fast = wire.read_predict_response(data)
        assert fast.keys() == set(answer.outputs) == outputs.keys()
        for alias, array in outputs.items():
            tensor = answer.outputs[alias]
            assert (array.size > 64 and array.dtype != object) == bool(tensor.tensor_content)
            for back in (wire.decode_tensor(tensor), fast[alias]):
                assert back.dtype.kind == array.dtype.kind
                np.testing.assert_array_equal(back, array)


@pytest.mark.parametrize("array", ARRAYS[:12], ids=lambda array: str(array.dtype))
def test_what_tensorflow_writes_is_read(array: Any) -> None:
    import tensorflow as tf

    data = tf.make_tensor_proto(array).SerializeToString()
    np.testing.assert_array_equal(wire.read_tensor(memoryview(data)), array)


def test_no_values_are_zeros_and_too_few_repeat_the_last() -> None:
    proto = protos.TensorProto(dtype=wire.DT_FLOAT)
    proto.tensor_shape.dim.add(size=3)
    assert wire.decode_tensor(proto).tolist() == [0, 0, 0]
    proto.float_val.extend([1, 2])
    assert wire.decode_tensor(proto).tolist() == [1, 2, 2]
    assert wire.read_tensor(memoryview(proto.SerializeToString())).tolist() == [1, 2, 2]
    proto.float_val.extend([3, 4])
    assert wire.decode_tensor(proto).tolist() == [1, 2, 3]


@pytest.mark.parametrize(
    "sizes", [[-1], [2**40, 2**40], [2**62], [2**31], [1] * 33], ids=str
)  # fmt: skip
@pytest.mark.parametrize("dtype", [wire.DT_FLOAT, wire.DT_STRING])
def test_shapes_that_lie_are_refused_without_allocating(sizes: list[int], dtype: int) -> None:
    proto = protos.TensorProto(dtype=dtype)
    for size in sizes:
        proto.tensor_shape.dim.add(size=size)
    with pytest.raises(wire.TensorError):
        wire.decode_tensor(proto)
    with pytest.raises(wire.TensorError):
        wire.read_tensor(memoryview(proto.SerializeToString()))


def answer(outputs: dict[str, Any]) -> bytes:
    response = protos.PredictResponse()
    for alias, array in outputs.items():
        wire.fill_tensor(response.outputs[alias], array, typed=True)
    return response.SerializeToString()


def test_random_bytes_never_raise_anything_else() -> None:
    random = np.random.default_rng(1)
    good = answer({"a": ARRAYS[0], "b": ARRAYS[11], "c": ARRAYS[9]})
    for trial in range(3000):
        data = bytearray(good if trial % 2 else random.bytes(int(random.integers(0, 60))))
        for _ in range(int(random.integers(0, 4))):
            if data:
                data[int(random.integers(0, len(data)))] = int(random.integers(0, 256))
        with contextlib.suppress(wire.TensorError):
            wire.read_predict_response(bytes(data[: int(random.integers(0, len(data) + 1))]))


def test_requests_and_answers_are_tensorflow_servings() -> None:
    from tensorflow_serving.apis import predict_pb2

    ours = wire.predict_request("m", "s", {"x": ARRAYS[0]}, ["y"], label="stable")
    request = predict_pb2.PredictRequest.FromString(ours.SerializeToString())
    assert request.model_spec.version_label == "stable"
    assert request.model_spec.signature_name == "s"
    assert list(request.output_filter) == ["y"]
    assert request.inputs["x"].tensor_content == ARRAYS[0].tobytes()
    assert not request.model_spec.HasField("version")
    zero = wire.predict_request("m", "s", {}, version=0)
    request = predict_pb2.PredictRequest.FromString(zero.SerializeToString())
    assert request.model_spec.HasField("version")
    response = predict_pb2.PredictResponse.FromString(answer({"y": ARRAYS[0]}))
    assert list(response.outputs["y"].float_val) == ARRAYS[0].ravel().tolist()
    assert not response.outputs["y"].tensor_content


def described(files: Any) -> set[str]:
    """Every field, value and method, in full, as one line of text."""

    def of_messages(prefix: str, messages: Any) -> Iterator[str]:
        for message in messages:
            name = f"{prefix}.{message.name}"
            for field in message.field:
                kind = f"{field.type} {field.label} {field.type_name}"
                yield f"{name}.{field.name} = {field.number}: {kind}"
            for enum in message.enum_type:
                yield from (f"{name}.{v.name} = {v.number}" for v in enum.value)
            yield from of_messages(name, message.nested_type)

    lines: set[str] = set()
    for file in files:
        lines.update(of_messages(file.package, file.message_type))
        for service in file.service:
            for m in service.method:
                lines.add(f"{service.name}.{m.name}: {m.input_type} {m.output_type}")
    return lines


def test_the_descriptors_are_those_of_tensorflow_serving_api() -> None:
    from google.protobuf import descriptor_pb2

    from serving.protos import export

    ours = descriptor_pb2.FileDescriptorSet.FromString(protos.DESCRIPTOR_FILE.read_bytes())
    known = {file.name for file in ours.file if file.name.startswith("tensorflow_serving/")}
    used = {"TensorProto", "SignatureDef", "Example"}

    def relevant(files: Any) -> set[str]:
        # TensorFlow's own files are many; its messages matter that a request is made of.
        lines = described(file for file in files if file.name in known)
        others = described(file for file in files if file.package == "tensorflow")
        return lines | {line for line in others if line.split(".")[1] in used}

    # A newer release adds fields, and unknown ones are kept; none may change or go.
    changed = relevant(ours.file) - relevant(export.collect().file)
    assert known and not changed, f"run `python -m {export.__name__}`"


def test_the_client_imports_nothing_slow() -> None:
    program = (
        "import serving.client, sys;"
        "print(*[m for m in ('tensorflow', 'tfx', 'grpc', 'google.protobuf') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == []
