"""The gRPC services, on raw bytes: PredictionService, ModelService, Health."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from typing import Any

import grpc

from serving import protos
from serving.server import config as config_lib
from serving.server.inference import Inference
from serving.server.metrics import Metrics
from serving.server.status import Code, StatusError, from_exception, invalid_argument

_log = logging.getLogger(__name__)

PREDICTION_SERVICE = "tensorflow.serving.PredictionService"
MODEL_SERVICE = "tensorflow.serving.ModelService"
HEALTH_SERVICE = "grpc.health.v1.Health"
# How long a reload without a deadline waits for new models.
RELOAD_TIMEOUT = 300.0

_GRPC_CODES = {code.value[0]: code for code in grpc.StatusCode}
_Handler = Callable[[bytes, Any], bytes]


def _deadline(context: Any) -> float | None:
    left = context.time_remaining()
    return None if left is None or left > 1e7 else time.monotonic() + left


def _parse(cls: Any, data: bytes) -> Any:
    try:
        return cls.FromString(data)
    except Exception:
        raise StatusError(
            Code.INTERNAL, f"The request is not a {cls.DESCRIPTOR.full_name}"
        ) from None


def _answered(method: str, handler: _Handler) -> _Handler:
    """Turns exceptions into status codes; anything unexpected is logged on one line."""

    def handle(data: bytes, context: Any) -> bytes:
        try:
            return handler(data, context)
        except Exception as error:
            status = from_exception(error)
            if status.code is Code.INTERNAL:
                _log.warning("%s from %s: %s", method, context.peer(), _one_line(status.message))
            code = _GRPC_CODES.get(status.code, grpc.StatusCode.UNKNOWN)
        context.abort(code, status.grpc_message)
        raise AssertionError("abort raises")

    return handle


def _one_line(text: str) -> str:
    return " ".join(text.split())[:500]


class PredictionService:
    """Predict, Classify, Regress, MultiInference, GetModelMetadata.

    Args:
      inference: Answers.
      metrics: Counts.
    """

    def __init__(self, inference: Inference, metrics: Metrics) -> None:
        self._inference = inference
        self._metrics = metrics

    def predict(self, data: bytes, context: Any) -> bytes:
        """``Predict`` on serialised messages."""
        started = time.monotonic()
        request = _parse(protos.PredictRequest, data)
        return self._counted(
            request.model_spec.name,
            "predict",
            started,
            lambda: self._inference.predict(request, _deadline(context)),
        )

    def classify(self, data: bytes, context: Any) -> bytes:
        """``Classify`` on serialised messages."""
        return self._serialised(protos.ClassificationRequest, "classify", data, context)

    def regress(self, data: bytes, context: Any) -> bytes:
        """``Regress`` on serialised messages."""
        return self._serialised(protos.RegressionRequest, "regress", data, context)

    def multi_inference(self, data: bytes, context: Any) -> bytes:
        """``MultiInference`` on serialised messages."""
        return self._serialised(protos.MultiInferenceRequest, "multi_inference", data, context)

    def metadata(self, data: bytes, context: Any) -> bytes:
        """``GetModelMetadata`` on serialised messages."""
        del context
        request = _parse(protos.GetModelMetadataRequest, data)
        return self._inference.metadata(request).SerializeToString()

    def _serialised(self, cls: Any, api: str, data: bytes, context: Any) -> bytes:
        started = time.monotonic()
        request = _parse(cls, data)
        if api == "multi_inference":
            name = request.tasks[0].model_spec.name if request.tasks else ""
        else:
            name = request.model_spec.name
        method = getattr(self._inference, api)
        return self._counted(
            name,
            api,
            started,
            lambda: method(request, _deadline(context)).SerializeToString(),
        )

    def _counted(self, model: str, api: str, started: float, answer: Callable[[], bytes]) -> bytes:
        status = "OK"
        try:
            return answer()
        except Exception as error:
            status = from_exception(error).code.name
            raise
        finally:
            elapsed = (time.monotonic() - started) * 1e6
            self._metrics.count_request(model, status, api, "GRPC", elapsed)

    def handlers(self) -> Mapping[str, _Handler]:
        """Method name to handler."""
        return {
            "Predict": self.predict,
            "Classify": self.classify,
            "Regress": self.regress,
            "MultiInference": self.multi_inference,
            "GetModelMetadata": self.metadata,
        }


class ModelService:
    """GetModelStatus and HandleReloadConfigRequest.

    Args:
      inference: Its manager is asked.
      on_reload: Called when an ordered configuration is about to be applied.
    """

    def __init__(self, inference: Inference, on_reload: Callable[[], None] = lambda: None) -> None:
        assert inference.manager is not None
        self._manager = inference.manager
        self._on_reload = on_reload

    def status(self, data: bytes, context: Any) -> bytes:
        """``GetModelStatus`` on serialised messages."""
        del context
        return self.status_of(_parse(protos.GetModelStatusRequest, data)).SerializeToString()

    def status_of(self, request: Any) -> Any:
        """Answers a ``GetModelStatusRequest``; labels are ignored, as upstream."""
        if not request.HasField("model_spec"):
            raise invalid_argument("Missing ModelSpec")
        spec = request.model_spec
        by_version = spec.WhichOneof("version_choice") == "version"
        response = protos.GetModelStatusResponse()
        for item in self._manager.status(spec.name, spec.version.value if by_version else None):
            entry = response.model_version_status.add(version=item.version, state=int(item.state))
            entry.status.SetInParent()
            if item.error is not None:
                entry.status.error_code = int(item.error.code)
                entry.status.error_message = item.error.message
        return response

    def reload(self, data: bytes, context: Any) -> bytes:
        """``HandleReloadConfigRequest`` on serialised messages."""
        request = _parse(protos.ReloadConfigRequest, data)
        if request.config.WhichOneof("config") is None:
            raise invalid_argument("Request does not contain a ModelConfigList")
        models = config_lib.from_proto(request.config)
        left = context.time_remaining()
        timeout = RELOAD_TIMEOUT if left is None else min(left, RELOAD_TIMEOUT)
        self._manager.reload(models, timeout, lambda: self._on_reload() is None)
        _log.info("configuration reloaded: %s", ", ".join(sorted(models)) or "no models")
        response = protos.ReloadConfigResponse()
        response.status.SetInParent()
        return response.SerializeToString()

    def handlers(self) -> Mapping[str, _Handler]:
        """Method name to handler."""
        return {
            "GetModelStatus": self.status,
            "HandleReloadConfigRequest": self.reload,
        }


class HealthService:
    """``grpc.health.v1.Health``: Check, for the whole server and either service.

    ``Watch`` is left out (UNIMPLEMENTED, which clients take as healthy): in a
    threaded server each watcher would hold a worker.

    Args:
      healthy: Whether the server answers requests.
    """

    _SERVING = b"\x08\x01"
    _NOT_SERVING = b"\x08\x02"

    def __init__(self, healthy: Callable[[], bool]) -> None:
        self._healthy = healthy

    def check(self, data: bytes, context: Any) -> bytes:
        """``Check`` on serialised messages."""
        del context
        # HealthCheckRequest { string service = 1; }
        service = data[2:] if data[:1] == b"\x0a" and len(data) == 2 + data[1] else data
        if service not in (b"", PREDICTION_SERVICE.encode(), MODEL_SERVICE.encode()):
            raise StatusError(Code.NOT_FOUND, "unknown service")
        return self._SERVING if self._healthy() else self._NOT_SERVING

    def handlers(self) -> Mapping[str, _Handler]:
        """Method name to handler."""
        return {"Check": self.check}


def generic_handlers(services: Mapping[str, Mapping[str, _Handler]]) -> tuple[Any, ...]:
    """Wraps raw-bytes handlers for ``grpc.Server.add_generic_rpc_handlers``.

    Args:
      services: Service name to method name to handler.
    """
    return tuple(
        grpc.method_handlers_generic_handler(
            service,
            {
                method: grpc.unary_unary_rpc_method_handler(_answered(method, handler))
                for method, handler in handlers.items()
            },
        )
        for service, handlers in services.items()
    )
