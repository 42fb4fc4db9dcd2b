"""Models written once a session, and servers on free ports."""

from __future__ import annotations

import contextlib
import os
import pathlib
import shutil
from collections.abc import Callable, Iterator
from typing import Any

import pytest

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")

from serving.standin.server import EmbeddedServer
from serving.standin.settings import ModelSettings, ServerOptions
from tests.serving import models

StartServer = Callable[..., EmbeddedServer]


@pytest.fixture
def push(built: pathlib.Path) -> Callable[..., pathlib.Path]:
    """Publishes a version as a pusher does: copied aside, then renamed."""

    def publish(base: pathlib.Path, version: int, source: str = models.CONFORMANCE) -> pathlib.Path:
        origin = next((built / source).iterdir())
        base.mkdir(parents=True, exist_ok=True)
        temporary = base / f"_tmp.{version}"
        shutil.copytree(origin, temporary)
        return temporary.rename(base / str(version))

    return publish


@pytest.fixture
def start_server() -> Iterator[StartServer]:
    """Starts embedded servers and stops them after the test.

    Called with model folders by name (or ModelSettings) and ServerOptions'
    other fields.
    """
    with contextlib.ExitStack() as stack:

        def start(served: dict[str, Any], **options: Any) -> EmbeddedServer:
            settings = {
                name: item if isinstance(item, ModelSettings) else ModelSettings(name, str(item))
                for name, item in served.items()
            }
            options = {
                "port": 0,
                "rest_port": None,
                "poll_interval": 0.05,
                "load_retry_interval": 0.05,
                "drain_timeout": 60.0,
                **options,
            }
            return stack.enter_context(EmbeddedServer(ServerOptions(settings, **options)))

        yield start
