"""Which server is started, and with which flags."""

from __future__ import annotations

import pathlib

import pytest

from serving import launcher, locate


def test_auto_takes_the_binary_then_docker_then_the_embedded_server(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    backend, why = launcher.choose("auto")
    assert backend == "embedded" and "tensorflow_model_server" in why and "Docker" in why
    with pytest.raises(launcher.ServerStartError, match="no tensorflow_model_server"):
        launcher.choose("binary")
    with pytest.raises(launcher.ServerStartError, match="Docker cannot be used"):
        launcher.choose("docker")

    def script(name: str, text: str) -> None:
        path = tmp_path / name
        path.write_text(f"#!/bin/sh\n{text}\n")
        path.chmod(0o755)

    script("docker", "exit 1")
    assert launcher.choose("auto")[0] == "embedded"
    script("docker", "echo 28.0.0")
    backend, why = launcher.choose("auto")
    assert backend == "docker" and why.startswith("tensorflow/serving:2.")
    script("tensorflow_model_server", "exit 0")
    assert launcher.choose("auto")[0] == "binary"


def test_the_real_servers_get_the_flags_that_mend_their_traps(pushed: pathlib.Path) -> None:
    plan = launcher.Plan(locate.find("autoencoder", pushed), None, "127.0.0.1", 8500, 8501)
    command = launcher.binary_command(plan)
    assert f"--model_base_path={pushed}/serving/autoencoder" in command
    for flag in ("--num_load_threads=2", "--load_retry_interval_micros=1000000",
                 "--grpc_max_threads=64"):  # fmt: skip
        assert flag in command
    docker = launcher.docker_command(plan)
    assert "--publish=127.0.0.1:8500:8500" in docker
    assert f"--volume={pushed}/serving/autoencoder:{pushed}/serving/autoencoder:ro" in docker
