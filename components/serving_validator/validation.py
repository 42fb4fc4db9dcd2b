"""Tries a model the way a server will use it, before it is pushed.

The candidate is served by a process of its own, with its warm-up requests, and
called over gRPC with real images. Answers must be those of the model as Python
loads it, have their shapes and be finite; and one image must be answered within
the latency budget. That is measured again before a model is refused for it: a
busy machine is no fault of the model.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import portpicker
import tensorflow as tf

from components import features
from serving import contract, launcher, protos, wire
from serving.errors import ServerStartError, ServingError
from serving.grpc_transport import GrpcTransport
from serving.standin.predict import WARMUP_FILE
from serving.transport import Address

Arrays = Mapping[str, np.ndarray[Any, Any]]

# What the contract always has; a candidate without it serves nobody.
REQUIRED = (contract.SERVING_DEFAULT, contract.RECONSTRUCT, contract.SCORE)
# One single-threaded call and one batched one differ in the last bits.
_RTOL, _ATOL = 1e-4, 1e-5
# Thresholded outputs may flip where a float sits on the edge.
_FLIPS = 0.02
# For the server to come up.
_START_SECONDS = 120.0
_WARMUP_BATCH_SIZES = (1, 32)
_LATENCY_CALLS = 50
_LATENCY_ROUNDS = 3
_LATENCY_PAUSE_SECONDS = 2.0
# What a candidate can be refused for although nothing is wrong with its answers.
LATENCY = "latency"


@dataclasses.dataclass(frozen=True)
class TrialExamples:
    """Real examples to call a candidate with.

    Attributes:
      examples: Serialised tf.Examples, object [n].
      images: uint8 [n, 28, 28].
      labels: int64 [n]; zeros where the examples have none.
    """

    examples: np.ndarray[Any, Any]
    images: np.ndarray[Any, Any]
    labels: np.ndarray[Any, Any]

    @classmethod
    def from_examples(cls, serialized: Sequence[bytes]) -> TrialExamples:
        """Reads ``image`` and ``label`` out of serialised tf.Examples.

        Raises:
          ServingError: None given, or one without an image of 784 bytes.
        """
        if not serialized:
            raise ServingError("no examples to validate with; is the split empty?")
        shape = (len(serialized), contract.IMAGE_HEIGHT, contract.IMAGE_WIDTH)
        try:
            parsed = tf.io.parse_example(serialized, features.feature_spec())
            pixels = tf.io.decode_raw(parsed[features.IMAGE], tf.uint8)
            images = tf.reshape(pixels, shape).numpy()
        except tf.errors.InvalidArgumentError:
            raise ServingError(
                f"an example has no feature {features.IMAGE!r} of {features.IMAGE_BYTES} bytes"
            ) from None
        labels = np.maximum(parsed[features.LABEL].numpy(), 0)
        return cls(np.array(serialized, object), images, labels)


@dataclasses.dataclass
class Report:
    """The outcome.

    Attributes:
      problems: Why the candidate is not to be pushed; empty when it is.
      latency_ms: 95th percentile of one image over gRPC; None if not measured.
      refused_for: :data:`LATENCY` where that is the only problem, else "".
    """

    problems: list[str] = dataclasses.field(default_factory=list)
    signatures: list[str] = dataclasses.field(default_factory=list)
    latency_ms: float | None = None
    refused_for: str = ""
    backend: str = ""
    seconds: float = 0.0

    @property
    def passed(self) -> bool:
        """Whether the candidate may be pushed."""
        return not self.problems


def validate(version_path: str, samples: TrialExamples, *, latency_budget_ms: float) -> Report:
    """Gives a candidate its warm-up requests, and tries it.

    Args:
      version_path: ``<anything>/<model name>/<version number>``.
      latency_budget_ms: Milliseconds for one image over gRPC, 95th percentile.

    Returns:
      The report; a candidate that fails is no exception.
    """
    started = time.monotonic()
    path = pathlib.Path(version_path)
    report = Report(backend="binary" if shutil.which(launcher.BINARY) else "embedded")
    with contextlib.ExitStack() as stack:
        try:
            # Its variables live as long as it does.
            loaded = tf.saved_model.load(version_path)
            signatures = loaded.signatures
            if missing := [key for key in REQUIRED if key not in signatures]:
                raise ServingError(f"signatures are missing: {', '.join(missing)}")
            inputs = _inputs(signatures, samples)
            _write_warmup_requests(path, inputs)
            target = stack.enter_context(_served(path.parent, report.backend))
        except Exception as error:
            report.problems.append(_one_line(error))
        else:
            transport = GrpcTransport(Address(target, path.parent.name, timeout=60.0))
            stack.enter_context(contextlib.closing(transport))
            for key in sorted(signatures):
                _try(key, signatures[key], inputs[key], transport, report)
            if report.passed:
                _measure(transport, samples, latency_budget_ms, report)
    report.seconds = time.monotonic() - started
    return report


def _inputs(signatures: Mapping[str, Any], samples: TrialExamples) -> dict[str, Arrays]:
    """What each signature is called with."""
    known = {
        contract.EXAMPLES: samples.examples,
        contract.IMAGES: samples.images,
        contract.LABEL: samples.labels,
        contract.SEED: np.arange(len(samples.images), dtype=np.int64),
    }
    if contract.ENCODE in signatures:
        encode = signatures[contract.ENCODE]
        known[contract.CODE] = encode(images=tf.constant(samples.images))[contract.CODE].numpy()
    inputs: dict[str, Arrays] = {}
    for key, signature in signatures.items():
        wanted = signature.structured_input_signature[1]
        if unknown := [alias for alias in wanted if alias not in known]:
            raise ServingError(f"{key}: inputs that the contract lacks: {', '.join(unknown)}")
        inputs[key] = {alias: known[alias] for alias in wanted}
    return inputs


def _write_warmup_requests(version_path: pathlib.Path, inputs: Mapping[str, Arrays]) -> None:
    """Asks each signature at each batch size when a server loads the version."""
    file = version_path / WARMUP_FILE
    file.parent.mkdir(parents=True, exist_ok=True)
    with tf.io.TFRecordWriter(str(file)) as writer:
        for key, arrays in inputs.items():
            for size in _WARMUP_BATCH_SIZES:
                batch = {alias: array[:size] for alias, array in arrays.items()}
                log = protos.PredictionLog()
                request = wire.predict_request(version_path.parent.name, key, batch)
                log.predict_log.request.CopyFrom(request)
                writer.write(log.SerializeToString())


@contextlib.contextmanager
def _served(folder: pathlib.Path, backend: str) -> Iterator[str]:
    """A server of the candidate as a process, once it answers: its ``host:port``."""
    port, rest_port = portpicker.pick_unused_port(), portpicker.pick_unused_port()
    home = str(pathlib.Path(__file__).resolve().parents[2])
    path = os.pathsep.join(filter(None, [home, os.environ.get("PYTHONPATH")]))
    command = [sys.executable, "-m", "serving", str(folder), "--backend", backend]
    command += ["--port", str(port), "--rest-port", str(rest_port)]
    command += ["--drain-seconds", "1", "--load-retries", "0"]
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(
            command,
            stdout=log,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            env={**os.environ, "PYTHONPATH": path},
        )
        try:
            target = f"127.0.0.1:{port}"
            if problem := _problem_of_start(
                process, Address(target, folder.name, timeout=2.0, retries=0)
            ):
                log.seek(0)
                said = log.read().decode("utf-8", "replace").strip().splitlines()
                last_words = said[-1].removeprefix("mnist-ae: error: ") if said else "no word of it"
                raise ServerStartError(f"{problem}: {last_words}")
            yield target
        finally:
            process.terminate()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _problem_of_start(process: subprocess.Popen[bytes], address: Address) -> str:
    """Waits for the model of a server to be available, or says why it is not."""
    end = time.monotonic() + _START_SECONDS
    with contextlib.closing(GrpcTransport(address)) as transport:
        while time.monotonic() < end:
            if process.poll() is not None:
                return "the server does not take it"
            with contextlib.suppress(ServingError):
                if any(item.state == "AVAILABLE" for item in transport.status()):
                    return ""
            time.sleep(0.1)
    return f"not available within {_START_SECONDS:g} s"


def _try(
    key: str, signature: Any, inputs: Arrays, transport: GrpcTransport, report: Report
) -> None:
    """Compares the server's answers with the contract's shapes and with Python's."""
    try:
        answers = transport.predict(key, inputs, ())
        outputs = signature(**{alias: tf.constant(array) for alias, array in inputs.items()})
    except Exception as error:
        report.problems.append(f"{key}: {_one_line(error)}")
        return
    report.signatures.append(key)
    report.problems += _check(key, signature.structured_outputs, answers, inputs)
    expected = {alias: value.numpy() for alias, value in outputs.items()}
    report.problems += _compare(key, answers, expected)


