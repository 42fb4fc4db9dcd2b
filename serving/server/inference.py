"""What a request means: Predict, Classify, Regress, MultiInference, metadata.

Protocol-free: gRPC and REST both come here. Order and text of the checks
follow TensorFlow Serving (predict_util.cc, classifier.cc, regressor.cc,
multi_inference.cc, get_model_metadata_impl.cc).
"""

from __future__ import annotations

import time
import weakref
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from serving import contract, protos, wire
from serving.server.batching import BatchingParameters, BatchScheduler
from serving.server.manager import ModelManager
from serving.server.metrics import Metrics
from serving.server.sampling import Sampler
from serving.server.servable import (
    DEFAULT_SIGNATURE,
    Servable,
    Signature,
    TensorInfo,
    read_warmup_requests,
)
from serving.server.status import Code, StatusError, invalid_argument

Arrays = Mapping[str, np.ndarray[Any, Any]]

_CLASSIFY = "tensorflow/serving/classify"
_REGRESS = "tensorflow/serving/regress"
_SIGNATURE_DEF = "signature_def"
_TYPE_URL = "type.googleapis.com/tensorflow.serving.SignatureDefMap"


class Inference:
    """Answers requests from a manager's models.

    Args:
      manager: Holds the models; None where only :meth:`warm_up` and direct
        calls with a servable are wanted.
      metrics: Where runs are counted.
      batching: Gathers small requests when given.
      sampler: Is offered every request that was answered.
    """

    def __init__(
        self,
        manager: ModelManager | None = None,
        metrics: Metrics | None = None,
        batching: BatchingParameters | None = None,
        sampler: Sampler | None = None,
    ) -> None:
        self.manager = manager
        self._metrics = metrics
        self._batching = batching
        self._sampler = sampler
        self._schedulers: weakref.WeakKeyDictionary[Signature, BatchScheduler] = (
            weakref.WeakKeyDictionary()
        )

    # Choosing a model.

    def acquire(self, spec: Any) -> Servable:
        """The servable that a ``ModelSpec`` names; the caller releases it."""
        assert self.manager is not None
        if not spec.name:
            raise invalid_argument("ModelSpec has no name specified.")
        choice = spec.WhichOneof("version_choice")
        return self.manager.acquire(
            spec.name,
            spec.version.value if choice == "version" else None,
            spec.version_label if choice == "version_label" else None,
        )

    # Predict.

    def predict(self, request: Any, deadline: float | None = None) -> bytes:
        """Answers a ``PredictRequest``.

        Args:
          request: The message.
          deadline: On ``time.monotonic``'s clock.

        Returns:
          A serialised ``PredictResponse``.

        Raises:
          StatusError: As TensorFlow Serving.
        """
        if not request.HasField("model_spec"):
            raise invalid_argument("Missing ModelSpec")
        servable = self.acquire(request.model_spec)
        try:
            return self.predict_with(servable, request, deadline)
        finally:
            servable.release()

    def predict_with(
        self, servable: Servable, request: Any, deadline: float | None = None
    ) -> bytes:
        """As :meth:`predict`, with the servable already chosen."""
        key = request.model_spec.signature_name or DEFAULT_SIGNATURE
        signature = servable.signatures.get(key)
        if signature is None:
            raise StatusError(Code.FAILED_PRECONDITION, f'Serving signature key "{key}" not found.')
        inputs = decode_inputs(signature, request.inputs)
        aliases = select_outputs(signature, request.output_filter)
        outputs = self.run(servable, signature, inputs, aliases, deadline)
        spec = wire.model_spec(request.model_spec.name, servable.version, key)
        return wire.predict_response(spec, dict(zip(aliases, outputs, strict=True)))

    def run(
        self,
        servable: Servable,
        signature: Signature,
        inputs: Arrays,
        aliases: Sequence[str],
        deadline: float | None = None,
    ) -> list[np.ndarray[Any, Any]]:
        """Runs a signature, alone or in a batch, and counts it."""
        started = time.monotonic()
        if deadline is not None and started >= deadline:
            raise StatusError(Code.DEADLINE_EXCEEDED, "Deadline exceeded before the run")
        if self._batching is None:
            outputs = signature.run(inputs, aliases)
        else:
            outputs = self._scheduler(signature).run(inputs, aliases, deadline)
        if self._metrics is not None:
            self._metrics.count_run(servable.name, (time.monotonic() - started) * 1e6)
            if contract.RECONSTRUCTION_ERROR in aliases:
                errors = outputs[list(aliases).index(contract.RECONSTRUCTION_ERROR)]
                if errors.dtype.kind == "f" and errors.size:
                    self._metrics.count_reconstruction_error(
                        servable.name, float(errors.sum()), errors.size, servable.version
                    )
        if self._sampler is not None:
            self._sampler.offer(signature.name, inputs)
        return outputs

    def _scheduler(self, signature: Signature) -> BatchScheduler:
        scheduler = self._schedulers.get(signature)
        if scheduler is None:
            assert self._batching is not None
            scheduler = self._schedulers.setdefault(
                signature, BatchScheduler(signature, self._batching)
            )
        return scheduler

    # Classify, Regress, MultiInference.

    def classify(self, request: Any, deadline: float | None = None) -> Any:
        """Answers a ``ClassificationRequest`` with a ``ClassificationResponse``."""
        return self._infer_one(request, _CLASSIFY, protos.ClassificationResponse(), deadline)

    def regress(self, request: Any, deadline: float | None = None) -> Any:
        """Answers a ``RegressionRequest`` with a ``RegressionResponse``."""
        return self._infer_one(request, _REGRESS, protos.RegressionResponse(), deadline)

    def _infer_one(self, request: Any, method: str, response: Any, deadline: float | None) -> Any:
        if not request.HasField("model_spec"):
            raise invalid_argument("Missing ModelSpec")
        servable = self.acquire(request.model_spec)
        try:
            key = request.model_spec.signature_name or DEFAULT_SIGNATURE
            signature = servable.signatures.get(key)
            if signature is None:
                raise invalid_argument(f"No signature was found with the name: {key}")
            input_alias, output_aliases = _example_aliases(signature, method)
            outputs = self.run(
                servable, signature, {input_alias: _examples(request.input)}, output_aliases,
                deadline,
            )  # fmt: skip
            rows = len(_examples(request.input))
            _fill_result(
                method, response.result, dict(zip(output_aliases, outputs, strict=True)), rows
            )
            _echo(response.model_spec, request.model_spec.name, servable.version, key)
            return response
        finally:
            servable.release()

    def multi_inference(self, request: Any, deadline: float | None = None) -> Any:
        """Answers a ``MultiInferenceRequest``; the model is that of its first task."""
        if not request.tasks:
            raise invalid_argument("MultiInferenceRequest has no tasks")
        if not request.tasks[0].HasField("model_spec"):
            raise invalid_argument("Missing ModelSpec")
        servable = self.acquire(request.tasks[0].model_spec)
        try:
            return self._infer_tasks(servable, request, deadline)
        finally:
            servable.release()

    def _infer_tasks(self, servable: Servable, request: Any, deadline: float | None) -> Any:
        chosen: dict[str, tuple[Signature, str, str, list[str]]] = {}
        for task in request.tasks:
            spec = task.model_spec
            if not spec.name:
                raise invalid_argument("Found ModelSpec with an empty model name.")
            if spec.name != request.tasks[0].model_spec.name:
                raise invalid_argument(
                    "All ModelSpecs in a MultiInferenceRequest must access the same model name."
                )
            key = spec.signature_name or DEFAULT_SIGNATURE
            if key in chosen:
                raise invalid_argument(f"Duplicate evaluation of signature: {key}")
            signature = servable.signatures.get(key)
            if signature is None:
                raise invalid_argument(f"Requested signature not found in model graph: {key}")
            if task.method_name not in (_CLASSIFY, _REGRESS):
                raise StatusError(
                    Code.UNIMPLEMENTED, f"Unsupported signature method_name: {task.method_name}"
                )
            alias, outputs = _example_aliases(signature, task.method_name)
            chosen[key] = (signature, task.method_name, alias, outputs)
        names = {signature.inputs[alias].name for signature, _, alias, _ in chosen.values()}
        if len(names) != 1:
            raise invalid_argument("Input tensor must be the same for all Signatures.")
        examples = _examples(request.input)
        response = protos.MultiInferenceResponse()
        for key, (signature, method, alias, outputs) in chosen.items():
            arrays = self.run(servable, signature, {alias: examples}, outputs, deadline)
            result = response.results.add()
            part = result.classification_result if method == _CLASSIFY else result.regression_result
            _fill_result(method, part, dict(zip(outputs, arrays, strict=True)), len(examples))
            _echo(result.model_spec, servable.name, servable.version, key)
        return response

    # Metadata.

    def metadata(self, request: Any) -> Any:
        """Answers a ``GetModelMetadataRequest`` from saved_model.pb."""
        if not request.HasField("model_spec"):
            raise invalid_argument("Missing ModelSpec")
        if not request.metadata_field:
            raise invalid_argument(
                "GetModelMetadataRequest must specify at least one metadata_field"
            )
        for name in request.metadata_field:
            if name != _SIGNATURE_DEF:
                raise invalid_argument(f"Metadata field {name} is not supported")
        servable = self.acquire(request.model_spec)
        try:
            response = protos.GetModelMetadataResponse()
            _echo(response.model_spec, servable.name, servable.version, "")
            packed = response.metadata[_SIGNATURE_DEF]
            packed.type_url = _TYPE_URL
            packed.value = servable.signature_defs
            return response
        finally:
            servable.release()

    # Warm-up.

    def warm_up(self, servable: Servable) -> None:
        """Replays the version's warm-up requests; any failure fails the load.

        Raises:
          StatusError: The first record that failed, or an unreadable file.
        """
        for record in read_warmup_requests(servable.path):
            log = protos.PredictionLog.FromString(record)
            kind = log.WhichOneof("log_type")
            if kind == "predict_log":
                self.predict_with(servable, log.predict_log.request)
            elif kind in ("classify_log", "regress_log"):
                request = getattr(log, kind).request
                method = _CLASSIFY if kind == "classify_log" else _REGRESS
                key = request.model_spec.signature_name or DEFAULT_SIGNATURE
                signature = servable.signatures.get(key)
                if signature is None:
                    raise invalid_argument(f"No signature was found with the name: {key}")
                alias, outputs = _example_aliases(signature, method)
                signature.run({alias: _examples(request.input)}, outputs)
            else:
                raise StatusError(Code.UNIMPLEMENTED, f"Unsupported log_type for warmup: {kind}")


