"""A month of bad days: the real watcher, promotion and server; only the training is a stand-in."""

import builtins
import contextlib
import errno
import json
import os
import pathlib
import shutil
import sys
import threading
import time
import types

import numpy as np
import pytest

from pipeline import config
from pipeline.continuous import prometheus, promotion, spans, state, watcher
from serving import locate
from serving.client import ReconstructionClient
from serving.grpc_transport import GrpcTransport
from serving.rollout import ConfigFile, Rollout, entry_of, labels_of
from serving.standin.server import EmbeddedServer
from serving.standin.settings import ServerOptions, models_of
from serving.transport import Address
from tests.serving import models
from tests.serving.process import RealServer, needs_binary
from tests.serving.test_deploy import shipped

# Pushes for each span the model that plan.json names, once: asked again it answers from the cache.
RUNNER = """
import json, pathlib, shutil, sys
job = json.loads(pathlib.Path(sys.argv[1]).read_text())
root = pathlib.Path(job["result"]).parent.parent
plan = json.loads((root / "plan.json").read_text())
result = {"current": None, "outcomes": {}, "window": [], "done": False}
with open(root / "batches.txt", "a") as f:
    print(*job["batch"], file=f)
for key in job["batch"]:
    kind = plan.get(key, "good")
    outcome = {"status": "quarantined", "reason": "strange"}
    if kind != "quarantined":
        place = root / "serving" / "simple"
        place.mkdir(parents=True, exist_ok=True)
        version = str(max([100, *(int(p.name) for p in place.iterdir() if p.name.isdigit())]) + 1)
        shutil.copytree(root.parent / "models" / kind, place / "_tmp.1")
        (place / "_tmp.1").rename(place / version)
        losses = {"before": 0.2, "after": 0.1}
        outcome = {"status": "pushed", "reason": "-", "pushed_version": version, "golden": losses}
        result["window"] = [key]
    result["outcomes"][key] = outcome
result["done"] = True
path = root / ".result"
path.write_text(json.dumps(result))
path.rename(job["result"])
"""


@pytest.fixture(scope="module")
def kinds(tmp_path_factory):
    """SavedModels of one contract: good, worse, unable to evaluate, and none at all."""
    folder = tmp_path_factory.mktemp("kinds")
    models.write_autoencoder(folder, "good", gain=0.3)
    models.write_autoencoder(folder, "worse", gain=1.0)
    models.write_autoencoder(folder, "mute", gain=0.3, without=("evaluate",))
    shutil.copytree(folder / "good", folder / "broken")
    (folder / "broken" / "saved_model.pb").write_bytes(b"no model")
    return folder


