"""The commands that put images or codes through a model, and ``status``."""

from __future__ import annotations

import json
import os
import pathlib
import socket
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from PIL import Image

from serving.standin.server import EmbeddedServer
from serving.standin.settings import ModelSettings, ServerOptions
from tests.pipeline.commands.refusal import clear

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def server(pushed: pathlib.Path) -> Iterator[EmbeddedServer]:
    path = str(pushed / "serving" / "autoencoder")
    settings = {"autoencoder": ModelSettings("autoencoder", path)}
    with EmbeddedServer(ServerOptions(settings, port=0, rest_port=0)) as running:
        yield running


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


def test_images_that_are_sent_can_be_kept_for_retraining(
    run: Run, server: EmbeddedServer, picture: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    sampled = ["--sample-fraction", 1, "--sample-dir", tmp_path / "kept"]
    for source in ([], ["--target", server.address]):
        assert run("score", picture, *source, *sampled)[0] == 0
        assert run("score", picture, *source, "--sample-dir", tmp_path / "none")[0] == 0
    kept = [np.load(path) for path in (tmp_path / "kept").iterdir()]
    assert [images.shape for images in kept] == [(1, 28, 28)] * 2
    assert not (tmp_path / "none").exists()
    assert run("score", picture, "--sample-fraction", 2)[0] == 2


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
    assert run("generate", "--n", "0")[0] == 2
    clear(2, run("predict", picture, "--label", "stable"), "--target")
    clear(2, run("status", "--root", tmp_path), "no pushed model under", "make run")
