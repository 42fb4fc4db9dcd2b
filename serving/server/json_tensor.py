"""JSON to tensors and back, as TensorFlow Serving's REST API has it.

Source of forms and texts: tensorflow_serving/util/json_tensor.cc.
Deviation: a number that does not fit the input's integer type is refused,
where the real server wraps it round (docs/serving.md).
"""

from __future__ import annotations

import base64
import binascii
import json
import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from serving import protos, wire
from serving.server.servable import TensorInfo
from serving.server.status import Code, StatusError, invalid_argument

Array = np.ndarray[Any, Any]

# Quoted JSON in a message; TensorFlow Serving 2.18 cuts there too.
_QUOTED = 256
# NumPy arrays have at most 32 dimensions (64 from NumPy 2 on).
_MAX_RANK = 32


def parse(body: bytes) -> dict[str, Any]:
    """Parses a request's body.

    Raises:
      StatusError: Not JSON, nested too deeply, or not an object.
    """
    if not body:
        raise invalid_argument("JSON Parse error: The document is empty")
    try:
        document = json.loads(body)
    except json.JSONDecodeError as error:
        raise invalid_argument(_parse_message(error)) from None
    except RecursionError:
        raise invalid_argument("JSON Parse error: The document is nested too deeply") from None
    except UnicodeDecodeError as error:
        raise invalid_argument(
            f"JSON Parse error: Invalid encoding in string. at offset: {error.start}"
        ) from None
    except ValueError as error:  # an integer of thousands of digits
        raise invalid_argument(
            f"JSON Parse error: Number too big to be stored in double. {error}"
        ) from None
    if not isinstance(document, dict):
        raise invalid_argument(f"JSON Value: {quote(document)} Is not object")
    return document


def _parse_message(error: json.JSONDecodeError) -> str:
    texts = {
        "Expecting value": "Invalid value.",
        "Extra data": "The document root must not be followed by other values.",
        "Expecting property name enclosed in double quotes": "Missing a name for object member.",
        "Expecting ':' delimiter": "Missing a colon after a name of object member.",
        "Expecting ',' delimiter": "Missing a comma or ] after an array element.",
        "Unterminated string starting at": "Missing a closing quotation mark in string.",
    }
    if not error.doc.strip():
        return "JSON Parse error: The document is empty"
    text = texts.get(error.msg, error.msg)
    return f"JSON Parse error: {text} at offset: {error.pos}"


def quote(value: Any) -> str:
    """A JSON value as text for a message, cut where it gets long."""
    try:
        text = json.dumps(value)
    except (RecursionError, ValueError):
        return "(nested too deeply)"
    return text if len(text) <= _QUOTED else text[:_QUOTED] + "..."


def _kind(value: Any) -> str:
    if value is None:
        return "Null"
    if isinstance(value, bool):
        return "True" if value else "False"
    if isinstance(value, int | float):
        return "Number"
    if isinstance(value, str):
        return "String"
    return "Array" if isinstance(value, list) else "Object"


def signature_name(document: Mapping[str, Any]) -> str:
    """The ``signature_name`` of a request, empty for the default.

    Raises:
      StatusError: Not a string.
    """
    name = document.get("signature_name", "")
    if not isinstance(name, str):
        raise invalid_argument(
            f"JSON Value: {quote(document)} not formatted correctly. 'signature_name' key must "
            "be a string value."
        )
    return name


