"""TensorFlow Serving's visible behaviour, as one table for gRPC and one for REST.

Runs against the embedded server, and against the one that ``SERVING_BINARY`` names, or any
other::

    python -m tests.serving.models DIR
    tensorflow_model_server --model_name=conformance --model_base_path=DIR/conformance \
        --port=8500 --rest_api_port=8501 &
    SERVING_TARGET=localhost:8500 SERVING_REST_TARGET=localhost:8501 \
        pytest tests/serving/test_conformance.py

The rows and texts come from TensorFlow Serving 2.16's source and from the real
server; docs/serving.md lists where the embedded server departs from it on
purpose, and none of that is in here.
"""

from __future__ import annotations

import dataclasses
import gzip
import http.client
import json
import os
import re
from collections.abc import Callable, Iterator
from typing import Any

import grpc
import numpy as np
import pytest

from serving import protos, wire
from tests.serving.models import CONFORMANCE
from tests.serving.process import RealServer, needs_binary

VERSION = 123
SERVICE = "tensorflow.serving.PredictionService"
MODELS = "tensorflow.serving.ModelService"


@dataclasses.dataclass(frozen=True)
class Target:
    """Where to ask."""

    channel: grpc.Channel
    rest: str | None

    def call(self, method: str, request: Any, response: Any, timeout: float = 300.0) -> Any:
        service = MODELS if method in ("GetModelStatus", "HandleReloadConfigRequest") else SERVICE
        data = self.channel.unary_unary(f"/{service}/{method}")(
            request if isinstance(request, bytes) else request.SerializeToString(),
            timeout=timeout,
        )
        return response.FromString(data)


@pytest.fixture(scope="module", params=["stand-in", pytest.param("real", marks=needs_binary)])
def target(request: pytest.FixtureRequest) -> Iterator[Target]:
    external = os.environ.get("SERVING_TARGET")
    if external:
        with grpc.insecure_channel(external) as channel:
            yield Target(channel, os.environ.get("SERVING_REST_TARGET"))
        return
    if request.param == "real":
        base = request.getfixturevalue("built") / CONFORMANCE
        flags = f"--model_name={CONFORMANCE}", f"--model_base_path={base}"
        real = RealServer(CONFORMANCE, *flags)
        with real, grpc.insecure_channel(real.address) as channel:
            yield Target(channel, real.rest_address)
        return
    from serving.standin.server import EmbeddedServer
    from serving.standin.settings import ModelSettings, ServerOptions

    base = request.getfixturevalue("built") / CONFORMANCE
    options = ServerOptions({CONFORMANCE: ModelSettings(CONFORMANCE, str(base))}, port=0,
                            rest_port=0)  # fmt: skip
    with EmbeddedServer(options) as server, grpc.insecure_channel(server.address) as channel:
        yield Target(channel, server.rest_address)


def tensor(value: Any, dtype: Any = np.float32) -> Any:
    proto = protos.TensorProto()
    wire.fill_tensor(proto, np.array(value, dtype))
    return proto


def predict(
    inputs: dict[str, Any] | None = None, *, name: str = CONFORMANCE, signature: str = "",
    version: int | None = None, label: str | None = None, output_filter: tuple[str, ...] = (),
) -> Any:  # fmt: skip
    request = protos.PredictRequest(output_filter=output_filter)
    request.model_spec.name = name
    request.model_spec.signature_name = signature
    if version is not None:
        request.model_spec.version.value = version
    if label is not None:
        request.model_spec.version_label = label
    for alias, value in (inputs or {}).items():
        request.inputs[alias].CopyFrom(value)
    return request


def undecodable() -> Any:
    proto = tensor([1.0, 2.0])
    proto.tensor_shape.dim[0].size = 7
    return proto


def metadata(*fields: str, name: str = CONFORMANCE, version: int | None = None) -> Any:
    request = protos.GetModelMetadataRequest(metadata_field=fields)
    request.model_spec.name = name
    if version is not None:
        request.model_spec.version.value = version
    return request


def status(name: str = CONFORMANCE, version: int | None = None, label: str = "") -> Any:
    request = protos.GetModelStatusRequest()
    request.model_spec.name = name
    if version is not None:
        request.model_spec.version.value = version
    if label:
        request.model_spec.version_label = label
    return request


X = {"x": tensor([[1.0]])}
INVALID, NOT_FOUND = "INVALID_ARGUMENT", "NOT_FOUND"
PRECONDITION = "FAILED_PRECONDITION"

