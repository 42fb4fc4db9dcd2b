"""What a server is told: models, ports, limits, certificates.

The models come as TensorFlow Serving's ModelServerConfig, by file or by
request. Checks and texts follow server_core.cc.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from typing import Any

from google.protobuf import text_format

from serving import protos
from serving.standin.status import invalid_argument
from serving.standin.versions import VersionPolicy

MIB = 2**20
_PLATFORM = "tensorflow"


@dataclasses.dataclass(frozen=True)
class ModelSettings:
    """One served model.

    Attributes:
      name: What clients call it.
      base_path: The folder with its numbered versions.
      policy: Which versions to serve.
      labels: Label to version.
    """

    name: str
    base_path: str
    policy: VersionPolicy = VersionPolicy()
    labels: dict[str, int] = dataclasses.field(default_factory=dict)


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
    """Options of :class:`serving.standin.server.EmbeddedServer`.

    Attributes:
      models: What to serve, by name.
      host: The address to bind; loopback unless told otherwise.
      port: gRPC; 0 takes a free one.
      rest_port: REST and metrics; 0 takes a free one, None has no REST.
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
      config_file: Read every ``poll_interval`` when it changed or appeared.
      real_reloads: For tests: configurations are applied as TensorFlow Serving
        does it. The file at every poll, changed or not; labels first, and
        nothing where one moves to a version that does not answer; versions at
        the next look at the folders, so that a failure is in the status till then.
    """

    models: Mapping[str, ModelSettings]
    host: str = "127.0.0.1"
    port: int = 8500
    rest_port: int | None = 8501
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
    real_reloads: bool = False


def parse_models(text: str, source: str) -> dict[str, ModelSettings]:
    """The models of a ModelServerConfig text proto, as ``--model_config_file`` has it.

    Args:
      text: The file's text.
      source: Its name, for the message.

    Raises:
      StatusError: INVALID_ARGUMENT; not a ModelServerConfig, or not a sound one.
    """
    config = protos.ModelServerConfig()
    try:
        text_format.Parse(text, config, descriptor_pool=protos.pool())
    except text_format.ParseError as error:
        raise invalid_argument(f"Invalid protobuf file: '{source}': {error}") from None
    return models_of(config)


def models_of(config: Any) -> dict[str, ModelSettings]:
    """The models of a ``ModelServerConfig`` by name, checked.

    Raises:
      StatusError: As TensorFlow Serving's ReloadConfig.
    """
    if config.WhichOneof("config") == "custom_model_config":
        raise invalid_argument("Custom model configurations are not supported; use a list.")
    models: dict[str, ModelSettings] = {}
    for item in config.model_config_list.config:
        _check_platform(item)
        if item.name in models:
            raise invalid_argument(
                f"Illegal to list model {item.name} multiple times in config list"
            )
        if item.base_path and not os.path.isabs(item.base_path) and "://" not in item.base_path:
            raise invalid_argument(
                f"Expected model {item.name} to have an absolute path or URI; got base_path()="
                f"{item.base_path}"
            )
        models[item.name] = ModelSettings(
            item.name, item.base_path, _policy(item), dict(item.version_labels)
        )
    return models


def located(model: ModelSettings, folder: str) -> ModelSettings:
    """The model where it is: a file that containers read, too, may have their paths.

    Args:
      model: As the file has it.
      folder: The file's.
    """
    beside = os.path.join(folder, model.name)
    if os.path.isdir(model.base_path) or not os.path.isdir(beside):
        return model
    return dataclasses.replace(model, base_path=beside)


def _check_platform(item: Any) -> None:
    if item.model_type and item.model_platform:
        raise invalid_argument("Illegal setting both model_type(deprecated) and model_platform.")
    platform = item.model_platform or {0: "", 1: _PLATFORM}.get(item.model_type, "other")
    if not platform:
        raise invalid_argument("Illegal setting neither model_type(deprecated) nor model_platform.")
    if platform != _PLATFORM:
        raise invalid_argument(
            f"Could not find platform {platform}; this server serves '{_PLATFORM}'"
        )


def _policy(item: Any) -> VersionPolicy:
    policy = item.model_version_policy
    kind = policy.WhichOneof("policy_choice")
    if kind == "specific":
        if not policy.specific.versions:
            raise invalid_argument("Specific version policy lists no versions.")
        return VersionPolicy("specific", versions=tuple(policy.specific.versions))
    if kind == "all":
        return VersionPolicy("all")
    return VersionPolicy("latest", count=policy.latest.num_versions or 1)
