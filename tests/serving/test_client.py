"""The client against the embedded server and a real one, over gRPC, REST, and from a folder."""

from __future__ import annotations

import contextlib
import pathlib
import shutil
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent import futures
from typing import Any

import grpc
import numpy as np
import psutil
import pytest

from serving import contract, errors, protos, wire
from serving.client import ReconstructionClient
from serving.folder_transport import FolderTransport
from serving.grpc_transport import GrpcTransport
from serving.standin.servable import Signature
from serving.standin.server import EmbeddedServer
from serving.standin.settings import ModelSettings, ServerOptions
from serving.transport import Address
from tests.serving import models
from tests.serving.process import RealServer, answered, needs_binary

IMAGES = np.random.default_rng(0).integers(0, 256, (10, 28, 28), dtype=np.uint8)


@pytest.fixture(scope="module")
def server(built: pathlib.Path) -> Iterator[EmbeddedServer]:
    models = {"autoencoder": ModelSettings("autoencoder", str(built / "autoencoder"))}
    with EmbeddedServer(ServerOptions(models, port=0, rest_port=0)) as running:
        yield running


@pytest.fixture(scope="module")
def real(built: pathlib.Path) -> Iterator[RealServer]:
    flags = [
        "--model_name=autoencoder", f"--model_base_path={built / 'autoencoder'}",
        "--enable_grpc_healthcheck_service=true",
    ]  # fmt: skip
    with RealServer("autoencoder", *flags) as running:
        yield running


@pytest.fixture(params=["server", pytest.param("real", marks=needs_binary)])
def either(request: pytest.FixtureRequest) -> EmbeddedServer | RealServer:
    return request.getfixturevalue(request.param)


OF_A_REAL_SERVER = [
    pytest.param(way, marks=needs_binary) for way in ("grpc, real server", "rest, real server")
]


@pytest.fixture(params=["grpc", "rest", "folder", *OF_A_REAL_SERVER])
def client(request: pytest.FixtureRequest, built: pathlib.Path) -> Iterator[ReconstructionClient]:
    way, _, real = request.param.partition(", ")
    if way == "folder":
        made = ReconstructionClient.from_folder(str(built / "autoencoder" / "1"), batch_size=4)
    else:
        running = request.getfixturevalue("real" if real else "server")
        target = running.rest_address if way == "rest" else running.address
        made = ReconstructionClient(target, model="autoencoder", rest=way == "rest", batch_size=4)
    with made:
        yield made


@pytest.fixture(scope="module")
def expected(built: pathlib.Path) -> Callable[..., dict[str, Any]]:
    """The model's own answers, as Python loads it."""
    import tensorflow as tf

    loaded = tf.saved_model.load(str(built / "autoencoder" / "1"))

    def run(signature: str, **inputs: Any) -> dict[str, Any]:
        assert loaded is not None
        tensors = {name: tf.constant(value) for name, value in inputs.items()}
        return {k: v.numpy() for k, v in loaded.signatures[signature](**tensors).items()}

    return run


def test_every_method_gives_the_models_answers(
    client: ReconstructionClient, expected: Callable[..., dict[str, Any]]
) -> None:
    want = expected("reconstruct", images=IMAGES)
    got = client.reconstruct(IMAGES)  # ten images, four a request
    np.testing.assert_allclose(got.images, want["reconstruction"], rtol=1e-5)
    np.testing.assert_allclose(got.error, want["reconstruction_error"], rtol=1e-5)
    np.testing.assert_allclose(got.code, want["code"], rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(got.is_anomaly, want["is_anomaly"])
    assert [item.dtype for item in got] == [np.float32, np.float32, np.float32, np.bool_]
    np.testing.assert_allclose(client.encode(IMAGES), want["code"], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(client.decode(got.code), want["reconstruction"], rtol=1e-4)
    score = client.score(IMAGES)
    np.testing.assert_allclose(score.error, want["reconstruction_error"], rtol=1e-5)
    drawn = client.generate(6, seed=3)
    np.testing.assert_allclose(
        drawn, expected("generate", seed=np.arange(3, 9))["images"], rtol=1e-4
    )
    assert not np.array_equal(drawn, client.generate(6, seed=4))
    classes = client.classify(IMAGES)
    assert classes.label.dtype == np.int64
    np.testing.assert_array_equal(classes.label, expected("classify", images=IMAGES)["label"])
    [version] = client.status()
    assert (version.version, version.state) == (1, "AVAILABLE")
    info = client.metadata()["reconstruct"]
    assert info.inputs["images"] == ("uint8", (-1, 28, 28))
    assert set(info.outputs) == {
        "reconstruction", "reconstruction_error", "code", "is_anomaly"
    }  # fmt: skip


@pytest.mark.parametrize("shape", [(28, 28), (3, 784), (0, 28, 28)])
def test_shapes_taken(client: ReconstructionClient, shape: tuple[int, ...]) -> None:
    rows = 1 if shape == (28, 28) else shape[0]
    answer = client.reconstruct(np.zeros(shape, np.uint8))
    assert answer.error.shape == (rows,)


def test_answers_are_writable(client: ReconstructionClient) -> None:
    for images in (IMAGES[:2], IMAGES):
        client.reconstruct(images).images[:] = 0


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (np.zeros((2, 27, 28), np.uint8), r"shape \[n, 28, 28\], not \[2, 27, 28\]"),
        (np.zeros((2, 28, 28), np.float32), "uint8 grey levels 0 to 255, not float32"),
        (np.zeros((2, 28, 28, 3), np.uint8), "shape"),
    ],
)
def test_images_of_another_form_are_refused(
    client: ReconstructionClient, images: Any, message: str
) -> None:
    with pytest.raises(errors.InputError, match=message) as caught:
        client.reconstruct(images)
    assert caught.value.exit_code == 2


