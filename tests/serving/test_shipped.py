"""What the deployment files start, with the flags and files that they give it.

Without ``SERVING_BINARY`` the stand-in keeps the real server's rules.
"""

from __future__ import annotations

import pathlib
import random
import re
import shutil
import threading
import urllib.request
from collections.abc import Callable
from typing import Any

import numpy as np
import portpicker
import pytest
from prometheus_client import parser

from serving import contract, errors, launcher, locate, protos, wire
from serving.client import ReconstructionClient
from serving.rollout import ConfigFile, Rollout, ensure_listed
from serving.standin import handlers
from serving.standin.metrics import PATH as METRICS_PATH
from serving.standin.status import StatusError, invalid_argument
from tests.serving.process import BINARY, RealServer, Serve, needs_binary
from tests.serving.test_deploy import DEPLOY, shipped

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
        with RealServer(MODEL, *shipped(root)) as real:
            assert ask_at_random(real.address) == []
        return
    keep_rule(monkeypatch, batching_rule((DEPLOY / "batching.config").read_text()))
    server = start_server({MODEL: root / "serving" / MODEL})
    assert ask_at_random(server.address) == []


# What was shipped before: the client's own default was refused, and nothing ended it.
BEFORE = """
max_batch_size { value: 128 }
batch_timeout_micros { value: 0 }
max_enqueued_batches { value: 100 }
num_batch_threads { value: 2 }
allowed_batch_sizes: 8
allowed_batch_sizes: 128
"""


def test_the_rule_of_the_stand_in_is_no_kinder_than_the_server(
    root: pathlib.Path, start_server: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    keep_rule(monkeypatch, batching_rule(BEFORE))
    server = start_server({MODEL: root / "serving" / MODEL})
    refuses_what_was_shipped_before(server.address)


@needs_binary
def test_the_real_server_ends_at_what_was_shipped_before(root: pathlib.Path) -> None:
    file = root / "batching.config"
    file.write_text(BEFORE)
    server = RealServer(MODEL, *shipped(root, batching_parameters_file=file))
    with pytest.raises(AssertionError, match="the server ended with -"), server:
        refuses_what_was_shipped_before(server.address)
        server.wait()


def refuses_what_was_shipped_before(address: str) -> None:
    images = np.zeros((256, 28, 28), np.uint8)
    with ReconstructionClient(address, model=MODEL, retries=0) as client:
        client.score(images[:128])
        with pytest.raises(errors.InvalidRequestError, match="Task size 256 is larger"):
            client.score(images)
        with pytest.raises(errors.ServingError):
            client.score(images[:0])


@needs_binary
def test_the_real_server_has_the_series_that_the_stand_in_has(
    root: pathlib.Path, start_server: Any
) -> None:
    """The dashboard's are among these (``test_deploy.py``)."""

    def series(address: str, rest_address: str) -> dict[str, set[str]]:
        with ReconstructionClient(address, model=MODEL) as client:
            client.score(np.zeros((1, 28, 28), np.uint8))
        with ReconstructionClient(rest_address, model=MODEL, rest=True) as client:
            client.score(np.zeros((1, 28, 28), np.uint8))
        with urllib.request.urlopen(f"http://{rest_address}{METRICS_PATH}", timeout=60) as page:
            text = page.read().decode()
        return {
            sample.name: set(sample.labels)
            for family in parser.text_string_to_metric_families(text)
            for sample in family.samples
            if sample.name.startswith(":tensorflow:")
        }

    stand_in = start_server({MODEL: root / "serving" / MODEL}, rest_port=0)
    expected = series(stand_in.address, stand_in.rest_address)
    with RealServer(MODEL, *shipped(root)) as real:
        found = series(real.address, real.rest_address)
    assert expected and {name: found.get(name) for name in expected} == expected


def warm_up(version: pathlib.Path, requests: int = 300) -> None:
    """Makes a version's load take longer than a poll of the file."""
    import tensorflow as tf

    log = protos.PredictionLog()
    seeds = {contract.SEED: np.arange(2_000)}
    log.predict_log.request.CopyFrom(wire.predict_request(MODEL, contract.GENERATE, seeds))
    file = version / "assets.extra" / "tf_serving_warmup_requests"
    file.parent.mkdir(exist_ok=True)
    with tf.io.TFRecordWriter(str(file)) as writer:
        for _ in range(requests):
            writer.write(log.SerializeToString())


@pytest.mark.slow
@needs_binary
def test_rollouts_reach_a_real_server_that_serve_started(
    root: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for version in (10, 20):
        warm_up(root / "serving" / MODEL / str(version))
    folder = root / "bin"
    folder.mkdir()
    (folder / launcher.BINARY).symlink_to(str(BINARY))
    monkeypatch.setenv("PATH", str(folder), prepend=":")
    locate.config_path(root).unlink()
    ports = portpicker.pick_unused_port(), portpicker.pick_unused_port()
    how = ["--backend", "binary", "--rest-port", str(ports[1])]
    with Serve(root, *how, port=ports[0]) as serve:

        def order(name: str, *arguments: int) -> dict[str, int]:
            moving = Rollout(
                locate.find(MODEL, root),
                ConfigFile(locate.config_path(root)),
                target=serve.target,
                keep=1,
            )
            try:
                return getattr(moving, name)(*arguments).as_dict()
            finally:
                moving.close()

        try:
            for version in (10, 20) * 5:
                assert order("canary", version) == {"stable": 30, "canary": version}
                with ReconstructionClient(serve.target, model=MODEL, label="canary") as client:
                    assert client.answering() == version
                assert order("rollback") == {"stable": 30, "canary": 30}
        finally:
            serve.process.terminate()  # killed, it would leave its server behind
            assert serve.process.wait(60) == 0