def _check(
    key: str, outputs: Mapping[str, tf.TensorSpec], answers: Arrays, inputs: Arrays
) -> list[str]:
    problems = []
    rows = len(next(iter(inputs.values())))
    pictures = (rows, contract.IMAGE_HEIGHT, contract.IMAGE_WIDTH)
    by_contract: dict[str, tuple[int, ...]] = {
        contract.RECONSTRUCTION: pictures,
        contract.IMAGES: pictures,
        contract.RECONSTRUCTION_ERROR: (rows,),
        contract.ANOMALY_SCORE: (rows,),
        contract.IS_ANOMALY: (rows,),
        contract.LABEL: (rows,),
        contract.PROBABILITIES: (rows, contract.NUM_CLASSES),
    }
    for alias, spec in outputs.items():
        if alias not in answers:
            problems.append(f"{key}: the answer lacks {alias}")
            continue
        array = answers[alias]
        wanted = by_contract.get(alias, (rows, *spec.shape[1:]))
        if not tf.TensorShape(wanted).is_compatible_with(array.shape):
            problems.append(
                f"{key}: {alias} has the shape {list(array.shape)}, not {list(wanted)} for "
                f"{rows} images"
            )
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            bad = int(np.size(array) - np.isfinite(array).sum())
            problems.append(f"{key}: {alias} has {bad} values that are not finite")
    return problems