def test_a_stream_comes_back_in_order(client: ReconstructionClient) -> None:
    sizes = [1, 3, 2, 4, 1, 1, 2]
    batches = [np.full((size, 28, 28), index, np.uint8) for index, size in enumerate(sizes)]
    for batch, answer in zip(batches, client.reconstruct_stream(iter(batches)), strict=True):
        np.testing.assert_allclose(answer.images, client.reconstruct(batch).images, rtol=1e-5)


def test_one_client_serves_many_threads(either: EmbeddedServer | RealServer) -> None:
    with (
        ReconstructionClient(either.address, model="autoencoder") as client,
        futures.ThreadPoolExecutor(16) as pool,
    ):
        codes = client.encode(IMAGES)
        for index, code in enumerate(
            pool.map(lambda index: client.encode(IMAGES[index % 10]), range(200))
        ):
            np.testing.assert_allclose(code[0], codes[index % 10], rtol=1e-5, atol=1e-6)


def test_errors_are_typed_and_say_what_to_do(either: EmbeddedServer | RealServer) -> None:
    def client(**options: Any) -> ReconstructionClient:
        return ReconstructionClient(either.address, **{"model": "autoencoder", **options})

    with pytest.raises(errors.ModelNotFoundError, match=r"model 'x'.*mnist-ae status"):
        client(model="x").reconstruct(IMAGES)
    with pytest.raises(errors.ModelNotFoundError, match=r"Specific\(autoencoder, 7\)"):
        client(version=7).reconstruct(IMAGES)
    with pytest.raises(errors.ModelNotFoundError, match="Unrecognized servable version label: l"):
        client(label="l").reconstruct(IMAGES)
    with pytest.raises(errors.InvalidRequestError, match='signature key "s" not found'):
        client().call("s", {})
    with pytest.raises(errors.InvalidRequestError, match="input size does not match signature"):
        client().decode(np.zeros((2, 32)), label=[1, 2])
    with pytest.raises(errors.InputError, match="2 codes need as many labels"):
        client().decode(np.zeros((2, 32)), label=[1])
    for bad in ({"version": 1, "label": "l"}, {"version": -1}, {"timeout": 0}, {"batch_size": 0}):
        with pytest.raises(errors.InputError):
            client(**bad)
    for target in ("localhost", "localhost:x", ":1", "localhost:99999"):
        with pytest.raises(errors.InputError, match="is not host:port"):
            ReconstructionClient(target, model="m")


@pytest.mark.parametrize("rest", [False, True])
def test_a_wrong_port_is_unavailable(server: EmbeddedServer, rest: bool) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))  # bound and not listening
        port = unused.getsockname()[1]
        with pytest.raises(errors.ServerUnavailableError, match="mnist-ae serve") as caught:
            ReconstructionClient(f"127.0.0.1:{port}", model="m", rest=rest).status()
    assert caught.value.exit_code == 3
    swapped = server.address if rest else server.rest_address
    assert swapped is not None
    with pytest.raises(errors.ServingError) as caught:
        ReconstructionClient(swapped, model="m", rest=rest, timeout=3).status()
    assert caught.value.exit_code == 3


