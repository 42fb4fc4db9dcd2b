"""What a backend would refuse or a cluster could not run, found before it is sent."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence

from pipeline.config import KubeflowConfig, PipelineConfig
from pipeline.errors import UserError, hint

TRAINING_NODES = ("Trainer", "Tuner")
MAX_BACKOFF_SECONDS = 3_600
_MAX_RETRIES = 10
_UNSUPPORTED_ROOTS = ("s3://", "minio://")
_PIPELINE_NAME = re.compile(r"[a-z0-9]([-a-z0-9]{0,126}[a-z0-9])?")


def check(config: PipelineConfig) -> None:
    """Refuses what cannot work on a cluster, naming the field; needs no TFX."""
    cluster = config.kubeflow
    if not _PIPELINE_NAME.fullmatch(config.name):
        raise UserError(
            f"name: {config.name!r} is no name for a KFP pipeline: lower-case letters, digits and "
            "hyphens"
        )
    for field in ("pipeline_root", "push_dir", "data_dir"):
        _check_place(cluster, field, getattr(cluster, field))
    scheme = cluster.metadata_url.partition("://")[0]
    if scheme not in ("mysql", "grpc", "sqlite"):
        raise UserError(
            f"kubeflow.metadata_url: {cluster.metadata_url!r} is no ML Metadata store; expected "
            "mysql://USER@HOST:PORT/DATABASE, grpc://HOST:PORT or sqlite:///PATH"
        )
    _check_beam(config)
    if cluster.workers.count > 1 and cluster.workers.kind != "local" and not cluster.volume_claim:
        raise UserError(
            "kubeflow.workers: the workers read the training job and write the model on the "
            "volume, but kubeflow.volume_claim is null"
        )


def _check_place(cluster: KubeflowConfig, field: str, place: str) -> None:
    if place.startswith(_UNSUPPORTED_ROOTS):
        raise UserError(
            f"kubeflow.{field}: {place}: TensorFlow has no file system for "
            f"{place.partition('://')[0]}:// and TensorFlow Serving dropped S3 in 2.7; use gs:// "
            "or a folder on a volume"
        )
    if place.startswith("gs://") and field != "data_dir":
        return
    if "://" in place or not os.path.isabs(place):
        where = "a folder" if field == "data_dir" else "gs:// or a folder"
        raise UserError(
            f"kubeflow.{field}: {place!r}: expected {where} on the volume, such as "
            f"{os.path.join(cluster.mount_path, field)}"
        )
    inside = os.path.normpath(place).startswith(os.path.normpath(cluster.mount_path) + os.sep)
    if cluster.volume_claim and not inside:
        raise UserError(
            f"kubeflow.{field}: {place}: not on the volume (mounted at {cluster.mount_path}), so "
            "that no other pod would see it"
        )


def _check_beam(config: PipelineConfig) -> None:
    runner = str(config.beam.get("runner", "DirectRunner"))
    environment = config.beam.get("environment_type")
    if runner in ("FlinkRunner", "SparkRunner", "PortableRunner") and environment in (
        None,
        "LOOPBACK",
        "DOCKER",
    ):
        raise UserError(
            f"beam.environment_type: {environment}: the workers of {runner} cannot reach the pod "
            "or Docker; use EXTERNAL with beam.environment_config=localhost:50000 (the worker pool "
            "beside each task manager, see docs/kubeflow.md)"
        )


def check_nodes(cluster: KubeflowConfig, known: Sequence[str]) -> None:
    """Refuses what the configuration says of nodes that are not there or cannot have it."""
    for node_id in cluster.nodes:
        if node_id not in known:
            raise UserError(
                f"kubeflow.nodes: no node {node_id!r} in this pipeline; {hint(node_id, known)}"
            )
    for node_id in known:
        node = cluster.node(node_id)
        where = f"kubeflow.nodes.{node_id}"
        if node.gpus and node_id not in TRAINING_NODES:
            raise UserError(
                f"{where}.gpus: {node.gpus}: only nodes that train use a GPU "
                f"({', '.join(TRAINING_NODES)}); it would stand idle"
            )
        if (node.retries or 0) > _MAX_RETRIES:
            raise UserError(f"{where}.retries: {node.retries}: at most {_MAX_RETRIES}")
        if (node.backoff_seconds or 0) > MAX_BACKOFF_SECONDS:
            raise UserError(
                f"{where}.backoff_seconds: {node.backoff_seconds}: at most {MAX_BACKOFF_SECONDS}"
            )
