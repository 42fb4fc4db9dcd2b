"""A month of spans in minutes: everything that goes wrong, with real runs and a live server."""

import gzip
import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import psutil
import pytest

from components.mnist_example_gen import idx
from pipeline import history as run_history
from pipeline.continuous import spans, state
from serving.client import ReconstructionClient

SETTINGS = (
    "--model", "simple", "--set", "trainer.epochs=12", "--set", "trainer.batch_size=64",
    "--set", "evaluator.max_mse=0.1", "--set", "continuous.retry_seconds=0.2",
    "--set", "continuous.soak_seconds=1", "--set", "continuous.soak_checks=2",
)  # fmt: skip


class Month:
    """A root, and what is done in it."""

    def __init__(self, root, images, labels, golden):
        self.root = root
        self._images, self._labels = images, labels
        self._extra = ()
        self._environment = {
            k: v for k, v in os.environ.items() if k not in ("MNIST_DATA_DIR", "MNIST_AE_ROOT")
        }
        path = root.parent / "golden.npz"
        np.savez(path, images=golden[0], labels=golden[1])
        assert self.mnist_ae("ingest", path, "--golden").returncode == 0

    def mnist_ae(self, command, *arguments, check=True, **options):
        done = subprocess.run(
            [sys.executable, "-m", "pipeline.cli", command, *map(str, arguments), "--root",
             str(self.root)],
            capture_output=True, text=True, env=self._environment, check=False, timeout=900,
            **options,
        )  # fmt: skip
        if check:
            assert done.returncode == 0, (command, done.stdout, done.stderr)
        return done

    def serve_by(self, target):
        """From now on, what is pushed goes to a live server."""
        self._extra = ("--auto-promote", "--target", target)

    def ingest(self, images, labels=None, span="next", check=True, **options):
        """Through a file, as a user would; what ``--json`` printed."""
        path = self.root.parent / "in.npz"
        arrays = {"images": images}
        if labels is not None:
            arrays["labels"] = labels
        np.savez(path, **arrays)
        done = self.mnist_ae("ingest", path, "--span", span, "--json", check=check, **options)
        return json.loads(done.stdout) if done.returncode == 0 else done

    def part(self, number, of=12):
        """Images and labels of a day."""
        size = len(self._images) // of
        rows = slice(number * size, (number + 1) * size)
        return self._images[rows], self._labels[rows]

    def once(self, *arguments, check=True):
        """``watch --once`` until nothing is due, as cron would."""
        done = None
        for _ in range(10):
            done = self.mnist_ae("watch", "--once", *SETTINGS, *self._extra, *arguments,
                                 check=check)  # fmt: skip
            known = state.read(self.root)
            if not known.rollout and "retry" not in self.statuses().values():
                return done
            time.sleep(0.5)
        return done

    def statuses(self):
        return {key: record["status"] for key, record in state.read(self.root).spans.items()}

    def record(self, key):
        return state.read(self.root).spans[key]

    def kill_at(self, component, seconds=0.2):
        """Starts a watcher and kills it and its run when the run comes to a component."""
        before = set((self.root / "logs").glob("watch-*.log"))
        process = subprocess.Popen(
            [sys.executable, "-m", "pipeline.cli", "watch", "--once", *SETTINGS, *self._extra,
             "--root", str(self.root)],
            stdout=subprocess.DEVNULL, env=self._environment,
        )  # fmt: skip
        deadline = time.monotonic() + 300
        while time.monotonic() < deadline:
            new = set((self.root / "logs").glob("watch-*.log")) - before
            if any(f": {component} starts" in path.read_text(errors="replace") for path in new):
                break
            assert process.poll() is None, f"{component} never started"
            time.sleep(0.01)
        time.sleep(seconds)
        victims = [process, *psutil.Process(process.pid).children(recursive=True)]
        for victim in victims:
            victim.kill()
        process.wait()

    def history(self):
        return json.loads(self.mnist_ae("history", "--json").stdout)

    def decided(self, status):
        return [r for r in self.history()["spans"] if r["status"] == status]


