"""The gRPC services, on raw bytes: PredictionService, ModelService, Health."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import grpc

from serving import protos
from serving.standin.handlers import Handlers
from serving.standin.metrics import Metrics
from serving.standin.status import Code, StatusError, from_exception

_log = logging.getLogger(__name__)

PREDICTION_SERVICE = "tensorflow.serving.PredictionService"
MODEL_SERVICE = "tensorflow.serving.ModelService"
HEALTH_SERVICE = "grpc.health.v1.Health"
# HealthCheckResponse { status: 1 } and { status: 2 }.
_SERVING, _NOT_SERVING = b"\x08\x01", b"\x08\x02"
# grpc_status_util.cc cuts what goes into the HTTP/2 trailer.
_MAX_MESSAGE = 1024

# A serialised request and gRPC's context to a serialised answer.
_Method = Callable[[bytes, Any], bytes]


def services(handlers: Handlers, metrics: Metrics, healthy: Callable[[], bool]) -> tuple[Any, ...]:
    """What ``grpc.Server.add_generic_rpc_handlers`` takes.

    Args:
      healthy: Whether the server answers requests.
    """

    def predict(data: bytes, _: Any) -> bytes:
        request = _parse(protos.PredictRequest, data)
        with metrics.counted(request.model_spec.name, "GRPC"):
            return handlers.predict(request)

    def metadata(data: bytes, _: Any) -> bytes:
        return handlers.metadata(_parse(protos.GetModelMetadataRequest, data)).SerializeToString()

    def status(data: bytes, _: Any) -> bytes:
        return handlers.status(_parse(protos.GetModelStatusRequest, data)).SerializeToString()

    def reload(data: bytes, context: Any) -> bytes:
        request = _parse(protos.ReloadConfigRequest, data)
        return handlers.reload(request, context.time_remaining()).SerializeToString()

    def check(data: bytes, _: Any) -> bytes:
        # HealthCheckRequest { string service = 1; }, shorter than 128 bytes.
        service = data[2:] if data[:1] == b"\x0a" else data
        # The names that TensorFlow Serving gives them here, without their package.
        if service not in (b"", b"PredictionService", b"ModelService"):
            raise StatusError(Code.NOT_FOUND, "unknown service")
        return _SERVING if healthy() else _NOT_SERVING

    methods: dict[str, dict[str, _Method]] = {
        PREDICTION_SERVICE: {"Predict": predict, "GetModelMetadata": metadata},
        MODEL_SERVICE: {"GetModelStatus": status, "HandleReloadConfigRequest": reload},
        # Watch is left out (UNIMPLEMENTED, which clients take as healthy): in
        # a threaded server each watcher would hold a worker.
        HEALTH_SERVICE: {"Check": check},
    }
    return tuple(
        grpc.method_handlers_generic_handler(
            service,
            {
                name: grpc.unary_unary_rpc_method_handler(_answered(name, method))
                for name, method in of_service.items()
            },
        )
        for service, of_service in methods.items()
    )


def _answered(name: str, method: _Method) -> _Method:
    """Turns exceptions into status codes; the unforeseen is logged on one line."""

    def handle(data: bytes, context: Any) -> bytes:
        try:
            return method(data, context)
        except Exception as error:
            status = from_exception(error)
        if status.code is Code.INTERNAL:
            _log.warning("%s from %s: %s", name, context.peer(), status.one_line)
        text = status.message
        cut = text if len(text) <= _MAX_MESSAGE else text[:_MAX_MESSAGE] + "...TRUNCATED"
        context.abort(status.code, cut)
        raise AssertionError("abort raises")

    return handle


def _parse(cls: Any, data: bytes) -> Any:
    try:
        return cls.FromString(data)
    except Exception:  # protobuf's DecodeError has no stable home
        raise StatusError(
            Code.INTERNAL, f"The request is not a {cls.DESCRIPTOR.full_name}"
        ) from None
