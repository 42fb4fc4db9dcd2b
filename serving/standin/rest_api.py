"""The REST API and the metrics page, on Tornado's HTTP server.

Paths, forms and texts are TensorFlow Serving's (http_rest_api_handler.cc,
http_rest_api_util.cc, http_server.cc).
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import errno
import json
import logging
import re
import socket
import ssl
import threading
import urllib.parse
import zlib
from typing import Any

from google.protobuf import json_format
from tornado import httpserver, httputil, iostream, netutil

from serving import protos
from serving.errors import InputError, ServerStartError
from serving.play import Answer, Page
from serving.standin import json_form, metrics
from serving.standin.handlers import Handlers
from serving.standin.metrics import Metrics
from serving.standin.predict import DEFAULT_SIGNATURE, Order
from serving.standin.settings import ServerOptions, TlsFiles
from serving.standin.status import Code, StatusError, from_exception, invalid_argument

_log = logging.getLogger(__name__)

_VERSION = r"(?:(?:/versions/(?P<version>\d{1,20}))|(?:/labels/(?P<label>[^/:]+)))?"
_PREDICTION = re.compile(
    rf"/v1/models/(?P<name>[^/:]+){_VERSION}:(?-i:predict)", re.IGNORECASE | re.ASCII
)
_STATUS = re.compile(
    rf"/v1/models(?:/(?P<name>[^/:]+))?{_VERSION}(?:/(?P<part>metadata))?",
    re.IGNORECASE | re.ASCII,
)
_API = re.compile(r"/v1/.*", re.IGNORECASE | re.DOTALL)
_BAD_ESCAPE = re.compile(r"%(?![0-9a-fA-F]{2})")
_METHODS = frozenset({"GET", "POST", "HEAD", "PUT", "DELETE", "OPTIONS", "PATCH"})
_REASONS = {499: "Client Closed Request", **httputil.responses}
# Seconds until an answer is 504.
_TIMEOUT = 30.0


class RestApi:
    """What each path answers, without the network.

    Args:
      max_bytes: Of a body, unpacked.
      page: Answers beside the API.
    """

    def __init__(
        self, handlers: Handlers, server_metrics: Metrics, max_bytes: int, page: Page
    ) -> None:
        self._handlers = handlers
        self._metrics = server_metrics
        self._max_bytes = max_bytes
        self._page = page

    def answer(self, method: str, path: str, body: bytes, zipped: bool) -> Answer:
        """Answers one request.

        Args:
          path: With the query string, which no path of the API has.
          zipped: Whether that is gzip.
        """
        if method not in _METHODS:
            return _html(501)
        if path == metrics.PATH and method in ("GET", "HEAD"):
            return Answer(200, "text/plain; charset=utf-8", self._metrics.render())
        if _BAD_ESCAPE.search(path):
            return _html(400)
        if not _API.fullmatch(path):
            return self._page.answer(method, path, body) or _html(404)
        try:
            if method == "POST" and (match := _PREDICTION.fullmatch(path)):
                with self._metrics.counted(_unquoted(match["name"]), "REST"):
                    body = _unzipped(body, self._max_bytes) if zipped else body
                    return _json(200, self._predict(match, body))
            if method == "GET" and (match := _STATUS.fullmatch(path)):
                return _json(200, self._describe(match))
            raise invalid_argument(f"Malformed request: {method} {path}")
        except Exception as error:
            status = from_exception(error)
            if status.code is Code.INTERNAL:
                _log.warning("REST %s: %s", path[:200], status.one_line)
            return refusal(status)

    def _predict(self, match: re.Match[str], body: bytes) -> str:
        spec = _model_spec(match)
        document = json_form.parse(body)
        key = json_form.signature_name(document) or DEFAULT_SIGNATURE
        with self._handlers.lease(spec) as servable:
            signature = servable.signatures.get(key)
            if signature is None or not signature.inputs:
                text = f'Serving signature name: "{key}" not found in signature def'
                raise invalid_argument(text)
            types = {alias: info.dtype for alias, info in signature.inputs.items()}
            inputs, by_row = json_form.to_inputs(document, types)
            aliases = signature.output_aliases
            outputs = self._handlers.run(servable, Order(signature, inputs, aliases))
        return json_form.from_outputs(dict(zip(aliases, outputs, strict=True)), by_row)

    def _describe(self, match: re.Match[str]) -> str:
        if not match["name"]:
            raise invalid_argument("Missing model name in request.")
        spec = _model_spec(match)
        if not match["part"]:
            request = protos.GetModelStatusRequest(model_spec=spec)
            return _message_json(self._handlers.status(request)) + "\n"
        request = protos.GetModelMetadataRequest(model_spec=spec, metadata_field=["signature_def"])
        response = self._handlers.metadata(request)
        packed = response.metadata["signature_def"].value
        definitions = _message_json(protos.SignatureDefMap.FromString(packed))
        spec = _message_json(response.model_spec)
        return f'{{\n"model_spec":{spec},\n"metadata": {{"signature_def": {definitions}}}\n}}\n'


def refusal(status: StatusError) -> Answer:
    """The answer to a request that ended with a status other than OK."""
    text = json.dumps(status.message, ensure_ascii=False)
    body = f'{{\n    "error": {text}\n}}' if status.message else ""
    return _json(status.http_status, body)


def _json(status: int, body: str) -> Answer:
    return Answer(status, "application/json", body)


def _html(status: int) -> Answer:
    return Answer(status, "text/html", f"<html><body><h1>{_REASONS[status]}</h1></body></html>")


def _unzipped(body: bytes, limit: int) -> bytes:
    """Unpacks a gzip body, whole and no larger than ``limit`` bytes."""
    unpacker = zlib.decompressobj(16 + zlib.MAX_WBITS)
    try:
        data = unpacker.decompress(body, limit + 1)
    except zlib.error as error:
        raise invalid_argument(f"The body is no gzip: {error}") from None
    if len(data) > limit:
        raise invalid_argument(f"The body is larger than {limit} bytes when unpacked")
    if not unpacker.eof or unpacker.unused_data:
        raise invalid_argument("The gzip body is cut off or has something behind its end")
    return data


def _unquoted(text: str) -> str:
    return urllib.parse.unquote(text, errors="replace")


def _model_spec(match: re.Match[str]) -> Any:
    spec = protos.ModelSpec(name=_unquoted(match["name"]))
    if match["version"]:
        try:
            spec.version.value = int(match["version"])
        except ValueError:
            raise invalid_argument("") from None  # more than 64 bits: upstream says nothing
    elif match["label"]:
        spec.version_label = _unquoted(match["label"])
    return spec


def _message_json(message: Any) -> str:
    def write(**every_field: bool) -> str:
        return json_format.MessageToJson(
            message,
            preserving_proto_field_name=True,
            indent=1,
            descriptor_pool=protos.pool(),
            **every_field,
        )

    try:
        return write(always_print_fields_with_no_presence=True)
    except TypeError:  # its name before protobuf 5
        return write(including_default_value_fields=True)


class RestServer:
    """Answers HTTP in a thread of its own; graphs run in a pool beside it."""

    def __init__(self, api: RestApi, options: ServerOptions) -> None:
        self._api = api
        self._options = options
        self._workers = concurrent.futures.ThreadPoolExecutor(16, "rest")
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="rest", daemon=True)
        self._answering: set[asyncio.Task[None]] = set()
        self._server: httpserver.HTTPServer | None = None

    def start(self) -> int:
        """Binds and answers.

        Raises:
          ServerStartError: The port is taken.
          InputError: Unusable certificates.
        """
        options = self._options
        self._server = httpserver.HTTPServer(
            self._accept,
            max_body_size=options.max_message_bytes,
            max_header_size=64 * 1024,
            chunk_size=64 * 1024,
            idle_connection_timeout=options.io_timeout,
            body_timeout=options.io_timeout,
            ssl_options=_ssl_context(options.tls),
        )
        port = options.rest_port or 0
        try:
            family = socket.AF_INET6 if ":" in options.host else socket.AF_UNSPEC
            sockets = netutil.bind_sockets(port, options.host, family=family, backlog=1024)
        except OSError as error:
            taken = error.errno == errno.EADDRINUSE
            raise ServerStartError(
                f"cannot listen on {options.host}:{port}: "
                f"{'the port is taken' if taken else error.strerror or error}; choose another "
                "with --rest-port"
            ) from None
        self._thread.start()
        self._loop.call_soon_threadsafe(self._server.add_sockets, sockets)
        return int(sockets[0].getsockname()[1])

    def stop(self, grace: float) -> None:
        """Takes no new connections, lets requests under way finish, closes all."""
        if self._thread.is_alive():
            asyncio.run_coroutine_threadsafe(self._drain(grace), self._loop).result()
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()
            self._loop.close()
        self._workers.shutdown(wait=True)

    async def _drain(self, grace: float) -> None:
        assert self._server is not None
        self._server.stop()
        if self._answering:
            await asyncio.wait(self._answering, timeout=grace)
        await self._server.close_all_connections()

    def _accept(self, request: httputil.HTTPServerRequest) -> None:
        task = self._loop.create_task(self._respond(request))
        self._answering.add(task)
        task.add_done_callback(self._answering.discard)

    async def _respond(self, request: httputil.HTTPServerRequest) -> None:
        connection = request.connection
        assert connection is not None
        zipped = request.headers.get("Content-Encoding", "").lower() == "gzip"
        path, method = request.uri or "/", request.method or ""
        work = self._loop.run_in_executor(
            self._workers, self._api.answer, method, path, request.body, zipped
        )
        try:
            # Nothing can stop the work; its answer goes nowhere then.
            status, kind, body = await asyncio.wait_for(asyncio.shield(work), _TIMEOUT)
        except asyncio.TimeoutError:
            late = StatusError(Code.DEADLINE_EXCEEDED, "Timed out waiting for the model")
            status, kind, body = refusal(late)
        # Half of a surrogate pair may come back in an error: it has no bytes.
        payload = body.encode(errors="replace")
        headers = httputil.HTTPHeaders({"Content-Type": kind, "Content-Length": str(len(payload))})
        start = httputil.ResponseStartLine("", status, _REASONS.get(status, "Unknown"))
        with contextlib.suppress(iostream.StreamClosedError):
            await connection.write_headers(start, headers, b"" if method == "HEAD" else payload)
            connection.finish()


def _ssl_context(tls: TlsFiles | None) -> ssl.SSLContext | None:
    if tls is None:
        return None
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    try:
        context.load_cert_chain(tls.certificate, tls.key)
        if tls.client_ca is not None:
            context.verify_mode = ssl.CERT_REQUIRED
            context.load_verify_locations(tls.client_ca)
    except OSError as error:  # SSLError is one
        raise InputError(f"cannot use the certificates: {error}") from None
    return context
