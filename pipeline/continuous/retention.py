"""What is removed from the disk, by rule; the lineage of it stays.

Of continuous runs, the artifacts that the last ``keep_runs`` runs read or wrote
stay, the examples of the spans that a window may still see, the serving model,
and all reports and verdicts. The others lose their files and are DELETED in ML
Metadata, where TFX no longer takes them from the cache. Runs of ``mnist-ae
run`` are not touched.
"""

from __future__ import annotations

import logging
import os
import pathlib
import shutil
import uuid
from typing import Any

from ml_metadata.proto.metadata_store_pb2 import Artifact, Execution

from pipeline import history
from pipeline.config import PipelineConfig
from pipeline.nodes import GOLDEN_GEN, serving_dir
from serving import locate

_LOGS = 100
# Verdicts, which windows are made of, and what histories show; they are small.
_ALWAYS = ("DriftReport", "SpanReport", "RunReport", "ModelBlessing")
_logger = logging.getLogger(__name__)


def clean(config: PipelineConfig) -> None:
    """Removes what the rules let go; call it under the lock of the root."""
    if config.continuous.keep_runs and os.path.exists(history.metadata_path(config.root)):
        _clean_artifacts(config)
    _clean_versions(config)
    _clean_logs(config)


def _clean_artifacts(config: PipelineConfig) -> None:
    store = history.open_store(history.metadata_path(config.root))
    runs = [
        executions
        for context in sorted(store.get_contexts_by_type("pipeline_run"), key=lambda c: c.id)
        if (executions := store.get_executions_by_context(context.id))
        and any(_is_span_run(store, e) for e in executions)
    ]
    events = [store.get_events_by_execution_ids([e.id for e in run]) for run in runs]
    kept = {event.artifact_id for run in events[-config.continuous.keep_runs :] for event in run}
    made = {event.artifact_id for run in events for event in run}
    artifacts = [a for a in store.get_artifacts_by_id(sorted(made)) if a.state == Artifact.LIVE]
    kept |= _spans_to_keep(artifacts, 2 * config.continuous.window)
    kept |= _models_to_keep(artifacts)
    root = history.artifacts_folder(config.root) + os.sep
    gone = [
        a
        for a in artifacts
        if a.id not in kept and a.type not in _ALWAYS and a.uri.startswith(root)
    ]
    for artifact in gone:
        # First the state, then the files: a kill in between leaves garbage that
        # nothing refers to, not a reference to nothing.
        artifact.state = Artifact.DELETED
    if gone:
        store.put_artifacts(gone)
    for artifact in gone:
        shutil.rmtree(artifact.uri, ignore_errors=True)
    if gone:
        _logger.info("retention: removed the files of %d artifacts", len(gone))


def _is_span_run(store: Any, execution: Execution) -> bool:
    nodes = [c.name for c in store.get_contexts_by_execution(execution.id) if c.type == "node"]
    return any(name.endswith(f".{GOLDEN_GEN}") for name in nodes)


def _spans_to_keep(artifacts: list[Artifact], count: int) -> set[int]:
    found = [
        (_value(a, "span"), a.id)
        for a in artifacts
        if a.type == "Examples" and _value(a, "role") == "span"
    ]
    newest = sorted({span for span, _ in found})[-count:]
    return {number for span, number in found if span in newest}


def _models_to_keep(artifacts: list[Artifact]) -> set[int]:
    """The last blessed model of every servable, and its blessing."""
    models = {a.id: a for a in artifacts if a.type == "Model"}
    newest: dict[str, tuple[int, int]] = {}
    for blessing in sorted(artifacts, key=lambda a: a.id):
        if blessing.type != "ModelBlessing" or _value(blessing, "withdrawn"):
            continue
        model = models.get(_value(blessing, "current_model_id"))
        if model is not None and _value(blessing, "blessed") and _value(blessing, "gated"):
            newest[_value(model, "servable")] = (model.id, blessing.id)
    return {number for pair in newest.values() for number in pair}


def _value(artifact: Artifact, name: str) -> Any:
    """A custom property, or None; asking a protobuf map would make an empty one.

    ML Metadata ends the process when an artifact with such a one is put back.
    """
    return history.values(artifact).get(name)


def _clean_versions(config: PipelineConfig) -> None:
    """Removes pushed versions beyond the newest and the labelled ones."""
    from serving.rollout import ConfigFile, RolloutError, entry_of

    base = pathlib.Path(serving_dir(config))
    folder = base / config.servable
    if not folder.is_dir():
        return
    try:
        entry = entry_of(ConfigFile(base / locate.CONFIG_FILE).read(), config.servable)
    except RolloutError as e:
        _logger.warning("retention: %s; no version is removed", e)
        return
    wanted = set()
    if entry is not None:
        wanted |= {*entry.version_labels.values(), *entry.model_version_policy.specific.versions}
    versions = sorted(int(path.name) for path in folder.iterdir() if path.name.isdigit())
    for version in set(versions[: -config.continuous.keep_versions]) - wanted:
        # A server sees it go at once, not file by file.
        aside = folder / f"_tmp.{uuid.uuid4().hex}"
        (folder / str(version)).rename(aside)
        shutil.rmtree(aside, ignore_errors=True)
        _logger.info("retention: removed version %d", version)


def _clean_logs(config: PipelineConfig) -> None:
    folder = pathlib.Path(os.path.abspath(config.root)) / "logs"
    if folder.is_dir():
        for path in sorted(folder.glob("watch-*.log"))[:-_LOGS]:
            path.unlink(missing_ok=True)
