"""``mnist-ae serve``, ``status`` and ``rollout`` as a person types them."""

from __future__ import annotations

import os
import pathlib
import shutil
import signal
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Callable

import numpy as np
import pytest

from serving import locate
from serving.grpc_transport import GrpcTransport
from serving.transport import Address
from tests.pipeline.commands.refusal import clear
from tests.serving.process import REPOSITORY, Serve

Run = Callable[..., tuple[int, str, str]]


def test_serve_then_predict_in_processes(
    pushed: pathlib.Path, picture: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    with Serve(pushed, "--drain-seconds", "5") as serve:
        assert any("backend: " in line for line in serve.lines)
        assert "serving autoencoder, version 1700000009" in serve.lines
        assert any(line.startswith("try: mnist-ae predict") for line in serve.lines)
        done = subprocess.run(
            [sys.executable, "-m", "pipeline.cli", "predict", str(picture), "--target",
             serve.target, "--model", "autoencoder", "--out", str(tmp_path / "out")],
            cwd=REPOSITORY, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert (done.returncode, done.stderr) == (0, "")
        assert (tmp_path / "out" / "some_reconstruction.png").exists()
        serve.process.send_signal(signal.SIGTERM)
        assert serve.process.wait() == 0
        assert serve.process.stdout is not None
        assert serve.process.stdout.read().strip().endswith("stopped")


@pytest.mark.e2e
def test_killed_and_started_again_it_serves_the_same_version(
    built: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    from serving.rollout import ConfigFile, Rollout

    folder = tmp_path / "serving" / "autoencoder"
    for version in ("1", "2"):
        shutil.copytree(built / "autoencoder" / "1", folder / version)
    rollout = Rollout(
        locate.find("autoencoder", tmp_path), ConfigFile(locate.config_path(tmp_path))
    )
    rollout.canary(2)  # stable stays 1
    port = 0
    for _ in range(2):
        with Serve(tmp_path, port=port) as serve:
            port = int(serve.target.rpartition(":")[2])
            for label, version in (("stable", 1), ("canary", 2)):
                transport = GrpcTransport(Address(serve.target, "autoencoder", label=label))
                transport.predict("generate", {"seed": np.arange(2)}, ("images",))
                response = transport.predict_serialised(
                    transport.request("generate", {"seed": np.arange(2)}, ("images",))
                )
                from serving import protos

                answer = protos.PredictResponse.FromString(response)
                assert answer.model_spec.version.value == version
                transport.close()
            serve.process.kill()
            serve.process.wait()


def test_what_cannot_be_served(run: Run, pushed: pathlib.Path, tmp_path: pathlib.Path) -> None:
    assert run("serve", "--port", "99999")[0] == 2
    clear(2, run("serve", tmp_path / "nowhere", "--backend", "embedded"), "no model")
    (tmp_path / "empty").mkdir()
    clear(2, run("serve", tmp_path / "empty", "--backend", "embedded"), "no numbered SavedModel")
    clear(2, run("serve", "--backend", "embedded", "--tls-cert", "x"), "--tls-key")
    clear(
        2,
        run("serve", "--backend", "embedded", "--batching", tmp_path / "x"),
        "for TensorFlow Serving",
    )


def test_serve_says_when_a_port_is_taken(run: Run) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        code, _, err = run("serve", "--backend", "embedded", "--port", port, "--rest-port", 0)
    assert code == 3
    assert f"mnist-ae: error: cannot listen on 127.0.0.1:{port}: the port is taken" in err


def test_help_answers_without_heavy_imports() -> None:
    program = (
        "import sys; from pipeline import cli\n"
        "cli.main(['serve', '--help'])\n"
        "bad = {'numpy', 'tensorflow', 'grpc', 'google.protobuf'} & set(sys.modules)\n"
        "sys.exit(f'imported {bad}' if bad else 0)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=REPOSITORY, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "MODEL_OR_FOLDER" in done.stdout


def test_a_backend_that_dies_is_an_error(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, run: Run
) -> None:
    path = tmp_path / "tensorflow_model_server"
    path.write_text("#!/bin/sh\nexit 7\n")
    path.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    clear(3, run("serve", "--backend", "binary", "--port", "1"), "ended by itself with code 7")


def test_a_rollout_and_a_server_that_goes_another_way(run: Run, tmp_path: pathlib.Path) -> None:
    """No deployment of ours: its server reads no file, and hears of orders by request only."""
    from serving.standin.server import EmbeddedServer
    from serving.standin.settings import ModelSettings, ServerOptions
    from tests.serving import models

    folder = tmp_path / "serving" / "m"
    for version in (10, 20):
        models.write_conformance(folder, version)
    named = ("--root", tmp_path, "--model", "m")
    options = ServerOptions(
        {"m": ModelSettings("m", str(folder))}, port=0, rest_port=None, poll_interval=0.05
    )
    with EmbeddedServer(options) as server:
        live = (*named, "--target", server.address)
        code, out, _ = run("rollout", "list", *live)
        assert code == 0 and "no labels yet" in out
        code, out, err = run("rollout", "canary", 10, *live)
        assert (code, err) == (0, "") and "m: stable 20, canary 10" in out
        code, out, _ = run("rollout", "list", *live)
        assert code == 0 and "10  canary, AVAILABLE" in out and "20  stable, AVAILABLE" in out
        assert run("rollout", "promote", *named)[0] == 0  # in the file alone
        code, out, _ = run("rollout", "list", *live)
        assert code == 1
        file = locate.config_path(tmp_path)
        assert f"{server.address} does not follow {file}: " in out
        assert "stable is 20, not 10" in out or "previous is no version, not 20" in out
        assert run("rollout", "rollback", *live)[0] == 0
        assert run("rollout", "list", *live)[0] == 0
        before = file.read_text()
    clear(3, run("rollout", "canary", 10, *live), "no server answers", server.address)
    assert file.read_text() == before


def test_play_in_a_process(pushed: pathlib.Path) -> None:
    command = [sys.executable, "-m", "pipeline.cli", "play", "--root", str(pushed), "--port", "0"]
    with subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        said = [process.stdout.readline().strip() for _ in range(3)]
        assert said[0] == "autoencoder, version 1700000009" and said[2] == "ready"
        with urllib.request.urlopen(said[1].removeprefix("page ")) as answer:
            assert b"<title>Try a model</title>" in answer.read()
        process.send_signal(signal.SIGTERM)
        assert process.wait() == 0


def test_where_there_is_nothing_to_play_with(run: Run, pushed: pathlib.Path) -> None:
    asked = ("play", "--root", pushed)
    clear(2, run(*asked, "--target", "nonsense"), "not host:port")
    clear(2, run(*asked, "--model", "nothing"), "no model 'nothing'")
    clear(3, run(*asked, "--target", "localhost:1", "--timeout", "1"), "no server answers")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        clear(2, run(*asked, "--port", str(port)), f"127.0.0.1:{port}", "--port")
