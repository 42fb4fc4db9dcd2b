"""What a server is told: ports, limits, models, certificates."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from serving.server.batching import BatchingParameters
from serving.server.config import ModelSettings
from serving.server.sampling import SamplingOptions

MIB = 2**20


@dataclasses.dataclass(frozen=True)
class TlsFiles:
    """Certificates for both ports, as PEM files.

    Attributes:
      certificate: The server's chain.
      key: Its private key.
      client_ca: When given, only clients with a certificate of this authority
        are let in (mutual TLS).
    """

    certificate: str
    key: str
    client_ca: str | None = None


@dataclasses.dataclass(frozen=True)
class ServerOptions:
    """Options of :class:`serving.server.EmbeddedServer`.

    Attributes:
      models: What to serve, by name.
      host: The address to bind; loopback unless told otherwise.
      port: gRPC; 0 takes a free one.
      rest_port: REST and metrics; 0 takes a free one, None has no REST.
      batching: Gathers small requests when given.
      tls: Serves both ports with TLS when given.
      max_workers: Requests worked on at the same time on the gRPC port.
      max_waiting: Requests worked on or waiting; beyond, RESOURCE_EXHAUSTED.
      max_message_bytes: A longer gRPC message or REST body is refused.
      max_connections: REST connections held at the same time.
      rest_timeout: Seconds until REST answers 504.
      io_timeout: Seconds that a REST client may take to send a request.
      poll_interval: Seconds between looks at the version folders.
      max_load_retries: Further tries after a failed load.
      load_retry_interval: Seconds between them.
      drain_timeout: Seconds that requests under way have when stopping.
      config_file: Read again when it changes, every ``poll_interval``.
      sampling: Keeps a sample of the requests' images when given.
    """

    models: Mapping[str, ModelSettings]
    host: str = "127.0.0.1"
    port: int = 8500
    rest_port: int | None = 8501
    batching: BatchingParameters | None = None
    tls: TlsFiles | None = None
    max_workers: int = 64
    max_waiting: int = 1024
    max_message_bytes: int = 64 * MIB
    max_connections: int = 2048
    rest_timeout: float = 30.0
    io_timeout: float = 30.0
    poll_interval: float = 1.0
    max_load_retries: int = 2
    load_retry_interval: float = 1.0
    drain_timeout: float = 30.0
    config_file: str | None = None
    sampling: SamplingOptions | None = None