class Client(threading.Thread):
    """Calls the stable version all along and remembers what failed while a server was there."""

    def __init__(self, server, images):
        super().__init__(daemon=True)
        self._server, self._images = server, images
        self.failures, self.answers = [], 0
        self.ending = threading.Event()

    def run(self):
        while not self.ending.is_set():
            # Anew after a failure: a channel that saw its server go needs a second to come back.
            self._server.up.wait(1)
            with ReconstructionClient(
                self._server.target, model="simple", label="stable", timeout=120, retries=4
            ) as client:
                self._call(client)

    def _call(self, client):
        while not self.ending.is_set():
            life = self._server.lives if self._server.up.is_set() else None
            try:
                assert len(client.score(self._images).error) == len(self._images)
                self.answers += 1
            except Exception as e:
                if self._server.up.is_set() and life == self._server.lives:
                    self.failures.append(repr(e))
                return
            time.sleep(0.02)


class Server:
    """``mnist-ae serve``, which can be restarted on its port."""

    def __init__(self, root):
        self._root = root
        self.port = 0
        # Whether it answers, and how often it was started.
        self.up, self.lives = threading.Event(), 0
        self.start()

    def start(self):
        self._process = subprocess.Popen(
            [sys.executable, "-m", "pipeline.cli", "serve", "simple", "--backend", "embedded",
             "--root", str(self._root), "--port", str(self.port), "--rest-port", "0"],
            stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
        )  # fmt: skip
        for line in self._process.stdout:
            if match := re.search(r"gRPC 127.0.0.1:(\d+)", line):
                self.port = int(match[1])
            if line.strip() == "ready":
                self.lives += 1
                self.up.set()
                return
        raise AssertionError("the server did not start")

    @property
    def target(self):
        return f"127.0.0.1:{self.port}"

    def stop(self, number=signal.SIGTERM):
        self.up.clear()
        self._process.send_signal(number)
        self._process.wait(60)


def small_disk():
    import resource

    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, 1_000_000))


def assert_pushes_only_got_better(month):
    """The golden loss never rose, and the best blessed model is what is served."""
    pushed = sorted(month.decided("pushed"), key=lambda r: r["decided"])
    losses = [r["golden"]["after"] for r in pushed]
    assert losses == sorted(losses, reverse=True)
    for row in pushed[1:]:
        assert row["golden"]["before"] is not None and row["warm_start"]["restored"] == 4
    versions = sorted(int(p.name) for p in (month.root / "serving" / "simple").iterdir())
    assert versions[-1] == int(pushed[-1]["pushed_version"])
    return pushed


@pytest.mark.slow
def test_good_strange_and_corrupt_spans(digits, tmp_path):
    """The month's most important days, on 4,500 digits."""
    images, labels = digits["train"]
    month = Month(tmp_path / "runs", images, labels, digits["eval"])
    first = month.ingest(*month.part(0, of=3))
    month.ingest(255 - month.part(1, of=3)[0])
    assert month.ingest(*month.part(0, of=3))["duplicate"]
    corrupt = month.ingest(*month.part(1, of=3), span=5)
    path = pathlib.Path(corrupt["folder"]) / f"train-{idx.IMAGES}"
    data = bytearray(path.read_bytes())
    data[10_000] ^= 255
    path.write_bytes(data)
    month.once()
    assert month.statuses() == {"1.1": "pushed", "2.1": "quarantined", "5.1": "failed"}
    assert month.record("5.1")["tries"] == 3
    assert month.record("1.1")["window"] == ["1.1"]
    assert first["count"] == 1_500
    # The next one starts from the serving model.
    month.ingest(*month.part(2, of=3))
    month.once()
    record = month.record("6.1")
    assert (record["status"], record["window"]) == ("pushed", ["1.1", "6.1"])
    assert record["epochs"] == 4
    assert_pushes_only_got_better(month)
    story = month.history()
    assert story["gaps"] == [3, 4]
    assert story["serving"] == int(record["pushed_version"])
    page = tmp_path / "page.html"
    month.mnist_ae("history", "--html", page)
    assert "<svg" in page.read_text() and "too strange" in page.read_text()
    # What the watcher says is what ML Metadata says.
    store = run_history.open_store(str(month.root / "metadata.sqlite"))
    (window,) = [
        a.custom_properties["window"].string_value
        for a in run_history.run_outputs(store, record["run_id"], "SpanReport")
    ]
    assert window == "1.1 6.1"
    trainer = run_history.node_executions(store, record["run_id"], "Trainer")[-1]
    events = store.get_events_by_execution_ids([trainer.id])
    inputs = store.get_artifacts_by_id([e.artifact_id for e in events if e.type == e.INPUT])
    seen = sorted(a.custom_properties["span"].int_value for a in inputs if a.type == "Examples")
    assert seen == [1, 6]
    assert [a.type for a in inputs].count("Model") == 1
    _assert_retention_keeps_what_counts(month)
    # Nothing new: no run.
    before = len(list((month.root / "logs").iterdir()))
    month.once()
    assert len(list((month.root / "logs").iterdir())) == before