# (id, method, request, code, pattern that the whole message starts with)
GRPC_ERRORS: list[tuple[str, str, Callable[[], Any], str, str]] = [
    ("predict: no spec", "Predict", lambda: protos.PredictRequest(), INVALID,
     r"Missing ModelSpec$"),
    ("metadata: no spec", "GetModelMetadata",
     lambda: protos.GetModelMetadataRequest(metadata_field=["signature_def"]), INVALID,
     r"Missing ModelSpec$"),
    ("status: no spec", "GetModelStatus", lambda: protos.GetModelStatusRequest(), INVALID,
     r"Missing ModelSpec$"),
    ("empty name", "Predict", lambda: predict(X, name=""), INVALID,
     r"ModelSpec has no name specified\.$"),
    ("status: empty name", "GetModelStatus", lambda: status(name=""), NOT_FOUND,
     r"Could not find any versions of model $"),
    ("unknown model", "Predict", lambda: predict(X, name="nobody"), NOT_FOUND,
     r"Servable not found for request: Latest\(nobody\)$"),
    ("unknown version", "Predict", lambda: predict(X, version=7), NOT_FOUND,
     r"Servable not found for request: Specific\(conformance, 7\)$"),
    ("negative version", "Predict", lambda: predict(X, version=-7), NOT_FOUND,
     r"Servable not found for request: Specific\(conformance, -7\)$"),
    ("version 0", "Predict", lambda: predict(X, version=0), NOT_FOUND,
     r"Servable not found for request: Specific\(conformance, 0\)$"),
    ("unknown label", "Predict", lambda: predict(X, label="nope"), INVALID,
     r"Unrecognized servable version label: nope$"),
    ("unknown signature", "Predict", lambda: predict(X, signature="S"), PRECONDITION,
     r'Serving signature key "S" not found\.$'),
    ("no inputs", "Predict", lambda: predict(), INVALID,
     r"input size does not match signature: 0!=1 len\(\{\}\) != len\(\{x\}\)\. Sent extra: \{\}\. "
     r"Missing but required: \{x\}\.$"),
    ("extra input", "Predict", lambda: predict({**X, "z": tensor(1.0)}), INVALID,
     r"input size does not match signature: 2!=1 len\(\{x,z\}\) != len\(\{x\}\)\. "
     r"Sent extra: \{z\}\. Missing but required: \{\}\.$"),
    ("one of two inputs", "Predict", lambda: predict({"a": tensor([1.0])}, signature="add"),
     INVALID, r"input size does not match signature: 1!=2 len\(\{a\}\) != len\(\{a,b\}\)\. "
     r"Sent extra: \{\}\. Missing but required: \{b\}\.$"),
    ("wrong input name", "Predict", lambda: predict({"z": tensor([[1.0]])}), INVALID,
     r"(Signature input alias: x\(feed name: x:0\) not found in request and no default value "
     r"provided\. Inputs expected to be in the request \{z\}, or default input alias set: |"
     r"input tensor alias not found in signature: z\.)"),
    ("undecodable tensor", "Predict", lambda: predict({"x": undecodable()}), INVALID,
     r"tensor parsing error: x$"),
    ("wrong dtype", "Predict", lambda: predict({"x": tensor([[1]], np.int32)}), INVALID,
     r"Expects arg\[0\] to be float but int32 is provided$"),
    ("wrong shape", "Predict",
     lambda: predict({"flat": tensor(np.ones((2, 783)))}, signature="matmul"), INVALID,
     r"Matrix size-incompatible: In\[0\]: \[2,783\], In\[1\]: \[784,2\]"),
    ("rank 1", "Predict", lambda: predict({"flat": tensor(np.ones(784))}, signature="matmul"),
     INVALID, r"In\[0\] (ndims must be >= 2|is not a matrix|and In\[1\])"),
    ("unknown output", "Predict", lambda: predict(X, output_filter=("F",)), INVALID,
     r"output tensor alias not found in signature: F Outputs expected to be in the set \{y\}\.$"),
    ("repeated output", "Predict", lambda: predict(X, output_filter=("y", "y")), INVALID,
     r"duplicate output tensor alias: y$"),
    ("malformed Example", "Predict",
     lambda: predict({"inputs": tensor([b"\xff\xfe"], object)}, signature="regress_x_to_y"),
     INVALID, r"Could not parse example input, value: '"),
    ("metadata: no field", "GetModelMetadata", lambda: metadata(), INVALID,
     r"GetModelMetadataRequest must specify at least one metadata_field$"),
    ("metadata: other field", "GetModelMetadata", lambda: metadata("F"), INVALID,
     r"Metadata field F is not supported$"),
    ("metadata: unknown model", "GetModelMetadata",
     lambda: metadata("signature_def", name="nobody"), NOT_FOUND,
     r"Servable not found for request: Latest\(nobody\)$"),
    ("status: unknown model", "GetModelStatus", lambda: status(name="nobody"), NOT_FOUND,
     r"Could not find any versions of model nobody$"),
    ("status: unknown version", "GetModelStatus", lambda: status(version=7), NOT_FOUND,
     r"Could not find version 7 of model conformance$"),
]  # fmt: skip