class Month:
    """A root, its watcher and its server: a stand-in, or a real one."""

    def __init__(self, folder, kinds, digits, real=False):
        self.root = folder / "runs"
        self.root.mkdir()
        (folder / "models").symlink_to(kinds)
        (self.root / "runner.py").write_text(RUNNER)
        self._digits, self._taken = digits["train"][0], 0
        self.plan = {}
        self.told = []
        self._server, self._real = None, real
        spans.publish_golden(self.root, *digits["eval"], source={"kind": "numpy"})

    def watcher(self, **options):
        conf = config.parse({
            "root": str(self.root), "model": "simple",
            "continuous": {
                "soak_seconds": 0.2, "soak_checks": 2, "retry_seconds": 0.02, "sample_images": 400,
            },
        })  # fmt: skip
        how = watcher.WatchOptions(
            None, [], interval=0.05, auto_promote=True, target=self.target, **options
        )
        told = watcher.make_events(conf, self.told.append)
        return watcher.Watcher(
            conf, how, told, runner=(sys.executable, str(self.root / "runner.py"))
        )

    def images(self, count):
        self._taken += count
        return self._digits[self._taken - count : self._taken]

    def publish(self, kind="good", span=None):
        """A span whose training gives a model of that kind."""
        done = spans.publish(self.root, self.images(30), None, source={"kind": "numpy"}, span=span)
        self.plan[done.manifest.key] = kind
        (self.root / "plan.json").write_text(json.dumps(self.plan))
        return done.manifest.key

    def work(self, watch, until=lambda: True):
        """Works until nothing is left to do."""
        while True:
            watch.once()
            known = watch.state
            waiting = [m.key for m in spans.scan(self.root) if known.status(m.key) in state.OPEN]
            if not waiting and not known.rollout and not known.errors and until():
                return
            time.sleep(0.01)

    def soak(self, watch):
        """Works until a canary is being compared."""
        while "started" not in watch.state.rollout:
            watch.look()

    # The server.

    @property
    def config(self):
        return ConfigFile(locate.config_path(self.root))

    @property
    def target(self):
        return self._server.address if self._server is not None else "127.0.0.1:1"

    def serve(self):
        """Starts the server, again on its ports."""
        before = self._server
        if self._real:
            flags = shipped(self.root, model_config_file_poll_wait_seconds=1)
            self._server = before or RealServer("simple", *flags)
            self._server.start()
            return
        options = ServerOptions(
            models_of(self.config.read()),
            port=before.port if before else 0,
            rest_port=before.rest_port if before else 0,
            config_file=str(self.config.path),
            real_reloads=True,
            poll_interval=0.05,
            max_load_retries=1,
            load_retry_interval=0.05,
            drain_timeout=60.0,
        )
        self._server = EmbeddedServer(options)
        self._server.start()

    def stop(self):
        if self._server is not None:
            self._server.stop()

    @property
    def metrics(self):
        return f"http://{self._server.rest_address}/monitoring/prometheus/metrics"

    # What came of it.

    def version(self, key):
        return int(state.read(self.root).spans[key]["pushed_version"])

    def labels(self):
        return labels_of(entry_of(self.config.read(), "simple"))

    def events(self, name):
        return [event for event in self.told if event["event"] == name]

    def batches(self):
        return (self.root / "batches.txt").read_text().split()

    def check(self):
        """Every decision right, in the file, on the server and in the state."""
        good = [key for key, kind in self.plan.items() if kind == "good"]
        bad = [key for key, kind in self.plan.items() if kind not in ("good", "quarantined")]
        assert len(self.batches()) == len(set(self.batches())), "a span was trained twice"
        assert set(self.batches()) >= set(self.plan)
        promoted = [event["version"] for event in self.events("promoted")]
        withdrawn = [event["version"] for event in self.events("rolled_back")]
        assert sorted(withdrawn) == sorted(map(self.version, bad))
        assert set(promoted) >= set(map(self.version, good))
        assert len(promoted) == len(set(promoted)) and not set(promoted) & set(withdrawn)
        last = promoted[-1]
        labels = self.labels()
        assert (labels.stable, labels.canary) == (last, last)
        listed = entry_of(self.config.read(), "simple").model_version_policy.specific.versions
        assert max(listed) == last
        assert state.read(self.root).serving == last
        with contextlib.closing(GrpcTransport(Address(self.target, "simple"))) as server:
            states = server.status()
            assert max(item.version for item in states if item.state == "AVAILABLE") == last
            for label in ("stable", "canary"):
                assert server.version_of(label) == last


@pytest.fixture
def month(tmp_path, kinds, digits, request):
    made = Month(tmp_path, kinds, digits, getattr(request, "param", None) == "real")
    yield made
    made.stop()


def set_clock(monkeypatch, days):
    """Sets the clock by which the watcher tells the time; gRPC's deadlines are by another."""
    clock = types.SimpleNamespace(**vars(time))
    clock.time = lambda: time.time() + days * 86_400
    for module in (watcher, promotion, prometheus):
        monkeypatch.setattr(module, "time", clock)


def begun(month):
    """The first model, stable at once, and a server of it."""
    month.publish()
    month.work(month.watcher())
    month.serve()
    return month.watcher()


class Caller(threading.Thread):
    """Calls the stable version all along, and remembers what failed and who answered."""

    def __init__(self, month, images):
        super().__init__(daemon=True)
        self._month, self._images = month, images
        self.failures, self.answers = [], 0
        self.calling, self.ending = threading.Event(), threading.Event()
        self.resting = threading.Event()
        self.calling.set()

    def run(self):
        while not self.ending.is_set():
            self.resting.clear()
            # A channel that saw its server go needs a second to come back to it.
            with ReconstructionClient(self._month.target, model="simple", label="stable") as client:
                while self.calling.is_set() and not self.ending.is_set():
                    try:
                        client.score(self._images)
                        self.answers += 1
                    except Exception as e:
                        self.failures.append(repr(e))
            self.resting.set()
            self.calling.wait()

    def rest(self):
        """Makes no call until told to."""
        self.calling.clear()
        self.resting.wait()


