"""A server's start, readiness and end."""

from __future__ import annotations

import concurrent.futures
import logging
import pathlib
import threading
from typing import TYPE_CHECKING, Any

import grpc

from serving.errors import InputError, ServerStartError
from serving.server import config as config_lib
from serving.server import grpc_service
from serving.server.inference import Inference
from serving.server.manager import ModelManager, State
from serving.server.metrics import Metrics
from serving.server.options import ServerOptions
from serving.server.sampling import Sampler
from serving.server.servable import Servable
from serving.server.status import Code, StatusError

if TYPE_CHECKING:
    from serving.server.rest import RestServer

_log = logging.getLogger(__name__)


class EmbeddedServer:
    """TensorFlow Serving's protocol with nothing installed but TensorFlow.

    Usable as a context manager: enters ready, leaves drained.

    Args:
      options: What to serve and where.
    """

    def __init__(self, options: ServerOptions) -> None:
        self.options = options
        self.port = 0
        self.rest_port: int | None = None
        self.metrics = Metrics(lambda: self.manager.available())
        self.manager = ModelManager(
            warm_up=self._warm_up,
            poll_interval=options.poll_interval,
            max_load_retries=options.max_load_retries,
            load_retry_interval=options.load_retry_interval,
        )
        self.sampler = Sampler(options.sampling) if options.sampling is not None else None
        self.inference = Inference(self.manager, self.metrics, options.batching, self.sampler)
        self._grpc: grpc.Server | None = None
        self._rest: RestServer | None = None
        self._config_text = self._read_config_file()
        self._draining = threading.Event()
        self._stopped = threading.Event()
        self._stop_lock = threading.Lock()

    @property
    def address(self) -> str:
        """``host:port`` of gRPC."""
        return f"{_bracketed(self.options.host)}:{self.port}"

    @property
    def rest_address(self) -> str | None:
        """``host:port`` of REST, or None without one."""
        if self.rest_port is None:
            return None
        return f"{_bracketed(self.options.host)}:{self.rest_port}"

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
        self.manager.start(self.options.models)
        try:
            for name in self.options.models:
                if not self.manager.wait_until_available(name, timeout):
                    raise ServerStartError(self._why_not(name))
            self._listen(credentials)
        except BaseException:
            self.stop(0)
            raise
        if self.options.config_file is not None:
            threading.Thread(target=self._watch_config, name="config", daemon=True).start()

    def healthy(self) -> bool:
        """Whether a model answers and the server is not going away."""
        available = self.manager.available()
        return not self._draining.is_set() and bool(available)

    def wait(self) -> None:
        """Blocks until the server was stopped."""
        self._stopped.wait()

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
            self.manager.stop()
            if self.sampler is not None:
                self.sampler.close()
            self._stopped.set()

    def __enter__(self) -> EmbeddedServer:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _warm_up(self, servable: Servable) -> None:
        Inference().warm_up(servable)

    def _why_not(self, name: str) -> str:
        settings = self.options.models[name]
        try:
            versions = self.manager.status(name)
        except StatusError:
            return (
                f"model {name!r}: no numbered versions in {settings.base_path}; give a folder "
                "that holds SavedModels in folders named by version, such as 1/"
            )
        for version in versions:
            if version.error is not None and version.state is State.END:
                text = " ".join(version.error.message.split())
                return f"model {name!r}: version {version.version} does not load: {text[:500]}"
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
        self._workers = concurrent.futures.ThreadPoolExecutor(options.max_workers, "grpc")
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
            grpc_service.generic_handlers(
                {
                    grpc_service.PREDICTION_SERVICE: grpc_service.PredictionService(
                        self.inference, self.metrics
                    ).handlers(),
                    grpc_service.MODEL_SERVICE: grpc_service.ModelService(
                        self.inference, self._supersede_config_file
                    ).handlers(),
                    grpc_service.HEALTH_SERVICE: grpc_service.HealthService(
                        self.healthy
                    ).handlers(),
                }
            )
        )
        wanted = f"{_bracketed(options.host)}:{options.port}"
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
            from serving.server.rest import RestServer

            self._rest = RestServer(self.inference, self.metrics, options)
            self.rest_port = self._rest.start()
        server.start()
        self._grpc = server

    def _supersede_config_file(self) -> None:
        """What the file says now is older than the order that just came."""
        self._config_text = self._read_config_file()

    def _read_config_file(self) -> bytes | None:
        if self.options.config_file is None:
            return None
        try:
            return pathlib.Path(self.options.config_file).read_bytes()
        except OSError:
            return None

    def _watch_config(self) -> None:
        path = self.options.config_file
        complaint = ""
        while not self._draining.wait(self.options.poll_interval):
            text = self._read_config_file()
            if text is None or text == self._config_text:
                continue
            try:
                self._apply_config_file(text, str(path))
            except StatusError as error:
                if error.message != complaint:
                    _log.warning("%s: %s", path, " ".join(error.message.split()))
                complaint = error.message
                if error.code is Code.FAILED_PRECONDITION:
                    # A label waits for its version, which may be loading.
                    self._config_text = None
            else:
                complaint = ""
                _log.info("%s: read again", path)

    def _apply_config_file(self, text: bytes, path: str) -> None:
        def still_wanted() -> bool:
            # An order by RPC may have come first, or the file changed again.
            if self._config_text == text or self._read_config_file() != text:
                return False
            self._config_text = text
            return True

        try:
            config = config_lib.parse_text(text.decode("utf-8", "replace"), path)
            models = {**self.options.models, **config_lib.from_proto(config)}
        except StatusError:
            self._config_text = text  # say it once
            raise
        self.manager.reload(models, 60.0, still_wanted)


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host
