"""What the network may send: the server answers or closes, and serves on."""

from __future__ import annotations

import contextlib
import gzip
import http.client
import json
import logging
import pathlib
import resource
import socket
from collections.abc import Iterator

import grpc
import numpy as np
import psutil
import pytest

from serving import protos, wire
from serving.client import ReconstructionClient
from serving.standin.server import EmbeddedServer
from serving.standin.settings import ModelSettings, ServerOptions

MIB = 2**20


@pytest.fixture(scope="module")
def server(built: pathlib.Path) -> Iterator[EmbeddedServer]:
    models = {
        name: ModelSettings(name, str(built / name)) for name in ("autoencoder", "conformance")
    }
    options = ServerOptions(models, port=0, rest_port=0, max_message_bytes=8 * MIB, io_timeout=5.0)
    with EmbeddedServer(options) as running:
        yield running


@pytest.fixture(autouse=True)
def still_serves_and_logs_little(
    server: EmbeddedServer, caplog: pytest.LogCaptureFixture
) -> Iterator[None]:
    """After every test: both ports answer, memory is as before, no traceback was logged."""
    caplog.set_level(logging.INFO)
    before = psutil.Process().memory_info().rss
    yield
    images = np.zeros((2, 28, 28), np.uint8)
    for rest in (False, True):
        target = server.rest_address if rest else server.address
        assert target is not None
        with ReconstructionClient(target, model="autoencoder", rest=rest) as client:
            assert client.reconstruct(images).error.shape == (2,)
    assert psutil.Process().memory_info().rss - before < 300 * MIB
    for record in caplog.records:
        assert record.exc_info is None, caplog.text
        assert "\n" not in record.getMessage(), record.getMessage()


def raw(port: int | None, data: bytes, timeout: float = 300.0) -> bytes:
    """Sends bytes and reads until the server closes."""
    assert port is not None
    with socket.create_connection(("127.0.0.1", port), timeout=timeout) as connection:
        out = b""
        with contextlib.suppress(OSError):
            connection.sendall(data)
            connection.shutdown(socket.SHUT_WR)
            while part := connection.recv(65536):
                out += part
        return out


def post(server: EmbeddedServer, body: bytes, **headers: str) -> tuple[int, str]:
    assert server.rest_address is not None
    connection = http.client.HTTPConnection(server.rest_address, timeout=300)
    with contextlib.closing(connection):
        connection.request("POST", "/v1/models/autoencoder:predict", body, headers)
        response = connection.getresponse()
        return response.status, response.read().decode()


def test_random_bytes_to_both_ports(server: EmbeddedServer) -> None:
    random = np.random.default_rng(0)
    for size in (1, 10, 1000, 100_000):
        for port in (server.port, server.rest_port):
            raw(port, random.bytes(size))
            raw(port, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + random.bytes(size))
            raw(port, b"POST /v1/models/m:predict HTTP/1.1\r\n" + random.bytes(size))


def test_random_bytes_as_a_grpc_message(server: EmbeddedServer) -> None:
    random = np.random.default_rng(1)
    images = {"images": np.zeros((1, 28, 28), "u1")}
    good = wire.predict_request("autoencoder", "reconstruct", images).SerializeToString()
    with grpc.insecure_channel(server.address) as channel:
        predict = channel.unary_unary("/tensorflow.serving.PredictionService/Predict")
        reload = channel.unary_unary("/tensorflow.serving.ModelService/HandleReloadConfigRequest")
        for trial in range(200):
            data = bytearray(good if trial % 2 else random.bytes(100))
            for _ in range(5):
                data[int(random.integers(0, min(len(data), 60)))] = int(random.integers(0, 256))
            for call in (predict, reload):
                try:
                    call(bytes(data), timeout=300)
                except grpc.RpcError as error:
                    assert error.code() is not grpc.StatusCode.UNAVAILABLE


@pytest.mark.parametrize("sizes", [[2**40], [-1], [2**31 - 1], [2**20, 2**20, 2**20]], ids=str)
def test_a_tensor_that_lies_about_its_size(server: EmbeddedServer, sizes: list[int]) -> None:
    request = protos.PredictRequest()
    request.model_spec.name = "conformance"
    tensor = request.inputs["x"]
    tensor.dtype = wire.DT_FLOAT
    tensor.float_val.append(1.0)
    for size in sizes:
        tensor.tensor_shape.dim.add(size=size)
    with grpc.insecure_channel(server.address) as channel:
        predict = channel.unary_unary("/tensorflow.serving.PredictionService/Predict")
        with pytest.raises(grpc.RpcError) as caught:
            predict(request.SerializeToString(), timeout=300)
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert caught.value.details() == "tensor parsing error: x"


def test_a_hundred_megabytes(server: EmbeddedServer) -> None:
    with grpc.insecure_channel(
        server.address, options=[("grpc.max_send_message_length", -1)]
    ) as channel:
        predict = channel.unary_unary("/tensorflow.serving.PredictionService/Predict")
        with pytest.raises(grpc.RpcError) as caught:
            predict(bytes(100 * MIB), timeout=300)
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert server.rest_address is not None
    connection = http.client.HTTPConnection(server.rest_address, timeout=300)
    with contextlib.closing(connection), contextlib.suppress(ConnectionError):
        connection.request("POST", "/v1/models/autoencoder:predict", bytes(100 * MIB))
        assert connection.getresponse().status in (400, 413)


