"""What a ``PredictRequest`` asks of a loaded version, and a version's warm-up requests.

Order and text of the checks follow TensorFlow Serving (predict_util.cc).
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from serving import protos, wire
from serving.standin.servable import Servable, Signature, tf
from serving.standin.status import Code, StatusError, from_exception, invalid_argument

DEFAULT_SIGNATURE = "serving_default"
WARMUP_FILE = os.path.join("assets.extra", "tf_serving_warmup_requests")
MAX_WARMUP_RECORDS = 1000

Array = np.ndarray[Any, Any]


class Order(NamedTuple):
    """A signature, its inputs, and the outputs wanted, in order."""

    signature: Signature
    inputs: dict[str, Array]
    aliases: tuple[str, ...]


def read_request(servable: Servable, request: Any) -> Order:
    """A ``PredictRequest`` as arrays, checked.

    Shapes are the graph's business (TensorFlow Serving does not look at them).

    Raises:
      StatusError: FAILED_PRECONDITION for an unknown signature,
        INVALID_ARGUMENT for inputs or outputs that are not the signature's.
    """
    key = request.model_spec.signature_name or DEFAULT_SIGNATURE
    signature = servable.signatures.get(key)
    if signature is None:
        raise StatusError(Code.FAILED_PRECONDITION, f'Serving signature key "{key}" not found.')
    inputs = _decode_inputs(signature, request.inputs)
    return Order(signature, inputs, _select_outputs(signature, request.output_filter))


def run_request(servable: Servable, request: Any) -> dict[str, Array]:
    """Runs a ``PredictRequest`` on a servable, uncounted; gives alias to array.

    Raises:
      StatusError: As :func:`read_request`, or the runtime's.
    """
    signature, inputs, aliases = read_request(servable, request)
    return dict(zip(aliases, signature.run(inputs, aliases), strict=True))


def warm_up(servable: Servable) -> None:
    """Replays a version's warm-up requests; any failure fails the load.

    Raises:
      StatusError: The first record that failed, or an unreadable file.
    """
    for record in read_warmup_requests(servable.path):
        log = protos.PredictionLog.FromString(record)
        kind = log.WhichOneof("log_type")
        if kind != "predict_log":
            raise StatusError(Code.UNIMPLEMENTED, f"Unsupported log_type for warmup: {kind}")
        run_request(servable, log.predict_log.request)


def read_warmup_requests(path: str) -> Iterator[bytes]:
    """A version's warm-up records (a TFRecord), each a serialised ``PredictionLog``.

    Args:
      path: The version's folder.

    Raises:
      StatusError: Broken file, or more than 1000 records.
    """
    file = os.path.join(path, WARMUP_FILE)
    if not os.path.isfile(file):
        return
    try:
        for count, record in enumerate(tf.compat.v1.io.tf_record_iterator(file)):
            if count == MAX_WARMUP_RECORDS:
                raise invalid_argument(
                    f"Number of warmup records exceeds the maximum ({MAX_WARMUP_RECORDS}) "
                    f"at {file}"
                )
            yield record
    except tf.errors.OpError as error:
        raise from_exception(error) from None


def _decode_inputs(signature: Signature, tensors: Any) -> dict[str, Array]:
    wanted = signature.inputs
    if len(tensors) != len(wanted):
        sent, known = ",".join(sorted(tensors)), ",".join(wanted)
        raise invalid_argument(
            f"input size does not match signature: {len(tensors)}!={len(wanted)} "
            f"len({{{sent}}}) != len({{{known}}}). Sent extra: "
            f"{{{','.join(sorted(tensors.keys() - wanted.keys()))}}}. Missing but required: "
            f"{{{','.join(sorted(wanted.keys() - tensors.keys()))}}}."
        )
    arrays = {}
    for index, (alias, info) in enumerate(wanted.items()):
        if alias not in tensors:
            raise invalid_argument(
                f"Signature input alias: {alias}(feed name: {info.name}) not found in request "
                "and no default value provided. Inputs expected to be in the request "
                f"{{{','.join(sorted(tensors))}}}, or default input alias set: "
            )
        tensor = tensors[alias]
        try:
            arrays[alias] = wire.decode_tensor(tensor)
        except wire.TensorError:
            raise invalid_argument(f"tensor parsing error: {alias}") from None
        if tensor.dtype != info.dtype:
            raise invalid_argument(
                f"Expects arg[{index}] to be {wire.type_name(info.dtype)} but "
                f"{wire.type_name(tensor.dtype)} is provided"
            )
    return arrays


def _select_outputs(signature: Signature, wanted: Sequence[str]) -> tuple[str, ...]:
    """The outputs that a request wants: those of its filter, sorted, or all."""
    if not wanted:
        return signature.output_aliases
    for position, alias in enumerate(wanted):
        if alias not in signature.outputs:
            raise invalid_argument(
                f"output tensor alias not found in signature: {alias} Outputs expected to be in "
                f"the set {{{','.join(signature.outputs)}}}."
            )
        if alias in wanted[:position]:
            raise invalid_argument(f"duplicate output tensor alias: {alias}")
    return tuple(sorted(wanted))
