"""What ML Metadata knows of the runs in a root: states, figures, pushes."""

from __future__ import annotations

import dataclasses
import datetime
import json
import os
import time
from typing import Any

from ml_metadata.metadata_store import MetadataStore
from ml_metadata.proto import metadata_store_pb2
from ml_metadata.proto.metadata_store_pb2 import Artifact, Event, Execution

_RUN_CONTEXT = "pipeline_run"
_NODE_CONTEXT = "node"
FINISHED = (Execution.COMPLETE, Execution.CACHED)
# On an InfraBlessing that was refused for what another measurement may not find
# (components.serving_validator, which takes longer to import).
REFUSED_FOR = "refused_for"


@dataclasses.dataclass(frozen=True)
class ComponentRecord:
    """What a component did in a run.

    Attributes:
      seconds: From start to end; 0 for a component answered from the cache.
      cached: Whether its outputs are those of an earlier run.
      state: ``complete``, ``cached``, ``failed``, ``running`` or ``canceled``.
    """

    id: str
    seconds: float
    cached: bool
    state: str


@dataclasses.dataclass(frozen=True)
class RunRecord:
    """A run, as ML Metadata has it.

    Attributes:
      run_id: Its identifier, sortable by time.
      started: Local time of the first component.
      state: ``complete``, ``failed``, ``running``, or ``stopped`` where a span
        was not trained on.
      properties: Custom properties of its RunReport and the figures in them;
        empty where it has none.
      pushed_version: Version it pushed, or None.
      pushed_path: Folder of that version, or None.
    """

    run_id: str
    started: datetime.datetime
    state: str
    components: list[ComponentRecord]
    properties: dict[str, Any]
    report_uri: str | None
    pushed_version: str | None
    pushed_path: str | None


def metadata_path(root: str) -> str:
    """The SQLite file of ML Metadata in a root."""
    return os.path.join(os.path.abspath(root), "metadata.sqlite")


def artifacts_folder(root: str) -> str:
    """The folder of the artifacts in a root."""
    return os.path.join(os.path.abspath(root), "pipeline")


def open_store(path: str) -> MetadataStore:
    """Opens the SQLite store at ``path``."""
    config = metadata_store_pb2.ConnectionConfig()
    config.sqlite.filename_uri = path
    config.sqlite.connection_mode = metadata_store_pb2.SqliteMetadataSourceConfig.READWRITE
    return MetadataStore(config)


def runs(store: MetadataStore) -> list[RunRecord]:
    """All runs in the store, oldest first."""
    records = [_record(store, c.name) for c in store.get_contexts_by_type(_RUN_CONTEXT)]
    found = [r for r in records if r is not None]
    return sorted(found, key=lambda r: (r.started, r.run_id))


def run(store: MetadataStore, run_id: str) -> RunRecord:
    """The run called ``run_id``.

    Raises:
      KeyError: No such run.
    """
    record = _record(store, run_id)
    if record is None:
        raise KeyError(run_id)
    return record


def node_executions(store: MetadataStore, run_id: str, node_id: str) -> list[Execution]:
    """The executions of a node in a run, one an attempt, oldest first."""
    return [e for e in _executions(store, run_id) if _node_id(store, e) == node_id]


def run_outputs(store: MetadataStore, run_id: str, type_name: str) -> list[Artifact]:
    """The artifacts of a type that the nodes of a run put out."""
    return _outputs(store, _executions(store, run_id), type_name)


def _executions(store: MetadataStore, run_id: str) -> list[Execution]:
    """All executions of a run, oldest first; none where there is no such run."""
    context = store.get_context_by_type_and_name(_RUN_CONTEXT, run_id)
    found = store.get_executions_by_context(context.id) if context is not None else []
    return sorted(found, key=lambda e: e.id)


