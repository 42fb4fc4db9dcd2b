"""How to watch: what the command line says beside the configuration."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class WatchOptions:
    """How to watch.

    Attributes:
      config_path: The YAML file of the configuration, or None; for the runs.
      assignments: ``KEY=VALUE`` over it.
      interval: Seconds between looks where the file system says nothing.
      cold: Whether to train afresh.
      auto_promote: Whether to move the labels of a live server.
      target: Its gRPC port, ``host:port``, or None.
      base_path: The model's folder as the server sees it, or None.
      metrics_url: Its metrics, or None.
      metrics_port: Where to serve the watcher's own, or None.
      submit: More arguments of ``mnist-ae kubeflow submit`` where the runs are
        to be on Kubeflow, else None.
    """

    config_path: str | None
    assignments: list[str]
    interval: float = 60.0
    cold: bool = False
    auto_promote: bool = False
    target: str | None = None
    base_path: str | None = None
    metrics_url: str | None = None
    metrics_port: int | None = None
    submit: list[str] | None = None