def to_inputs(
    document: Mapping[str, Any], infos: Mapping[str, TensorInfo]
) -> tuple[dict[str, Array], bool]:
    """Reads ``instances`` (rows) or ``inputs`` (columns).

    Args:
      document: The request.
      infos: The signature's inputs.

    Returns:
      The arrays by alias, and whether the request was in row form.

    Raises:
      StatusError: INVALID_ARGUMENT with TensorFlow Serving's texts.
    """
    by_row, by_column = "instances" in document, "inputs" in document
    if by_row and by_column:
        raise invalid_argument(
            f"JSON Value: {quote(document)} Not formatted correctly expecting only one of "
            "'inputs' or 'instances' keys to exist "
        )
    if by_row:
        instances = document["instances"]
        if not isinstance(instances, list):
            raise invalid_argument(
                f"JSON Value: {quote(document)} Excepting 'instances' to be an list/array"
            )
        if not instances:
            raise invalid_argument(f"JSON Value: {quote(document)} No values in 'instances' array")
        return _from_rows(instances, infos), True
    if by_column:
        return _from_columns(document["inputs"], infos), False
    raise invalid_argument("Missing 'inputs' or 'instances' key")


def _is_base64(value: Any) -> bool:
    return isinstance(value, dict) and len(value) == 1 and isinstance(value.get("b64"), str)


def _is_named(value: Any) -> bool:
    return isinstance(value, dict) and not _is_base64(value)


def _from_rows(instances: list[Any], infos: Mapping[str, TensorInfo]) -> dict[str, Array]:
    if not isinstance(instances[0], dict) and len(infos) > 1:
        raise invalid_argument(
            "instances is a plain list, but expecting list of objects as multiple input tensors "
            "required as per tensorinfo_map"
        )
    if _is_named(instances[0]):
        return _from_named_rows(instances, infos)
    name, info = next(iter(infos.items()))
    fast = _fast(instances, info.dtype)
    if fast is not None:
        return {name: fast}
    rows = _Rows(info.dtype)
    for index, row in enumerate(instances):
        if _is_named(row):
            raise invalid_argument(
                f"Expecting value/list but got object at item {index} of input list"
            )
        try:
            rows.add(row)
        except StatusError as error:
            raise invalid_argument(
                f"Failed to process element: {index} of 'instances' list. Error: {error}"
            ) from None
    return {name: rows.array()}


def _from_named_rows(instances: list[Any], infos: Mapping[str, TensorInfo]) -> dict[str, Array]:
    columns = {name: _Rows(info.dtype) for name, info in infos.items()}
    for index, row in enumerate(instances):
        if not _is_named(row):
            raise invalid_argument(f"Expecting object but got list at item {index} of input list")
        for name, value in row.items():
            try:
                if name not in columns:
                    raise invalid_argument(f"JSON object: does not have named input: {name}")
                columns[name].add(value)
            except StatusError as error:
                raise invalid_argument(
                    f"Failed to process element: {index} key: {name} of 'instances' list. "
                    f"Error: {error}"
                ) from None
        if row.keys() != infos.keys():
            raise invalid_argument(
                f"Failed to process element: {index} of 'instances' list. JSON object: "
                f"{quote(row)} keys must be equal to: {','.join(sorted(infos))}"
            )
    return {name: rows.array() for name, rows in columns.items()}


def _from_columns(inputs: Any, infos: Mapping[str, TensorInfo]) -> dict[str, Array]:
    if not _is_named(inputs):
        if len(infos) > 1:
            raise invalid_argument(
                "inputs is a plain value/list, but expecting an object as multiple input tensors "
                "required as per tensorinfo_map"
            )
        name, info = next(iter(infos.items()))
        return {name: _tensor(inputs, info.dtype)}
    arrays = {}
    for name, info in infos.items():
        if name not in inputs:
            raise invalid_argument(f"Missing named input: {name} in 'inputs' object.")
        arrays[name] = _tensor(inputs[name], info.dtype)
    return arrays


class _Rows:
    """The rows of one input; all must have one shape."""

    def __init__(self, dtype: int) -> None:
        self._dtype = dtype
        self._rows: list[Array] = []

    def add(self, value: Any) -> None:
        array = _tensor(value, self._dtype)
        if self._rows:
            first = self._rows[0]
            if first.size != array.size:
                raise invalid_argument(f"Expecting tensor size: {first.size} but got: {array.size}")
            if first.shape != array.shape:
                raise invalid_argument(f"Expecting shape {_shape(first)} but got: {_shape(array)}")
        self._rows.append(array)

    def array(self) -> Array:
        return np.stack(self._rows)


