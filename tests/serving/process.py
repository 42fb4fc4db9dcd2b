"""Servers as processes: ``mnist-ae serve``, to stop, kill and load it, and the real one.

``SERVING_BINARY`` names a ``tensorflow_model_server``; tests of it are skipped without one.
"""

from __future__ import annotations

import contextlib
import os
import pathlib
import subprocess
import sys
import threading
import time

import portpicker
import pytest
from prometheus_client import parser

from serving import errors
from serving.grpc_transport import GrpcTransport
from serving.standin.server import EmbeddedServer
from serving.transport import Address

REPOSITORY = pathlib.Path(__file__).resolve().parents[2]
BINARY = os.environ.get("SERVING_BINARY")
needs_binary = pytest.mark.skipif(
    not BINARY, reason="SERVING_BINARY names no tensorflow_model_server"
)
# What it logs when a configuration was applied, or refused.
_APPLIED = ("Finished adding/updating models", "failed to ReloadConfig")


class RealServer:
    """``tensorflow_model_server`` as a process; its model answers when entered.

    Args:
      model: The model's name.
      flags: All but the ports.

    Attributes:
      address: gRPC.
      rest_address: REST and metrics.
      lines: What it logged.
    """

    def __init__(self, model: str, *flags: str) -> None:
        self._model = model
        ports = [portpicker.pick_unused_port() for _ in range(2)]
        self.address, self.rest_address = (f"127.0.0.1:{port}" for port in ports)
        self._command = [
            str(BINARY), f"--port={ports[0]}", f"--rest_api_port={ports[1]}", *flags
        ]  # fmt: skip
        self.lines: list[str] = []
        self._applied = threading.Semaphore(0)
        self._stopped = False

    def polls(self, times: int) -> None:
        """Waits until it has applied its configuration so many times more."""
        while self._applied.acquire(blocking=False):
            pass
        for _ in range(times):
            assert self._applied.acquire(timeout=300), self.lines[-20:]

    def wait(self) -> None:
        """Waits until the process ended by itself."""
        self._process.wait(60)

    def stop(self, grace: float = 5.0) -> None:
        """Ends the process, which does not always heed SIGTERM."""
        self._stopped = True
        self._process.terminate()
        try:
            self._process.wait(grace)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._reader.join()

    def start(self) -> None:
        """Starts the process, again on its ports, and waits until its model answers."""
        self._stopped = False
        environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "0"}
        self._process = subprocess.Popen(
            self._command, stderr=subprocess.PIPE, text=True, errors="replace", env=environment
        )
        self._reader = threading.Thread(target=self._read)
        self._reader.start()
        address = Address(self.address, self._model, timeout=2.0, retries=0)
        with contextlib.closing(GrpcTransport(address)) as transport:
            while not self._ready(transport):
                if self._process.poll() is not None:
                    self._reader.join()
                    raise AssertionError("".join(self.lines))
                time.sleep(0.1)

    def __enter__(self) -> RealServer:
        self.start()
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        code, stopped = self._process.poll(), self._stopped
        self.stop()
        if kind is None and not stopped:
            assert code is None, f"the server ended with {code}: {''.join(self.lines[-20:])}"

    def _ready(self, transport: GrpcTransport) -> bool:
        with contextlib.suppress(errors.ServingError):
            return any(item.state == "AVAILABLE" for item in transport.status())
        return False

    def _read(self) -> None:
        assert self._process.stderr is not None
        for line in self._process.stderr:
            self.lines.append(line)
            if any(text in line for text in _APPLIED):
                self._applied.release()


class Serve:
    """``mnist-ae serve`` as a process, up when entered."""

    def __init__(self, root: pathlib.Path, *arguments: str, port: int = 0) -> None:
        self._command = [
            sys.executable, "-m", "pipeline.cli", "serve", "--root", str(root), "--backend",
            "embedded", "--port", str(port), "--rest-port", "0", *arguments,
        ]  # fmt: skip
        self.lines: list[str] = []
        self.target = ""

    def __enter__(self) -> Serve:
        self.process = subprocess.Popen(
            self._command, cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.append(line.strip())
            if line.split()[:1] == ["gRPC"]:
                self.target = line.split()[1]
            if line.strip() == "ready":
                return self
        assert self.process.stderr is not None
        raise AssertionError(self.process.stderr.read())

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.communicate()


def answered(server: EmbeddedServer, **labels: str) -> int:
    """How many requests a server counted, of those with these labels."""
    return sum(
        int(sample.value)
        for metric in parser.text_string_to_metric_families(server.metrics.render())
        for sample in metric.samples
        if sample.name.startswith(":tensorflow:serving:request_count")
        and labels.items() <= sample.labels.items()
    )