def decode_inputs(signature: Signature, tensors: Any) -> dict[str, np.ndarray[Any, Any]]:
    """Turns a request's tensors into the signature's arrays.

    Shapes are the graph's business (TensorFlow Serving does not look at them).

    Raises:
      StatusError: INVALID_ARGUMENT for a count, name, content or type that is
        not the signature's.
    """
    wanted = signature.inputs
    if len(tensors) > len(wanted) or (len(tensors) < len(wanted) and not signature.defaults):
        sent, known = sorted(tensors), list(wanted)
        raise invalid_argument(
            f"input size does not match signature: {len(sent)}!={len(known)} "
            f"len({{{','.join(sent)}}}) != len({{{','.join(known)}}}). Sent extra: "
            f"{{{','.join(sorted(set(sent) - set(known)))}}}. Missing but required: "
            f"{{{','.join(sorted(set(known) - set(sent)))}}}."
        )
    arrays = {}
    for index, (alias, info) in enumerate(wanted.items()):
        if alias in tensors:
            arrays[alias] = _decode_input(alias, info, tensors[alias], index)
        elif alias in signature.defaults:
            arrays[alias] = signature.defaults[alias]
        else:
            raise invalid_argument(
                f"Signature input alias: {alias}(feed name: {info.name}) not found in request "
                "and no default value provided. Inputs expected to be in the request "
                f"{{{','.join(sorted(tensors))}}}, or default input alias set: "
                f"{','.join(sorted(signature.defaults))}"
            )
    return arrays