def _assert_retention_keeps_what_counts(month):
    from ml_metadata.proto import metadata_store_pb2

    from pipeline import config
    from pipeline.continuous import retention

    def artifacts():
        store = run_history.open_store(str(month.root / "metadata.sqlite"))
        return {a.id: a for a in store.get_artifacts()}

    before = artifacts()
    old = month.root / "serving" / "simple" / "1"
    old.mkdir()
    retention.clean(config.parse({
        "root": str(month.root), "model": "simple",
        "continuous": {"keep_runs": 1, "keep_versions": 2},
    }))  # fmt: skip
    after = artifacts()
    deleted = metadata_store_pb2.Artifact.DELETED
    gone = {key for key, a in after.items() if a.state == deleted}
    assert set(after) == set(before) and gone
    for key, artifact in after.items():
        assert os.path.exists(artifact.uri) == (key not in gone), artifact.uri
    kept = {(a.type, a.custom_properties["span"].int_value) for key, a in after.items()
            if key not in gone}  # fmt: skip
    assert {("Examples", 1), ("Examples", 6), ("DriftReport", 1), ("SpanReport", 1)} <= kept
    # The serving model and the one that it started from.
    assert sum(a.type == "Model" for key, a in after.items() if key not in gone) == 2
    assert not old.exists()
    assert len(list((month.root / "serving" / "simple").iterdir())) == 2


@pytest.mark.e2e
@pytest.mark.timeout(3_600)
def test_a_month(full_mnist, tmp_path):
    folder = pathlib.Path(full_mnist)

    def read(reader, name):
        return reader(str(next(folder.glob(f"{name}*"))))

    order = np.random.default_rng(0).permutation(60_000)
    month = Month(
        tmp_path / "runs",
        read(spans.read_images, "train-images")[order],
        read(spans.read_labels, "train-labels")[order],
        (read(spans.read_images, "t10k-images"), read(spans.read_labels, "t10k-labels")),
    )
    probe = month.part(11)[0][:16]

    # Day 1: the first model, then a server and a client that never stop.
    month.ingest(*month.part(0))
    month.serve_by("127.0.0.1:1")
    month.once()
    assert month.statuses() == {"1.1": "pushed"}
    server = Server(month.root)
    month.serve_by(server.target)
    client = Client(server, probe)
    client.start()
    try:
        _the_rest_of_the_month(month, server)
    finally:
        client.ending.set()
        client.join(130)
        server.stop()
        print(f"client: {client.answers} answers, failures: {client.failures[:3]}")
    assert client.failures == []
    assert client.answers > 500

    pushed = assert_pushes_only_got_better(month)
    assert len(pushed) >= 8
    story = month.history()
    assert story["serving"] == int(pushed[-1]["pushed_version"])
    assert story["gaps"] == [3]
    with open(month.root / "continuous" / "events.jsonl") as f:
        told = [json.loads(line)["event"] for line in f]
    assert told.count("rolled_back") == 0
    assert told.count("promoted") == len(pushed)
    _as_good_as_one_cold_training(month, tmp_path / "cold" / "runs", pushed[-1])


