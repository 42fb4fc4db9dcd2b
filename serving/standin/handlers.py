"""What a request means: Predict, GetModelMetadata, GetModelStatus, reload.

Protocol-free: gRPC and REST both come here. Order and text of the checks
follow TensorFlow Serving (get_model_metadata_impl.cc, get_model_status_impl.cc,
server_core.cc).
"""

from __future__ import annotations

import contextlib
import logging
import time
from typing import Any

import numpy as np

from serving import contract, protos, wire
from serving.play import Served
from serving.standin.metrics import Metrics
from serving.standin.models import Models
from serving.standin.predict import Order, read_request
from serving.standin.servable import Servable
from serving.standin.settings import models_of
from serving.standin.status import StatusError, invalid_argument

_log = logging.getLogger(__name__)
_SIGNATURE_DEF = "signature_def"
# Seconds that a reload waits for new models at most.
RELOAD_TIMEOUT = 300.0


class Handlers:
    """Answers requests from the served models; every method raises ``StatusError``."""

    def __init__(self, models: Models, metrics: Metrics) -> None:
        self._models = models
        self._metrics = metrics

    def lease(self, spec: Any) -> Servable:
        """Lends the servable that a ``ModelSpec`` names; see :meth:`Models.lease`."""
        if not spec.name:
            raise invalid_argument("ModelSpec has no name specified.")
        choice = spec.WhichOneof("version_choice")
        return self._models.lease(
            spec.name,
            spec.version.value if choice == "version" else None,
            spec.version_label if choice == "version_label" else None,
        )

    def predict(self, request: Any) -> bytes:
        """Answers a ``PredictRequest`` with a serialised ``PredictResponse``."""
        with self.lease(_spec_of(request)) as servable:
            order = read_request(servable, request)
            outputs = self.run(servable, order)
        named = zip(order.aliases, outputs, strict=True)
        return wire.predict_response(servable.name, servable.version, order.signature.name, named)

    def run(self, servable: Servable, order: Order) -> list[np.ndarray[Any, Any]]:
        """Runs a signature and counts it; one array an alias."""
        started = time.monotonic()
        outputs = order.signature.run(order.inputs, order.aliases)
        self._metrics.count_run(servable.name, (time.monotonic() - started) * 1e6)
        if contract.RECONSTRUCTION_ERROR in order.aliases:
            errors = outputs[order.aliases.index(contract.RECONSTRUCTION_ERROR)]
            if errors.dtype.kind == "f" and errors.size:
                self._metrics.count_reconstruction_error(
                    servable.name, servable.version, float(errors.sum()), errors.size
                )
        return outputs

    def metadata(self, request: Any) -> Any:
        """Answers a ``GetModelMetadataRequest`` from saved_model.pb."""
        spec = _spec_of(request)
        if not request.metadata_field:
            text = "GetModelMetadataRequest must specify at least one metadata_field"
            raise invalid_argument(text)
        for name in request.metadata_field:
            if name != _SIGNATURE_DEF:
                raise invalid_argument(f"Metadata field {name} is not supported")
        response = protos.GetModelMetadataResponse()
        packed = response.metadata[_SIGNATURE_DEF]
        packed.type_url = "type.googleapis.com/tensorflow.serving.SignatureDefMap"
        with self.lease(spec) as servable:
            wire.fill_spec(response.model_spec, servable.name, servable.version)
            packed.value = servable.signature_defs
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
                entry.status.error_code = item.error.code.value[0]
                entry.status.error_message = item.error.message
        return response

    def served(self) -> dict[str, Served]:
        """What answers for each model that has a version loaded."""
        found = {}
        for name in self._models.available():
            with contextlib.suppress(StatusError), self._models.lease(name) as servable:
                signatures = servable.signatures.items()
                found[name] = Served(servable.version, {k: list(s.inputs) for k, s in signatures})
        return found

    def reload(self, request: Any, seconds: float | None) -> Any:
        """Obeys a ``ReloadConfigRequest`` within ``seconds``; see :meth:`Models.reload`."""
        if request.config.WhichOneof("config") is None:
            raise invalid_argument("Request does not contain a ModelConfigList")
        models = models_of(request.config)
        self._models.reload(models, min(seconds or RELOAD_TIMEOUT, RELOAD_TIMEOUT))
        _log.info("configuration reloaded: %s", ", ".join(sorted(models)) or "no models")
        response = protos.ReloadConfigResponse()
        response.status.SetInParent()
        return response


def _spec_of(request: Any) -> Any:
    if not request.HasField("model_spec"):
        raise invalid_argument("Missing ModelSpec")
    return request.model_spec