@pytest.mark.slow
@pytest.mark.parametrize(
    "month", ["stand-in", pytest.param("real", marks=needs_binary)], indirect=True
)
def test_a_bad_month(month, monkeypatch):
    watch = begun(month)
    caller = Caller(month, month.images(8))
    caller.start()
    try:
        # Good, worse, broken, mute, good; numbered by date from here on.
        month.publish("good")
        month.work(watch)
        for kind, span in (
            ("worse", 20240101),
            ("broken", 20240103),
            ("mute", 20240104),
            ("good", 20240105),
        ):
            month.publish(kind, span)
            month.work(watch)
        assert [e["span"] for e in month.events("gap")] == ["3-20240100", "20240102"]

        # The server is started anew in the middle of a soak.
        month.publish("good")
        month.soak(watch)
        caller.rest()
        month.stop()
        for _ in range(3):
            watch.look()
            time.sleep(0.06)  # the interval of the looks
        assert watch.state.rollout and month.events("waiting")
        month.serve()
        caller.calling.set()
        month.work(watch)

        # Clocks that are set a day forward and back, and a watcher that is killed, in a soak.
        for days in (1, -1):
            month.publish("good" if days > 0 else "worse")
            month.soak(watch)
            set_clock(monkeypatch, days)
            watch.look()
            watch = month.watcher()
            month.work(watch)
            monkeypatch.undo()

        # Two watchers: the second one is refused, and changes nothing.
        with watcher.watching(str(month.root)) as alone, watcher.watching(str(month.root)) as two:
            assert alone and not two
            month.publish("good")
            month.work(watch)

        # A person moves the labels while a canary soaks: nobody moves them back.
        month.publish("good")
        month.soak(watch)
        moving = Rollout(
            locate.find("simple", month.root), month.config, target=month.target, timeout=300
        )
        moving.promote()
        moving.close()
        month.work(watch)
        assert month.events("promoted")[-1]["reason"].startswith("moved by hand")
    finally:
        caller.ending.set()
        caller.calling.set()
        caller.join()
    assert caller.failures == [] and caller.answers > 20
    month.check()


def test_bursts_of_served_errors_train_one_span_at_a_time(month):
    begun(month)
    watch = month.watcher(metrics_url=month.metrics)
    strange = 255 - month.images(120)
    normal = month.images(120)

    def call(images, sampled=1.0):
        samples = {"sample_dir": str(month.root / "samples"), "sample_fraction": sampled}
        with ReconstructionClient(
            month.target, model="simple", **(samples if sampled else {})
        ) as client:
            client.score(images)

    for burst in range(4):
        # Three images are no reason to train, however wrong what is served; nor is a hundred at
        # every look.
        for _ in range(3):
            call(strange, sampled=0.0)
            call(strange[burst * 3 : burst * 3 + 3])
            month.work(watch)
        call(np.maximum(strange, 10) - np.uint8(burst))
        month.work(watch)
    made = [m for m in spans.scan(month.root) if m.source["kind"] == "served"]
    assert made and min(m.count for m in made) >= 100
    assert min(m.eval for m in made) >= 3
    assert len(made) <= 4
    assert len(month.events("served_error")) == 1
    assert len(month.batches()) == len(set(month.batches())) == 1 + len(made)
    call(normal)
    month.work(watch)
    month.check()


class FullDisk:
    """Refuses writes below a folder: the one of a number, and the next two."""

    def __init__(self, monkeypatch, folder, number):
        self._folder, self._refused = str(folder), range(number, number + 3)
        self.count, self.told = 0, []
        for owner, name in (
            (builtins, "open"), (os, "mkdir"), (os, "replace"), (os, "rename"), (os, "link"),
        ):  # fmt: skip
            monkeypatch.setattr(owner, name, self._refusing(getattr(owner, name), name))

    def _refusing(self, call, name):
        def refusing(path, *arguments, **options):
            mode = (*arguments, options.get("mode", "r"))[0]
            writes = name != "open" or (isinstance(mode, str) and set(mode) & set("wax+"))
            if writes and isinstance(path, (str, os.PathLike)) and self._mine(path):
                self.count += 1
                if self.count in self._refused:
                    self.told.append(f"{name} {path}")
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
            return call(path, *arguments, **options)

        return refusing

    def _mine(self, path):
        # The stand-in for the run and the server are no part of what is tried.
        return (
            str(path).startswith(self._folder) and threading.current_thread().name == "MainThread"
        )


def disk_month(month, monkeypatch, number):
    """A good and a bad canary, where the disk refuses; how many writes there were."""
    watch = begun(month)
    with monkeypatch.context() as patch:
        month.publish("good")
        disk = FullDisk(patch, month.root, number)
        month.work(watch)
        written = disk.count
    with monkeypatch.context() as patch:
        month.publish("worse")
        disk = FullDisk(patch, month.root, number)
        month.work(watch)
    month.check()
    return max(written, disk.count)


@pytest.mark.parametrize("number", [1, 4, 9, 14])
def test_a_full_disk_withdraws_and_promotes_nobody_wrongly(month, monkeypatch, number):
    disk_month(month, monkeypatch, number)


@pytest.mark.slow
@pytest.mark.timeout(1_800)
def test_a_full_disk_at_every_write_in_turn(tmp_path, kinds, digits, monkeypatch):
    number, writes = 1, 1
    while number <= writes:
        folder = pathlib.Path(tmp_path / str(number))
        folder.mkdir()
        month = Month(folder, kinds, digits)
        try:
            writes = disk_month(month, monkeypatch, number)
        finally:
            month.stop()
        number += 1
    print(f"{writes} writes")
    assert writes > 10
