"""Which server is started, and with which flags."""

from __future__ import annotations

import contextlib
import pathlib
import shutil
from typing import Any

import pytest

from serving import errors, launcher, locate, rollout
from serving.rollout import ConfigFile
from serving.standin.server import EmbeddedServer
from serving.standin.settings import ServerOptions


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
    # As without a network: the daemon answers, the image is not there.
    script("docker", '[ "$1" = info ] && echo 28.0.0 && exit; echo "no such host" >&2; exit 1')
    backend, why = launcher.choose("auto")
    assert backend == "embedded" and "cannot be pulled (no such host)" in why
    with pytest.raises(launcher.ServerStartError, match="cannot be pulled"):
        launcher.choose("docker")
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


def config_of(root: pathlib.Path) -> Any:
    return ConfigFile(locate.config_path(root)).read().model_config_list.config


def test_the_real_servers_poll_a_file_that_lists_their_model(
    pushed: pathlib.Path, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file that appears after the start is never read by them."""
    told = tmp_path / "told"
    binary = tmp_path / "bin" / launcher.BINARY
    binary.parent.mkdir()
    binary.write_text(f'#!/bin/sh\necho "$@" > {told}\nexit 7\n')
    binary.chmod(0o755)
    monkeypatch.setenv("PATH", str(binary.parent) + ":/usr/bin:/bin")
    root = tmp_path / "root"
    shutil.copytree(pushed / "serving", root / "serving")
    config = locate.config_path(root)
    config.unlink(missing_ok=True)
    plan = launcher.Plan(locate.find("autoencoder", root), config, "0.0.0.0", 8500, 8501)

    def serve() -> str:
        with pytest.raises(launcher.ServerStartError, match="ended by itself with code 7"):
            launcher.serve(plan, "binary", lambda text: None)
        return told.read_text()

    assert f"--model_config_file={config} --model_config_file_poll_wait_seconds=1" in serve()
    [entry] = config_of(root)
    assert (entry.name, entry.base_path) == ("autoencoder", str(root / "serving" / "autoencoder"))
    # A rollout's file stays; a model that it does not list comes beside.
    before = config.read_text()
    serve()
    assert config.read_text() == before
    config.write_text(before.replace("autoencoder", "other"))
    (root / "serving" / "other").mkdir()
    serve()
    assert [entry.name for entry in config_of(root)] == ["other", "autoencoder"]
    # What is not there would keep it from listening, for ever and without a word.
    (root / "serving" / "other").rmdir()
    with pytest.raises(errors.InputError, match="serving/other is not here"):
        launcher.serve(plan, "binary", lambda text: None)


def test_a_file_for_containers_is_read_where_its_models_are(
    pushed: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    root = tmp_path / "root"
    shutil.copytree(pushed / "serving", root / "serving")
    config = locate.config_path(root)
    folder = locate.find("autoencoder", root)
    rollout.Rollout(folder, ConfigFile(config), base_path="/models/autoencoder").canary(
        folder.latest
    )
    plan = launcher.Plan(folder, config, "127.0.0.1", 0, 0)
    assert launcher.settings_of(plan)["autoencoder"].base_path == str(folder.path)
    options = ServerOptions(
        launcher.settings_of(plan), port=0, rest_port=None, config_file=str(config)
    )
    with EmbeddedServer(options) as server:
        # What comes by request has the containers' path, too.
        moving = rollout.Rollout(folder, ConfigFile(config), target=server.address)
        with contextlib.closing(moving):
            moving.settle()
            assert moving.disagreements(moving.replicas()) == {}
    command = launcher.docker_command(plan)
    assert f"--volume={folder.path}:/models/autoencoder:ro" in command
    assert f"--volume={root}/serving:{root}/serving:ro" in command
