"""AtomicPusher: TFX's Pusher with versions that appear whole or not at all."""

from __future__ import annotations

import json
import logging
import os
import socket
import time
import uuid
from typing import Any

from tfx import types
from tfx.components.pusher import component as tfx_pusher
from tfx.components.pusher import executor as tfx_executor
from tfx.dsl.components.base import executor_spec
from tfx.dsl.io import fileio
from tfx.proto import pusher_pb2
from tfx.types import artifact_utils, standard_component_specs
from tfx.utils import io_utils, proto_utils

_logger = logging.getLogger(__name__)

# In a pushed version: which artifact it came from.
ORIGIN_FILE = os.path.join("assets.extra", "origin.json")
_STAGING_PREFIX = "_tmp."
# A push of another machine that is older than a day was killed.
_ABANDONED_SECONDS = 86_400


class AtomicPusherExecutor(tfx_executor.Executor):
    """Copies a blessed model beside the versions and renames it into place.

    TFX's own executor copies straight into the version folder, which a server
    that polls every second finds half full. A model that is the newest version
    already (a push that was killed before its record was written) is not
    pushed twice.
    """

    def Do(  # noqa: N802
        self,
        input_dict: dict[str, list[types.Artifact]],
        output_dict: dict[str, list[types.Artifact]],
        exec_properties: dict[str, Any],
    ) -> None:
        """Pushes the model where it is blessed."""
        self._log_startup(input_dict, output_dict, exec_properties)
        pushed = artifact_utils.get_single_instance(
            output_dict[standard_component_specs.PUSHED_MODEL_KEY]
        )
        if not self.CheckBlessing(input_dict):
            self._MarkNotPushed(pushed)
            return
        destination = pusher_pb2.PushDestination()
        proto_utils.json_to_proto(
            exec_properties[standard_component_specs.PUSH_DESTINATION_KEY], destination
        )
        if destination.WhichOneof("destination") != "filesystem":
            raise NotImplementedError("AtomicPusher pushes to a file system only")
        base = destination.filesystem.base_directory
        source = input_dict.get(standard_component_specs.MODEL_KEY) or input_dict.get(
            standard_component_specs.INFRA_BLESSING_KEY
        )
        path = push(self.GetModelPath(input_dict), base, artifact_utils.get_single_uri(source))
        io_utils.copy_dir(path, pushed.uri)
        self._MarkPushed(pushed, pushed_destination=path, pushed_version=os.path.basename(path))
        _logger.info("Model pushed to %s.", path)


class AtomicPusher(tfx_pusher.Pusher):
    """TFX's Pusher, with the same channels, and an executor that renames."""

    EXECUTOR_SPEC = executor_spec.ExecutorClassSpec(AtomicPusherExecutor)


def versions(base: str) -> list[int]:
    """The versions under ``base``, ascending; empty where there is no such folder."""
    if not fileio.isdir(base):
        return []
    names = (name.rstrip("/") for name in fileio.listdir(base))
    return sorted(int(name) for name in names if name.isdigit())


def push(model_path: str, base: str, origin: str) -> str:
    """Publishes a SavedModel as the newest version under ``base``.

    Args:
      origin: URI of the artifact that holds the model.

    Returns:
      Folder of the version, named by Unix time or, where the clock went back,
      one above the newest.
    """
    fileio.makedirs(base)
    for name in fileio.listdir(base):
        name = name.rstrip("/")
        if name.startswith(_STAGING_PREFIX) and not _is_at_work(os.path.join(base, name)):
            fileio.rmtree(os.path.join(base, name))
    existing = versions(base)
    if existing:
        newest = os.path.join(base, str(existing[-1]))
        if _origin_of(newest) == origin:
            return newest
    owner = f"{os.getpid()}@{socket.gethostname()}"
    staging = os.path.join(base, f"{_STAGING_PREFIX}{uuid.uuid4().hex}.{owner}")
    io_utils.copy_dir(model_path, staging)
    origin_file = os.path.join(staging, ORIGIN_FILE)
    fileio.makedirs(os.path.dirname(origin_file))
    io_utils.write_string_file(origin_file, json.dumps({"uri": origin}))
    version = max([int(time.time()), *(v + 1 for v in existing[-1:])])
    while True:
        path = os.path.join(base, str(version))
        try:
            fileio.rename(staging, path)
            return path
        except Exception:
            # Another run, of another pod, has pushed in the same second.
            if not fileio.exists(path):
                raise
            version += 1


def _is_at_work(staging: str) -> bool:
    """Whether a push that is under way made this folder; a killed one left it else."""
    name, _, host = os.path.basename(staging).partition("@")
    pid = name.rpartition(".")[2]
    if host == socket.gethostname():
        return pid.isdigit() and os.path.exists(f"/proc/{pid}")
    if not host:
        return False
    try:
        age = time.time() - os.stat(staging).st_mtime
    except OSError:
        # Not a local folder: nothing tells its age.
        return True
    return age < _ABANDONED_SECONDS


def _origin_of(version_path: str) -> str | None:
    path = os.path.join(version_path, ORIGIN_FILE)
    if not fileio.exists(path):
        return None
    return json.loads(io_utils.read_string_file(path)).get("uri")
