"""What a request means: Predict, GetModelMetadata, GetModelStatus, reload, warm-up.

Protocol-free: gRPC and REST both come here. Order and text of the checks
follow TensorFlow Serving (predict_util.cc, get_model_metadata_impl.cc,
get_model_status_impl.cc, server_core.cc).
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from serving import contract, protos, wire
from serving.standin import settings as settings_lib
from serving.standin.metrics import Metrics
from serving.standin.models import Models
from serving.standin.servable import DEFAULT_SIGNATURE, Servable, Signature, read_warmup_requests
from serving.standin.status import Code, StatusError, invalid_argument

Arrays = Mapping[str, np.ndarray[Any, Any]]

_log = logging.getLogger(__name__)
_SIGNATURE_DEF = "signature_def"
_TYPE_URL = "type.googleapis.com/tensorflow.serving.SignatureDefMap"
# Answers up to this many values go in typed fields, as TensorFlow Serving's do;
# larger ones as one block of bytes, which Python writes a hundred times faster.
_TYPED_VALUES = 64
# How long a reload waits for new models at most.
_RELOAD_TIMEOUT = 300.0


class Handlers:
    """Answers requests from the served models.

    Args:
      models: What is served.
      metrics: Where runs are counted.
      on_reload: Called when an ordered configuration is about to be applied.
    """

    def __init__(
        self, models: Models, metrics: Metrics, on_reload: Callable[[], None] = lambda: None
    ) -> None:
        self._models = models
        self._metrics = metrics
        self._on_reload = on_reload

    def lease(self, spec: Any) -> contextlib.AbstractContextManager[Servable]:
        """Lends the servable that a ``ModelSpec`` names; see :meth:`Models.lease`."""
        if not spec.name:
            raise invalid_argument("ModelSpec has no name specified.")
        choice = spec.WhichOneof("version_choice")
        return self._models.lease(
            spec.name,
            spec.version.value if choice == "version" else None,
            spec.version_label if choice == "version_label" else None,
        )

    def predict(self, request: Any, deadline: float | None = None) -> Any:
        """Answers a ``PredictRequest`` with a ``PredictResponse``.

        Args:
          request: The message.
          deadline: On ``time.monotonic``'s clock.

        Raises:
          StatusError: As TensorFlow Serving.
        """
        with self.lease(_spec_of(request)) as servable:
            signature = signature_of(servable, request)
            inputs = decode_inputs(signature, request.inputs)
            aliases = select_outputs(signature, request.output_filter)
            outputs = self.run(servable, signature, inputs, aliases, deadline)
        response = protos.PredictResponse()
        _echo(response.model_spec, servable, signature.name)
        for alias, array in zip(aliases, outputs, strict=True):
            wire.fill_tensor(response.outputs[alias], array, typed=array.size <= _TYPED_VALUES)
        return response

    def run(
        self,
        servable: Servable,
        signature: Signature,
        inputs: Arrays,
        aliases: Sequence[str],
        deadline: float | None = None,
    ) -> list[np.ndarray[Any, Any]]:
        """Runs a signature and counts it; arguments and result as :meth:`Signature.run`."""
        started = time.monotonic()
        if deadline is not None and started >= deadline:
            raise StatusError(Code.DEADLINE_EXCEEDED, "Deadline exceeded before the run")
        outputs = signature.run(inputs, aliases)
        self._metrics.count_run(servable.name, (time.monotonic() - started) * 1e6)
        if contract.RECONSTRUCTION_ERROR in aliases:
            errors = outputs[list(aliases).index(contract.RECONSTRUCTION_ERROR)]
            if errors.dtype.kind == "f" and errors.size:
                self._metrics.count_reconstruction_error(
                    servable.name, servable.version, float(errors.sum()), errors.size
                )
        return outputs

    def metadata(self, request: Any) -> Any:
        """Answers a ``GetModelMetadataRequest`` from saved_model.pb."""
        spec = _spec_of(request)
        if not request.metadata_field:
            raise invalid_argument(
                "GetModelMetadataRequest must specify at least one metadata_field"
            )
        for name in request.metadata_field:
            if name != _SIGNATURE_DEF:
                raise invalid_argument(f"Metadata field {name} is not supported")
        response = protos.GetModelMetadataResponse()
        packed = response.metadata[_SIGNATURE_DEF]
        with self.lease(spec) as servable:
            _echo(response.model_spec, servable, "")
            packed.type_url, packed.value = _TYPE_URL, servable.signature_defs
        return response

    def status(self, request: Any) -> Any:
        """Answers a ``GetModelStatusRequest``; labels are ignored, as upstream."""
        spec = _spec_of(request)
        by_version = spec.WhichOneof("version_choice") == "version"
        response = protos.GetModelStatusResponse()
        for item in self._models.versions(spec.name, spec.version.value if by_version else None):
            entry = response.model_version_status.add(version=item.number, state=int(item.state))
            entry.status.SetInParent()
            if item.error is not None:
                entry.status.error_code = int(item.error.code)
                entry.status.error_message = item.error.message
        return response

    def reload(self, request: Any, deadline: float | None = None) -> Any:
        """Obeys a ``ReloadConfigRequest``; see :meth:`Models.reload`."""
        if request.config.WhichOneof("config") is None:
            raise invalid_argument("Request does not contain a ModelConfigList")
        models = settings_lib.models_of(request.config)
        left = _RELOAD_TIMEOUT if deadline is None else deadline - time.monotonic()
        self._models.reload(models, min(left, _RELOAD_TIMEOUT), lambda: self._on_reload() is None)
        _log.info("configuration reloaded: %s", ", ".join(sorted(models)) or "no models")
        response = protos.ReloadConfigResponse()
        response.status.SetInParent()
        return response


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


def run_request(servable: Servable, request: Any) -> dict[str, np.ndarray[Any, Any]]:
    """Runs a ``PredictRequest`` on a servable, uncounted; gives alias to array.

    Raises:
      StatusError: As TensorFlow Serving.
    """
    signature = signature_of(servable, request)
    inputs = decode_inputs(signature, request.inputs)
    aliases = select_outputs(signature, request.output_filter)
    return dict(zip(aliases, signature.run(inputs, aliases), strict=True))


def signature_of(servable: Servable, request: Any) -> Signature:
    """The signature that a ``PredictRequest`` names.

    Raises:
      StatusError: FAILED_PRECONDITION; the model has none of that name.
    """
    key = request.model_spec.signature_name or DEFAULT_SIGNATURE
    signature = servable.signatures.get(key)
    if signature is None:
        raise StatusError(Code.FAILED_PRECONDITION, f'Serving signature key "{key}" not found.')
    return signature


def decode_inputs(signature: Signature, tensors: Any) -> dict[str, np.ndarray[Any, Any]]:
    """A request's tensors as the signature's arrays.

    Shapes are the graph's business (TensorFlow Serving does not look at them).

    Args:
      signature: What is asked for.
      tensors: Alias to ``TensorProto``.

    Raises:
      StatusError: INVALID_ARGUMENT for a count, name, content or type that is
        not the signature's.
    """
    wanted = signature.inputs
    if len(tensors) != len(wanted):
        sent, known = sorted(tensors), list(wanted)
        raise invalid_argument(
            f"input size does not match signature: {len(sent)}!={len(known)} "
            f"len({{{','.join(sent)}}}) != len({{{','.join(known)}}}). Sent extra: "
            f"{{{','.join(sorted(set(sent) - set(known)))}}}. Missing but required: "
            f"{{{','.join(sorted(set(known) - set(sent)))}}}."
        )
    arrays = {}
    for index, (alias, info) in enumerate(wanted.items()):
        if alias not in tensors:
            raise invalid_argument(
                f"Signature input alias: {alias}(feed name: {info.name}) not found in request "
                "and no default value provided. Inputs expected to be in the request "
                f"{{{','.join(sorted(tensors))}}}, or default input alias set: "
            )
        try:
            arrays[alias] = wire.decode_tensor(tensors[alias])
        except wire.TensorError:
            raise invalid_argument(f"tensor parsing error: {alias}") from None
        if tensors[alias].dtype != info.dtype:
            raise invalid_argument(
                f"Expects arg[{index}] to be {wire.type_name(info.dtype)} but "
                f"{wire.type_name(tensors[alias].dtype)} is provided"
            )
    return arrays


def select_outputs(signature: Signature, output_filter: Iterable[str]) -> tuple[str, ...]:
    """The outputs that a request wants: those of its filter, or all.

    Raises:
      StatusError: INVALID_ARGUMENT for an unknown or repeated alias.
    """
    seen: list[str] = []
    for alias in output_filter:
        if alias not in signature.outputs:
            raise invalid_argument(
                f"output tensor alias not found in signature: {alias} Outputs expected to be in "
                f"the set {{{','.join(signature.outputs)}}}."
            )
        if alias in seen:
            raise invalid_argument(f"duplicate output tensor alias: {alias}")
        seen.append(alias)
    return tuple(sorted(seen)) or signature.output_aliases


def _spec_of(request: Any) -> Any:
    if not request.HasField("model_spec"):
        raise invalid_argument("Missing ModelSpec")
    return request.model_spec


def _echo(spec: Any, servable: Servable, signature: str) -> None:
    spec.name = servable.name
    spec.version.value = servable.version
    spec.signature_name = signature