def _record(store: MetadataStore, run_id: str) -> RunRecord | None:
    executions = _executions(store, run_id)
    if not executions:
        return None
    components = []
    for execution in executions:
        elapsed = execution.last_update_time_since_epoch - execution.create_time_since_epoch
        name = Execution.State.Name(execution.last_known_state).lower()
        cached = execution.last_known_state == Execution.CACHED
        seconds = 0.0 if cached else elapsed / 1000
        components.append(ComponentRecord(_node_id(store, execution), seconds, cached, name))
    reports = _outputs(store, executions, "RunReport")
    pushes = [
        a
        for a in _outputs(store, executions, "PushedModel")
        if a.custom_properties["pushed"].int_value
    ]
    states = [e.last_known_state for e in executions]
    if any(s in (Execution.FAILED, Execution.CANCELED) for s in states):
        state = "failed"
    elif all(s in FINISHED for s in states) and reports:
        state = "complete"
    elif any(_stopped(a) for a in _outputs(store, executions, "DriftReport")):
        state = "stopped"
    else:
        state = "running"
    push = pushes[-1].custom_properties if pushes else None
    return RunRecord(
        run_id=run_id,
        started=datetime.datetime.fromtimestamp(executions[0].create_time_since_epoch / 1000),
        state=state,
        components=components,
        properties=_figures(reports[-1]) if reports else {},
        report_uri=reports[-1].uri if reports else None,
        pushed_version=push["pushed_version"].string_value if push else None,
        pushed_path=push["pushed_destination"].string_value if push else None,
    )


def _outputs(store: MetadataStore, executions: list[Execution], type_name: str) -> list[Artifact]:
    outputs = (Event.OUTPUT, Event.DECLARED_OUTPUT)
    events = store.get_events_by_execution_ids([e.id for e in executions])
    ids = [event.artifact_id for event in events if event.type in outputs]
    artifacts = store.get_artifacts_by_id(sorted(set(ids)))
    return [a for a in artifacts if a.type == type_name]


def _node_id(store: MetadataStore, execution: Execution) -> str:
    for context in store.get_contexts_by_execution(execution.id):
        if context.type == _NODE_CONTEXT:
            return context.name.split(".", 1)[1]
    return execution.type.rsplit(".", 1)[-1]


def _stopped(drift: Artifact) -> bool:
    properties = drift.custom_properties
    return properties["verdict"].string_value != "train" or bool(properties["coalesced"].int_value)


def values(artifact: Artifact) -> dict[str, Any]:
    """The custom properties of an artifact, by name."""
    return {
        key: getattr(value, value.WhichOneof("value"))
        for key, value in artifact.custom_properties.items()
    }


def _figures(report: Artifact) -> dict[str, Any]:
    found = values(report)
    return {**found, **json.loads(found.pop("figures", "{}"))}


def mark_interrupted(store: MetadataStore) -> list[int]:
    """Marks executions that were killed as failed.

    Call it only where no run can be under way.
    """
    interrupted = [
        e
        for e in store.get_executions()
        if e.last_known_state in (Execution.NEW, Execution.RUNNING)
    ]
    for execution in interrupted:
        execution.last_known_state = Execution.FAILED
    if interrupted:
        store.put_executions(interrupted)
    return [e.id for e in interrupted]


def missing_pushes(store: MetadataStore) -> list[str]:
    """URIs of PushedModel artifacts whose pushed version is no longer there."""
    return [
        artifact.uri
        for artifact in _of_type(store, "PushedModel")
        if artifact.custom_properties["pushed"].int_value
        and not os.path.isdir(artifact.custom_properties["pushed_destination"].string_value)
    ]


def forget_refusals(store: MetadataStore, *, in_use_for: float = 0.0) -> int:
    """Keeps TFX's cache from answering with a refusal that a busy machine may have caused.

    The verdicts stay known, but are marked as deleted, which the cache takes for
    no answer.

    Args:
      in_use_for: Seconds that a verdict is left alone which no node has read
        yet, where other runs may be under way.

    Returns:
      How many there were.
    """
    refusals = [
        artifact
        for artifact in _of_type(store, "InfraBlessing")
        if artifact.state == Artifact.LIVE and REFUSED_FOR in artifact.custom_properties
    ]
    if in_use_for:
        events = store.get_events_by_artifact_ids([a.id for a in refusals]) if refusals else []
        read = {e.artifact_id for e in events if e.type == Event.INPUT}
        oldest = (time.time() - in_use_for) * 1000
        refusals = [a for a in refusals if a.id in read or a.create_time_since_epoch < oldest]
    for artifact in refusals:
        artifact.state = Artifact.DELETED
    if refusals:
        store.put_artifacts(refusals)
    return len(refusals)


def _of_type(store: MetadataStore, type_name: str) -> list[Artifact]:
    if not any(t.name == type_name for t in store.get_artifact_types()):
        return []
    return list(store.get_artifacts_by_type(type_name))
