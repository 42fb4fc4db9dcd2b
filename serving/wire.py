"""Tensors on the wire: NumPy arrays to and from ``TensorProto``, without TensorFlow.

Conversions are the bottleneck of a Python client: a loop over the ``float_val``
of TensorFlow Serving's answers costs more than the network and the model
together. So answers are read without building the message. On the wire a
packed ``repeated float`` *is* the array's little-endian memory, and a packed
``repeated bool`` is one byte a value. Requests carry ``tensor_content``.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from serving import protos
from serving.errors import Error

Array = npt.NDArray[Any]

DT_FLOAT = 1
DT_STRING = 7

# DataType number -> (NumPy type, field of the typed values).
_TYPES: dict[int, tuple[np.dtype[Any], str]] = {
    1: (np.dtype("<f4"), "float_val"),
    2: (np.dtype("<f8"), "double_val"),
    3: (np.dtype("<i4"), "int_val"),
    4: (np.dtype("u1"), "int_val"),
    5: (np.dtype("<i2"), "int_val"),
    6: (np.dtype("i1"), "int_val"),
    7: (np.dtype(object), "string_val"),
    9: (np.dtype("<i8"), "int64_val"),
    10: (np.dtype(bool), "bool_val"),
    17: (np.dtype("<u2"), "int_val"),
    19: (np.dtype("<f2"), "half_val"),
    22: (np.dtype("<u4"), "uint32_val"),
    23: (np.dtype("<u8"), "uint64_val"),
}
_NUMBERS = {dtype: number for number, (dtype, _) in _TYPES.items()}

# Field numbers of TensorProto whose packed bytes are the array's memory.
_PACKED_FIELDS = {5: 1, 6: 2, 11: 10}

# A tensor larger than this cannot have come in a message: only the shape says so.
MAX_TENSOR_BYTES = 2**31 - 1


class TensorError(Error):
    """A TensorProto that says two things at once, or a type that has no wire form."""


def _data_types() -> Any:
    return protos.pool().FindEnumTypeByName("tensorflow.DataType")


def type_name(number: int) -> str:
    """TensorFlow's name of a DataType number, such as ``"float"`` for 1."""
    known = _data_types().values_by_number.get(number)
    return known.name[len("DT_") :].lower() if known else f"unknown dtype enum: {number}"


def named_type(name: str) -> int:
    """The inverse of :func:`type_name`."""
    return int(_data_types().values_by_name[f"DT_{name.upper()}"].number)


def type_number(dtype: np.dtype[Any]) -> int:
    """The DataType number of a NumPy type.

    Raises:
      TensorError: TensorFlow has no such type, or this module does not speak it.
    """
    if dtype.kind in "SU":
        return DT_STRING
    number = _NUMBERS.get(dtype.newbyteorder("<") if dtype.byteorder == ">" else dtype)
    if number is None:
        raise TensorError(f"arrays of {dtype} cannot be sent; use a float, int, bool or bytes type")
    return number


def numpy_type(number: int) -> np.dtype[Any]:
    """The NumPy type of a DataType number.

    Raises:
      TensorError: This module does not speak that type.
    """
    try:
        return _TYPES[number][0]
    except KeyError:
        raise TensorError(f"tensors of type {type_name(number)} are not supported here") from None


def fill_tensor(proto: Any, array: Array, *, typed: bool = False) -> None:
    """Writes an array into an empty ``TensorProto``.

    Args:
      array: Any shape; numeric, bool, or objects/bytes for strings.
      typed: Numbers go one by one in the typed fields, as in TensorFlow
        Serving's answers, not as one block in ``tensor_content``.

    Raises:
      TensorError: The type has no wire form here.
    """
    number = _NUMBERS.get(array.dtype) or type_number(array.dtype)
    dtype, values = _TYPES[number]
    proto.dtype = number
    shape = proto.tensor_shape
    shape.SetInParent()
    for size in array.shape:
        shape.dim.add().size = size
    if number == DT_STRING:
        proto.string_val.extend(
            item.encode() if isinstance(item, str) else bytes(item) for item in array.ravel()
        )
    elif typed:
        flat = array.ravel()
        bits = flat.view("<u2") if dtype == np.float16 else flat
        getattr(proto, values).extend(bits.tolist())
    else:
        proto.tensor_content = array.astype(dtype, copy=False).tobytes()


def fill_spec(
    spec: Any,
    model: str,
    version: int | None = None,
    label: str | None = None,
    signature: str = "",
) -> None:
    """Writes an empty ``ModelSpec``; a version excludes a label."""
    spec.name, spec.signature_name = model, signature
    if version is not None:
        spec.version.value = version
    elif label is not None:
        spec.version_label = label


