"""A server's start, readiness and end."""

from __future__ import annotations

import concurrent.futures
import logging
import pathlib
import threading
from typing import Any

import grpc

from serving.errors import ServerStartError
from serving.play import Page
from serving.standin import grpc_api
from serving.standin.handlers import RELOAD_TIMEOUT, Handlers
from serving.standin.metrics import Metrics
from serving.standin.models import Models
from serving.standin.rest_api import RestApi, RestServer
from serving.standin.settings import ServerOptions, parse_models
from serving.standin.status import StatusError
from serving.transport import Tls

_log = logging.getLogger(__name__)


class EmbeddedServer:
    """TensorFlow Serving's protocol with nothing installed but TensorFlow.

    Usable as a context manager: enters ready, leaves drained.

    Attributes:
      handlers: What both ports answer with.
      port: gRPC's, once it listens.
      rest_port: REST's, once it listens; None without one.
      draining: Set when the server takes no new requests.
    """

    def __init__(self, options: ServerOptions) -> None:
        self.options = options
        self.port = 0
        self.rest_port: int | None = None
        self.models = Models(options)
        self.metrics = Metrics(self.models.available)
        self.handlers = Handlers(self.models, self.metrics)
        self._config = self._read_config()
        self._workers = concurrent.futures.ThreadPoolExecutor(options.max_workers, "grpc")
        self._grpc: grpc.Server | None = None
        self._rest: RestServer | None = None
        self.draining = threading.Event()
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
        self.models.start()
        try:
            for name in self.options.models:
                if not self.models.wait_until_available(name, timeout):
                    raise ServerStartError(self._why_not(name))
            self._listen(credentials)
        except BaseException:
            self.stop(0)
            raise
        if self.options.config_file is not None:
            threading.Thread(target=self._watch_config, name="config", daemon=True).start()

    def healthy(self) -> bool:
        """Whether a model answers and the server is not going away."""
        return not self.draining.is_set() and bool(self.models.available())

    def stop(self, grace: float | None = None) -> None:
        """Takes no new requests, finishes those under way, closes the models."""
        with self._stop_lock:
            if self._stopped.is_set():
                return
            grace = self.options.drain_timeout if grace is None else grace
            grpc_stopped = self._grpc.stop(grace) if self._grpc is not None else None
            self.draining.set()
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
        ca, certificate, key = Tls(tls.client_ca, tls.certificate, tls.key).read()
        return grpc.ssl_server_credentials(
            [(key, certificate)], ca, require_client_auth=ca is not None
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
            grpc_api.services(self.handlers, self.metrics, self.healthy)
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
            page = Page(self.handlers.served, options.index_of)
            api = RestApi(self.handlers, self.metrics, options.max_message_bytes, page)
            self._rest = RestServer(api, options)
            self.rest_port = self._rest.start()
        server.start()
        self._grpc = server

    def _read_config(self) -> bytes | None:
        """The configuration file as it is now; None without one."""
        try:
            return pathlib.Path(self.options.config_file or "").read_bytes()
        except OSError:
            return None

    def _watch_config(self) -> None:
        """Applies the configuration file when it changes or appears.

        The models of the command line stay whatever it says.
        """
        complaint = ""
        while not self.draining.wait(self.options.poll_interval):
            # What is read under the lock is no older than the last order by request.
            with self.models.ordering:
                text = self._read_config()
                same = text == self._config and not self.options.real_reloads
                if text is None or same:
                    continue
                source = str(self.options.config_file)
                try:
                    found = parse_models(text.decode("utf-8", "replace"), source)
                    self.models.reload({**self.options.models, **found}, RELOAD_TIMEOUT)
                except StatusError as error:
                    # Tried again: a label may wait for its version, which is loading.
                    if error.message != complaint:
                        _log.warning("%s: %s", source, error.one_line)
                    complaint = error.message
                else:
                    complaint = ""
                    self._config = text
                    _log.info("%s: read again", source)


def _joined(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