def _shape(array: Array) -> str:
    return "[" + ",".join(map(str, array.shape)) + "]"


def _tensor(value: Any, dtype: int) -> Array:
    fast = _fast(value, dtype)
    if fast is not None:
        return fast
    shape: list[int] = []
    inner = value
    while isinstance(inner, list):
        shape.append(len(inner))
        if len(shape) > _MAX_RANK:
            raise invalid_argument(f"JSON Value: is nested more than {_MAX_RANK} lists deep")
        if not inner:
            break
        inner = inner[0]
    leaves: list[Any] = []
    _fill(value, 0, tuple(shape), dtype, leaves)
    if dtype == wire.DT_STRING:
        array = np.empty(len(leaves), object)
        array[:] = leaves
    else:
        array = np.array(leaves, wire.numpy_type(dtype))
    return array.reshape(shape)


def _fill(value: Any, level: int, shape: tuple[int, ...], dtype: int, leaves: list[Any]) -> None:
    rank = len(shape)
    if not isinstance(value, list):
        if level != rank:
            raise invalid_argument(
                f"JSON Value: {quote(value)} found at incorrect level: {level + 1} in the JSON "
                f"DOM. Expected at level: {rank}"
            )
        leaves.append(_leaf(value, dtype))
        return
    if level >= rank:
        raise invalid_argument(f"Encountered list at unexpected level: {level} expected < {rank}")
    if len(value) != shape[level]:
        raise invalid_argument(
            f"Encountered list at unexpected size: {len(value)} at level: {level} expected size: "
            f"{shape[level]}"
        )
    for item in value:
        _fill(item, level + 1, shape, dtype, leaves)


def _leaf(value: Any, dtype: int) -> Any:
    if dtype == wire.DT_STRING:
        if isinstance(value, str):
            return _encode(value)
        if isinstance(value, dict):
            return _decode_base64(value)
        raise _type_error(value, dtype)
    if dtype == wire.DT_BOOL:
        if isinstance(value, bool):
            return value
        raise _type_error(value, dtype)
    if dtype in (1, 2):
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise _type_error(value, dtype)
        limit = 2**24 - 1 if dtype == 1 else 2**53 - 1
        largest = float(np.finfo(wire.numpy_type(dtype)).max)
        if (
            abs(value) > limit
            if isinstance(value, int)
            else (math.isfinite(value) and abs(value) > largest)
        ):
            raise invalid_argument(
                f"Cannot convert JSON value: {quote(value)} to {wire.type_name(dtype).lower()} "
                "without loss of precision."
            )
        return float(value)
    if dtype in (3, 4, 5, 6, 9, 17, 22, 23):
        info = np.iinfo(wire.numpy_type(dtype))
        if isinstance(value, bool) or not isinstance(value, int):
            raise _type_error(value, dtype)
        if not info.min <= value <= info.max:
            raise _type_error(value, dtype)
        return value
    raise StatusError(
        Code.UNIMPLEMENTED,
        f"Conversion of JSON Value: {quote(value)} to type: {wire.type_name(dtype)}",
    )


def _encode(value: str) -> bytes:
    try:
        return value.encode()
    except UnicodeEncodeError:
        raise invalid_argument(
            "JSON Parse error: The surrogate pair in string is invalid."
        ) from None


def _type_error(value: Any, dtype: int) -> StatusError:
    return invalid_argument(
        f"JSON Value: {quote(value)} Type: {_kind(value)} is not of expected type: "
        f"{wire.type_name(dtype)}"
    )


def _decode_base64(value: dict[str, Any]) -> bytes:
    if not _is_base64(value):
        raise invalid_argument(
            f"JSON Value: {quote(value)} not formatted correctly for base64 data"
        )
    text = value["b64"].rstrip("=")
    try:
        return base64.b64decode(text + "=" * (-len(text) % 4), validate=True)
    except (binascii.Error, ValueError):
        raise invalid_argument("Unable to base64 decode") from None