def shape_of(shape: Any) -> tuple[int, ...] | None:
    """The sizes of a ``TensorShapeProto``, -1 for any; None where the rank is unknown."""
    return None if shape.unknown_rank else tuple(dim.size for dim in shape.dim)


def predict_request(
    model: str,
    signature: str,
    inputs: Mapping[str, Array],
    outputs: Iterable[str] = (),
    version: int | None = None,
    label: str | None = None,
) -> Any:
    """A ``PredictRequest``.

    Args:
      outputs: Aliases of the outputs wanted; all when empty.
      version: A version number; None for the latest.
      label: A version label; excludes ``version``.
    """
    request = protos.PredictRequest(output_filter=outputs)
    fill_spec(request.model_spec, model, version, label, signature)
    for alias, array in inputs.items():
        fill_tensor(request.inputs[alias], array)
    return request


def predict_response(
    model: str, version: int, signature: str, outputs: Iterable[tuple[str, Array]]
) -> bytes:
    """A serialised ``PredictResponse``.

    Up to 64 values go in typed fields, as in TensorFlow Serving's answers; more in
    ``tensor_content``, which Python writes a hundred times faster.

    Args:
      outputs: Alias and array of each.

    Raises:
      TensorError: A type has no wire form here.
    """
    # Serialised messages one behind the other are one message with the fields of all. Protobuf
    # takes longer over an answer than a small model does, and all answers of the same shapes
    # differ in their numbers alone, with which each output ends.
    parts: list[Any] = [_model_spec(model, version, signature)]
    for alias, array in outputs:
        if array.dtype in (_FIXED if array.size > _TYPED else _PACKED):
            before = _before_numbers(alias, array.dtype, array.shape)
            parts += (before, np.ascontiguousarray(array))
        else:
            parts.append(_one_output(alias, array))
    return b"".join(parts)


_TYPED = 64
# Types that go as the array's memory in tensor_content, and those that do in typed fields, too.
_FIXED = frozenset(dtype for dtype, field in _TYPES.values() if field != "string_val")
_PACKED = frozenset(_TYPES[number][0] for number in _PACKED_FIELDS.values())


def _one_output(alias: str, array: Array) -> bytes:
    response = protos.PredictResponse()
    fill_tensor(response.outputs[alias], array, typed=array.size <= _TYPED)
    return response.SerializeToString()


@functools.lru_cache(maxsize=1024)
def _before_numbers(alias: str, dtype: np.dtype[Any], shape: tuple[int, ...]) -> bytes:
    zeros = np.zeros(shape, dtype)
    return _one_output(alias, zeros)[: -zeros.nbytes or None]


@functools.lru_cache(maxsize=1024)
def _model_spec(model: str, version: int, signature: str) -> bytes:
    response = protos.PredictResponse()
    fill_spec(response.model_spec, model, version, signature=signature)
    return response.SerializeToString()


def decode_tensor(proto: Any) -> Array:
    """Reads a TensorProto of any descriptor pool into an array.

    Follows TensorFlow: ``tensor_content`` must have exactly the shape's size;
    of typed values, none means zeros, too few repeat the last, too many are
    ignored.

    Returns:
      An array, read-only where it shares memory with the message's bytes;
      strings are an object array of ``bytes``.

    Raises:
      TensorError: Unknown rank, negative or enormous shape, or wrong size.
    """
    number = proto.dtype
    dtype = numpy_type(number)
    if proto.tensor_shape.unknown_rank:
        raise TensorError("the shape is unknown")
    shape = tuple([dim.size for dim in proto.tensor_shape.dim])
    if min(shape, default=0) < 0 or len(shape) > 32:
        raise TensorError(f"the shape {list(shape)} is not one")
    count = math.prod(shape)
    if count * max(dtype.itemsize, 1) > MAX_TENSOR_BYTES:
        raise TensorError(f"the shape {list(shape)} is too large")
    if number == DT_STRING:
        return _decode_strings(proto, count, shape)
    content = proto.tensor_content
    if content:
        if len(content) != count * dtype.itemsize:
            raise TensorError(f"{len(content)} bytes do not make the shape {list(shape)}")
        return np.frombuffer(content, dtype).reshape(shape)
    values = getattr(proto, _TYPES[number][1])
    given = len(values)
    if given == 0 or count == 0:
        return np.zeros(shape, dtype)
    taken = values[:count]
    if dtype.kind == "f" and dtype.itemsize == 2:
        flat = np.array(taken, "<u2").view(dtype)
    elif dtype.kind in "iu" and dtype.itemsize < 4:
        flat = np.array(taken, "<i8").astype(dtype)
    else:
        flat = np.array(taken, dtype)
    if given < count:
        flat = np.concatenate([flat, np.full(count - given, flat[-1], dtype)])
    return flat.reshape(shape)


