"""Tries a model the way a server will use it, before it is pushed.

The candidate is served by a process of its own, called over gRPC with real
images, and run beside that in a v1 Session and as Python loads it. All three
must agree; answers must have their shapes and be finite; and one image must be
answered within the latency budget. That is measured again before a model is
refused for it: a busy machine is no fault of the model.
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

from serving import contract, launcher, protos, wire
from serving.errors import ServerStartError, ServingError
from serving.grpc_transport import GrpcTransport
from serving.standin.predict import WARMUP_FILE
from serving.standin.servable import Servable, Signature
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
        images, labels = [], []
        for item in serialized:
            features = protos.Example.FromString(item).features.feature
            values = list(features[contract.IMAGE_FEATURE].bytes_list.value)
            if len(values) != 1 or len(values[0]) != contract.IMAGE_PIXELS:
                raise ServingError(
                    f"an example has no feature {contract.IMAGE_FEATURE!r} of "
                    f"{contract.IMAGE_PIXELS} bytes"
                )
            images.append(np.frombuffer(values[0], np.uint8))
            label = list(features[contract.LABEL_FEATURE].int64_list.value)
            labels.append(label[0] if label else 0)
        examples = np.empty(len(serialized), object)
        examples[:] = serialized
        shape = (-1, contract.IMAGE_HEIGHT, contract.IMAGE_WIDTH)
        return cls(examples, np.stack(images).reshape(shape), np.array(labels, np.int64))


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
    """Tries a candidate.

    Args:
      version_path: ``<anything>/<model name>/<version number>``; with its
        warm-up requests, so that they are tried too.
      latency_budget_ms: Milliseconds for one image over gRPC, 95th percentile.

    Returns:
      The report; a candidate that fails is no exception.
    """
    started = time.monotonic()
    report = Report()
    path = pathlib.Path(version_path)
    backend = "binary" if shutil.which(launcher.BINARY) else "embedded"
    report.backend = backend
    with contextlib.ExitStack() as stack:
        try:
            # The process starts up while this one loads the model its own ways.
            wait = stack.enter_context(_served(path.parent, backend))
            servable = Servable(path.parent.name, int(path.name), str(path))
            stack.callback(servable.retire)
            loaded = tf.saved_model.load(str(path))
            target = wait()
        except Exception as error:
            report.problems.append(_one_line(error))
        else:
            transport = GrpcTransport(Address(target, path.parent.name, timeout=60.0))
            stack.callback(transport.close)
            _call_all(_named(servable), loaded, transport, samples, report)
            if report.passed:
                _measure(transport, samples, latency_budget_ms, report)
    report.seconds = time.monotonic() - started
    return report


@contextlib.contextmanager
def _served(folder: pathlib.Path, backend: str) -> Iterator[Callable[[], str]]:
    """A server of the candidate as a process; what is yielded waits for its ``host:port``."""
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

        def last_words() -> str:
            log.seek(0)
            lines = log.read().decode("utf-8", "replace").strip().splitlines()
            return lines[-1].removeprefix("mnist-ae: error: ") if lines else "it said nothing"

        def wait() -> str:
            target = f"127.0.0.1:{port}"
            transport = GrpcTransport(Address(target, folder.name, timeout=2.0, retries=0))
            end = time.monotonic() + _START_SECONDS
            with contextlib.closing(transport):
                while time.monotonic() < end:
                    if process.poll() is not None:
                        raise ServerStartError(f"the server does not take it: {last_words()}")
                    with contextlib.suppress(ServingError):
                        if any(item.state == "AVAILABLE" for item in transport.status()):
                            return target
                    time.sleep(0.1)
            raise ServerStartError(f"not available within {_START_SECONDS:g} s: {last_words()}")

        try:
            yield wait
        finally:
            process.terminate()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _named(servable: Servable) -> dict[str, Signature]:
    """The signatures that people call."""
    return {key: item for key, item in servable.signatures.items() if not key.startswith("__")}


def _call_all(
    signatures: Mapping[str, Signature],
    loaded: Any,
    transport: GrpcTransport,
    samples: TrialExamples,
    report: Report,
) -> None:
    """Compares the server's answers with the v1 Session's and ``tf.saved_model.load``'s."""
    missing = [key for key in REQUIRED if key not in signatures]
    if missing:
        report.problems.append(f"signatures are missing: {', '.join(missing)}")
        return
    code: np.ndarray[Any, Any] | None = None
    # encode first: decode takes its code.
    for key in sorted(signatures, key=lambda key: (key != contract.ENCODE, key)):
        signature = signatures[key]
        try:
            inputs = _inputs(signature, samples, code)
            aliases = signature.output_aliases
            expected = dict(zip(aliases, signature.run(inputs, aliases), strict=True))
            answers = transport.predict(key, inputs, ())
            tensors = {alias: tf.constant(array) for alias, array in inputs.items()}
            outputs = loaded.signatures[key](**tensors)
            python = {alias: np.asarray(value.numpy()) for alias, value in outputs.items()}
        except Exception as error:
            report.problems.append(f"{key}: {_one_line(error)}")
            continue
        report.signatures.append(key)
        rows = len(next(iter(inputs.values())))
        report.problems += _check(key, signature, answers, rows)
        report.problems += _compare(key, "the v1 Session", answers, expected)
        report.problems += _compare(key, "the trained model", answers, python)
        code = expected.get(contract.CODE, code) if key == contract.ENCODE else code


