"""What the watcher has decided so far: one JSON file, replaced as a whole.

``<root>/continuous/state.json`` is written by the one watcher that holds the
lock, read by everybody. It is a summary: were it lost, every span would be
looked at again, answered from TFX's cache, and decided the same way.
"""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib
from typing import Any

from pipeline.continuous import spans
from pipeline.errors import UserError
from serving import files

FOLDER = "continuous"
STATE_FILE = "state.json"
ACCEPTED = "accepted"

# Statuses of a span.
NEW = "new"
RETRY = "retry"
PUSHED = "pushed"
REFUSED = "refused"
COALESCED = "coalesced"
SKIPPED = "skipped"
QUARANTINED = "quarantined"
FAILED = "failed"
SUPERSEDED = "superseded"
SUBMITTED = "submitted"

# What `spans accept` can let in.
SET_ASIDE = (QUARANTINED, FAILED, REFUSED, SKIPPED)
# What needs a wake-up's attention.
OPEN = (NEW, RETRY)


@dataclasses.dataclass
class State:
    """What is known of every span, and what is under way.

    Attributes:
      spans: By ``N.V``: ``status``, ``reason``, ``tries``, ``next_try`` (Unix
        time), ``run_id``, ``drift``, losses before and after, pushed version.
      window: Keys of the spans that the last training saw.
      rollout: The canary that is being soaked, or empty.
      serving: Version that callers should use, where it is known.
      seen_gaps: Gaps that were told already, first and last number of each.
      seen_unpublished: Folders that were told already.
      served: Readings of the server's metrics.
      paused_until: Unix time before which no run is started, after failures
        that are no span's fault.
      errors: How many of those there were in a row.
      counters: For Prometheus; they only grow.
      gauges: For Prometheus.
    """

    spans: dict[str, dict[str, Any]] = dataclasses.field(default_factory=dict)
    window: list[str] = dataclasses.field(default_factory=list)
    rollout: dict[str, Any] = dataclasses.field(default_factory=dict)
    serving: int | None = None
    seen_gaps: list[list[int]] = dataclasses.field(default_factory=list)
    seen_unpublished: list[str] = dataclasses.field(default_factory=list)
    served: dict[str, Any] = dataclasses.field(default_factory=dict)
    paused_until: float = 0.0
    errors: int = 0
    counters: dict[str, int] = dataclasses.field(default_factory=dict)
    gauges: dict[str, float] = dataclasses.field(default_factory=dict)

    def status(self, key: str) -> str:
        """The status of a span."""
        return self.spans.get(key, {}).get("status", NEW)


def folder_of(root: files.Path) -> pathlib.Path:
    """Where the watcher keeps what it knows."""
    return pathlib.Path(os.path.abspath(root)) / FOLDER


def read(root: files.Path) -> State:
    """The state of a root; empty before the first wake-up.

    Raises:
      UserError: The file is not one of ours.
    """
    path = folder_of(root) / STATE_FILE
    try:
        values = json.loads(path.read_bytes())
        known = {field.name for field in dataclasses.fields(State)}
        return State(**{key: value for key, value in values.items() if key in known})
    except FileNotFoundError:
        return State()
    except (OSError, ValueError, TypeError, AttributeError) as e:
        raise UserError(
            f"{path}: not the watcher's state ({e}); move it away: the spans are then looked at "
            "again, and decided the same way"
        ) from None


def write(root: files.Path, state: State) -> None:
    """Replaces the state in one step."""
    folder = folder_of(root)
    files.write_json(folder / STATE_FILE, dataclasses.asdict(state))


def accept(root: files.Path, span: int) -> str:
    """Marks the newest version of a span that was set aside to be let in.

    Returns:
      The key of the span.

    Raises:
      UserError: No such span, or it was not set aside.
    """
    newest = {m.span: m for m in spans.newest_versions(spans.scan(root))}
    if span not in newest:
        known = ", ".join(map(str, newest)) or "none"
        raise UserError(f"no span {span} in {spans.folder_of(root)} (there: {known})")
    key = newest[span].key
    status = read(root).status(key)
    if status not in SET_ASIDE:
        raise UserError(f"span {span} was not set aside: it is {status!r}")
    folder = folder_of(root) / ACCEPTED
    files.write_atomically(folder / key, b"")
    return key


def forget_acceptance(root: files.Path, key: str) -> None:
    """Removes the mark of a span: the state has it now."""
    (folder_of(root) / ACCEPTED / key).unlink(missing_ok=True)


def accepted(root: files.Path) -> set[str]:
    """Keys of the spans that a person has let in."""
    try:
        return {name for name in os.listdir(folder_of(root) / ACCEPTED) if name[0] != "."}
    except FileNotFoundError:
        return set()