def _decode_input(alias: str, info: TensorInfo, proto: Any, index: int) -> Any:
    try:
        array = wire.decode_tensor(proto)
    except wire.TensorError:
        raise invalid_argument(f"tensor parsing error: {alias}") from None
    if proto.dtype != info.dtype:
        raise invalid_argument(
            f"Expects arg[{index}] to be {wire.type_name(info.dtype)} but "
            f"{wire.type_name(proto.dtype)} is provided"
        )
    return array


def select_outputs(signature: Signature, output_filter: Iterable[str]) -> tuple[str, ...]:
    """The outputs a request wants: those of its filter, or all.

    Raises:
      StatusError: INVALID_ARGUMENT for an unknown or repeated alias.
    """
    if not output_filter:
        return signature.output_aliases
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
    return tuple(sorted(seen))


def _example_aliases(signature: Signature, method: str) -> tuple[str, list[str]]:
    """The input and output aliases of a classify or regress signature."""
    inputs, outputs = signature.inputs, signature.outputs
    if len(inputs) != 1:
        raise invalid_argument("Expected one input Tensor.")
    if method == _CLASSIFY:
        if len(outputs) not in (1, 2):
            raise invalid_argument(f"Expected one or two output Tensors, found {len(outputs)}")
        if "inputs" not in inputs:
            raise invalid_argument(
                f"No classification inputs found in SignatureDef: {signature.debug_string}"
            )
        found = [alias for alias in ("classes", "scores") if alias in outputs]
        if not found:
            raise invalid_argument(
                "Expected classification signature outputs to contain at least one of "
                f'"classes" or "scores". Signature was: {signature.debug_string}'
            )
        return "inputs", found
    if len(outputs) != 1:
        raise invalid_argument("Expected one output Tensor.")
    if "inputs" not in inputs:
        raise invalid_argument(
            f"No regression inputs found in SignatureDef: {signature.debug_string}"
        )
    if "outputs" not in outputs:
        raise invalid_argument(
            f"No regression outputs found in SignatureDef: {signature.debug_string}"
        )
    return "inputs", ["outputs"]