def _as_good_as_one_cold_training(month, root, last):
    """The same good images, seen as often in all, in one training from nothing."""
    good = [r for r in month.history()["spans"]
            if r["status"] in ("pushed", "refused") and r["span"] != 8]  # fmt: skip
    seen = sum(r["epochs"] * r["training_images"] for r in good)
    parts = (0, 1, 2, 3, 4, 5, 7, 8, 9, 10)
    images = sum(len(month.part(n)[0]) for n in parts)
    root.parent.mkdir()
    path = next((month.root / "spans" / "golden").glob("version-*"))
    golden = (
        spans.read_images(str(path / f"t10k-{idx.IMAGES}")),
        spans.read_labels(str(path / f"t10k-{idx.LABELS}")),
    )
    cold = Month(root, month._images, month._labels, golden)
    for number in parts:
        cold.ingest(*month.part(number))
    cold.once("--set", "continuous.window=12", "--set", f"trainer.epochs={round(seen / images)}")
    ours = last["golden"]["after"]
    theirs = cold.history()["spans"][-1]["golden"]["after"]
    print(f"golden MSE {ours:.5f} after the month, {theirs:.5f} cold, {seen / images:.1f} epochs")
    assert ours <= 1.03 * theirs


def _the_rest_of_the_month(month, server):
    images, labels = month.part(1)
    month.ingest(images, labels)
    month.once()
    assert month.statuses()["2.1"] == "pushed"

    # A duplicate: nothing happens.
    assert month.ingest(images, labels)["duplicate"]

    # A gap, and a corrected version.
    images, labels = month.part(2)
    wrong = labels.copy()
    wrong[:300] = 9 - wrong[:300]
    assert month.ingest(images, wrong, span=4)["version"] == 1
    month.once()
    assert month.ingest(images, labels, span=4)["version"] == 2
    month.once()
    assert month.record("4.2")["status"] in ("pushed", "refused")
    assert month.record("4.2")["window"] == ["1.1", "2.1", "4.2"]

    # Without labels.
    month.ingest(month.part(3)[0])
    month.once()
    assert month.statuses()["5.1"] == "pushed"
    assert month.record("5.1")["newest_span"]["after_by_digit"] == {}

    # Corrupt on arrival, and corrupt on the disk; what comes behind is not blocked.
    path = month.root.parent / "corrupt.gz"
    idx.write_idx(str(path), month.part(4)[0])
    path.write_bytes(gzip.compress(path.read_bytes())[:-200_000])
    refused = month.mnist_ae("ingest", path, check=False)
    assert refused.returncode == 2 and "truncated" in refused.stderr
    corrupt = month.ingest(*month.part(4))
    (pathlib.Path(corrupt["folder"]) / f"train-{idx.IMAGES}").write_bytes(b"\0" * 1_000)
    month.ingest(*month.part(5))
    month.once()
    assert month.statuses()["6.1"] == "failed"
    assert month.statuses()["7.1"] == "pushed"
    # Ingested again, it is the next version.
    assert month.ingest(*month.part(4), span=6)["version"] == 2
    # A kill during training.
    month.kill_at("Trainer", seconds=1.0)
    month.once()
    assert month.record("6.2")["status"] in ("pushed", "refused")

    # A strange span; let in by hand, it makes the model worse, and the gate says no.
    month.ingest(255 - month.part(6)[0], month.part(6)[1])
    month.once()
    assert month.statuses()["8.1"] == "quarantined"
    serving = month.history()["serving"]
    month.mnist_ae("spans", "accept", 8)
    month.once()
    record = month.record("8.1")
    assert record["status"] == "refused" and "golden set" in record["reason"]
    assert record["harmful"]
    assert month.history()["serving"] == serving

    # A kill during the push.
    month.ingest(*month.part(7))
    month.kill_at("Pusher", seconds=0.0)
    month.once()
    record = month.record("9.1")
    assert record["status"] in ("pushed", "refused")
    assert "8.1" not in record["window"]

    # A full disk during the ingestion.
    failed = month.ingest(*month.part(8), check=False, preexec_fn=small_disk)
    assert failed.returncode == 2 and "nothing was published" in failed.stderr
    month.ingest(*month.part(8))
    month.once()
    assert month.statuses()["10.1"] in ("pushed", "refused")

    # The server is restarted, then killed and started, while a span is trained on.
    month.ingest(*month.part(9))
    worker = threading.Thread(target=month.once)
    worker.start()
    time.sleep(5)
    server.stop()
    server.start()
    worker.join(600)
    server.stop(signal.SIGKILL)
    server.start()
    assert month.statuses()["11.1"] in ("pushed", "refused")

    month.ingest(*month.part(10))
    month.once()
    assert month.record("12.1")["status"] in ("pushed", "refused")
