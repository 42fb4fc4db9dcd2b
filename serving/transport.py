"""How a served model is reached: by gRPC here, by REST, or straight from its folder.

Each way takes arrays and gives arrays; :mod:`serving.client` gives them meaning.
gRPC is imported only when first used.
"""

from __future__ import annotations

import collections
import dataclasses
import json
import pathlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from serving import errors, protos, wire

Arrays = Mapping[str, np.ndarray[Any, Any]]
PREDICTION_SERVICE = "tensorflow.serving.PredictionService"
MODEL_SERVICE = "tensorflow.serving.ModelService"

# gRPC makes no more and complains on stderr when told to.
_GRPC_MOST_TRIES = 5


@dataclasses.dataclass(frozen=True)
class VersionStatus:
    """The state of one version on a server.

    Attributes:
      version: Its number.
      state: ``START``, ``LOADING``, ``AVAILABLE``, ``UNLOADING`` or ``END``.
      error: Why it failed; empty when all is well.
    """

    version: int
    state: str
    error: str = ""


@dataclasses.dataclass(frozen=True)
class Tls:
    """Certificates of a client, as PEM files.

    Attributes:
      ca: The authority that signed the server's certificate.
      certificate: The client's own chain, for mutual TLS.
      key: Its private key.
    """

    ca: str
    certificate: str | None = None
    key: str | None = None

    def read(self) -> tuple[bytes, bytes | None, bytes | None]:
        """The three files' contents.

        Raises:
          InputError: A file cannot be read.
        """
        try:
            return (
                pathlib.Path(self.ca).read_bytes(),
                pathlib.Path(self.certificate).read_bytes() if self.certificate else None,
                pathlib.Path(self.key).read_bytes() if self.key else None,
            )
        except OSError as error:
            raise errors.InputError(f"cannot read {error.filename}: {error.strerror}") from None


@dataclasses.dataclass(frozen=True)
class Address:
    """Which model of which server, and how patiently.

    Attributes:
      target: ``host:port``.
      model: The model's name.
      version: A version number; None for the latest.
      label: A version label; excludes ``version``.
      timeout: Seconds for one request, retries included.
      retries: Further tries when the server is not there or busy.
      tls: Certificates; None for plain text.
      max_message_bytes: The largest answer taken.
    """

    target: str
    model: str
    version: int | None = None
    label: str | None = None
    timeout: float = 10.0
    retries: int = 3
    tls: Tls | None = None
    max_message_bytes: int = 256 * 2**20


class Transport(Protocol):
    """What :class:`serving.client.ReconstructionClient` needs."""

    def predict(self, signature: str, inputs: Arrays, outputs: Sequence[str]) -> Arrays:
        """Calls a signature.

        Args:
          signature: Its key.
          inputs: Alias to array.
          outputs: The aliases wanted.
        """

    def predict_many(
        self, signature: str, batches: Iterable[Arrays], outputs: Sequence[str]
    ) -> Iterator[Arrays]:
        """Calls a signature for each batch; answers come in order."""

    def status(self) -> list[VersionStatus]:
        """The model's versions, highest first."""

    def signature_defs(self) -> Any:
        """The model's ``SignatureDefMap``."""

    def close(self) -> None:
        """Lets go of connections."""


def translate(code: str, details: str, address: Address) -> errors.ServingError:
    """The exception for a status code, with what to do about it.

    Args:
      code: gRPC's name of it.
      details: The server's message.
      address: What was asked.
    """
    where = f"{address.target}, model {address.model!r}"
    text = " ".join(details.split())[:600]
    if code in ("UNAVAILABLE", "CANCELLED"):
        hint = "start a server with `mnist-ae serve`, or correct host and port"
        if "full" in text and "queue" in text:
            return errors.ServerBusyError(f"{where}: {text}; send less at once", code=code)
        return errors.ServerUnavailableError(
            f"no server answers at {address.target} ({text}); {hint}", code=code
        )
    if code == "DEADLINE_EXCEEDED":
        return errors.DeadlineExceededError(
            f"{where}: no answer within {address.timeout:g} s; raise the timeout, or check that "
            "this is a gRPC port",
            code=code,
        )
    if code == "NOT_FOUND" or "Unrecognized servable version label" in text:
        return errors.ModelNotFoundError(
            f"{where}: {text}; `mnist-ae status` shows what is served", code=code
        )
    if code == "RESOURCE_EXHAUSTED":
        return errors.ServerBusyError(f"{where}: {text}; send smaller batches or wait", code=code)
    if code in (
        "INVALID_ARGUMENT",
        "FAILED_PRECONDITION",
        "OUT_OF_RANGE",
        "UNIMPLEMENTED",
    ):
        return errors.InvalidRequestError(f"{where}: the server refused: {text}", code=code)
    return errors.ServingError(f"{where}: {code}: {text}", code=code)


