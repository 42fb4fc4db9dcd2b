"""Swaps, rollback and shutdown while clients keep asking.

``SERVING_LOAD_SECONDS`` sets how long the long one takes (60 by default).
"""

from __future__ import annotations

import itertools
import os
import pathlib
import shutil
import signal
import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import psutil
import pytest

from serving import contract, errors, protos
from serving.grpc_transport import GrpcTransport
from serving.standin.server import EmbeddedServer
from serving.transport import Address
from tests.serving.process import Serve, answered

CLIENTS = 16
MIB = 2**20
Push = Callable[..., pathlib.Path]


class Load:
    """Threads that ask without pause or retry, and note versions and failures."""

    def __init__(self, target: str, model: str, signature: str, inputs: dict[str, Any]) -> None:
        self._stop = threading.Event()
        self.failures: list[errors.ServingError] = []
        self.versions: list[list[int]] = [[] for _ in range(CLIENTS)]
        self.answers = 0
        self._lock = threading.Lock()
        self._transport = GrpcTransport(Address(target, model, retries=0, timeout=300.0))
        self._request = self._transport.request(signature, inputs, ())
        self._threads = [threading.Thread(target=self._ask, args=(mine,)) for mine in self.versions]

    def _ask(self, mine: list[int]) -> None:
        count = 0
        while not self._stop.is_set():
            try:
                data = self._transport.predict_serialised(self._request)
            except errors.ServingError as error:
                self.failures.append(error)
                break
            count += 1
            version = protos.PredictResponse.FromString(data).model_spec.version.value
            if mine[-1:] != [version]:
                mine.append(version)
        with self._lock:
            self.answers += count

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self.join()
        self._transport.close()

    def join(self) -> None:
        for thread in self._threads:
            thread.join()


def states(transport: GrpcTransport) -> dict[int, str]:
    return {item.version: item.state for item in transport.status()}


def wait(condition: Callable[[], bool], what: str, seconds: float = 300) -> None:
    """The server is another process: nothing to wait on but its status."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, what
        time.sleep(0.1)


def is_subsequence(seen: list[int], order: list[int]) -> bool:
    rest = iter(order)
    return all(version in rest for version in seen)


@pytest.mark.e2e
def test_five_versions_pushed_one_corrupt_one_rolled_back(
    built: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    seconds = float(os.environ.get("SERVING_LOAD_SECONDS", "60"))
    base = tmp_path / "serving" / "autoencoder"

    def push(version: int, corrupt: bool = False) -> None:
        aside = base / f"_tmp.{version}"
        shutil.copytree(built / "autoencoder" / "1", aside)
        if corrupt:
            data = next((aside / "variables").glob("*.data-*"))
            data.write_bytes(data.read_bytes()[:1000])
        aside.rename(base / str(version))

    base.mkdir(parents=True)
    push(1)
    images = {contract.IMAGES: np.zeros((4, 28, 28), np.uint8)}
    order = [1, 2, 3, 5, 6, 5]
    with Serve(tmp_path, "--load-retries", "1") as serve:
        process = psutil.Process(serve.process.pid)
        status = GrpcTransport(Address(serve.target, "autoencoder", timeout=300.0))
        memory: list[int] = []
        started = time.monotonic()
        with Load(serve.target, "autoencoder", contract.RECONSTRUCT, images) as load:

            def swap(now: int, ended: int) -> None:
                def swapped() -> bool:
                    found = states(status)
                    return (found.get(now), found.get(ended)) == ("AVAILABLE", "END")

                wait(swapped, f"{now} in place of {ended}")
                # Some traffic on the new version before memory is looked at.
                time.sleep(seconds / 12)
                memory.append(process.memory_info().rss)

            push(2)
            swap(2, 1)
            push(3)
            swap(3, 2)
            push(4, corrupt=True)
            wait(lambda: states(status).get(4) == "END", "the corrupt one fails")
            assert states(status)[3] == "AVAILABLE"
            assert next(item for item in status.status() if item.version == 4).error
            push(5)
            swap(5, 3)
            push(6)
            swap(6, 5)
            shutil.rmtree(base / "6")
            swap(5, 6)
            left = seconds - (time.monotonic() - started)
            load._stop.wait(max(0.0, left))
            memory.append(process.memory_info().rss)
        status.close()
        print(
            f"{load.answers} answers in {time.monotonic() - started:.0f} s, "
            f"memory {[value // MIB for value in memory]} MiB, "
            f"versions {sorted(set(itertools.chain.from_iterable(load.versions)))}"
        )
        assert not load.failures, load.failures[0]
        for seen in load.versions:
            assert is_subsequence(seen, order), seen
            assert seen[-1] == 5
        # Every swap after the first two leaves no more behind than noise.
        assert memory[-1] - memory[1] < 40 * MIB, [value // MIB for value in memory]
        serve.process.send_signal(signal.SIGTERM)
        assert serve.process.wait(300) == 0


def test_swaps_under_load_fail_no_request(
    tmp_path: pathlib.Path, push: Push, start_server: Any
) -> None:
    push(tmp_path, 1)
    server: EmbeddedServer = start_server({"m": tmp_path})
    inputs = {"x": np.ones((2, 1), np.float32)}
    with Load(server.address, "m", "serving_default", inputs) as load:
        for version in range(2, 8):
            push(tmp_path, version)
            assert server.models.wait_for(
                lambda version=version: server.models.available() == {"m": [version]}, 300
            )
    assert not load.failures, load.failures[0]
    for seen in load.versions:
        assert seen == sorted(seen)


def test_stopping_under_load_drops_nothing_that_was_accepted(
    tmp_path: pathlib.Path, push: Push, start_server: Any
) -> None:
    push(tmp_path, 1)
    server: EmbeddedServer = start_server({"m": tmp_path})
    inputs = {"x": np.ones((2, 1), np.float32)}
    with Load(server.address, "m", "serving_default", inputs) as load:
        assert server.models.wait_for(lambda: True)
        while answered(server) < 500:
            time.sleep(0.01)
        server.stop()
        load.join()
    # What the server answered is what clients got: nothing was lost on the way
    # out, and what it no longer took was refused as UNAVAILABLE, safe to retry.
    assert load.answers == answered(server, model_name="m", status="OK")
    assert answered(server) == load.answers
    assert {type(error) for error in load.failures} == {errors.ServerUnavailableError}


def test_requests_under_way_finish_when_stopping(built: pathlib.Path, start_server: Any) -> None:
    server: EmbeddedServer = start_server({"m": built / "conformance"})
    entered, release = threading.Event(), threading.Event()
    run = server.handlers.run

    def slow(*args: Any) -> Any:
        entered.set()
        assert release.wait(300)
        return run(*args)

    server.handlers.run = slow  # type: ignore[method-assign]
    transport = GrpcTransport(Address(server.address, "m", retries=0, timeout=300.0))
    answers: list[Any] = []
    asker = threading.Thread(
        target=lambda: answers.append(
            transport.predict("serving_default", {"x": np.ones((1, 1), np.float32)}, ())
        )
    )
    asker.start()
    assert entered.wait(300)
    stopper = threading.Thread(target=server.stop)
    stopper.start()
    assert server.draining.wait(300)
    try:
        with pytest.raises(errors.ServerUnavailableError):
            GrpcTransport(Address(server.address, "m", retries=0)).status()
    finally:
        release.set()
    asker.join(300)
    stopper.join(300)
    assert answers[0]["y"].tolist() == [[2.5]]