def _inputs(
    signature: Signature, samples: TrialExamples, code: np.ndarray[Any, Any] | None
) -> Arrays:
    known = {
        contract.EXAMPLES: samples.examples,
        contract.IMAGES: samples.images,
        contract.LABEL: samples.labels,
        contract.SEED: np.arange(len(samples.images), dtype=np.int64),
        **({contract.CODE: code} if code is not None else {}),
    }
    rows = len(samples.images)
    inputs = {}
    for alias, info in signature.inputs.items():
        dtype = wire.numpy_type(info.dtype)
        if alias in known and known[alias].dtype == dtype:
            inputs[alias] = known[alias]
        elif info.dtype == wire.DT_STRING:
            inputs[alias] = samples.examples
        else:
            shape = [rows, *(max(size, 1) for size in (info.shape or (-1,))[1:])]
            inputs[alias] = np.zeros(shape, dtype)
    return inputs


def _check(key: str, signature: Any, answers: Arrays, rows: int) -> list[str]:
    problems = []
    height, width = contract.IMAGE_HEIGHT, contract.IMAGE_WIDTH
    by_contract: dict[str, tuple[int, ...]] = {
        contract.RECONSTRUCTION: (rows, height, width),
        contract.RECONSTRUCTION_ERROR: (rows,),
        contract.ANOMALY_SCORE: (rows,),
        contract.IS_ANOMALY: (rows,),
        contract.IMAGES: (rows, height, width),
        contract.PROBABILITIES: (rows, contract.NUM_CLASSES),
        contract.LABEL: (rows,),
    }
    for alias, info in signature.outputs.items():
        if alias not in answers:
            problems.append(f"{key}: the answer lacks {alias}")
            continue
        array = answers[alias]
        wanted = by_contract.get(alias, info.shape)
        fits = wanted is None or (
            array.ndim == len(wanted)
            and all(want in (-1, size) for want, size in zip(wanted, array.shape, strict=True))
        )
        if not fits or (array.ndim and array.shape[0] != rows):
            problems.append(
                f"{key}: {alias} has the shape {list(array.shape)}, not {list(wanted or ())} for "
                f"{rows} images"
            )
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            bad = int(np.size(array) - np.isfinite(array).sum())
            problems.append(f"{key}: {alias} has {bad} values that are not finite")
    return problems


def _compare(key: str, whose: str, answers: Arrays, expected: Arrays) -> list[str]:
    problems = []
    for alias, want in expected.items():
        got = answers.get(alias)
        if got is None or got.shape != want.shape:
            problems.append(f"{key}: {alias} over gRPC has another shape than in {whose}")
        elif want.dtype.kind == "f":
            if not np.allclose(got, want, rtol=_RTOL, atol=_ATOL, equal_nan=True):
                worst = float(np.nanmax(np.abs(got - want)))
                problems.append(f"{key}: {alias} over gRPC differs from {whose} by {worst:.3g}")
        elif np.mean(got != want) > _FLIPS:
            problems.append(f"{key}: {alias} over gRPC differs from {whose}")
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


def write_warmup_requests(
    version_path: str, samples: TrialExamples, batch_sizes: Sequence[int]
) -> int:
    """Writes a version's warm-up requests: each signature, at each batch size.

    Args:
      batch_sizes: Images a request; no more than there are samples.

    Returns:
      How many requests were written.

    Raises:
      ServingError: The model cannot be loaded or does not encode.
    """
    path = pathlib.Path(version_path)
    servable = None
    try:
        servable = Servable(path.parent.name, 1, version_path)
        records = []
        code = None
        if contract.ENCODE in servable.signatures:
            encode = servable.signatures[contract.ENCODE]
            [code] = encode.run(_inputs(encode, samples, None), (contract.CODE,))
        for key, signature in _named(servable).items():
            inputs = _inputs(signature, samples, code)
            for size in sorted({min(size, len(samples.images)) for size in batch_sizes}):
                batch = {alias: array[:size] for alias, array in inputs.items()}
                log = protos.PredictionLog()
                request = wire.predict_request(path.parent.name, key, batch)
                log.predict_log.request.CopyFrom(request)
                records.append(log.SerializeToString())
    except Exception as error:
        raise ServingError(f"no warm-up requests: {_one_line(error)}") from None
    finally:
        if servable is not None:
            servable.retire()
    file = path / WARMUP_FILE
    file.parent.mkdir(parents=True, exist_ok=True)
    with tf.io.TFRecordWriter(str(file)) as writer:
        for record in records:
            writer.write(record)
    return len(records)


def _one_line(error: BaseException) -> str:
    text = " ".join(str(getattr(error, "message", None) or error).split())
    return text[:500] or type(error).__name__