def _fast(value: Any, dtype: int) -> Array | None:
    """Converts regular numeric lists in C; None where the slow way must look."""
    if not isinstance(value, list) or not value or dtype in (wire.DT_STRING, wire.DT_BOOL):
        return None
    try:
        target = wire.numpy_type(dtype)
        array = np.array(value)
    except (wire.TensorError, ValueError, OverflowError, RecursionError):
        return None
    if array.dtype.kind not in ("if" if target.kind == "f" else "i") or _has_bool(value):
        return None
    if target.kind == "f":
        limit = 2**24 - 1 if target.itemsize == 4 else 2**53 - 1
        if array.size and not (np.abs(array, where=np.isfinite(array), out=np.zeros(
            array.shape, "f8")).max() <= limit):  # fmt: skip
            return None
    elif array.size:
        info = np.iinfo(target)
        if array.min() < info.min or array.max() > info.max:
            return None
    return array.astype(target)


def _has_bool(value: Any) -> bool:
    """Whether a nested list hides a bool, which NumPy takes for a number."""
    stack = [value]
    while stack:
        items = stack.pop()
        if type(items[0]) is list if items else False:
            stack.extend(items)
        elif bool in set(map(type, items)):
            return True
    return False


def from_outputs(outputs: Mapping[str, Array], by_row: bool) -> str:
    """Writes a Predict answer.

    Args:
      outputs: Arrays by alias.
      by_row: Whether the request was in row form.

    Returns:
      A JSON document.

    Raises:
      StatusError: Row form of outputs whose first dimensions differ, or a
        type that JSON cannot carry.
    """
    if not by_row:
        if len(outputs) == 1:
            [(alias, array)] = outputs.items()
            return '{\n    "outputs": ' + _render(array, alias) + "\n}"
        body = ",\n".join(
            f"        {json.dumps(alias)}: {_render(array, alias)}"
            for alias, array in sorted(outputs.items())
        )
        return '{\n    "outputs": {\n' + body + "\n    }\n}"
    sizes = {alias: array.shape[0] if array.ndim else None for alias, array in outputs.items()}
    for alias, size in sizes.items():
        if size is None:
            raise invalid_argument(
                f"Tensor name: {alias} has no shape information "
                "(scalars cannot be written as rows)"
            )
    if len(set(sizes.values())) > 1:
        raise invalid_argument(
            "Tensor shapes are not compatible for row format: "
            + ", ".join(f"{alias} has {size} rows" for alias, size in sorted(sizes.items()))
        )
    if len(outputs) == 1:
        [(alias, array)] = outputs.items()
        return '{\n    "predictions": ' + _render(array, alias) + "\n}"
    names = sorted(outputs)
    rendered = {name: [_render(row, name) for row in _rows_of(outputs[name])] for name in names}
    rows = (
        "        {\n"
        + ",\n".join(f"            {json.dumps(name)}: {rendered[name][i]}" for name in names)
        + "\n        }"
        for i in range(next(iter(sizes.values())) or 0)
    )
    return '{\n    "predictions": [\n' + ",\n".join(rows) + "\n    ]\n}"


def _rows_of(array: Array) -> list[Any]:
    return [array[i : i + 1].reshape(array.shape[1:]) for i in range(array.shape[0])]


def _render(array: Array, alias: str) -> str:
    kind = array.dtype.kind
    if kind == "f":
        if array.dtype.itemsize == 2:
            raise StatusError(
                Code.UNIMPLEMENTED, "Expecting DType: half to be float, int, bool or string"
            )
        return _render_floats(array)
    if kind == "O":
        as_bytes = alias.endswith("_bytes")
        return _nested([_render_string(item, as_bytes) for item in array.ravel()], array.shape)
    if kind in "iub":
        return json.dumps(array.tolist())
    raise StatusError(Code.UNIMPLEMENTED, f"Cannot write type {array.dtype} as JSON")