@contextlib.contextmanager
def fake_server(answers: list[grpc.StatusCode | None]) -> Iterator[tuple[str, list[float]]]:
    """Answers Predict with these codes in turn, then well; notes the time left each call had."""
    calls: list[float] = []

    def predict(request: bytes, context: Any) -> bytes:
        calls.append(context.time_remaining())
        code = answers[len(calls) - 1] if len(calls) <= len(answers) else None
        if code is not None:
            context.abort(code, "on purpose")
        response = protos.PredictResponse()
        wire.fill_tensor(response.outputs[contract.CODE], np.zeros((1, 2), np.float32))
        return response.SerializeToString()

    server = grpc.server(futures.ThreadPoolExecutor(2))
    handler = grpc.unary_unary_rpc_method_handler(predict)
    server.add_generic_rpc_handlers((
        grpc.method_handlers_generic_handler("tensorflow.serving.PredictionService",
                                             {"Predict": handler}),
    ))  # fmt: skip
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield f"127.0.0.1:{port}", calls
    server.stop(0)


@pytest.mark.parametrize(
    ("codes", "calls", "error"),
    [
        (["UNAVAILABLE", "UNAVAILABLE"], 3, None),
        (["RESOURCE_EXHAUSTED"], 2, None),
        (["UNAVAILABLE"] * 9, 4, errors.ServerUnavailableError),
        (["INVALID_ARGUMENT"], 1, errors.InvalidRequestError),
        (["DEADLINE_EXCEEDED"], 1, errors.DeadlineExceededError),
        (["INTERNAL"], 1, errors.ServingError),
    ],
)
def test_only_what_is_safe_is_tried_again(
    codes: list[str], calls: int, error: type[Exception] | None
) -> None:
    with fake_server([grpc.StatusCode[code] for code in codes]) as (target, seen):
        client = ReconstructionClient(target, model="m", retries=3, batch_size=1, timeout=30)
        if error is None:
            assert client.encode(IMAGES[:1]).shape == (1, 2)
        else:
            with pytest.raises(error):
                client.encode(IMAGES[:1])
        client.close()
        assert len(seen) == calls
        assert all(0 < left < 30.5 for left in seen)  # always a deadline


@pytest.mark.parametrize("codes", [["UNAVAILABLE", "UNAVAILABLE"], ["RESOURCE_EXHAUSTED"]])
def test_a_part_of_many_is_tried_again_by_itself(codes: list[str]) -> None:
    with fake_server([grpc.StatusCode[code] for code in codes]) as (target, seen):
        client = ReconstructionClient(target, model="m", retries=3, batch_size=1, timeout=30)
        assert client.encode(IMAGES[:2]).shape == (2, 2)
        client.close()
        assert len(seen) == len(codes) + 2
        assert all(0 < left < 30.5 for left in seen)  # always a deadline


