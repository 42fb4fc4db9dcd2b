"""What the deployment files start, with the flags and files that they give it.

``SERVING_BINARY`` names a ``tensorflow_model_server`` for the tests of the real one, which are
skipped without it; the stand-in then keeps its rules. ``SERVING_LOAD_SECONDS`` is how long the
rollouts under load go on (60 by default).
"""

from __future__ import annotations

import contextlib
import os
import pathlib
import random
import re
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import portpicker
import pytest

from serving import errors, locate
from serving.client import ReconstructionClient
from serving.grpc_transport import GrpcTransport
from serving.rollout import ConfigFile, Rollout, ensure_listed
from serving.standin import handlers
from serving.standin.status import StatusError, invalid_argument
from serving.transport import Address
from tests.serving.test_deploy import DEPLOY, container

BINARY = os.environ.get("SERVING_BINARY")
MODEL = "best"
# What TensorFlow Serving says to the client, or None where its process ends.
Rule = Callable[[int], StatusError | None]


def batching_rule(text: str) -> Rule:
    """What the real server does with a request of so many rows (SERVING.md, section 3)."""
    text = re.sub("#.*", "", text)
    [most] = map(int, re.findall(r"max_batch_size \{ value: (\d+) \}", text))
    padded = "allowed_batch_sizes" in text

    def rule(rows: int) -> StatusError | None:
        if rows == 0 and padded:
            raise SystemError("check failed in tensor.cc: the process ends")
        if rows > most:
            return invalid_argument(
                f"Task size {rows} is larger than maximum input batch size {most}"
            )
        return None

    return rule


def keep_rule(monkeypatch: pytest.MonkeyPatch, rule: Rule) -> None:
    """Makes stand-in servers answer as one that batches by a rule."""
    predict = handlers.Handlers.predict

    def batched(self: Any, request: Any, *rest: Any) -> Any:
        [first, *_] = request.inputs.values()
        refusal = rule(first.tensor_shape.dim[0].size)
        if refusal is not None:
            raise refusal
        return predict(self, request, *rest)

    monkeypatch.setattr(handlers.Handlers, "predict", batched)


@contextlib.contextmanager
def started(root: pathlib.Path) -> Iterator[str]:
    """The real server, told exactly what Kubernetes and compose tell it; its address."""
    assert BINARY is not None
    port, rest_port = portpicker.pick_unused_port(), portpicker.pick_unused_port()
    told = {"--port=8500": f"--port={port}", "--rest_api_port=8501": f"--rest_api_port={rest_port}"}
    words = [
        told.get(word, word)
        .replace("=/models/", f"={root / 'serving'}/")
        .replace("=/config/", f"={DEPLOY}/")
        for word in container()["args"]
    ]
    process = subprocess.Popen([BINARY, *words])
    address = f"127.0.0.1:{port}"
    try:
        with contextlib.closing(GrpcTransport(Address(address, MODEL, timeout=2.0))) as transport:
            while process.poll() is None:
                with contextlib.suppress(errors.ServingError):
                    if any(item.state == "AVAILABLE" for item in transport.status()):
                        break
                time.sleep(0.1)
        yield address
        assert process.poll() is None, "the server's process ended"
    finally:
        process.terminate()
        try:
            process.wait(5)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


@pytest.fixture
def root(built: pathlib.Path, tmp_path: pathlib.Path) -> pathlib.Path:
    """Three versions of the model in the probes, and the first models.config of it."""
    for version in ("10", "20", "30"):
        shutil.copytree(built / "autoencoder" / "1", tmp_path / "serving" / MODEL / version)
    ensure_listed(locate.find(MODEL, tmp_path), ConfigFile(locate.config_path(tmp_path)))
    return tmp_path


