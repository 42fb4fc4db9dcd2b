"""JSON to tensors and back, as TensorFlow Serving's REST predict has it.

Source of the forms: tensorflow_serving/util/json_tensor.cc. Deviations
(docs/serving.md): a number that does not fit the input's integer type is
refused, where the real server wraps it round, and so is deep nesting, which
ends the real server. Every refusal is a ``StatusError``.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from typing import Any

import numpy as np

from serving import wire
from serving.standin.status import Code, StatusError, invalid_argument

Array = np.ndarray[Any, Any]

# Of a value that is quoted in a message; TensorFlow Serving 2.18 cuts there too.
_QUOTED = 256
# JSON types that an input of a NumPy kind takes: numbers for floats, and so on.
_TAKEN: dict[str, set[type]] = {"f": {int, float}, "i": {int}, "u": {int}, "b": {bool}}


def parse(body: bytes) -> dict[str, Any]:
    """Parses a request's body, which must be an object, not nested too deeply."""
    try:
        text = body.decode()
        document = json.loads(text)
        if "\\u" in text:
            # A half of a surrogate pair is no character and cannot go on.
            json.dumps(document, ensure_ascii=False).encode()
    except json.JSONDecodeError as error:
        why = "The document is empty" if not error.doc.strip() else "Invalid value."
        raise invalid_argument(f"JSON Parse error: {why} at offset: {error.pos}") from None
    except (RecursionError, ValueError) as error:  # or no UTF-8, or thousands of digits
        raise invalid_argument(f"JSON Parse error: {error}") from None
    if not isinstance(document, dict):
        raise invalid_argument("JSON Value: the body Is not object")
    return document


def signature_name(document: Mapping[str, Any]) -> str:
    """The ``signature_name`` of a request, empty for the default."""
    name = document.get("signature_name", "")
    if not isinstance(name, str):
        raise invalid_argument(
            "JSON Value: request not formatted correctly. 'signature_name' key must be a string "
            "value."
        )
    return name


def to_inputs(
    document: Mapping[str, Any], types: Mapping[str, int]
) -> tuple[dict[str, Array], bool]:
    """Reads ``instances`` (rows) or ``inputs`` (columns).

    Args:
      types: The signature's inputs, alias to DataType number.

    Returns:
      The arrays by alias, and whether the request was in row form.
    """
    by_row = "instances" in document
    if by_row and "inputs" in document:
        raise invalid_argument(
            "JSON Value: Not formatted correctly expecting only one of 'inputs' or 'instances' "
            "keys to exist"
        )
    if not by_row and "inputs" not in document:
        raise invalid_argument("Missing 'inputs' or 'instances' key")
    given = document["instances" if by_row else "inputs"]
    if by_row and given == []:
        raise invalid_argument("JSON Value: No values in 'instances' array")
    if by_row and not isinstance(given, list):
        raise invalid_argument("JSON Value: Expecting 'instances' to be an list/array")
    if not any(map(_is_named, given if by_row else [given])):
        if len(types) > 1:
            what = "instances is a plain list, but expecting list of objects"
            raise invalid_argument(what if by_row else "inputs is a plain value, not an object")
        columns = dict.fromkeys(types, given)
    elif by_row:
        for index, row in enumerate(given):
            if not _is_named(row) or row.keys() != types.keys():
                raise invalid_argument(
                    f"Failed to process element: {index} of 'instances' list. JSON object: its "
                    f"keys must be equal to: {','.join(sorted(types))}"
                )
        columns = {name: [row[name] for row in given] for name in types}
    else:
        for name in types.keys() - given.keys():
            raise invalid_argument(f"Missing named input: {name} in 'inputs' object.")
        columns = given
    return {name: _array(columns[name], dtype) for name, dtype in types.items()}, by_row


def _is_base64(value: Any) -> bool:
    return isinstance(value, dict) and len(value) == 1 and isinstance(value.get("b64"), str)


def _is_named(value: Any) -> bool:
    return isinstance(value, dict) and not _is_base64(value)


def _array(value: Any, dtype: int) -> Array:
    """Nested lists as an array of an input's type, no value changed by it."""
    # What is ragged, or too deep for NumPy, leaves lists as values.
    values = np.array(value, object)
    leaves = values.ravel().tolist()
    if dtype == wire.DT_STRING:
        return wire.objects([_bytes(leaf) for leaf in leaves], values.shape)
    try:
        target = wire.numpy_type(dtype)
    except wire.TensorError as error:
        raise StatusError(Code.UNIMPLEMENTED, str(error)) from None
    if target.kind in "iu":
        low, high = np.iinfo(target).min, np.iinfo(target).max
    else:
        # The whole numbers up to which a floating-point type has every one.
        high = 2 ** (np.finfo(target).nmant + 1) - 1 if target.kind == "f" else 1
        low = -high
    for leaf in leaves:
        kind = type(leaf)
        if kind not in _TAKEN[target.kind] or (kind is int and not low <= leaf <= high):
            raise _type_error(leaf, dtype)
    with np.errstate(over="ignore"):
        array = values.astype(target)
    if target.kind == "f" and (np.isinf(array) & np.isfinite(values.astype("f8"))).any():
        raise invalid_argument(
            f"Cannot convert JSON values to {wire.type_name(dtype)} without loss of precision."
        )
    return array


def _bytes(value: Any) -> bytes:
    if isinstance(value, str):
        return value.encode()
    if not _is_base64(value):
        raise _type_error(value, wire.DT_STRING)
    text = value["b64"].rstrip("=")
    try:
        return base64.b64decode(text + "=" * (-len(text) % 4), validate=True)
    except ValueError:
        raise invalid_argument("Unable to base64 decode") from None


def _type_error(value: Any, dtype: int) -> StatusError:
    quoted = type(value).__name__ if isinstance(value, list | dict) else json.dumps(value)
    return invalid_argument(
        f"JSON Value: {quoted[:_QUOTED]} is not of expected type: {wire.type_name(dtype)}"
    )


def from_outputs(outputs: Mapping[str, Array], by_row: bool) -> str:
    """Writes a Predict answer as a JSON document.

    Args:
      outputs: Arrays by alias. In row form their first dimensions must be equal.
      by_row: Whether the request was in row form.
    """
    plain = {alias: _plain(outputs[alias], alias) for alias in sorted(outputs)}
    heights = {array.shape[:1] for array in outputs.values()}
    if by_row and (len(heights) > 1 or () in heights):
        raise invalid_argument("Tensor shapes are not compatible for row format")
    answer: Any = plain
    if len(plain) == 1:
        [answer] = plain.values()
    elif by_row:
        answer = [dict(zip(plain, row)) for row in zip(*plain.values())]
    key = "predictions" if by_row else "outputs"
    return f'{{\n    "{key}": {json.dumps(answer, ensure_ascii=False)}\n}}'


def _plain(array: Array, alias: str) -> Any:
    """An array as what ``json`` writes."""
    if array.dtype.kind == "O":
        encoded = alias.endswith("_bytes")
        texts: list[Any] = [
            {"b64": base64.b64encode(item).decode()} if encoded else item.decode("utf-8", "replace")
            for item in array.flat
        ]
        return wire.objects(texts, array.shape).tolist()
    if array.dtype.kind == "f" and array.dtype.itemsize < 4:
        raise StatusError(
            Code.UNIMPLEMENTED, "Expecting DType: half to be float, int, bool or string"
        )
    if array.dtype == np.float32:
        # 0.1, not 0.10000000149011612: the shortest text that reads back the same.
        array = array.astype("U32").astype(np.float64)
    return array.tolist()
