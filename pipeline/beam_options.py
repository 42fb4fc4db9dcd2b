"""Beam's flags for a configuration; TFX is not imported."""

from __future__ import annotations

import socket
import urllib.parse
from collections.abc import Mapping

from pipeline.config import BeamValue, PipelineConfig
from pipeline.errors import UserError

# Beam's in-memory runner with one worker: for data of this size the start-up
# of several workers costs more than they save (docs/beam.md has the figures).
_LOCAL_BEAM: dict[str, BeamValue] = {
    "runner": "DirectRunner",
    "direct_running_mode": "in_memory",
    "direct_num_workers": 1,
}

# Workers that have this very environment. Without a word about packages TFX
# makes one of itself for them to install, in every component: 1.6 s each.
_PACKAGED: dict[str, BeamValue] = {"sdk_container_image": "none"}
_PACKAGED_ENVIRONMENTS = ("LOOPBACK", "EXTERNAL", "PROCESS")

# Where a pipeline is handed in; Beam itself waits for minutes, then gives the name of a class. What
# the workers of a cluster connect to (environment_config) need not be reached from here.
_ENGINES = {"job_endpoint": ("embed",), "flink_master": ("[auto]", "[local]")}
_PORTS = {"http": 80, "https": 443}
_CONNECT_SECONDS = 5.0


def check_engine(config: PipelineConfig) -> None:
    """Looks whether the engine that the configuration names listens at all.

    Raises:
      UserError: An address is none, or nobody listens there.
    """
    for key, own in _ENGINES.items():
        address = config.beam.get(key)
        if address is None or address in own:
            continue
        where = f"beam.{key}: {address}"
        try:
            parts = urllib.parse.urlsplit(str(address) if "//" in str(address) else f"//{address}")
            host, port = parts.hostname, parts.port or _PORTS.get(parts.scheme)
        except ValueError:
            host = port = None
        if not host or not port:
            raise UserError(f"{where}: expected HOST:PORT")
        try:
            socket.create_connection((host, port), timeout=_CONNECT_SECONDS).close()
        except OSError as e:
            raise UserError(
                f"{where}: nobody listens there ({e.strerror or e}); "
                "start the engine (docs/beam.md) or correct the address"
            ) from None


def beam_args(config: PipelineConfig) -> list[str]:
    """Beam's flags: the user's, over the local defaults where no other runner is named."""
    options = dict(config.beam)
    if options.get("runner", "DirectRunner") == "DirectRunner":
        options = {**_LOCAL_BEAM, **_PACKAGED, **options}
    elif options.get("environment_type") in _PACKAGED_ENVIRONMENTS:
        options = {**_PACKAGED, **options}
    return flags(options)


def flags(options: Mapping[str, BeamValue]) -> list[str]:
    """Options by name as flags."""
    found = []
    for key, value in options.items():
        if isinstance(value, bool):
            found += [f"--{key}"] if value else []
        else:
            items = value if isinstance(value, (tuple, list)) else [value]
            found += [f"--{key}={item}" for item in items]
    return found
