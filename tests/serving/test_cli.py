"""The commands as a person types them: processes, exit codes, one clear line."""

from __future__ import annotations

import json
import os
import pathlib
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pipeline import cli
from serving import launcher, locate
from serving.standin.server import EmbeddedServer
from serving.standin.settings import ModelSettings, ServerOptions
from serving.transport import Address, GrpcTransport

REPOSITORY = pathlib.Path(__file__).resolve().parents[2]
Run = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def root(built: pathlib.Path, tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """Two pushed models; the autoencoder is the newer one."""
    folder = tmp_path_factory.mktemp("root")
    for name, version in (("conformance", "1700000000"), ("autoencoder", "1700000009")):
        [source] = (built / name).iterdir()
        shutil.copytree(source, folder / "serving" / name / version)
    return folder


@pytest.fixture(scope="module")
def server(root: pathlib.Path) -> Iterator[EmbeddedServer]:
    path = str(root / "serving" / "autoencoder")
    options = ServerOptions({"autoencoder": ModelSettings("autoencoder", path)}, port=0,
                            rest_port=0)  # fmt: skip
    with EmbeddedServer(options) as running:
        yield running


@pytest.fixture
def run(
    root: pathlib.Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Run:
    """Runs a command in this process; returns exit code, stdout and stderr."""
    monkeypatch.setenv(locate.ROOT_VARIABLE, str(root))

    def call(*arguments: object) -> tuple[int, str, str]:
        capfd.readouterr()
        code = cli.main([str(argument) for argument in arguments])
        out, err = capfd.readouterr()
        return code, out, err

    return call


@pytest.fixture
def picture(tmp_path: pathlib.Path) -> pathlib.Path:
    path = tmp_path / "some.png"
    array = np.zeros((60, 40, 3), np.uint8)
    array[10:50, 15:25] = 255
    Image.fromarray(array).save(path)
    return path


@pytest.mark.parametrize("where", ["server", "rest", "folder"])
def test_every_image_command(
    run: Run, server: EmbeddedServer, picture: pathlib.Path, tmp_path: pathlib.Path, where: str
) -> None:
    source = {
        "server": ["--target", server.address],
        "rest": ["--target", server.rest_address, "--rest"],
        "folder": [],
    }[where]
    out = tmp_path / "out"
    code, text, err = run("predict", picture, picture, "--out", out, *source)
    assert code == 0, err
    assert text.count("some.png: reconstruction error 0.") == 2
    names = sorted(path.name for path in out.iterdir())
    assert names == ["some_1_reconstruction.png", "some_2_reconstruction.png"]
    assert Image.open(out / names[0]).size == (248, 128)

    code, text, err = run("encode", picture, *source)
    assert code == 0, err
    assert len(json.loads(text)["code"]) == 32
    codes = tmp_path / "codes.npy"
    assert run("encode", picture, "--out", codes, *source)[0] == 0
    for given in (codes, tmp_path / "codes.json"):
        if given.suffix == ".json":
            given.write_text(json.dumps(np.load(codes).tolist()))
        code, text, err = run("decode", given, "--out", out, *source)
        assert (code, text.strip()) == (0, f"wrote 1 images to {out / 'decoded.png'}"), err

    code, text, err = run("generate", "--n", 5, "--out", out, *source)
    assert code == 0, err
    assert Image.open(out / "generated.png").size == (3 * 120 + 8, 2 * 120 + 8)

    code, text, err = run("score", picture, *source)
    assert code == 0 and text.startswith(f"{picture}: 0."), err
    code, text, err = run("classify", picture, *source)
    assert code == 0 and text.strip().endswith("%)"), err
    code, text, err = run("status", *source)
    assert code == 0 and "version 1700000009" in text, err


def test_serve_then_predict_in_processes(
    root: pathlib.Path, picture: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    with Serve(root, "--drain-seconds", "5") as serve:
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
        assert serve.process.wait(20) == 0
        assert serve.process.stdout is not None
        assert serve.process.stdout.read().strip().endswith("stopped")


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


@pytest.mark.e2e
def test_killed_and_started_again_it_serves_the_same_version(
    root: pathlib.Path, built: pathlib.Path, tmp_path: pathlib.Path
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


# What goes wrong: one line, exit code 2 or 3, no traceback.


def clear(code: int, result: tuple[int, str, str], *words: str) -> None:
    got, out, err = result
    assert got == code, (out, err)
    lines = [line for line in err.splitlines() if line.startswith("mnist-ae: error: ")]
    assert len(lines) == 1 and len(err.strip().splitlines()) == 1, err
    for word in words:
        assert word in lines[0], lines[0]


IMAGE_COMMANDS = ("predict", "encode", "score", "classify")
ALL_COMMANDS = (*IMAGE_COMMANDS, "decode", "generate", "status")


@pytest.fixture
def arguments(picture: pathlib.Path, tmp_path: pathlib.Path) -> dict[str, list[Any]]:
    codes = tmp_path / "codes.npy"
    np.save(codes, np.zeros((1, 32), np.float32))
    return {
        **{name: [picture] for name in IMAGE_COMMANDS},
        "decode": [codes],
        "generate": [],
        "status": [],
    }


@pytest.mark.parametrize("command", ALL_COMMANDS)
@pytest.mark.parametrize("rest", [[], ["--rest"]], ids=["gRPC", "REST"])
def test_a_server_that_is_down(
    run: Run, arguments: dict[str, list[Any]], command: str, rest: list[str]
) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        target = f"127.0.0.1:{unused.getsockname()[1]}"
        result = run(command, *arguments[command], "--target", target, *rest)
    clear(3, result, f"no server answers at {target}", "mnist-ae serve")


@pytest.mark.parametrize("command", ALL_COMMANDS)
@pytest.mark.parametrize("rest", [[], ["--rest"]], ids=["gRPC", "REST"])
def test_a_wrong_port_and_an_unknown_model(
    run: Run, server: EmbeddedServer, arguments: dict[str, list[Any]], command: str,
    rest: list[str],
) -> None:  # fmt: skip
    right, wrong = server.rest_address, server.address
    if not rest:
        right, wrong = wrong, right
    given = arguments[command]
    clear(3, run(command, *given, "--target", wrong, "--timeout", 3, *rest))
    clear(3, run(command, *given, "--target", right, "--model", "nobody", *rest), "nobody")
    if command != "status":
        clear(3, run(command, *given, "--target", right, "--version", 7, *rest), "7")
    clear(2, run(command, *given, "--target", "nonsense", *rest), "host:port")
    clear(2, run(command, *given, "--model", "nobody"), "no model 'nobody'")


@pytest.mark.parametrize("command", IMAGE_COMMANDS)
@pytest.mark.parametrize("kind", ["missing", "text", "empty", "folder", "unreadable"])
def test_a_bad_image_stops_before_anything_is_sent(
    run: Run, tmp_path: pathlib.Path, picture: pathlib.Path, command: str, kind: str
) -> None:
    path = tmp_path / "bad.png"
    if kind == "text":
        path.write_text("hello, I am no picture")
    elif kind == "empty":
        path.touch()
    elif kind == "folder":
        path.mkdir()
    elif kind == "unreadable":
        if os.geteuid() == 0:
            pytest.skip("root reads everything")
        path.touch(0)
    # The target is down: were anything sent, the exit code would be 3.
    clear(2, run(command, picture, path, "--target", "127.0.0.1:1"), str(path))


@pytest.mark.parametrize("content", [b"", b"hello", b"[]", b'[["a"]]', b"[[1], [2, 3]]",
                                     b"\x93NUMPY\x01", b"[" * 100_000])  # fmt: skip
def test_bad_codes(run: Run, tmp_path: pathlib.Path, content: bytes) -> None:
    path = tmp_path / "codes"
    path.write_bytes(content)
    clear(2, run("decode", path), str(path))


def test_codes_of_the_wrong_size_are_the_servers_refusal(
    run: Run, server: EmbeddedServer, tmp_path: pathlib.Path
) -> None:
    path = tmp_path / "codes.json"
    path.write_text("[[1, 2, 3]]")
    clear(3, run("decode", path, "--target", server.address), "Matrix size-incompatible")
    clear(3, run("decode", path), "Matrix size-incompatible")


def test_usage_errors(run: Run, picture: pathlib.Path, tmp_path: pathlib.Path) -> None:
    assert run()[0] == 2
    assert run("serve", "--port", "99999")[0] == 2
    assert run("generate", "--n", "0")[0] == 2
    clear(2, run("predict", picture, "--label", "stable"), "--target")
    clear(2, run("serve", tmp_path / "nowhere", "--backend", "embedded"), "no model")
    (tmp_path / "empty").mkdir()
    clear(2, run("serve", tmp_path / "empty", "--backend", "embedded"), "no numbered SavedModel")
    clear(2, run("status", "--root", tmp_path), "no pushed model under", "make run")
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


# The choice of a backend.


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


def test_the_real_servers_get_the_flags_that_mend_their_traps(root: pathlib.Path) -> None:
    plan = launcher.Plan(locate.find("autoencoder", root), None, "127.0.0.1", 8500, 8501)
    command = launcher.binary_command(plan)
    assert f"--model_base_path={root}/serving/autoencoder" in command
    for flag in ("--num_load_threads=2", "--load_retry_interval_micros=1000000",
                 "--grpc_max_threads=64"):  # fmt: skip
        assert flag in command
    docker = launcher.docker_command(plan)
    assert "--publish=127.0.0.1:8500:8500" in docker
    assert f"--volume={root}/serving/autoencoder:{root}/serving/autoencoder:ro" in docker


def test_a_backend_that_dies_is_an_error(
    root: pathlib.Path, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, run: Run
) -> None:
    path = tmp_path / "tensorflow_model_server"
    path.write_text("#!/bin/sh\nexit 7\n")
    path.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    clear(3, run("serve", "--backend", "binary", "--port", "1"), "ended by itself with code 7")


# Finding models.


def test_find(root: pathlib.Path, tmp_path: pathlib.Path) -> None:
    assert locate.find(None, root).name == "autoencoder"  # the most recently pushed
    by_path = locate.find(str(root / "serving" / "conformance"), root)
    assert (by_path.name, by_path.versions) == ("conformance", (1700000000,))
    one = locate.find(str(root / "serving" / "conformance" / "1700000000"), root)
    assert one.version == 1700000000
    bare = tmp_path / "bare"
    shutil.copytree(by_path.version_path(1700000000), bare)
    with pytest.raises(locate.ModelFolderError, match="without a version"):
        locate.find(str(bare), root)
