"""A server's start, readiness and end."""

from __future__ import annotations

import concurrent.futures
import logging
import pathlib
import threading
from typing import Any

import grpc

from serving.errors import InputError, ServerStartError
from serving.standin import handlers, settings
from serving.standin.grpc_api import GrpcApi
from serving.standin.lifecycle import Loader
from serving.standin.metrics import Metrics
from serving.standin.models import Models
from serving.standin.rest_api import RestApi, RestServer
from serving.standin.settings import ServerOptions
from serving.standin.status import Code, StatusError

_log = logging.getLogger(__name__)
_RELOAD_TIMEOUT = 60.0


class EmbeddedServer:
    """TensorFlow Serving's protocol with nothing installed but TensorFlow.

    Usable as a context manager: enters ready, leaves drained.

    Args:
      options: What to serve and where.

    Attributes:
      models: What is served.
      metrics: What was counted.
      handlers: What both ports answer with.
      port: gRPC's, once it listens.
      rest_port: REST's, once it listens; None without one.
    """

    def __init__(self, options: ServerOptions) -> None:
        self.options = options
        self.port = 0
        self.rest_port: int | None = None
        loader = Loader(handlers.warm_up, options.max_load_retries, options.load_retry_interval)
        self.models = Models(loader, options)
        self.metrics = Metrics(self.models.available)
        self._config = _ConfigFile(options, self.models)
        self.handlers = handlers.Handlers(self.models, self.metrics, self._config.supersede)
        self._workers = concurrent.futures.ThreadPoolExecutor(options.max_workers, "grpc")
        self._grpc: grpc.Server | None = None
        self._rest: RestServer | None = None
        self._draining = threading.Event()
        self._stopped = threading.Event()
        self._stop_lock = threading.Lock()

    @property
    def address(self) -> str:
        """``host:port`` of gRPC."""
        return _joined(self.options.host, self.port)

    @property
    def rest_address(self) -> str | None:
        """``host:port`` of REST, or None without one."""
        return None if self.rest_port is None else _joined(self.options.host, self.rest_port)

    @property
    def draining(self) -> threading.Event:
        """Set when the server began to stop."""
        return self._draining

    def start(self, timeout: float | None = None) -> None:
        """Loads the models, then listens; returns when requests are answered.

        Args:
          timeout: Seconds for the models to come up; None waits as long as
            they are loading.

        Raises:
          ServerStartError: A model failed to load, or a port is taken.
          InputError: Unusable certificates.
        """
        credentials = self._credentials()
        self.models.start(self.options.models)
        try:
            for name in self.options.models:
                if not self.models.wait_until_available(name, timeout):
                    raise ServerStartError(self._why_not(name))
            self._listen(credentials)
        except BaseException:
            self.stop(0)
            raise
        if self.options.config_file is not None:
            watch = threading.Thread(
                target=self._config.watch, args=(self._draining,), name="config", daemon=True
            )
            watch.start()

    def healthy(self) -> bool:
        """Whether a model answers and the server is not going away."""
        return not self._draining.is_set() and bool(self.models.available())

    def stop(self, grace: float | None = None) -> None:
        """Takes no new requests, finishes those under way, closes the models.

        Args:
          grace: Seconds for requests under way; the option's by default.
        """
        with self._stop_lock:
            if self._stopped.is_set():
                return
            self._draining.set()
            grace = self.options.drain_timeout if grace is None else grace
            grpc_stopped = self._grpc.stop(grace) if self._grpc is not None else None
            if self._rest is not None:
                self._rest.stop(grace)
            if grpc_stopped is not None:
                grpc_stopped.wait()
            self._workers.shutdown(wait=True)
            self.models.stop()
            self._stopped.set()

    def __enter__(self) -> EmbeddedServer:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _why_not(self, name: str) -> str:
        try:
            versions = self.models.versions(name)
        except StatusError:
            return (
                f"model {name!r}: no numbered versions in {self.options.models[name].base_path}; "
                "give a folder that holds SavedModels in folders named by version, such as 1/"
            )
        for version in versions:
            if version.error is not None:
                why = version.error.one_line
                return f"model {name!r}: version {version.number} does not load: {why}"
        return f"model {name!r} did not become available in time"

    def _credentials(self) -> Any:
        tls = self.options.tls
        if tls is None:
            return None
        try:
            certificate = pathlib.Path(tls.certificate).read_bytes()
            key = pathlib.Path(tls.key).read_bytes()
            client_ca = pathlib.Path(tls.client_ca).read_bytes() if tls.client_ca else None
        except OSError as error:
            raise InputError(f"cannot read {error.filename}: {error.strerror}") from None
        return grpc.ssl_server_credentials(
            [(key, certificate)], client_ca, require_client_auth=client_ca is not None
        )

    def _listen(self, credentials: Any) -> None:
        options = self.options
        server = grpc.server(
            self._workers,
            maximum_concurrent_rpcs=options.max_waiting,
            options=[
                ("grpc.max_receive_message_length", options.max_message_bytes),
                ("grpc.max_send_message_length", -1),
                ("grpc.so_reuseport", 0),
                ("grpc.server_handshake_timeout_ms", int(options.io_timeout * 1000)),
                ("grpc.http2.min_ping_interval_without_data_ms", 5000),
            ],
        )
        server.add_generic_rpc_handlers(
            GrpcApi(self.handlers, self.metrics, self.healthy).services()
        )
        wanted = _joined(options.host, options.port)
        try:
            if credentials is None:
                self.port = server.add_insecure_port(wanted)
            else:
                self.port = server.add_secure_port(wanted, credentials)
        except (RuntimeError, ValueError):
            self.port = 0
        if not self.port:
            raise ServerStartError(
                f"cannot listen on {wanted}: the port is taken or the address is not this "
                "machine's; choose another with --port"
            )
        if options.rest_port is not None:
            self._rest = RestServer(RestApi(self.handlers, self.metrics, options), options)
            self.rest_port = self._rest.start()
        server.start()
        self._grpc = server