def _examples(source: Any) -> np.ndarray[Any, Any]:
    """The serialised tf.Examples of an ``Input`` as a string tensor."""
    kind = source.WhichOneof("kind")
    if kind == "example_list":
        items = [item.SerializeToString() for item in source.example_list.examples]
    elif kind == "example_list_with_context":
        # Features of both: concatenated messages merge, the example's win.
        context = source.example_list_with_context.context.SerializeToString()
        items = [
            context + item.SerializeToString() for item in source.example_list_with_context.examples
        ]
    else:
        items = []
    if not items:
        raise invalid_argument("Input is empty.")
    array = np.empty(len(items), object)
    array[:] = items
    return array


def _fill_result(method: str, result: Any, outputs: Arrays, rows: int) -> None:
    if method == _REGRESS:
        values = outputs["outputs"]
        if values.size != rows:
            raise invalid_argument(
                f"Expected output batch size to be {rows}. Got: {values.shape[0]}"
            )
        for value in values.reshape(-1).tolist():
            result.regressions.add(value=value)
        return
    for name, values in outputs.items():
        if values.ndim != 2:
            shape = ",".join(map(str, values.shape))
            raise invalid_argument(
                f"Expected Tensor shape: [batch_size num_classes] but got [{shape}]"
            )
        if values.shape[0] != rows:
            raise invalid_argument(
                f"Expected {name} output batch size of {rows}. Got: {values.shape[0]}"
            )
    labels, scores = outputs.get("classes"), outputs.get("scores")
    columns = (labels if labels is not None else outputs["scores"]).shape[1]
    for row in range(rows):
        classes = result.classifications.add()
        for column in range(columns):
            entry = classes.classes.add()
            if labels is not None:
                entry.label = labels[row, column].decode("utf-8", "replace")
            if scores is not None:
                entry.score = scores[row, column]


def _echo(spec: Any, name: str, version: int, signature: str) -> None:
    spec.name = name
    spec.version.value = version
    spec.signature_name = signature
