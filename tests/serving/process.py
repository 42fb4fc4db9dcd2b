"""``mnist-ae serve`` as a process, for tests that stop, kill and load it."""

from __future__ import annotations

import pathlib
import subprocess
import sys

from prometheus_client import parser

from serving.standin.server import EmbeddedServer

REPOSITORY = pathlib.Path(__file__).resolve().parents[2]


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
