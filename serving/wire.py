"""Tensors on the wire: NumPy arrays to and from ``TensorProto``, without TensorFlow.

Conversions are the bottleneck of a Python client and of a Python server: a
loop over ``float_val`` costs more than the network and the model together. So
packed fields are written and read as one block of memory here. On the wire a
packed ``repeated float`` *is* the array's little-endian memory, and a packed
``repeated bool`` is one byte a value.

Requests carry ``tensor_content`` (smallest, one copy); answers carry typed
fields, as TensorFlow Serving's do.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]

DT_FLOAT = 1
DT_UINT8 = 4
DT_STRING = 7
DT_INT64 = 9
DT_BOOL = 10

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
_NAMES = {
    1: "float", 2: "double", 3: "int32", 4: "uint8", 5: "int16", 6: "int8", 7: "string",
    8: "complex64", 9: "int64", 10: "bool", 11: "qint8", 12: "quint8", 13: "qint32",
    14: "bfloat16", 15: "qint16", 16: "quint16", 17: "uint16", 18: "complex128", 19: "half",
    20: "resource", 21: "variant", 22: "uint32", 23: "uint64",
}  # fmt: skip

# Field number and wire type 2 (length-delimited) of packed typed values whose
# bytes are the array's memory.
_PACKED_TAGS = {1: b"\x2a", 2: b"\x32", 10: b"\x5a"}
# The same for typed values that are varints.
_VARINT_TAGS = {
    3: b"\x3a", 4: b"\x3a", 5: b"\x3a", 6: b"\x3a", 17: b"\x3a",
    9: b"\x52", 19: b"\x6a", 22: b"\x82\x01", 23: b"\x8a\x01",
}  # fmt: skip

# A tensor larger than this cannot have come in a message: only the shape says so.
MAX_TENSOR_BYTES = 2**31 - 1


class TensorError(ValueError):
    """A TensorProto that says two things at once, or a type that has no wire form."""


def type_name(number: int) -> str:
    """TensorFlow's name of a DataType number, such as ``"float"`` for 1."""
    return _NAMES.get(number, f"unknown dtype enum: {number}")


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


def varint(value: int) -> bytes:
    """Encodes a non-negative integer as protobuf's base-128 varint."""
    if value < 0x80:
        return bytes((value,))
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def field(tag: bytes, payload: bytes) -> bytes:
    """One length-delimited field: tag, length, payload."""
    return tag + varint(len(payload)) + payload


def _varints(values: Array) -> bytes:
    """Packed varints of an integer array; negative ones take ten bytes."""
    flat = values.ravel()
    if flat.size == 0:
        return b""
    if flat.dtype == np.float16:
        flat = flat.view("<u2")
    if flat.dtype.kind == "i" and flat.min() < 0:
        wide = flat.astype("<i8").view("<u8")
    else:
        wide = flat.astype("<u8")
    top = int(wide.max())
    if top < 0x80:
        return wide.astype("u1").tobytes()
    columns = (top.bit_length() + 6) // 7
    shifts = np.arange(columns, dtype="<u8") * np.uint64(7)
    shifted = wide[:, None] >> shifts
    digits = (shifted & np.uint64(0x7F)).astype("u1")
    more = np.zeros_like(digits, dtype=bool)
    more[:, :-1] = shifted[:, 1:] != 0
    digits[more] |= 0x80
    keep = np.ones_like(more)
    keep[:, 1:] = shifted[:, 1:] != 0
    return digits[keep].tobytes()


def _header(number: int, shape: Iterable[int]) -> bytes:
    dims = b"".join(b"\x12" + varint(len(size) + 1) + b"\x08" + size for size in map(varint, shape))
    return b"\x08" + varint(number) + field(b"\x12", dims)


def tensor_chunks(array: Array, *, content: bool) -> list[Any]:
    """The bytes of a TensorProto in pieces that ``b"".join`` takes.

    The array's memory is one of the pieces, so that nothing is copied before
    the join.

    Args:
      array: Any shape; numeric, bool, or objects/bytes for strings.
      content: Whether numbers go in ``tensor_content`` (requests) or in the
        typed fields (answers). Strings have only the one form.

    Returns:
      Bytes-like pieces.

    Raises:
      TensorError: The type has no wire form here.
    """
    number = type_number(array.dtype)
    header = _header(number, array.shape)
    if number == DT_STRING:
        items = (item.encode() if isinstance(item, str) else bytes(item) for item in array.ravel())
        return [header, *(field(b"\x42", item) for item in items)]
    if array.size == 0:
        return [header]
    if content or number in _PACKED_TAGS:
        tag = b"\x22" if content else _PACKED_TAGS[number]
        memory = np.ascontiguousarray(array, dtype=_TYPES[number][0])
        view = memory.reshape(-1).view("u1").data
        return [header + tag + varint(view.nbytes), view]
    return [header + field(_VARINT_TAGS[number], _varints(array))]