_RESPONSES = {
    "Predict": "PredictResponse",
    "GetModelMetadata": "GetModelMetadataResponse",
    "GetModelStatus": "GetModelStatusResponse",
}


@pytest.mark.parametrize(
    ("method", "make", "code", "message"),
    [row[1:] for row in GRPC_ERRORS],
    ids=[row[0] for row in GRPC_ERRORS],
)
def test_grpc_errors(
    target: Target, method: str, make: Callable[[], Any], code: str, message: str
) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        target.call(method, make(), getattr(protos, _RESPONSES[method]))
    assert caught.value.code().name == code, caught.value.details()
    assert re.match(message, caught.value.details()), caught.value.details()


@pytest.mark.parametrize(
    ("sent", "expected"),
    [
        (tensor([[1.0], [2.0]]), [[2.5], [3.0]]),
        (tensor([1.0]), [2.5]),  # shapes are the graph's business
        (tensor(1.0), 2.5),
        (tensor([[1.0, 2.0, 3.0]] * 2), [[2.5, 3.0, 3.5]] * 2),
        (tensor(np.zeros((0, 1))), np.zeros((0, 1))),
    ],
    ids=["batch", "rank 1", "scalar", "2x3", "batch 0"],
)
def test_predict_answers_any_shape_the_graph_takes(
    target: Target, sent: Any, expected: Any
) -> None:
    answer = target.call("Predict", predict({"x": sent}), protos.PredictResponse)
    y = answer.outputs["y"]
    np.testing.assert_array_equal(wire.decode_tensor(y), np.array(expected, np.float32))
    assert not y.tensor_content  # typed fields, as PostProcessPredictionResult


def test_predict_reads_typed_fields_and_repeats_the_last_value(target: Target) -> None:
    proto = protos.TensorProto(dtype=wire.DT_FLOAT, float_val=[2.0, 4.0])
    for size in (4, 1):
        proto.tensor_shape.dim.add(size=size)
    answer = target.call("Predict", predict({"x": proto}), protos.PredictResponse)
    assert list(answer.outputs["y"].float_val) == [3.0, 4.0, 4.0, 4.0]


@pytest.mark.parametrize("signature", ["", "serving_default"])
def test_predict_echoes_the_resolved_model(target: Target, signature: str) -> None:
    answer = target.call("Predict", predict(X, signature=signature), protos.PredictResponse)
    assert answer.model_spec.name == CONFORMANCE
    assert answer.model_spec.version.value == VERSION
    assert answer.model_spec.signature_name == "serving_default"


def test_output_filter_selects(target: Target) -> None:
    request = predict(
        {"a": tensor([1.0]), "b": tensor([2.0])}, signature="add", output_filter=("twice",)
    )
    answer = target.call("Predict", request, protos.PredictResponse)
    assert list(answer.outputs) == ["twice"]
    assert list(answer.outputs["twice"].float_val) == [6.0]


def test_strings_and_integers_go_through(target: Target) -> None:
    words = tensor([b"a", b"\xff\x00"], object)
    answer = target.call("Predict", predict({"words": words}, signature="words"),
                         protos.PredictResponse)  # fmt: skip
    assert list(answer.outputs["echo"].string_val) == [b"a", b"\xff\x00"]
    pixels = tensor([[255, 0]], np.uint8)
    answer = target.call("Predict", predict({"pixels": pixels}, signature="pixels"),
                         protos.PredictResponse)  # fmt: skip
    assert list(answer.outputs["out"].int_val) == [256, 1]