class _ConfigFile:
    """The model configuration as a file, applied when it changes or appears.

    Args:
      options: Which file, how often to look, and the models of the command
        line, which stay whatever the file says.
      models: To configure.
    """

    def __init__(self, options: ServerOptions, models: Models) -> None:
        self._options = options
        self._models = models
        self._applied = self._read()

    def supersede(self) -> None:
        """Takes what the file says now for older than an order that just came."""
        self._applied = self._read()

    def watch(self, stopping: threading.Event) -> None:
        """Looks at the file every ``poll_interval`` until told to stop."""
        complaint = ""
        while not stopping.wait(self._options.poll_interval):
            text = self._read()
            if text is None or (text == self._applied and not self._options.real_reloads):
                continue
            try:
                self._apply(text)
            except StatusError as error:
                if error.message != complaint:
                    _log.warning("%s: %s", self._options.config_file, error.one_line)
                complaint = error.message
                if error.code is Code.FAILED_PRECONDITION:
                    # A label waits for its version, which may be loading.
                    self._applied = None
            else:
                complaint = ""
                _log.info("%s: read again", self._options.config_file)

    def _read(self) -> bytes | None:
        if self._options.config_file is None:
            return None
        try:
            return pathlib.Path(self._options.config_file).read_bytes()
        except OSError:
            return None

    def _apply(self, text: bytes) -> None:
        def still_wanted() -> bool:
            # An order by request may have come first, or the file changed again.
            if self._read() != text or (self._applied == text and not self._options.real_reloads):
                return False
            self._applied = text
            return True

        try:
            found = settings.parse_models(
                text.decode("utf-8", "replace"), str(self._options.config_file)
            )
        except StatusError:
            self._applied = text  # said once
            raise
        self._models.reload({**self._options.models, **found}, _RELOAD_TIMEOUT, still_wanted)


def _joined(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
