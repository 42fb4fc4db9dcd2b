"""The REST API and the metrics page, on Tornado's HTTP server.

Paths, forms and texts are TensorFlow Serving's (http_rest_api_handler.cc,
http_rest_api_util.cc, http_server.cc).
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import errno
import json
import logging
import re
import socket
import ssl
import threading
import time
import urllib.parse
from typing import Any

from tornado import httpserver, httputil, iostream, netutil

from serving import protos
from serving.errors import InputError, ServerStartError
from serving.server import json_tensor, metrics
from serving.server.grpc_service import ModelService
from serving.server.inference import Inference, select_outputs
from serving.server.metrics import Metrics
from serving.server.options import ServerOptions
from serving.server.servable import DEFAULT_SIGNATURE
from serving.server.status import Code, StatusError, from_exception, invalid_argument

_log = logging.getLogger(__name__)

_VERSION = r"(?:(?:/versions/(?P<version>\d+))|(?:/labels/(?P<label>[^/:]+)))?"
_PREDICTION = re.compile(
    rf"/v1/models/(?P<name>[^/:]+){_VERSION}:(?P<method>classify|regress|predict)",
    re.IGNORECASE | re.ASCII,
)
_STATUS = re.compile(
    rf"/v1/models(?:/(?P<name>[^/:]+))?{_VERSION}(?:/(?P<part>metadata))?",
    re.IGNORECASE | re.ASCII,
)
_API = re.compile(r"/v1/.*", re.IGNORECASE | re.DOTALL)
_BAD_ESCAPE = re.compile(r"%(?![0-9a-fA-F]{2})")
_METHODS = frozenset({"GET", "POST", "HEAD", "PUT", "DELETE", "OPTIONS", "PATCH"})
_REASONS = {499: "Client Closed Request"}
_INT64_MAX = 2**63 - 1


class RestServer:
    """Answers HTTP in a thread of its own; graphs run in a pool beside it.

    Args:
      inference: Answers.
      server_metrics: Counts, and is shown.
      options: Address, limits and certificates.
    """

    def __init__(
        self, inference: Inference, server_metrics: Metrics, options: ServerOptions
    ) -> None:
        self._inference = inference
        self._models = ModelService(inference)
        self._metrics = server_metrics
        self._options = options
        self._workers = concurrent.futures.ThreadPoolExecutor(16, "rest")
        self._loop: asyncio.AbstractEventLoop | None = None
        self._server: _LimitedServer | None = None
        self._active = 0
        self._thread: threading.Thread | None = None

    def start(self) -> int:
        """Binds and answers.

        Returns:
          The port.

        Raises:
          ServerStartError: The port is taken.
          InputError: Unusable certificates.
        """
        options = self._options
        port = options.rest_port or 0
        try:
            family = socket.AF_INET6 if ":" in options.host else socket.AF_UNSPEC
            sockets = netutil.bind_sockets(port, options.host, family=family, backlog=1024)
        except OSError as error:
            why = (
                "the port is taken" if error.errno == errno.EADDRINUSE else error.strerror or error
            )
            raise ServerStartError(
                f"cannot listen on {options.host}:{port}: {why}; choose another with --rest-port"
            ) from None
        started: concurrent.futures.Future[None] = concurrent.futures.Future()
        tls = self._ssl_context()
        self._thread = threading.Thread(
            target=self._run, args=(sockets, tls, started), name="rest", daemon=True
        )
        self._thread.start()
        started.result()
        return int(sockets[0].getsockname()[1])

    def stop(self, grace: float) -> None:
        """Takes no new connections, lets requests under way finish, closes all.

        Args:
          grace: Seconds for requests under way.
        """
        loop, thread = self._loop, self._thread
        if loop is None or thread is None or not thread.is_alive():
            return
        asyncio.run_coroutine_threadsafe(self._drain(grace), loop).result()
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        self._workers.shutdown(wait=True)

    def _ssl_context(self) -> ssl.SSLContext | None:
        tls = self._options.tls
        if tls is None:
            return None
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        try:
            context.load_cert_chain(tls.certificate, tls.key)
            if tls.client_ca is not None:
                context.verify_mode = ssl.CERT_REQUIRED
                context.load_verify_locations(tls.client_ca)
        except (OSError, ssl.SSLError) as error:
            raise InputError(f"cannot use the certificates: {error}") from None
        return context

    def _run(
        self,
        sockets: list[socket.socket],
        tls: ssl.SSLContext | None,
        started: concurrent.futures.Future[None],
    ) -> None:
        loop = asyncio.new_event_loop()
        asyncio.set_event_loop(loop)
        self._loop = loop
        try:
            options = self._options
            server = _LimitedServer(
                self._accept,
                decompress_request=True,
                max_body_size=options.max_message_bytes,
                max_header_size=64 * 1024,
                chunk_size=64 * 1024,
                idle_connection_timeout=options.io_timeout,
                body_timeout=options.io_timeout,
                ssl_options=tls,
            )
            server.limit = options.max_connections
            server.add_sockets(sockets)
            self._server = server
        except BaseException as error:
            started.set_exception(error)
            return
        started.set_result(None)
        loop.run_forever()
        loop.run_until_complete(loop.shutdown_asyncgens())
        loop.close()

    async def _drain(self, grace: float) -> None:
        assert self._server is not None
        self._server.stop()
        end = time.monotonic() + grace
        while self._active and time.monotonic() < end:
            await asyncio.sleep(0.01)
        await self._server.close_all_connections()

    def _accept(self, request: httputil.HTTPServerRequest) -> None:
        self._active += 1
        task = asyncio.ensure_future(self._respond(request))
        task.add_done_callback(self._finished)

    def _finished(self, task: asyncio.Task[None]) -> None:
        self._active -= 1
        error = None if task.cancelled() else task.exception()
        if error is not None and not isinstance(error, iostream.StreamClosedError):
            _log.warning("REST: %s: %s", type(error).__name__, " ".join(str(error).split()))

    async def _respond(self, request: httputil.HTTPServerRequest) -> None:
        status, kind, body = await self._answer(request)
        connection = request.connection
        if connection is None:
            return
        payload = body.encode()
        headers = httputil.HTTPHeaders({"Content-Type": kind, "Content-Length": str(len(payload))})
        start = httputil.ResponseStartLine(
            "", status, _REASONS.get(status) or httputil.responses.get(status, "Unknown")
        )
        if request.method == "HEAD":
            payload = b""
        await connection.write_headers(start, headers, payload)
        connection.finish()

    async def _answer(self, request: httputil.HTTPServerRequest) -> tuple[int, str, str]:
        path, method = request.uri or "/", request.method or ""
        if method not in _METHODS:
            return 501, "text/html", _html(501, "Not Implemented")
        if path == metrics.PATH and method in ("GET", "HEAD"):
            return 200, "text/plain; charset=utf-8", self._metrics.render()
        if _BAD_ESCAPE.search(path):
            return 400, "text/html", _html(400, "Bad Request")
        if not _API.fullmatch(path):
            return 404, "text/html", _html(404, "Not Found")
        loop = asyncio.get_running_loop()
        work = loop.run_in_executor(self._workers, self._work, method, path, request.body)
        try:
            return await asyncio.wait_for(asyncio.shield(work), self._options.rest_timeout)
        except asyncio.TimeoutError:
            status = StatusError(Code.DEADLINE_EXCEEDED, "Timed out waiting for the model")
            return status.http_status, "application/json", _error(status.message)

    def _work(self, method: str, path: str, body: bytes) -> tuple[int, str, str]:
        started = time.monotonic()
        name, api, status = "", "", "OK"
        try:
            if method == "POST" and (match := _PREDICTION.fullmatch(path)):
                name, api = _decoded(match["name"]), match["method"]
                text = self._infer(name, match, body, started)
            elif method == "GET" and (match := _STATUS.fullmatch(path)):
                text = self._describe(match)
            else:
                raise invalid_argument(f"Malformed request: {method} {path}")
            return 200, "application/json", text
        except _EmptyError as error:
            return error.status, "application/json", ""
        except Exception as error:
            refused = from_exception(error)
            status = refused.code.name
            if refused.code is Code.INTERNAL:
                _log.warning("REST %s: %s", path[:200], " ".join(refused.message.split())[:500])
            return refused.http_status, "application/json", _error(refused.message)
        finally:
            if api:
                elapsed = (time.monotonic() - started) * 1e6
                self._metrics.count_request(name, status, api.lower(), "REST", elapsed)

    def _infer(self, name: str, match: re.Match[str], body: bytes, started: float) -> str:
        spec = _model_spec(name, match)
        document = json_tensor.parse(body)
        key = json_tensor.signature_name(document)
        deadline = started + self._options.rest_timeout
        if match["method"] == "predict":
            return self._predict(spec, document, key or DEFAULT_SIGNATURE, deadline)
        if match["method"] == "classify":
            request = protos.ClassificationRequest(model_spec=spec)
            request.model_spec.signature_name = key
            json_tensor.to_examples(document, request.input)
            answer = self._inference.classify(request, deadline)
            return json_tensor.from_classifications(answer.result)
        if match["method"] == "regress":
            request = protos.RegressionRequest(model_spec=spec)
            request.model_spec.signature_name = key
            json_tensor.to_examples(document, request.input)
            answer = self._inference.regress(request, deadline)
            return json_tensor.from_regressions(answer.result)
        # ":PREDICT" matches the path and is no method, as upstream.
        raise invalid_argument(f"Malformed request: POST {match.string}")

    def _predict(self, spec: Any, document: dict[str, Any], key: str, deadline: float) -> str:
        servable = self._inference.acquire(spec)
        try:
            signature = servable.signatures.get(key)
            if signature is None:
                raise invalid_argument(
                    f'Serving signature name: "{key}" not found in signature def'
                )
            if not signature.inputs:
                raise invalid_argument(f"Failed to get input map for signature: {key}")
            inputs, by_row = json_tensor.to_inputs(document, signature.inputs)
            aliases = select_outputs(signature, ())
            outputs = self._inference.run(servable, signature, inputs, aliases, deadline)
            return json_tensor.from_outputs(dict(zip(aliases, outputs, strict=True)), by_row)
        finally:
            servable.release()

    def _describe(self, match: re.Match[str]) -> str:
        if not match["name"]:
            raise invalid_argument("Missing model name in request.")
        spec = _model_spec(_decoded(match["name"]), match)
        if match["part"]:
            request = protos.GetModelMetadataRequest(
                model_spec=spec, metadata_field=["signature_def"]
            )
            return _metadata_json(self._inference.metadata(request))
        answer = self._models.status_of(protos.GetModelStatusRequest(model_spec=spec))
        return _message_json(answer, proto_names=True) + "\n"


class _LimitedServer(httpserver.HTTPServer):
    """Holds no more connections than it can afford."""

    limit = 2048

    def initialize(self, *args: Any, **kwargs: Any) -> None:
        super().initialize(*args, **kwargs)
        self._complained = 0.0

    def handle_stream(self, stream: iostream.IOStream, address: Any) -> None:
        if len(self._connections) >= self.limit:
            now = time.monotonic()
            if now - self._complained > 1.0:
                self._complained = now
                _log.warning("REST: more than %d connections; closing new ones", self.limit)
            stream.close()
            return
        super().handle_stream(stream, address)


class _EmptyError(Exception):
    """An answer with a status and no body, as upstream gives in one case."""

    def __init__(self, status: int) -> None:
        super().__init__(status)
        self.status = status


def _decoded(text: str) -> str:
    return urllib.parse.unquote(text, errors="replace")


def _model_spec(name: str, match: re.Match[str]) -> Any:
    spec = protos.ModelSpec(name=name)
    if match["version"]:
        version = int(match["version"]) if len(match["version"]) < 30 else _INT64_MAX + 1
        if version > _INT64_MAX:
            raise _EmptyError(400)
        spec.version.value = version
    elif match["label"]:
        spec.version_label = _decoded(match["label"])
    return spec


def _error(message: str) -> str:
    return '{\n    "error": ' + json.dumps(message, ensure_ascii=False) + "\n}"


def _html(status: int, reason: str) -> str:
    title = f"{status} {reason}"
    return f"<HTML><HEAD>\n<TITLE>{title}</TITLE>\n</HEAD><BODY>\n<H1>{reason}</H1>\n</BODY></HTML>"


def _message_json(message: Any, *, proto_names: bool) -> str:
    from google.protobuf import json_format

    try:
        # protobuf 5 and newer renamed the argument.
        return json_format.MessageToJson(
            message,
            always_print_fields_with_no_presence=True,
            preserving_proto_field_name=proto_names,
            indent=1,
            descriptor_pool=protos.pool(),
        )
    except TypeError:
        return json_format.MessageToJson(
            message,
            including_default_value_fields=True,
            preserving_proto_field_name=proto_names,
            indent=1,
            descriptor_pool=protos.pool(),
        )


def _metadata_json(response: Any) -> str:
    definitions = protos.SignatureDefMap.FromString(response.metadata["signature_def"].value)
    spec = _message_json(response.model_spec, proto_names=True)
    signatures = _message_json(definitions, proto_names=True)
    return f'{{\n"model_spec":{spec},\n"metadata": {{"signature_def": {signatures}}}\n}}\n'