def test_metadata_is_that_of_saved_model_pb(target: Target) -> None:
    answer = target.call("GetModelMetadata", metadata("signature_def"),
                         protos.GetModelMetadataResponse)  # fmt: skip
    assert answer.model_spec.name == CONFORMANCE
    assert answer.model_spec.version.value == VERSION
    assert answer.model_spec.signature_name == ""
    packed = answer.metadata["signature_def"]
    assert packed.type_url == "type.googleapis.com/tensorflow.serving.SignatureDefMap"
    definitions = protos.SignatureDefMap.FromString(packed.value).signature_def
    assert {"serving_default", "add", "classify_x_to_y", "regress_x_to_y"} <= set(definitions)
    x = definitions["serving_default"].inputs["x"]
    assert (x.name, x.dtype, [d.size for d in x.tensor_shape.dim]) == ("x:0", 1, [-1, 1])


@pytest.mark.parametrize("version", [None, VERSION])
def test_status_is_available_and_ignores_labels(target: Target, version: int | None) -> None:
    request = status(version=version, label="" if version else "nope")
    answer = target.call("GetModelStatus", request, protos.GetModelStatusResponse)
    [item] = answer.model_version_status
    assert (item.version, item.state, item.status.error_code) == (VERSION, 30, 0)


def test_a_deadline_too_short_is_deadline_exceeded(target: Target) -> None:
    request = predict({"flat": tensor(np.ones((8000, 784)))}, signature="matmul")
    with pytest.raises(grpc.RpcError) as caught:
        target.call("Predict", request, protos.PredictResponse, timeout=0.001)
    assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED


def test_an_unknown_method_is_unimplemented(target: Target) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        target.call("Nonsense", predict(X), protos.PredictResponse)
    assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED


RELOAD_ERRORS: list[tuple[str, str, str, str]] = [
    ("no list", "", INVALID, r""),
    ("twice", 'config {name:"a" base_path:"/x" model_platform:"tensorflow"} '
              'config {name:"a" base_path:"/y" model_platform:"tensorflow"}', INVALID, r".*a.*"),
    ("relative", 'config {name:"a" base_path:"x" model_platform:"tensorflow"}', INVALID,
     r"Expected model a to have an absolute path or URI"),
    ("no platform", 'config {name:"a" base_path:"/x"}', INVALID,
     r"Illegal setting.*model_platform, model name is a$"),
    ("other platform", 'config {name:"a" base_path:"/x" model_platform:"onnx"}', INVALID, r""),
]  # fmt: skip


@pytest.mark.parametrize(
    ("text", "code", "message"), [row[1:] for row in RELOAD_ERRORS],
    ids=[row[0] for row in RELOAD_ERRORS],
)  # fmt: skip
def test_reload_refusals(target: Target, text: str, code: str, message: str) -> None:
    from google.protobuf import text_format

    request = protos.ReloadConfigRequest()
    if text:
        text_format.Parse("config { model_config_list { " + text + " } }", request)
    with pytest.raises(grpc.RpcError) as caught:
        target.call("HandleReloadConfigRequest", request, protos.ReloadConfigResponse)
    assert caught.value.code().name == code
    assert re.match(message, caught.value.details()), caught.value.details()


# REST.


def rest(target: Target, method: str, path: str, body: Any = None, **headers: str) -> Any:
    if target.rest is None:
        pytest.skip("no SERVING_REST_TARGET")
    connection = http.client.HTTPConnection(target.rest, timeout=300)
    if body is not None and not isinstance(body, bytes):
        body = body.encode() if isinstance(body, str) else json.dumps(body).encode()
    connection.request(method, path, body, headers)
    response = connection.getresponse()
    text = response.read().decode()
    connection.close()
    return response.status, text, response.getheader("Content-Type", "")


