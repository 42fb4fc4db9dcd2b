"""Beam's flags for a configuration; TFX is not imported."""

from __future__ import annotations

from collections.abc import Mapping

from pipeline.config import BeamValue, PipelineConfig

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