def test_a_gzip_bomb(server: EmbeddedServer) -> None:
    bomb = gzip.compress(bytes(200 * MIB), 9)
    assert len(bomb) < MIB
    with contextlib.suppress(ConnectionError, http.client.HTTPException):
        status, _ = post(server, bomb, **{"Content-Encoding": "gzip"})
        assert status in (400, 413)


def test_a_million_elements(server: EmbeddedServer) -> None:
    status, text = post(server, b'{"instances": [' + b"1," * 999_999 + b"1]}")
    assert status == 400  # serving_default takes strings
    assert len(text) < 2000
    body = {"signature_name": "reconstruct", "instances": np.zeros((1275, 784), int).tolist()}
    status, text = post(server, json.dumps(body).encode())
    assert (status, len(text) < 2000) == (400, True)  # rank 2 for rank 3


@pytest.mark.parametrize("depth", [900, 5000, 1_000_000])
@pytest.mark.parametrize("opening", ["[", '{"a":'])
def test_deep_nesting(server: EmbeddedServer, depth: int, opening: str) -> None:
    closing = "]" if opening == "[" else "}"
    body = '{"signature_name": "reconstruct", "instances": ' + opening * depth + "1" \
        + closing * depth + "}"  # fmt: skip
    status, text = post(server, body.encode())
    assert (status, len(text) < 2000) == (400, True), text[:2000]
    status, _ = post(server, (opening * depth).encode())
    assert status == 400


@pytest.mark.parametrize(
    "body",
    [b'{"instances": [' + b"9" * 100_000 + b"]}", b'{"instances": [1e99999]}', b"\xff\xfe{",
     b"\x00", b'{"instances": ["\xc3\xa9"]}',
     b'{"instances": ["\\ud800"]}', b'{"signature_name": "decode", "inputs": [[1e39]]}'],
)  # fmt: skip
def test_odd_json(server: EmbeddedServer, body: bytes) -> None:
    assert post(server, body)[0] == 400


@pytest.mark.parametrize(
    "body",
    [
        b'{"signature_name": "\\ud800", "instances": [1]}',
        b'{"signature_name": "reconstruct", "inputs": {"\\udfff": [1]}}',
        b'{"signature_name": "reconstruct", "instances": [{"\\ud800": [1]}]}',
        b'{"\xed\xa0\x80": 1, "instances": [1]}',
        b'{"instances": [1], "\\ud83d": "and no other half"}',
    ],
)
def test_half_of_a_surrogate_pair_is_refused(server: EmbeddedServer, body: bytes) -> None:
    assert post(server, body)[0] == 400


def test_a_whole_surrogate_pair_is_a_character(server: EmbeddedServer) -> None:
    status, text = post(server, b'{"signature_name": "\\ud83d\\ude00", "instances": [1]}')
    assert (status, "\N{GRINNING FACE}" in text) == (400, True)


def gzip_bodies() -> dict[str, bytes]:
    good = gzip.compress(b'{"signature_name": "generate", "instances": [1]}')
    return {
        "broken": good[:20] + bytes([good[20] ^ 0xFF]) + good[21:],
        "wrong checksum": good[:-8] + b"\0\0\0\0" + good[-4:],
        "truncated": good[:-1],
        "truncated in the header": good[:5],
        "no gzip": b'{"signature_name": "generate", "instances": [1]}',
        "something behind": good + b"more",
        "empty": b"",
    }


@pytest.mark.parametrize("kind", gzip_bodies())
def test_a_gzip_body_that_is_not_whole_is_refused(server: EmbeddedServer, kind: str) -> None:
    status, text = post(server, gzip_bodies()[kind], **{"Content-Encoding": "gzip"})
    assert status == 400 and json.loads(text)["error"]


@pytest.mark.parametrize("value", [256, 300, -1, 2**64, 1.5, 255.0, True, "7", None])
def test_a_value_that_is_no_grey_level_is_refused(server: EmbeddedServer, value: object) -> None:
    """The real server makes 44 of 300."""
    image = np.zeros((28, 28), int).tolist()
    body = {"signature_name": "score", "instances": [image]}
    assert post(server, json.dumps(body).encode())[0] == 200
    image[14][14] = value
    assert post(server, json.dumps(body).encode())[0] == 400


@pytest.mark.parametrize("version", ["-1", "+1", "1e3", "99999999999999999999", "9" * 5000, "%00"])
def test_odd_versions(server: EmbeddedServer, version: str) -> None:
    assert server.rest_address is not None
    connection = http.client.HTTPConnection(server.rest_address, timeout=300)
    with contextlib.closing(connection):
        connection.request("GET", f"/v1/models/autoencoder/versions/{version}")
        assert connection.getresponse().status in (400, 404)