def _compare(key: str, answers: Arrays, expected: Arrays) -> list[str]:
    problems = []
    for alias, want in expected.items():
        got = answers.get(alias)
        if got is None or got.shape != want.shape:
            problems.append(f"{key}: {alias} over gRPC has another shape than in Python")
        elif want.dtype.kind == "f":
            if not np.allclose(got, want, rtol=_RTOL, atol=_ATOL, equal_nan=True):
                worst = float(np.nanmax(np.abs(got - want)))
                problems.append(f"{key}: {alias} over gRPC differs from Python's by {worst:.3g}")
        elif np.mean(got != want) > _FLIPS:
            problems.append(f"{key}: {alias} over gRPC differs from Python's")
    return problems


def _measure(
    transport: GrpcTransport, samples: TrialExamples, budget_ms: float, report: Report
) -> None:
    inputs = {contract.IMAGES: samples.images[:1]}
    request = transport.request(contract.RECONSTRUCT, inputs, ())
    report.latency_ms = measure_latency(lambda: transport.predict_serialised(request), budget_ms)
    if report.latency_ms > budget_ms:
        report.refused_for = LATENCY
        report.problems.append(
            f"one image takes {report.latency_ms:.1f} ms (95th percentile of {_LATENCY_CALLS}, "
            f"best of {_LATENCY_ROUNDS} rounds), over the budget of {budget_ms:g} ms"
        )


def measure_latency(ask: Callable[[], Any], budget_ms: float) -> float:
    """How long an answer takes: the 95th percentile in milliseconds.

    Over the budget it is measured again, a few times: the noise of a machine
    passes, the slowness of a model does not.

    Args:
      budget_ms: Milliseconds that are quick enough to measure no further.
    """
    best = math.inf
    for round_ in range(_LATENCY_ROUNDS):
        if round_:
            time.sleep(_LATENCY_PAUSE_SECONDS)
        seconds = []
        for _ in range(_LATENCY_CALLS):
            started = time.perf_counter()
            ask()
            seconds.append(time.perf_counter() - started)
        best = min(best, float(np.percentile(seconds, 95)) * 1e3)
        if best <= budget_ms:
            break
    return best


def _one_line(error: BaseException) -> str:
    text = " ".join(str(getattr(error, "message", None) or error).split())
    return text[:500] or type(error).__name__
