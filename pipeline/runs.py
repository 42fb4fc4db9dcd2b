"""Finds the run that a person means, and what it left."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import pathlib

from pipeline import history
from pipeline.errors import UserError
from pipeline.history import RunRecord

# As path_utils.serving_model_path has it, without importing TFX.
_SERVING_FOLDER = "Format-Serving"


def complete_runs(root: str) -> list[RunRecord]:
    """Complete runs in a root, oldest first."""
    path = history.metadata_path(root)
    if not os.path.exists(path):
        return []
    return [r for r in history.runs(history.open_store(path)) if r.state == "complete"]


def some_runs(root: str) -> list[RunRecord]:
    """Complete runs in a root, oldest first.

    Raises:
      UserError: There is none.
    """
    records = complete_runs(root)
    if not records:
        raise UserError(
            f"no complete run in {os.path.abspath(root)}; start one with 'mnist-ae run' or set "
            "--root"
        )
    return records


def choose(records: list[RunRecord], given: str | None) -> RunRecord:
    """The run that is called ``given``.

    Args:
      given: A run, the beginning of one, or what a model is served as, whose
        last run is meant; None is the last run of all.

    Raises:
      UserError: No such run.
    """
    if given is None:
        return records[-1]
    for matches in (
        [r for r in records if r.run_id == given],
        [r for r in records if r.properties.get("servable") == given],
        [r for r in records if r.properties.get("model") == given],
        [r for r in records if r.run_id.startswith(given)],
    ):
        if matches:
            return matches[-1]
    servables = sorted({str(r.properties.get("servable")) for r in records})
    raise UserError(
        f"no run or model {given!r}; models: {', '.join(servables)}; "
        f"last run: {records[-1].run_id} (see 'mnist-ae runs')"
    )


def last_of_each(records: list[RunRecord]) -> list[RunRecord]:
    """The last run of every servable."""
    return list({r.properties.get("servable"): r for r in records}.values())


@dataclasses.dataclass(frozen=True)
class Outputs:
    """Folders that a run left.

    Attributes:
      model: Its SavedModel, pushed or not.
      index: Its image index.
    """

    model: pathlib.Path
    index: pathlib.Path

    @property
    def train_index(self) -> list[str]:
        """The index of the training split, as Parquet files."""
        return sorted(str(path) for path in (self.index / "Split-train").glob("*.parquet"))


def outputs(root: str, record: RunRecord) -> Outputs:
    """Where a run's model and index are.

    Raises:
      UserError: The run is older than the index, or its files are gone.
    """
    store = history.open_store(history.metadata_path(root))
    folders = {}
    for name in ("Model", "ImageIndex"):
        artifacts = history.run_outputs(store, record.run_id, name)
        if not artifacts or not os.path.isdir(artifacts[-1].uri):
            raise UserError(
                f"run {record.run_id} has no {name}; run the same model again with 'mnist-ae run'"
            )
        folders[name] = pathlib.Path(artifacts[-1].uri)
    return Outputs(folders["Model"] / _SERVING_FOLDER, folders["ImageIndex"])


def index_of(root: str, servable: str, version: int) -> list[str]:
    """The image index of the run that pushed a version, as Parquet files; empty without one."""
    for record in complete_runs(root):
        pushed = record.properties.get("servable"), record.pushed_version
        if pushed == (servable, str(version)):
            with contextlib.suppress(UserError):
                return outputs(root, record).train_index
    return []
