"""Runs the pipeline on this machine, node by node, with TFX's own launcher."""

from __future__ import annotations

import dataclasses
import glob
import json
import logging
import os
import shutil
import time
import typing
from collections.abc import Callable
from typing import Any

from ml_metadata.proto.metadata_store_pb2 import ConnectionConfig, Execution
from tfx.dsl.compiler import compiler, constants
from tfx.orchestration import metadata
from tfx.orchestration.local import runner_utils
from tfx.orchestration.portable import launcher, runtime_parameter_utils
from tfx.proto.orchestration.pipeline_pb2 import Pipeline, PipelineNode

from components.mnist_example_gen import datasets
from components.report.component import PAGE_FILE, SUMMARY_FILE
from pipeline import history
from pipeline.config import PipelineConfig
from pipeline.errors import RunError, UserError
from pipeline.locking import new_run_id
from pipeline.pipeline import create_pipeline
from serving import files
from serving.errors import Error

_logger = logging.getLogger(__name__)

_RESOLVER_TYPE = "tfx.dsl.components.common.resolver.Resolver"


class NodeListener(typing.Protocol):
    """Is told what happens; the terminal shows it."""

    def started(self, node_id: str) -> None:
        """A node is about to run."""

    def finished(self, node_id: str, seconds: float, cached: bool) -> None:
        """A node has ended well, after ``seconds``, or from the cache."""


@dataclasses.dataclass(frozen=True)
class NodeTiming:
    """How long a node took, imports and metadata included."""

    id: str
    seconds: float
    cached: bool


def run(
    config: PipelineConfig,
    dataset: datasets.Dataset,
    *,
    run_id: str | None = None,
    listener: NodeListener | None = None,
) -> dict[str, Any]:
    """Runs the pipeline once; the caller holds the lock of ``config.root``.

    Returns:
      The result as ``mnist-ae run --json`` prints it.

    Raises:
      Error: A component failed, or the disk is full.
    """
    run_id = run_id or new_run_id()
    recover(config)
    labelled = all(split.labelled for split in dataset.splits.values())
    pipeline = create_pipeline(config, data_folder=dataset.folder, labelled=labelled)
    ir = compiler.Compiler().compile(pipeline)
    return result(config, run_id, launch(ir, run_id, listener=listener))


def launch(
    ir: Pipeline,
    run_id: str,
    *,
    listener: NodeListener | None = None,
    until: Callable[[str], bool] = lambda node_id: False,
) -> list[NodeTiming]:
    """Launches every node of a compiled pipeline in order.

    Args:
      until: Called after every component; where it says yes, the rest is left out.

    Returns:
      How long each component took. Resolvers are left out: they only look
      things up, in every run.
    """
    begin(ir, run_id)
    deployment = runner_utils.extract_local_deployment_config(ir).metadata_connection_config
    connection = getattr(deployment, deployment.WhichOneof("connection_config"))
    timings = []
    for node in ir.nodes:
        node_id = node.pipeline_node.node_info.id
        resolver = is_resolver(ir, node_id)
        if listener and not resolver:
            listener.started(node_id)
        _logger.info("%s starts", node_id)
        started = time.monotonic()
        launch_node(ir, node_id, connection)
        cached = _finished_from_cache(connection, run_id, node_id)
        if resolver:
            continue
        timings.append(NodeTiming(node_id, time.monotonic() - started, cached))
        if listener:
            listener.finished(node_id, timings[-1].seconds, cached)
        if until(node_id):
            break
    return timings


def begin(ir: Pipeline, run_id: str) -> None:
    """Makes a compiled pipeline that of one run."""
    runtime_parameter_utils.substitute_runtime_parameter(
        ir, {constants.PIPELINE_RUN_ID_PARAMETER_NAME: run_id}
    )


def find_node(ir: Pipeline, node_id: str) -> PipelineNode:
    """A node of a compiled pipeline; StopIteration where it has none of that name."""
    return next(n.pipeline_node for n in ir.nodes if n.pipeline_node.node_info.id == node_id)


def is_resolver(ir: Pipeline, node_id: str) -> bool:
    """Whether a node only looks things up, and leaves no execution where it finds nothing."""
    return find_node(ir, node_id).node_info.type.name == _RESOLVER_TYPE


def launch_node(ir: Pipeline, node_id: str, connection: Any) -> None:
    """Launches one node against an ML Metadata store, as TFX's LocalDagRunner does.

    Raises:
      RunError: It failed; an :class:`Error` passes as it is.
    """
    deployment = runner_utils.extract_local_deployment_config(ir)
    try:
        launcher.Launcher(
            pipeline_node=find_node(ir, node_id),
            mlmd_connection=metadata.Metadata(connection),
            pipeline_info=ir.pipeline_info,
            pipeline_runtime_spec=ir.runtime_spec,
            executor_spec=runner_utils.extract_executor_spec(deployment, node_id),
            custom_driver_spec=runner_utils.extract_custom_driver_spec(deployment, node_id),
        ).launch()
    except Error:
        raise
    except Exception as e:
        _logger.exception("%s failed", node_id)
        if files.is_disk_full(e):
            raise UserError(
                f"{node_id} failed: no space left on the disk; free some and run the same "
                "command again"
            ) from e
        lines = str(e).strip().splitlines() or [type(e).__name__]
        raise RunError(f"{node_id} failed: {type(e).__name__}: {lines[0][:500]}") from e


def result(config: PipelineConfig, run_id: str, timings: list[NodeTiming]) -> dict[str, Any]:
    """What a finished run found, read back from ML Metadata."""
    store = history.open_store(history.metadata_path(config.root))
    record = history.run(store, run_id)
    if record.report_uri is None:
        raise RunError(f"run {run_id} has no report: a component was skipped; see the log")
    with open(os.path.join(record.report_uri, SUMMARY_FILE), encoding="utf-8") as f:
        summary = json.load(f)
    return {
        "run_id": run_id,
        **summary,
        "pushed_version": record.pushed_version,
        "pushed_path": record.pushed_path,
        "report": os.path.join(record.report_uri, PAGE_FILE),
        "components": [dataclasses.asdict(timing) for timing in timings],
    }


def _finished_from_cache(connection: ConnectionConfig, run_id: str, node_id: str) -> bool:
    """Whether a node was answered from the cache; fails if it did not finish."""
    with metadata.Metadata(connection) as handle:
        executions = history.node_executions(handle.store, run_id, node_id)
    state = executions[-1].last_known_state if executions else None
    if state not in history.FINISHED:
        raise RunError(f"{node_id} did not run: an input is missing; see the log")
    return state == Execution.CACHED


def recover(config: PipelineConfig) -> None:
    """Puts right what a killed run left behind, and forgets what has to be measured again."""
    path = history.metadata_path(config.root)
    if not os.path.exists(path):
        return
    store = history.open_store(path)
    root = history.artifacts_folder(config.root)
    for execution_id in history.mark_interrupted(store):
        for folder in glob.glob(os.path.join(glob.escape(root), "*", "*", str(execution_id))):
            _logger.info("removing %s, left by a killed run", folder)
            shutil.rmtree(folder, ignore_errors=True)
    for uri in history.missing_pushes(store):
        # Without its artifact the Pusher is not answered from the cache.
        shutil.rmtree(uri, ignore_errors=True)
    history.forget_refusals(store)