@pytest.mark.parametrize(
    ("request_line", "status"),
    [
        (b"TRACE /v1/models/autoencoder HTTP/1.1", 501),
        (b"FOO /v1/models/autoencoder HTTP/1.1", 501),
        (b"GET /v1/models/%zz HTTP/1.1", 400),
        (b"GET /v1/models/../../etc/passwd HTTP/1.1", 400),
        (b"GET  HTTP/1.1", 400),
    ],
)
def test_odd_requests(server: EmbeddedServer, request_line: bytes, status: int) -> None:
    answer = raw(server.rest_port, request_line + b"\r\nHost: x\r\nConnection: close\r\n\r\n")
    assert answer.split(b" ")[1:2] == [str(status).encode()] or not answer


def test_headers_without_end(server: EmbeddedServer) -> None:
    answer = raw(server.rest_port, b"GET /v1/models/autoencoder HTTP/1.1\r\nX: " + b"a" * MIB)
    assert not answer or answer.split(b" ")[1] in (b"400", b"431")


def test_slow_loris_is_cut_off(server: EmbeddedServer) -> None:
    """Half a request on each of 50 connections: the server closes them all."""
    with contextlib.ExitStack() as stack:
        slow = []
        for index in range(50):
            assert server.rest_port is not None
            connection = socket.create_connection(("127.0.0.1", server.rest_port), timeout=300)
            stack.enter_context(connection)
            connection.sendall(
                b"POST /v1/models/autoencoder:predict HTTP/1.1\r\nContent-Length: 1000\r\n"
                + (b"\r\n{" if index % 2 else b"X-")
            )
            slow.append(connection)
        with ReconstructionClient(
            f"127.0.0.1:{server.rest_port}", model="autoencoder", rest=True
        ) as client:  # others are served meanwhile
            assert client.score(np.zeros((1, 28, 28), np.uint8)).error.shape == (1,)
        for connection in slow:
            with contextlib.suppress(ConnectionError):
                while connection.recv(4096):  # a 400 may come first
                    pass


def test_a_thousand_idle_connections_on_each_port(server: EmbeddedServer) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = min(hard, 8192) if hard != resource.RLIM_INFINITY else 8192
    if wanted < 4500:
        pytest.skip(f"only {wanted} open files allowed")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, wanted), hard))
    with contextlib.ExitStack() as stack:
        for port in (server.port, server.rest_port):
            for _ in range(1000):
                assert port is not None
                connection = socket.create_connection(("127.0.0.1", port), timeout=300)
                stack.enter_context(connection)
        for rest in (False, True):
            target = server.rest_address if rest else server.address
            assert target is not None
            with ReconstructionClient(target, model="autoencoder", rest=rest) as client:
                assert client.status()[0].state == "AVAILABLE"
                assert client.score(np.zeros((3, 28, 28), np.uint8)).error.shape == (3,)


def test_many_output_filters_do_not_pile_up(server: EmbeddedServer) -> None:
    import itertools

    outputs = ("reconstruction", "reconstruction_error", "code", "is_anomaly")
    images = {"images": np.zeros((1, 28, 28), np.uint8)}
    with ReconstructionClient(server.address, model="autoencoder") as client:
        for size in range(1, 5):
            for chosen in itertools.permutations(outputs, size):
                assert set(client.call("reconstruct", images, chosen)) == set(chosen)
    with server.models.lease("autoencoder") as servable:
        assert servable.signatures["reconstruct"].compiled <= 32


def test_endless_model_names_do_not_pile_up(server: EmbeddedServer) -> None:
    request = protos.PredictRequest()
    with grpc.insecure_channel(server.address) as channel:
        predict = channel.unary_unary("/tensorflow.serving.PredictionService/Predict")
        for index in range(700):
            request.model_spec.name = f"nobody{index}"
            with pytest.raises(grpc.RpcError):
                predict(request.SerializeToString(), timeout=300)
    assert server.metrics.render().count("request_count{") <= 510


def test_a_flood_beyond_the_limit_is_refused(built: pathlib.Path) -> None:
    """Requests that wait for a held model do not pile up without bound."""
    import threading
    from concurrent import futures

    options = ServerOptions(
        {"conformance": ModelSettings("conformance", str(built / "conformance"))},
        port=0, rest_port=None, max_workers=2, max_waiting=8,
    )  # fmt: skip
    with EmbeddedServer(options) as server, futures.ThreadPoolExecutor(32) as pool:
        held = threading.Event()
        run = server.handlers.run
        server.handlers.run = (  # type: ignore[method-assign]
            lambda *arguments: (held.wait(300), run(*arguments))[1]
        )
        client = ReconstructionClient(server.address, model="conformance", retries=0, timeout=300)
        inputs = {"x": np.ones((1, 1), np.float32)}
        asked = [pool.submit(client.call, "serving_default", inputs) for _ in range(32)]
        done, _ = futures.wait(asked, 300, futures.FIRST_EXCEPTION)
        held.set()
        outcomes = [item.exception() for item in asked]
        client.close()
    refused = [error for error in outcomes if error is not None]
    assert refused and all(getattr(error, "code", "") == "RESOURCE_EXHAUSTED" for error in refused)
    assert len(refused) < 32