def test_a_request_of_many_that_is_tried_again_has_one_deadline() -> None:
    """All tries of a request share its time, also where several are under way."""
    left: list[float] = []

    def refuse(request: bytes, context: Any) -> bytes:
        left.append(context.time_remaining())
        time.sleep(1.5)  # more than the second to which gRPC rounds what is left
        context.abort(grpc.StatusCode.UNAVAILABLE, "on purpose")
        raise AssertionError

    server = grpc.server(futures.ThreadPoolExecutor(8))
    handler = grpc.unary_unary_rpc_method_handler(refuse)
    service = "tensorflow.serving.PredictionService"
    server.add_generic_rpc_handlers(
        (grpc.method_handlers_generic_handler(service, {"Predict": handler}),)
    )
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        with (
            ReconstructionClient(
                f"127.0.0.1:{port}", model="m", timeout=30, retries=1, batch_size=5
            ) as client,
            pytest.raises(errors.ServerUnavailableError),
        ):
            client.encode(IMAGES)
    finally:
        server.stop(0).wait()
    again = sorted(left)[: len(left) // 2]
    assert len(left) >= 2 and all(seconds < 29.5 for seconds in again), left


def test_threads_that_ended_leave_no_connection_behind(server: EmbeddedServer) -> None:
    assert server.rest_address is not None

    def connections() -> int:
        return sum(
            bool(item.raddr) and item.raddr.port == server.rest_port
            for item in psutil.Process().net_connections()
        )

    before = connections()
    with ReconstructionClient(server.rest_address, model="autoencoder", rest=True) as client:
        for _ in range(10):
            thread = threading.Thread(target=client.status)
            thread.start()
            thread.join()
        assert connections() - before <= 1
    assert connections() == before


def test_a_server_that_never_answers_ends_at_the_deadline() -> None:
    release = threading.Event()

    def hang(request: bytes, context: Any) -> bytes:
        release.wait(300)
        return b""

    server = grpc.server(futures.ThreadPoolExecutor(2))
    server.add_generic_rpc_handlers((
        grpc.method_handlers_generic_handler(
            "tensorflow.serving.PredictionService",
            {"Predict": grpc.unary_unary_rpc_method_handler(hang)}),
    ))  # fmt: skip
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    with pytest.raises(errors.DeadlineExceededError, match=r"within 0\.3 s"):
        ReconstructionClient(f"127.0.0.1:{port}", model="m", timeout=0.3).encode(IMAGES)
    release.set()
    server.stop(0).wait()


def test_large_batches_pass_the_four_mebibyte_default(either: EmbeddedServer | RealServer) -> None:
    images = np.zeros((4000, 28, 28), np.uint8)  # 3 MB there, 12 MB back
    with ReconstructionClient(either.address, model="autoencoder", batch_size=4000) as client:
        assert client.reconstruct(images).images.shape == (4000, 28, 28)


def test_a_folder_that_is_no_model_is_an_input_error(tmp_path: pathlib.Path) -> None:
    with pytest.raises(errors.ModelFolderError, match="does not load") as caught:
        FolderTransport(str(tmp_path), "m")
    assert caught.value.exit_code == 2


def test_health_says_serving(either: EmbeddedServer | RealServer) -> None:
    with grpc.insecure_channel(either.address) as channel:
        check = channel.unary_unary("/grpc.health.v1.Health/Check")
        for service in (b"", b"PredictionService", b"ModelService"):
            request = b"\x0a" + bytes([len(service)]) + service if service else b""
            assert check(request, timeout=300) == b"\x08\x01"
        with pytest.raises(grpc.RpcError) as caught:
            check(b"\x0a\x06nobody", timeout=300)
        assert caught.value.code() is grpc.StatusCode.NOT_FOUND


def test_metrics_count_by_model_and_status(server: EmbeddedServer) -> None:
    import urllib.request

    transport = GrpcTransport(Address(server.address, "autoencoder"))
    before = answered(server, model_name="autoencoder", status="OK")
    transport.predict("encode", {"images": IMAGES}, ("code",))
    with pytest.raises(errors.InvalidRequestError):
        transport.predict("encode", {}, ())
    transport.close()
    page = f"http://{server.rest_address}/monitoring/prometheus/metrics"
    with urllib.request.urlopen(page, timeout=300) as response:
        text = response.read().decode()
    series = dict(line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
    count = ':tensorflow:serving:request_count{model_name="autoencoder",status="OK"}'
    assert float(series[count]) == before + 1
    assert "# TYPE :tensorflow:serving:request_count counter\n" in text
    assert 'status="INVALID_ARGUMENT"' in text
    assert ":tensorflow:serving:request_latency_bucket{" in text
    version = 'mnist_ae:serving:model_version{model_name="autoencoder",version="1"}'
    assert float(series[version]) == 1
    assert "mnist_ae:serving:reconstruction_error_sum" in text


@pytest.mark.parametrize("rest", [False, True], ids=["grpc", "rest"])
def test_the_parts_of_one_call_are_answered_by_one_version(
    built: pathlib.Path, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, rest: bool
) -> None:
    base = tmp_path / "autoencoder"
    shutil.copytree(built / "autoencoder" / "1", base / "1")
    models.write_autoencoder(tmp_path / "aside", 2, gain=0.2)
    served = {"autoencoder": ModelSettings("autoencoder", str(base))}
    with EmbeddedServer(ServerOptions(served, port=0, rest_port=0, poll_interval=0.05)) as server:
        target = server.rest_address if rest else server.address
        assert target is not None
        with ReconstructionClient(
            target, model="autoencoder", rest=rest, batch_size=2, timeout=300
        ) as client:
            before = client.score(IMAGES).error
            batches: list[int] = []
            pushed = threading.Event()
            run = Signature.run

            def swapped(self: Signature, *given: Any) -> Any:
                """Answers the second batch once another version took over."""
                batches.append(1)
                if len(batches) == 2 and not pushed.is_set():
                    pushed.set()
                    (tmp_path / "aside" / "2").rename(base / "2")
                    assert server.models.wait_for(
                        lambda: server.models.available() == {"autoencoder": [2]}, 300
                    )
                return run(self, *given)

            monkeypatch.setattr(Signature, "run", swapped)
            during = client.score(IMAGES).error
            after = client.score(IMAGES).error
    assert pushed.is_set() and not np.allclose(before, after)
    assert np.array_equal(during, after) or np.array_equal(during, before)
