"""What a run on spans is told, and what it answers: two files of JSON.

The watcher writes a :class:`RunnerJob` and starts a process, :mod:`pipeline.continuous.runner`
here or :mod:`pipeline.continuous.sensor` on Kubeflow, which leaves :class:`Outcomes`.
"""

from __future__ import annotations

import dataclasses
import json
import pathlib
from typing import Any

from serving import files

# Another run holds the root; as sysexits.h's EX_TEMPFAIL.
EXIT_BUSY = 75
# The disk is full: no span is to blame.
EXIT_NO_SPACE = 74


@dataclasses.dataclass(frozen=True)
class WatchOptions:
    """How to watch; for the runs also where the configuration comes from.

    Attributes:
      config_path: The YAML file of the configuration, or None.
      assignments: ``KEY=VALUE`` over it.
      interval: Seconds between looks where the file system says nothing.
      target: The gRPC port, ``host:port``, of the server whose labels are moved.
      base_path: The model's folder as that server sees it.
      metrics_url: Its metrics.
      metrics_port: Where to serve the watcher's own.
      submit: More arguments of ``mnist-ae kubeflow submit`` where the runs are
        to be on Kubeflow.
    """

    config_path: str | None = None
    assignments: list[str] = dataclasses.field(default_factory=list)
    interval: float = 60.0
    cold: bool = False
    auto_promote: bool = False
    target: str | None = None
    base_path: str | None = None
    metrics_url: str | None = None
    metrics_port: int | None = None
    submit: list[str] | None = None


@dataclasses.dataclass(frozen=True)
class RunnerJob:
    """What to run.

    Attributes:
      options: What the watcher was told; of it, the configuration, ``cold`` and ``submit``.
      batch: Keys (``N.V``) of spans, in the order to look at them.
      accepted: Those of them that a person has let in, and how often.
      result: Where the outcome goes.
      run_ids: Those spans whose runs on Kubeflow were started by a sensor that
        did not see their end.
    """

    options: WatchOptions
    batch: list[str]
    accepted: dict[str, int]
    result: str
    run_ids: dict[str, str]

    def write(self, path: pathlib.Path) -> None:
        """As JSON."""
        files.write_json(path, dataclasses.asdict(self))

    @classmethod
    def read(cls, path: str) -> RunnerJob:
        """The inverse of :meth:`write`."""
        values = json.loads(pathlib.Path(path).read_bytes())
        return cls(**{**values, "options": WatchOptions(**values["options"])})


class Outcomes:
    """The result file: what is at work, what came out, whether all is done."""

    def __init__(self, path: str):
        self._path = path
        self.outcomes: dict[str, dict[str, Any]] = {}
        self.current: str | None = None
        self.window: list[str] = []
        self.run_ids: dict[str, str] = {}
        self._write()

    def begin(self, key: str) -> None:
        """A span is at work."""
        self.current = key
        self._write()

    def started(self, key: str, run_id: str) -> None:
        """The run of a span is under way elsewhere."""
        self.run_ids[key] = run_id
        self._write()

    def end(self, key: str, **outcome: Any) -> None:
        """What came of a span."""
        self.outcomes[key] = {**self.outcomes.get(key, {}), **outcome}
        self.run_ids.pop(key, None)
        self.current = None
        self._write()

    def finish(self) -> None:
        """Nothing more will come."""
        self._write(done=True)

    def _write(self, *, done: bool = False) -> None:
        values = {
            "current": self.current,
            "outcomes": self.outcomes,
            "window": self.window,
            "run_ids": self.run_ids,
            "done": done,
        }
        files.write_json(self._path, values)
