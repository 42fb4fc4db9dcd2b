"""The gRPC services, on raw bytes: PredictionService, ModelService, Health."""

from __future__ import annotations

import logging
import time
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

_GRPC_CODES = {code.value[0]: code for code in grpc.StatusCode}
# A serialised request and gRPC's context to a serialised answer.
_Method = Callable[[bytes, Any], bytes]


class GrpcApi:
    """The methods of the three services.

    Args:
      handlers: What requests mean.
      metrics: Counts.
      healthy: Whether the server answers requests.
    """

    def __init__(self, handlers: Handlers, metrics: Metrics, healthy: Callable[[], bool]) -> None:
        self._handlers = handlers
        self._metrics = metrics
        self._healthy = healthy

    def services(self) -> tuple[Any, ...]:
        """What ``grpc.Server.add_generic_rpc_handlers`` takes."""
        services: dict[str, dict[str, _Method]] = {
            PREDICTION_SERVICE: {"Predict": self.predict, "GetModelMetadata": self.metadata},
            MODEL_SERVICE: {
                "GetModelStatus": self.status,
                "HandleReloadConfigRequest": self.reload,
            },
            # Watch is left out (UNIMPLEMENTED, which clients take as healthy): in
            # a threaded server each watcher would hold a worker.
            HEALTH_SERVICE: {"Check": self.check},
        }
        return tuple(
            grpc.method_handlers_generic_handler(
                service,
                {
                    name: grpc.unary_unary_rpc_method_handler(_answered(name, method))
                    for name, method in methods.items()
                },
            )
            for service, methods in services.items()
        )

    def predict(self, data: bytes, context: Any) -> bytes:
        """``Predict``."""
        started = time.monotonic()
        request = _parse(protos.PredictRequest, data)
        status = Code.OK
        try:
            return self._handlers.predict(request, _deadline(context)).SerializeToString()
        except Exception as error:
            status = from_exception(error).code
            raise
        finally:
            elapsed = (time.monotonic() - started) * 1e6
            self._metrics.count_request(request.model_spec.name, status.name, "GRPC", elapsed)

    def metadata(self, data: bytes, context: Any) -> bytes:
        """``GetModelMetadata``."""
        request = _parse(protos.GetModelMetadataRequest, data)
        return self._handlers.metadata(request).SerializeToString()

    def status(self, data: bytes, context: Any) -> bytes:
        """``GetModelStatus``."""
        request = _parse(protos.GetModelStatusRequest, data)
        return self._handlers.status(request).SerializeToString()

    def reload(self, data: bytes, context: Any) -> bytes:
        """``HandleReloadConfigRequest``."""
        request = _parse(protos.ReloadConfigRequest, data)
        return self._handlers.reload(request, _deadline(context)).SerializeToString()

    def check(self, data: bytes, context: Any) -> bytes:
        """``Check`` of grpc.health.v1, for the whole server and either service."""
        # HealthCheckRequest { string service = 1; }, shorter than 128 bytes.
        service = data[2:] if data[:1] == b"\x0a" else data
        if service.decode("utf-8", "replace") not in ("", PREDICTION_SERVICE, MODEL_SERVICE):
            raise StatusError(Code.NOT_FOUND, "unknown service")
        return _SERVING if self._healthy() else _NOT_SERVING


def _answered(name: str, method: _Method) -> _Method:
    """Turns exceptions into status codes; the unforeseen is logged on one line."""

    def handle(data: bytes, context: Any) -> bytes:
        try:
            return method(data, context)
        except Exception as error:
            status = from_exception(error)
        if status.code is Code.INTERNAL:
            _log.warning("%s from %s: %s", name, context.peer(), status.one_line)
        context.abort(_GRPC_CODES[status.code], status.grpc_message)
        raise AssertionError("abort raises")

    return handle


def _parse(cls: Any, data: bytes) -> Any:
    try:
        return cls.FromString(data)
    except Exception:  # protobuf's DecodeError has no stable home
        raise StatusError(
            Code.INTERNAL, f"The request is not a {cls.DESCRIPTOR.full_name}"
        ) from None


def _deadline(context: Any) -> float | None:
    left = context.time_remaining()
    return None if left is None or left > 1e7 else time.monotonic() + left