def _service_config(address: Address) -> str:
    """GRPC's service config: try again only what the server did not begin.

    CANCELLED, when nobody here cancelled, is a call that was cut off by a server
    that shuts down before a handler saw it.
    """
    policy = {
        "maxAttempts": min(1 + address.retries, _GRPC_MOST_TRIES),
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


class GrpcTransport:
    """TensorFlow Serving's gRPC API. Usable from many threads.

    Args:
      address: Whom to call.
      in_flight: Requests under way at once when many are sent.
    """

    def __init__(self, address: Address, in_flight: int = 4) -> None:
        import grpc

        self.address = address
        self._in_flight = in_flight
        self._rpc_error = grpc.RpcError
        options: list[tuple[str, Any]] = [
            ("grpc.max_receive_message_length", address.max_message_bytes),
            ("grpc.max_send_message_length", -1),
            ("grpc.initial_reconnect_backoff_ms", 100),
            ("grpc.min_reconnect_backoff_ms", 100),
            ("grpc.max_reconnect_backoff_ms", 1000),
            ("grpc.enable_retries", int(address.retries > 0)),
            # A request above this size is sent once only.
            ("grpc.per_rpc_retry_buffer_size", address.max_message_bytes),
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
        """Calls a signature; see :class:`Transport`."""
        return decode_response(self.predict_serialised(self.request(signature, inputs, outputs)))

    def request(self, signature: str, inputs: Arrays, outputs: Sequence[str]) -> bytes:
        """A serialised ``PredictRequest`` to this model."""
        address = self.address
        request = wire.predict_request(
            address.model,
            signature,
            inputs,
            outputs,
            version=address.version,
            label=address.label,
        )
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
                if len(waiting) >= self._in_flight:
                    yield decode_response(self._result(waiting.popleft().result))
            while waiting:
                yield decode_response(self._result(waiting.popleft().result))
        finally:
            for future in waiting:
                future.cancel()

    def status(self) -> list[VersionStatus]:
        """The model's versions, highest first."""
        request = protos.GetModelStatusRequest()
        request.model_spec.name = self.address.model
        if self.address.version is not None:
            request.model_spec.version.value = self.address.version
        data = self._call(MODEL_SERVICE, "GetModelStatus", request)
        return statuses_of(protos.GetModelStatusResponse.FromString(data))

    def signature_defs(self) -> Any:
        """The model's ``SignatureDefMap``."""
        address = self.address
        request = protos.GetModelMetadataRequest(metadata_field=["signature_def"])
        request.model_spec.name = address.model
        if address.version is not None:
            request.model_spec.version.value = address.version
        elif address.label is not None:
            request.model_spec.version_label = address.label
        data = self._call(PREDICTION_SERVICE, "GetModelMetadata", request)
        response = protos.GetModelMetadataResponse.FromString(data)
        return protos.SignatureDefMap.FromString(response.metadata["signature_def"].value)

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


def statuses_of(response: Any) -> list[VersionStatus]:
    """The versions in a ``GetModelStatusResponse``, highest first."""
    state = protos.ModelVersionStatus.State
    found = [
        VersionStatus(
            item.version,
            state.Name(item.state) if item.state in state.values() else str(item.state),
            item.status.error_message,
        )
        for item in response.model_version_status
    ]
    return sorted(found, key=lambda item: item.version, reverse=True)
