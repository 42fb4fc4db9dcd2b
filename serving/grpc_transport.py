"""A served model by TensorFlow Serving's gRPC API; gRPC is imported only when first used."""

from __future__ import annotations

import collections
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from serving import errors, protos, wire
from serving.transport import Address, Arrays, Transport, VersionStatus, statuses_of, translate

PREDICTION_SERVICE = "tensorflow.serving.PredictionService"
MODEL_SERVICE = "tensorflow.serving.ModelService"

# The largest answer taken, and requests under way at once when many are sent.
_MAX_MESSAGE_BYTES, _IN_FLIGHT = 256 * 2**20, 4
# gRPC makes no more and complains on stderr when told to.
_MOST_TRIES = 5


def _service_config(address: Address) -> str:
    """GRPC's service config: try again only what the server did not begin.

    CANCELLED, when nobody here cancelled, is a call that was cut off by a server
    that shuts down before a handler saw it.
    """
    policy = {
        "maxAttempts": min(1 + address.retries, _MOST_TRIES),
        "initialBackoff": "0.05s",
        "maxBackoff": "2s",
        "backoffMultiplier": 2,
        "retryableStatusCodes": ["UNAVAILABLE", "RESOURCE_EXHAUSTED", "CANCELLED"],
    }
    services = [{"service": service} for service in (PREDICTION_SERVICE, MODEL_SERVICE)]
    never = {"service": MODEL_SERVICE, "method": "HandleReloadConfigRequest"}
    return json.dumps(
        {
            "loadBalancingConfig": [{"round_robin": {}}],
            "methodConfig": [{"name": services, "retryPolicy": policy}, {"name": [never]}],
        }
    )


class GrpcTransport(Transport):
    """TensorFlow Serving's gRPC API. Usable from many threads."""

    def __init__(self, address: Address) -> None:
        import grpc

        self.address = address
        self._rpc_error = grpc.RpcError
        options: list[tuple[str, Any]] = [
            ("grpc.max_receive_message_length", _MAX_MESSAGE_BYTES),
            ("grpc.max_send_message_length", -1),
            ("grpc.initial_reconnect_backoff_ms", 100),
            ("grpc.min_reconnect_backoff_ms", 100),
            ("grpc.max_reconnect_backoff_ms", 1000),
            ("grpc.enable_retries", int(address.retries > 0)),
            # A request above this size is sent once only.
            ("grpc.per_rpc_retry_buffer_size", _MAX_MESSAGE_BYTES),
        ]
        if address.retries:
            options.append(("grpc.service_config", _service_config(address)))
        else:
            options.append(("grpc.lb_policy_name", "round_robin"))
        if address.tls is None:
            self._channel = grpc.insecure_channel(address.target, options=options)
        else:
            ca, certificate, key = address.tls.read()
            credentials = grpc.ssl_channel_credentials(ca, key, certificate)
            self._channel = grpc.secure_channel(address.target, credentials, options=options)
        self._predict = self._channel.unary_unary(f"/{PREDICTION_SERVICE}/Predict")

    def predict(self, signature: str, inputs: Arrays, outputs: Sequence[str]) -> Arrays:
        """Calls a signature; see :class:`serving.transport.Transport`."""
        return decode_response(self.predict_serialised(self.request(signature, inputs, outputs)))

    def request(self, signature: str, inputs: Arrays, outputs: Sequence[str]) -> bytes:
        """A serialised ``PredictRequest`` to this model."""
        model, choice = self.address.model, (self.address.version, self.address.label)
        request = wire.predict_request(model, signature, inputs, outputs, *choice)
        return request.SerializeToString()

    def predict_serialised(self, request: bytes) -> bytes:
        """Sends a serialised ``PredictRequest``; gives a serialised ``PredictResponse``."""
        return self._result(self._predict, request)

    def predict_many(
        self, signature: str, batches: Iterable[Arrays], outputs: Sequence[str]
    ) -> Iterator[Arrays]:
        """Calls a signature for each batch; several calls are under way at once."""
        waiting: collections.deque[Any] = collections.deque()
        try:
            for batch in batches:
                request = self.request(signature, batch, outputs)
                waiting.append(self._predict.future(request, timeout=self.address.timeout))
                if len(waiting) >= _IN_FLIGHT:
                    yield decode_response(self._result(waiting.popleft().result))
            while waiting:
                yield decode_response(self._result(waiting.popleft().result))
        finally:
            for future in waiting:
                future.cancel()

    def status(self) -> list[VersionStatus]:
        """The model's versions, highest first."""
        request = protos.GetModelStatusRequest()
        wire.fill_spec(request.model_spec, self.address.model, self.address.version)
        data = self._call(MODEL_SERVICE, "GetModelStatus", request)
        return statuses_of(protos.GetModelStatusResponse.FromString(data))

    def metadata(self) -> tuple[int, Any]:
        """The version that answers now, and its ``SignatureDefMap``."""
        response = self._metadata(self.address.version, self.address.label)
        definitions = protos.SignatureDefMap.FromString(response.metadata["signature_def"].value)
        return int(response.model_spec.version.value), definitions

    def version_of(self, label: str) -> int | None:
        """The version that answers for a label, or None; the status tells no labels."""
        try:
            return int(self._metadata(None, label).model_spec.version.value)
        except errors.ModelNotFoundError:
            return None

    def _metadata(self, version: int | None, label: str | None) -> Any:
        request = protos.GetModelMetadataRequest(metadata_field=["signature_def"])
        wire.fill_spec(request.model_spec, self.address.model, version, label)
        data = self._call(PREDICTION_SERVICE, "GetModelMetadata", request)
        return protos.GetModelMetadataResponse.FromString(data)

    def reload(self, config: Any) -> None:
        """Sends a ``ModelServerConfig`` with HandleReloadConfigRequest; never retried."""
        request = protos.ReloadConfigRequest(config=config)
        data = self._call(MODEL_SERVICE, "HandleReloadConfigRequest", request)
        status = protos.ReloadConfigResponse.FromString(data).status
        if status.error_code:
            raise errors.InvalidRequestError(
                f"{self.address.target}: the reload was refused: {status.error_message}"
            )

    def close(self) -> None:
        """Lets go of the connections."""
        self._channel.close()

    def _call(self, service: str, method: str, request: Any) -> bytes:
        call = self._channel.unary_unary(f"/{service}/{method}")
        return self._result(call, request.SerializeToString())

    def _result(self, call: Callable[..., bytes], *request: bytes) -> bytes:
        """What a call gives, or the exception that says what to do."""
        deadline = {"timeout": self.address.timeout} if request else {}
        try:
            return call(*request, **deadline)
        except self._rpc_error as error:
            code, details = error.code().name, error.details() or ""
        if code in ("UNAVAILABLE", "INTERNAL") and "http1" in details.lower():
            code, details = "UNAVAILABLE", "an HTTP/1 server: this may be the REST port"
        raise translate(code, details, self.address)


def decode_response(data: bytes) -> dict[str, np.ndarray[Any, Any]]:
    """Reads a serialised PredictResponse.

    Returns:
      Alias to array, writable.

    Raises:
      ServingError: Not a PredictResponse.
    """
    try:
        arrays = wire.read_predict_response(data)
    except wire.TensorError as error:
        raise errors.ServingError(f"the answer is not a PredictResponse: {error}") from None
    return {
        alias: array if array.flags.writeable else array.copy() for alias, array in arrays.items()
    }