def _fields(data: memoryview) -> Iterator[tuple[int, int, Any]]:
    """The fields of a message: number, wire type, and an int or a memoryview.

    Raises:
      TensorError: The bytes are not a message.
    """
    position, end = 0, len(data)
    try:
        while position < end:
            tag, position = _read_varint(data, position)
            kind = tag & 7
            if kind == 0:
                value, position = _read_varint(data, position)
                yield tag >> 3, kind, value
                continue
            if kind == 2:
                size, position = _read_varint(data, position)
            elif kind in (1, 5):
                size = 8 if kind == 1 else 4
            else:
                raise TensorError("not a message")
            if position + size > end:
                raise TensorError("the message is cut off")
            yield tag >> 3, kind, data[position : position + size]
            position += size
    except IndexError:
        raise TensorError("the message is cut off") from None


def _read_varint(data: memoryview, position: int) -> tuple[int, int]:
    byte = data[position]
    position += 1
    if byte < 0x80:
        return byte, position
    value, shift = byte & 0x7F, 7
    while True:
        byte = data[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
        shift += 7
        if shift > 63:
            raise TensorError("not a message")


def read_predict_response(data: bytes) -> dict[str, Array]:
    """Reads a serialised ``PredictResponse`` without building the message.

    Protobuf copies a map's values one number at a time when it is first
    looked into; this reads them where they lie.

    Returns:
      Alias to array; numbers share memory with ``data`` and are read-only.

    Raises:
      TensorError: Not a PredictResponse, or a tensor that says two things.
    """
    outputs = {}
    for number, kind, entry in _fields(memoryview(data)):
        if number != 1 or kind != 2:
            continue
        key, value = "", memoryview(b"")
        for part, part_kind, content in _fields(entry):
            if part == 1 and part_kind == 2:
                key = bytes(content).decode("utf-8", "replace")
            elif part == 2 and part_kind == 2:
                value = content
        outputs[key] = read_tensor(value)
    return outputs


def read_tensor(data: memoryview) -> Array:
    """Reads a serialised TensorProto; see :func:`decode_tensor`.

    Raises:
      TensorError: As :func:`decode_tensor`.
    """
    dtype, shape, memory = 0, None, None
    for number, kind, value in _fields(data):
        if number == 1 and kind == 0:
            dtype = value
        elif number == 2 and kind == 2:
            shape = _read_shape(value)
        elif number == 4 and kind == 2 and memory is None:
            memory = value
        elif kind == 2 and memory is None and number in _PACKED_FIELDS:
            memory = value if _PACKED_FIELDS[number] == dtype else None
            if memory is None:
                break
        elif number != 3:
            break
    else:
        if shape is not None and dtype in _TYPES and dtype != DT_STRING and memory is not None:
            known = _TYPES[dtype][0]
            if len(memory) == math.prod(shape) * known.itemsize:
                return np.frombuffer(memory, known).reshape(shape)
    try:
        return decode_tensor(protos.TensorProto.FromString(bytes(data)))
    except TensorError:
        raise
    except Exception:
        raise TensorError("not a TensorProto") from None


def _read_shape(data: memoryview) -> tuple[int, ...] | None:
    """The sizes of a TensorShapeProto, or None where the slow way must look."""
    shape = []
    for number, kind, dim in _fields(data):
        if number != 2 or kind != 2:
            return None
        size = 0
        for part, part_kind, value in _fields(dim):
            if part == 1 and part_kind == 0:
                size = value
        shape.append(size)
    return tuple(shape) if len(shape) <= 32 else None


def _decode_strings(proto: Any, count: int, shape: tuple[int, ...]) -> Array:
    if count > 2**27:
        raise TensorError(f"the shape {list(shape)} is too large")
    values = list(proto.string_val[:count])
    if len(values) < count:
        values += [values[-1] if values else b""] * (count - len(values))
    return objects(values, shape)


def objects(values: list[Any], shape: tuple[int, ...]) -> Array:
    """An array of strings, or of whatever these are, row by row."""
    flat = np.empty(len(values), object)
    flat[:] = values
    return flat.reshape(shape)