def _render_string(value: Any, as_bytes: bool) -> str:
    if as_bytes:
        return json.dumps({"b64": base64.b64encode(value).decode()})
    return json.dumps(value.decode("utf-8", "replace"))


def _render_floats(array: Array) -> str:
    # repr of float32 is the shortest text that reads back as the same float32.
    finite = np.isfinite(array)
    texts = array.astype("U32")
    if not finite.all():
        texts[np.isnan(array)] = "NaN"
        texts[np.isposinf(array)] = "Infinity"
        texts[np.isneginf(array)] = "-Infinity"
    return _nested(texts.ravel().tolist(), array.shape)


def _nested(texts: list[str], shape: tuple[int, ...]) -> str:
    if not shape:
        return texts[0]
    if math.prod(shape) == 0:
        return json.dumps(np.zeros(shape).tolist())
    for size in reversed(shape):
        texts = ["[" + ", ".join(texts[i : i + size]) + "]" for i in range(0, len(texts), size)]
    return texts[0]


# Classify and Regress.


def to_examples(document: Mapping[str, Any], target: Any) -> None:
    """Fills an ``Input`` message from ``examples`` and ``context``.

    Raises:
      StatusError: As TensorFlow Serving.
    """
    examples = document.get("examples")
    if "examples" not in document:
        raise invalid_argument(
            f"JSON Value: {quote(document)} When method is classify, key 'examples' is expected "
            "and was not found"
        )
    if not isinstance(examples, list):
        raise invalid_argument(
            f"JSON Value: {quote(document)} Expecting 'examples' value to be an list/array"
        )
    if not examples:
        raise invalid_argument(f"JSON Value: {quote(document)} 'examples' value is an empty array")
    if "context" in document:
        holder = target.example_list_with_context
        holder.context.CopyFrom(_example(document["context"]))
    else:
        holder = target.example_list
    for item in examples:
        holder.examples.append(_example(item))


def _example(value: Any) -> Any:
    if not isinstance(value, dict):
        raise invalid_argument(f"Example must be JSON object but got JSON {_kind(value)}")
    example = protos.Example()
    for name, content in value.items():
        feature = example.features.feature[name]
        for item in content if isinstance(content, list) else [content]:
            _add_value(item, name, feature)
    return example


def _add_value(value: Any, name: str, feature: Any) -> None:
    if isinstance(value, bool):
        kind, item = "int64_list", int(value)
    elif isinstance(value, int):
        if not -(2**63) <= value < 2**63:
            raise invalid_argument(f"Feature: {name} has uint64 element. Only int64 is supported.")
        kind, item = "int64_list", value
    elif isinstance(value, float):
        kind, item = "float_list", value  # type: ignore[assignment]
    elif isinstance(value, str):
        kind, item = "bytes_list", _encode(value)  # type: ignore[assignment]
    elif _is_base64(value):
        kind, item = "bytes_list", _decode_base64(value)  # type: ignore[assignment]
    else:
        raise invalid_argument(
            f"Feature: {name} has element with unexpected JSON type: {_kind(value)}"
        )
    present = feature.WhichOneof("kind")
    if present not in (None, kind):
        raise invalid_argument(
            f"Unexpected element type in feature: {name} expecting type: "
            f"{present.removesuffix('_list')}"
        )
    getattr(feature, kind).value.append(item)


def from_classifications(result: Any) -> str:
    """Writes a ClassificationResult: ``{"results": [[[label, score], ...]]}``."""
    rows = [
        "["
        + ", ".join(
            f"[{json.dumps(item.label)}, {_render_floats(np.array(item.score, 'f4'))}]"
            for item in row.classes
        )
        + "]"
        for row in result.classifications
    ]
    return '{\n    "results": [' + ", ".join(rows) + "]\n}"


def from_regressions(result: Any) -> str:
    """Writes a RegressionResult: ``{"results": [value, ...]}``."""
    values = np.array([item.value for item in result.regressions], "f4")
    return '{\n    "results": ' + _render_floats(values) + "\n}"