M = f"/v1/models/{CONFORMANCE}"
# (id, method, path, body, status, pattern of the "error", or None for another body).
# Of errors that nobody reads by program only the status counts.
REST_ERRORS: list[tuple[str, str, str, Any, int, str | None]] = [
    ("malformed path", "GET", "/v1/foo", None, 400, r"Malformed request: GET /v1/foo$"),
    ("wrong method", "PUT", f"{M}:predict", "{}", 400, r"Malformed request: PUT /v1/models/"),
    ("query string", "POST", f"{M}:predict?x", "{}", 400, r"Malformed request: POST "),
    ("upper case method", "POST", f"{M}:PREDICT", "{}", 400, r"Malformed request: POST "),
    ("no name", "GET", "/v1/models", None, 400, r"Missing model name in request\.$"),
    ("unknown model", "POST", "/v1/models/x:predict", {"instances": [1]}, 404,
     r"Servable not found for request: Latest\(x\)$"),
    ("unknown version", "POST", f"{M}/versions/7:predict", {"instances": [1]}, 404,
     r"Servable not found for request: Specific\(conformance, 7\)$"),
    ("unknown label", "POST", f"{M}/labels/L:predict", {"instances": [1]}, 400,
     r"Unrecognized servable version label: L$"),
    ("bad JSON wins over unknown model", "POST", "/v1/models/x:predict", "{", 400,
     r"JSON Parse error: "),
    ("unknown signature", "POST", f"{M}:predict", {"signature_name": "S", "instances": [1]}, 400,
     r'Serving signature name: "S" not found in signature def$'),
    ("signature no string", "POST", f"{M}:predict", {"signature_name": 1, "instances": [1]}, 400,
     r"JSON Value: [\s\S]* not formatted correctly\. 'signature_name' key must be a string "
     r"value\.$"),
    ("empty body", "POST", f"{M}:predict", "", 400,
     r"JSON Parse error: The document is empty"),
    ("no JSON", "POST", f"{M}:predict", "hello", 400,
     r"JSON Parse error: Invalid value\. at offset: 0$"),
    ("no object", "POST", f"{M}:predict", "[1]", 400, r"JSON Value: [\s\S]* Is not object$"),
    ("neither key", "POST", f"{M}:predict", {}, 400, r"Missing 'inputs' or 'instances' key$"),
    ("both keys", "POST", f"{M}:predict", {"inputs": [1], "instances": [1]}, 400,
     r"JSON Value: [\s\S]*Not formatted correctly expecting only one of"),
    ("no instances", "POST", f"{M}:predict", {"instances": []}, 400,
     r"JSON Value: [\s\S]*No values in 'instances' array$"),
    ("instances no list", "POST", f"{M}:predict", {"instances": 1}, 400,
     r"JSON Value: [\s\S]*Expecting 'instances' to be an list/array$"),
    ("string for float", "POST", f"{M}:predict", {"instances": ["x"]}, 400,
     r'[\s\S]*JSON Value: "x" [\w: ]*is not of expected type: float$'),
    ("bool for float", "POST", f"{M}:predict", {"instances": [1.0, True]}, 400,
     r"[\s\S]*JSON Value: true [\w: ]*is not of expected type: float$"),
    ("float for int", "POST", f"{M}:predict",
     {"signature_name": "pixels", "instances": [[1.5, 2]]}, 400,
     r"[\s\S]*JSON Value: 1\.5 [\w: ]*is not of expected type: uint8$"),
    ("extra input in row", "POST", f"{M}:predict",
     {"signature_name": "add", "instances": [{"z": 1, "a": 1, "b": 1}]}, 400,
     r"Failed to process element: 0 "),
    ("missing input in row", "POST", f"{M}:predict",
     {"signature_name": "add", "instances": [{"a": 1}]}, 400,
     r"Failed to process element: 0 of 'instances' list\. JSON object: [\s\S]* keys must be equal "
     r"to: a,b$"),
    ("plain list for two inputs", "POST", f"{M}:predict",
     {"signature_name": "add", "instances": [1]}, 400,
     r"instances is a plain list, but expecting list of objects"),
    ("missing input in columns", "POST", f"{M}:predict",
     {"signature_name": "add", "inputs": {"a": [1]}}, 400,
     r"Missing named input: b in 'inputs' object\.$"),
    ("ragged", "POST", f"{M}:predict", {"inputs": [[1, 2], [3]]}, 400,
     r""),
    ("ragged rows", "POST", f"{M}:predict", {"instances": [[1, 2], [3]]}, 400,
     r""),
    ("metadata: unknown model", "GET", "/v1/models/x/metadata", None, 404,
     r"Servable not found for request: Latest\(x\)$"),
    ("status: unknown model", "GET", "/v1/models/x", None, 404,
     r"Could not find any versions of model x$"),
    ("huge version", "POST", f"{M}/versions/99999999999999999999:predict", {"instances": [1]}, 400,
     None),
    ("outside the API", "GET", "/index.html", None, 404, None),
]  # fmt: skip


