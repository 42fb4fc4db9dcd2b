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
from serving.play import IndexOf
from serving.standin.status import invalid_argument

MIB = 2**20


@dataclasses.dataclass(frozen=True)
class ModelSettings:
    """One served model.

    Attributes:
      base_path: The folder with its numbered versions.
      versions: The versions to serve, of those that are there; None for the latest ones.
      latest: How many of these, by number; None for all.
    """

    name: str
    base_path: str
    versions: tuple[int, ...] | None = None
    latest: int | None = 1
    labels: dict[str, int] = dataclasses.field(default_factory=dict)

    def choose(self, available: Mapping[int, str]) -> dict[int, str]:
        """The versions to serve, number to path, of those in the folder."""
        chosen = sorted(available, reverse=True)[: self.latest]
        if self.versions is not None:
            chosen = [number for number in self.versions if number in available]
        return {number: available[number] for number in chosen}


@dataclasses.dataclass(frozen=True)
class TlsFiles:
    """Certificates for both ports, as PEM files.

    Attributes:
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
      host: The address to bind; loopback unless told otherwise.
      port: gRPC; 0 takes a free one.
      rest_port: REST and metrics; 0 takes a free one, None has no REST.
      max_workers: Requests worked on at the same time on the gRPC port.
      max_waiting: Requests worked on or waiting; beyond, RESOURCE_EXHAUSTED.
      max_message_bytes: A longer gRPC message or REST body is refused.
      io_timeout: Seconds that a REST client may take to send a request.
      poll_interval: Seconds between looks at the version folders.
      max_load_retries: Further tries after a failed load.
      load_retry_interval: Seconds between them.
      drain_timeout: Seconds that requests under way have when stopping.
      index_of: Where a version's image index is, for the page.
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
    io_timeout: float = 30.0
    poll_interval: float = 1.0
    max_load_retries: int = 2
    load_retry_interval: float = 1.0
    drain_timeout: float = 30.0
    index_of: IndexOf | None = None
    config_file: str | None = None
    real_reloads: bool = False


def parse_models(text: str, source: str) -> dict[str, ModelSettings]:
    """The models of a ModelServerConfig text proto, as ``--model_config_file`` has it.

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
      StatusError: INVALID_ARGUMENT, as TensorFlow Serving's ReloadConfig.
    """
    if config.WhichOneof("config") == "custom_model_config":
        raise invalid_argument("Custom model configurations are not supported; use a list.")
    models: dict[str, ModelSettings] = {}
    for item in config.model_config_list.config:
        name, path, policy = item.name, item.base_path, item.model_version_policy
        platform = item.model_platform or ("tensorflow" if item.model_type == 1 else "")
        if not platform:
            raise invalid_argument(f"Illegal setting: no model_platform, model name is {name}")
        if platform != "tensorflow":
            raise invalid_argument(f"Could not find platform {platform}; only 'tensorflow' is here")
        if name in models:
            raise invalid_argument(f"Illegal to list model {name} multiple times in config list")
        if path and not os.path.isabs(path) and "://" not in path:
            raise invalid_argument(f"Expected model {name} to have an absolute path or URI")
        kind = policy.WhichOneof("policy_choice")
        if kind == "specific" and not policy.specific.versions:
            raise invalid_argument("Specific version policy lists no versions.")
        models[name] = ModelSettings(
            name,
            path,
            tuple(policy.specific.versions) if kind == "specific" else None,
            None if kind == "all" else policy.latest.num_versions or 1,
            dict(item.version_labels),
        )
    return models


def located(model: ModelSettings, folder: str) -> ModelSettings:
    """The model where it is: a file that containers read, too, may have their paths.

    Args:
      folder: That of the file.
    """
    beside = os.path.join(folder, model.name)
    if os.path.isdir(model.base_path) or not os.path.isdir(beside):
        return model
    return dataclasses.replace(model, base_path=beside)