def _size(chunks: Iterable[Any]) -> int:
    return sum(chunk.nbytes if isinstance(chunk, memoryview) else len(chunk) for chunk in chunks)


def tensor_map_chunks(tag: bytes, arrays: Mapping[str, Array], *, content: bool) -> list[Any]:
    r"""A ``map<string, TensorProto>`` field in pieces; see :func:`tensor_chunks`.

    Args:
      tag: The map field's tag, such as ``b"\x0a"`` for field 1.
      arrays: What the map holds.
      content: See :func:`tensor_chunks`.
    """
    chunks: list[Any] = []
    for key, array in arrays.items():
        number = _NUMBERS.get(array.dtype)
        if number is not None and (content or number in _PACKED_TAGS) and number != DT_STRING:
            # Everything before the memory depends on type and shape alone.
            chunks.append(_entry_start(tag, key, number, array.shape, content))
            chunks.append(_memory(array, number))
            continue
        value = tensor_chunks(array, content=content)
        size = _size(value)
        start = field(b"\x0a", key.encode()) + b"\x12" + varint(size)
        chunks.append(tag + varint(len(start) + size) + start)
        chunks.extend(value)
    return chunks


# Below this, copying the bytes out is quicker than looking at them in place.
_SMALL = 4096


def _memory(array: Array, number: int) -> Any:
    if array.nbytes <= _SMALL:
        return array.tobytes()
    memory = np.ascontiguousarray(array, dtype=_TYPES[number][0])
    return memory.reshape(-1).view("u1").data


@functools.lru_cache(maxsize=1024)
def _entry_start(tag: bytes, key: str, number: int, shape: tuple[int, ...], content: bool) -> bytes:
    """A map entry up to where the array's memory begins."""
    start = _header(number, shape)
    memory = math.prod(shape) * _TYPES[number][0].itemsize
    if memory:
        start += (b"\x22" if content else _PACKED_TAGS[number]) + varint(memory)
    size = len(start) + memory
    entry = field(b"\x0a", key.encode()) + b"\x12" + varint(size)
    return tag + varint(len(entry) + size) + entry + start


@functools.lru_cache(maxsize=1024)
def model_spec(name: str, version: int | None, signature: str, label: str | None = None) -> bytes:
    """A serialised ``ModelSpec``; a version excludes a label."""
    out = field(b"\x0a", name.encode())
    if version is not None:
        number = b"\x08" + varint(version & 0xFFFFFFFFFFFFFFFF) if version else b""
        out += field(b"\x12", number)
    if signature:
        out += field(b"\x1a", signature.encode())
    if label is not None and version is None:
        out += field(b"\x22", label.encode())
    return out


def predict_request(
    spec: bytes, inputs: Mapping[str, Array], output_filter: Iterable[str] = ()
) -> bytes:
    """A serialised ``PredictRequest``.

    Args:
      spec: From :func:`model_spec`.
      inputs: Alias to array.
      output_filter: Aliases of the outputs wanted; all when empty.
    """
    return b"".join(
        [
            field(b"\x0a", spec),
            *tensor_map_chunks(b"\x12", inputs, content=True),
            *(field(b"\x1a", alias.encode()) for alias in output_filter),
        ]
    )


def predict_response(spec: bytes, outputs: Mapping[str, Array]) -> bytes:
    """A serialised ``PredictResponse`` with typed fields.

    Args:
      spec: From :func:`model_spec`.
      outputs: Alias to array.

    Raises:
      TensorError: An output's type has no wire form here.
    """
    chunks = tensor_map_chunks(b"\x0a", outputs, content=False)
    chunks.append(field(b"\x12", spec))
    return b"".join(chunks)


def decode_tensor(proto: Any) -> Array:
    """Reads a TensorProto of any descriptor pool into an array.

    Follows TensorFlow: ``tensor_content`` must have exactly the shape's size;
    of typed values, none means zeros, too few repeat the last, too many are
    ignored.

    Args:
      proto: The message.

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
    shape = tuple(dim.size for dim in proto.tensor_shape.dim)
    if any(size < 0 for size in shape) or len(shape) > 32:
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
    tag = _PACKED_TAGS.get(number)
    if tag is not None and given == count:
        size = count * dtype.itemsize
        start = tag + varint(size)
        data = proto.SerializeToString()
        if data[-size - len(start) : -size] == start:
            return np.frombuffer(data, dtype, count, len(data) - size).reshape(shape)
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

    Args:
      data: The message.

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


# Field numbers of TensorProto whose packed bytes are the array's memory.
_PACKED_FIELDS = {5: 1, 6: 2, 11: 10}


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
    from serving import protos

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
    flat = np.empty(count, object)
    flat[:] = values
    return flat.reshape(shape)