def ask_at_random(address: str, requests: int = 1_000, threads: int = 8) -> list[str]:
    """Requests of 0 to 500 images; what failed."""
    failures: list[str] = []

    def ask(seed: int) -> None:
        sizes = random.Random(seed)
        images = np.zeros((500, 28, 28), np.uint8)
        with ReconstructionClient(address, model=MODEL, batch_size=500, timeout=300) as client:
            for _ in range(requests // threads):
                count = sizes.choice([0, sizes.randint(0, 500)])
                try:
                    assert len(client.score(images[:count]).error) == count
                except Exception as error:
                    failures.append(f"{count} images: {error}")

    asking = [threading.Thread(target=ask, args=(seed,)) for seed in range(threads)]
    for thread in asking:
        thread.start()
    for thread in asking:
        thread.join()
    return failures


def test_requests_of_any_size_pass_the_shipped_batching(
    root: pathlib.Path, start_server: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    if BINARY:
        with started(root) as address:
            assert ask_at_random(address) == []
        return
    keep_rule(monkeypatch, batching_rule((DEPLOY / "batching.config").read_text()))
    server = start_server({MODEL: root / "serving" / MODEL})
    assert ask_at_random(server.address) == []


def test_the_rule_of_the_stand_in_is_no_kinder_than_the_server(
    root: pathlib.Path, start_server: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was shipped before: the client's own default was refused, and nothing ended it."""
    before = "max_batch_size { value: 128 }\nallowed_batch_sizes: 8\nallowed_batch_sizes: 128\n"
    keep_rule(monkeypatch, batching_rule(before))
    server = start_server({MODEL: root / "serving" / MODEL})
    images = np.zeros((256, 28, 28), np.uint8)
    with ReconstructionClient(server.address, model=MODEL, retries=0) as client:
        client.score(images[:128])
        with pytest.raises(errors.InvalidRequestError, match="Task size 256 is larger"):
            client.score(images)
        with pytest.raises(errors.ServingError):
            client.score(images[:0])


@pytest.mark.slow
@pytest.mark.timeout(1_800)
@pytest.mark.skipif(not BINARY, reason="SERVING_BINARY names no tensorflow_model_server")
def test_rollouts_on_two_real_servers_under_load(root: pathlib.Path) -> None:
    """As ``test_rollout.py`` has it for the stand-in; labels are looked at 30 s after each step."""
    seconds = float(os.environ.get("SERVING_LOAD_SECONDS", "60"))
    images = np.zeros((4, 28, 28), np.uint8)
    failures: list[str] = []
    ending = threading.Event()

    def call(address: str, label: str) -> None:
        with ReconstructionClient(address, model=MODEL, label=label, retries=0) as client:
            while not ending.is_set():
                try:
                    client.score(images)
                except Exception as error:
                    failures.append(repr(error))

    with started(root) as first, started(root) as second:
        # They cannot share a port as pods do: the second address of a name that has two.
        places = {"127.0.0.1": first, "127.0.0.2": second}

        def connect(address: Address) -> GrpcTransport:
            host = address.target.partition(":")[0]
            return GrpcTransport(Address(places[host], MODEL, timeout=address.timeout, retries=0))

        def order(name: str, *arguments: int) -> None:
            moving = Rollout(
                locate.find(MODEL, root),
                ConfigFile(locate.config_path(root)),
                target="both:1",
                connect=connect,
            )
            with contextlib.closing(moving):
                labels = getattr(moving, name)(*arguments).as_dict()
            for late in (0, 30):
                time.sleep(late)
                for address in (first, second):
                    server = GrpcTransport(Address(address, MODEL))
                    with contextlib.closing(server):
                        assert {label: server.version_of(label) for label in labels} == labels

        known = socket.getaddrinfo
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(
                socket,
                "getaddrinfo",
                lambda host, *rest, **more: [
                    item
                    for one in (places if host == "both" else (host,))
                    for item in known(one, *rest, **more)
                ],
            )
            order("canary", 20)
            callers = [
                threading.Thread(target=call, args=(address, label))
                for address in (first, second)
                for label in ("stable", "canary")
                for _ in range(2)
            ]
            for caller in callers:
                caller.start()
            end = time.monotonic() + seconds
            try:
                while True:
                    order("promote")
                    order("rollback")
                    order("canary", 20)
                    if time.monotonic() > end:
                        break
                # One that does not load, and is repaired.
                broken = root / "serving" / MODEL / "40"
                shutil.copytree(root / "serving" / MODEL / "10", broken)
                whole = (broken / "saved_model.pb").read_bytes()
                (broken / "saved_model.pb").write_bytes(whole[: len(whole) // 2])
                with pytest.raises(errors.RolloutError, match="does not load"):
                    order("canary", 40)
                (broken / "saved_model.pb").write_bytes(whole)
                order("canary", 40)
            finally:
                ending.set()
                for caller in callers:
                    caller.join()
    assert failures == []