@pytest.mark.parametrize(
    ("method", "path", "body", "code", "message"),
    [row[1:] for row in REST_ERRORS],
    ids=[row[0] for row in REST_ERRORS],
)
def test_rest_errors(
    target: Target, method: str, path: str, body: Any, code: int, message: str | None
) -> None:
    got, text, kind = rest(target, method, path, body)
    assert got == code, text
    if message is None:
        assert "error" not in text
        return
    assert kind.startswith("application/json")
    assert text.startswith('{\n    "error": "') and text.endswith('"\n}')
    assert re.match(message, json.loads(text)["error"]), text


# (id, path, body, answer)
REST_ANSWERS: list[tuple[str, str, Any, Any]] = [
    ("rows", f"{M}:predict", {"instances": [1.0, 2, 5]}, {"predictions": [2.5, 3.0, 4.5]}),
    ("version", f"{M}/versions/123:predict", {"instances": [1]}, {"predictions": [2.5]}),
    ("case of the path", f"/V1/Models/{CONFORMANCE}:predict", {"instances": [1]},
     {"predictions": [2.5]}),
    ("encoded name", "/v1/models/conf%6Frmance:predict", {"instances": [1]},
     {"predictions": [2.5]}),
    ("columns", f"{M}:predict", {"inputs": [[1.0], [2.0]]}, {"outputs": [[2.5], [3.0]]}),
    ("column scalar", f"{M}:predict", {"inputs": 2}, {"outputs": 3.0}),
    ("named rows", f"{M}:predict",
     {"signature_name": "add", "instances": [{"a": 1, "b": 2}, {"a": 3, "b": 4}]},
     {"predictions": [{"sum": 3.0, "twice": 6.0}, {"sum": 7.0, "twice": 14.0}]}),
    ("named columns, extras ignored", f"{M}:predict",
     {"signature_name": "add", "inputs": {"a": [1, 3], "b": [2, 4], "z": [0]}},
     {"outputs": {"sum": [3.0, 7.0], "twice": [6.0, 14.0]}}),
    ("strings and base64", f"{M}:predict",
     {"signature_name": "words", "instances": ["a", {"b64": "aGk="}]},
     {"predictions": [{"echo": "a", "echo_bytes": {"b64": "YQ=="}},
                      {"echo": "hi", "echo_bytes": {"b64": "aGk="}}]}),
    ("integers", f"{M}:predict", {"signature_name": "pixels", "instances": [[1, 255]]},
     {"predictions": [[2, 256]]}),
]  # fmt: skip


@pytest.mark.parametrize(
    ("path", "body", "answer"), [row[1:] for row in REST_ANSWERS],
    ids=[row[0] for row in REST_ANSWERS],
)  # fmt: skip
def test_rest_answers(target: Target, path: str, body: Any, answer: Any) -> None:
    code, text, kind = rest(target, "POST", path, body)
    assert code == 200, text
    assert kind.startswith("application/json")
    assert json.loads(text) == answer


def test_rest_numbers(target: Target) -> None:
    body = '{"instances": [1.0, NaN, Infinity, -Infinity, -3.8]}'
    code, text, _ = rest(target, "POST", f"{M}:predict", body)
    assert code == 200
    assert re.search(r"\[2\.5, NaN, Infinity, -Infinity, 0\.1", text), text


def test_rest_takes_gzip(target: Target) -> None:
    body = gzip.compress(b'{"instances": [1]}')
    code, text, _ = rest(target, "POST", f"{M}:predict", body, **{"Content-Encoding": "gzip"})
    assert (code, json.loads(text)) == (200, {"predictions": [2.5]})


@pytest.mark.parametrize("suffix", ["", "/versions/123", "/labels/ignored"])
def test_rest_status(target: Target, suffix: str) -> None:
    code, text, _ = rest(target, "GET", M + suffix)
    assert code == 200
    assert json.loads(text) == {
        "model_version_status": [
            {
                "version": "123",
                "state": "AVAILABLE",
                "status": {"error_code": "OK", "error_message": ""},
            }
        ]
    }


def test_rest_metadata(target: Target) -> None:
    code, text, _ = rest(target, "GET", f"{M}/metadata")
    assert code == 200
    answer = json.loads(text)
    assert answer["model_spec"] == {
        "name": CONFORMANCE,
        "signature_name": "",
        "version": "123",
    }
    x = answer["metadata"]["signature_def"]["signature_def"]["serving_default"]["inputs"]["x"]
    assert x["dtype"] == "DT_FLOAT"
    assert x["tensor_shape"]["dim"] == [{"size": "-1", "name": ""}, {"size": "1", "name": ""}]
    assert x["tensor_shape"]["unknown_rank"] is False
