"""ML Metadata stores by address, and what a node's attempts left in them."""

from __future__ import annotations

import glob
import logging
import os
import time
import urllib.parse
from typing import Any, TypeAlias

from ml_metadata import errors as mlmd_errors
from ml_metadata.metadata_store import MetadataStore
from ml_metadata.proto.metadata_store_pb2 import (
    ConnectionConfig,
    Event,
    Execution,
    MetadataStoreClientConfig,
    SqliteMetadataSourceConfig,
)
from tfx.dsl.io import fileio

from pipeline import history
from pipeline.config import METADATA_PASSWORD
from pipeline.errors import UserError
from serving.errors import Error

_logger = logging.getLogger(__name__)

Connection: TypeAlias = ConnectionConfig | MetadataStoreClientConfig

_MYSQL_PORT = 3306
# What ML Metadata's client waits for where two transactions contend: 5 s each, about.
_MAX_RETRIES = 20
# What several nodes at once can do to each other's transactions.
_TRANSIENT = (
    mlmd_errors.AbortedError,
    mlmd_errors.AlreadyExistsError,
    mlmd_errors.UnavailableError,
    mlmd_errors.InternalError,
    mlmd_errors.DeadlineExceededError,
)


class StoreUnreachableError(Error):
    """No metadata store answers; another attempt may find it."""

    exit_code = 3


def connection(url: str, password: str | None = None) -> Connection:
    """The connection that an address stands for.

    Args:
      url: ``mysql://USER@HOST[:PORT]/DATABASE``, ``grpc://HOST:PORT`` or
        ``sqlite:///PATH``.

    Raises:
      UserError: No such address.
    """
    parts = urllib.parse.urlsplit(url)
    try:
        port = parts.port
    except ValueError:
        raise UserError(f"metadata store {url!r}: the port is no number") from None
    if parts.scheme == "sqlite" and parts.path:
        config = ConnectionConfig()
        config.sqlite.filename_uri = parts.path
        config.sqlite.connection_mode = SqliteMetadataSourceConfig.READWRITE_OPENCREATE
        return config
    if parts.scheme == "grpc" and parts.hostname and port:
        return MetadataStoreClientConfig(host=parts.hostname, port=port)
    if parts.scheme == "mysql" and parts.hostname and parts.username and parts.path.strip("/"):
        config = ConnectionConfig()
        config.mysql.host = parts.hostname
        config.mysql.port = port or _MYSQL_PORT
        config.mysql.database = parts.path.strip("/")
        config.mysql.user = urllib.parse.unquote(parts.username)
        config.mysql.password = password or ""
        config.retry_options.max_num_retries = _MAX_RETRIES
        return config
    raise UserError(
        f"metadata store {url!r}: expected mysql://USER@HOST:PORT/DATABASE, grpc://HOST:PORT or "
        "sqlite:///PATH"
    )


def open_store(config: Connection, url: str, patience: float = 60.0) -> MetadataStore:
    """Opens a store, waiting for one that is not up yet.

    Args:
      patience: Seconds to wait.

    Raises:
      StoreUnreachableError: It did not answer in time.
    """
    if isinstance(config, ConnectionConfig) and config.HasField("sqlite"):
        os.makedirs(os.path.dirname(config.sqlite.filename_uri), exist_ok=True)
    deadline = time.monotonic() + patience
    pause = 0.5
    while True:
        try:
            store = MetadataStore(config)
            store.get_artifact_types()
            return store
        except Exception as e:
            # MLMD raises RuntimeError, StatusError or gRPC's own, by version.
            reason = (str(e).strip().splitlines() or [type(e).__name__])[0]
            if time.monotonic() + pause > deadline:
                raise StoreUnreachableError(
                    f"metadata store {url}: no answer in {patience:.0f} s ({reason[:200]}); "
                    + _advice(config)
                ) from e
            _logger.warning("metadata store %s does not answer yet (%s)", url, reason[:200])
            time.sleep(pause)
            pause = min(pause * 2, 10.0)


def _advice(config: Connection) -> str:
    mysql = isinstance(config, ConnectionConfig) and config.HasField("mysql")
    if mysql and not config.mysql.password:
        return (
            f"{METADATA_PASSWORD} is not set: is the secret there, and does the task get it "
            "(kubeflow.defaults.secrets)?"
        )
    return "is it up, and are user, password and network policy right?"


def is_transient(error: BaseException | None) -> bool:
    """Whether an error, or one that it came from, is the store's and may pass."""
    while error is not None:
        if isinstance(error, _TRANSIENT):
            return True
        error = error.__cause__ or error.__context__
    return False


def is_finished(store: MetadataStore, run_id: str, node_id: str) -> bool:
    """Whether an earlier attempt of the node ended well."""
    executions = history.node_executions(store, run_id, node_id)
    return any(e.last_known_state in history.FINISHED for e in executions)


def clear_attempts(store: MetadataStore, run_id: str, node_id: str, pipeline_root: str) -> int:
    """Makes way for another attempt of a node: what those before left goes.

    Their execution, which TFX takes again, is RUNNING again; nothing of other
    nodes and runs is touched.

    Returns:
      How many executions there were.
    """
    remove_outputs(store, run_id, node_id, pipeline_root)
    executions = _in_vain(store, run_id, node_id)
    _put(store, executions, Execution.RUNNING)
    return len(executions)


def remove_outputs(store: MetadataStore, run_id: str, node_id: str, pipeline_root: str) -> None:
    """Removes the output folders of attempts that did not end well."""
    for execution in _in_vain(store, run_id, node_id):
        base = os.path.join(pipeline_root, node_id, "*", str(execution.id))
        for folder in fileio.glob(base) if "://" in base else glob.glob(base):
            _logger.info("removing %s, left by an attempt that did not end", folder)
            fileio.rmtree(folder)


def end_attempt(store: MetadataStore, run_id: str, node_id: str, state: Any) -> None:
    """Says what became of an attempt that did not end well: FAILED or CANCELED.

    Also in the place of a failure that TFX noted when it was cancelled, and from
    another thread than the node's: what that publishes meanwhile stays.
    """
    executions = _in_vain(store, run_id, node_id)
    _put(store, executions, state)
    events = store.get_events_by_execution_ids([e.id for e in executions]) if executions else []
    # TFX publishes outputs and state in one transaction.
    published = {e.execution_id for e in events if e.type == Event.OUTPUT}
    _put(store, [e for e in executions if e.id in published], Execution.COMPLETE)


def _in_vain(store: MetadataStore, run_id: str, node_id: str) -> list[Execution]:
    executions = history.node_executions(store, run_id, node_id)
    return [e for e in executions if e.last_known_state not in history.FINISHED]


def _put(store: MetadataStore, executions: list[Execution], state: Any) -> None:
    for execution in executions:
        execution.last_known_state = state
    if executions:
        store.put_executions(executions)


def labelled_examples(store: MetadataStore, run_id: str) -> bool:
    """Whether the images that this run ingested have labels; True before it did."""
    from components.mnist_example_gen.executor import LABELLED_PROPERTY

    examples = history.run_outputs(store, run_id, "Examples")
    # A continuous run has a golden set, too; the span counts.
    spans = [a for a in examples if a.custom_properties["role"].string_value == "span"]
    for artifact in spans or examples:
        if LABELLED_PROPERTY in artifact.custom_properties:
            return bool(artifact.custom_properties[LABELLED_PROPERTY].int_value)
    return True
