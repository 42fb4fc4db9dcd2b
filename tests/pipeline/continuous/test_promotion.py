"""Canary, soak, promotion, rollback, on a live server that a client never leaves."""

import contextlib
import glob
import os
import shutil
import threading
import time

import numpy as np
import pytest

from pipeline import config, history
from pipeline.continuous import promotion, spans, state, watcher, withdraw
from serving import client, contract, errors, files, locate
from serving.client import ReconstructionClient
from serving.rollout import ConfigFile, Rollout, entry_of, labels_of
from serving.standin.server import EmbeddedServer
from serving.standin.settings import ServerOptions, models_of
from trainer import signatures
from trainer.anomaly_score import AnomalyScore
from trainer.data import Preprocessor
from trainer.models import build_model, get_model_spec


@pytest.fixture
def root(trained_run, digits, tmp_path):
    """A root with a golden set and the shared run's model as version 1."""
    spans.publish_golden(tmp_path, *digits["eval"], source={"kind": "numpy"})
    shutil.copytree(trained_run.model_path, tmp_path / "serving" / "simple" / "1")
    return tmp_path


@pytest.fixture(scope="module")
def untrained(trained_run, tmp_path_factory):
    """A model of the same contract that has learnt nothing."""
    folder = tmp_path_factory.mktemp("untrained")
    (graph,) = glob.glob(
        str(trained_run.root / "pipeline/Transform/transform_graph/*/transform_fn")
    )
    model = build_model("simple")
    code_size = get_model_spec("simple").code_size
    score = AnomalyScore(np.eye(code_size), np.eye(code_size, 2), seed=0)
    served = signatures.ServedAutoencoder(model, Preprocessor(graph), score, 0.1)
    signatures.export(served, get_model_spec("simple"), str(folder / "model"), facts={})
    return folder / "model"


def labels(root):
    return labels_of(entry_of(ConfigFile(locate.config_path(root)).read(), "simple"))


class Soak:
    """A Promotion, its state and what it told."""

    def __init__(self, root, target):
        self.told, self.state = [], state.State()
        conf = config.parse(
            {
                "root": str(root),
                "model": "simple",
                "continuous": {"soak_seconds": 0.4, "soak_checks": 2},
            }
        )
        options = watcher.WatchOptions(None, [], auto_promote=True, target=target, interval=0.1)
        events = watcher.make_events(conf, self.told.append)
        self._promotion = promotion.Promotion(conf, options, events)

    def push(self, version):
        """Takes a pushed version to its end."""
        self._promotion.begin(self.state, version)
        while self.state.rollout:
            self._promotion.step(self.state, lambda: None)
            time.sleep(0.05)
        return self.told[-1]


def test_good_versions_are_promoted_and_bad_ones_rolled_back(root, trained_run, untrained):
    first = Soak(root, "127.0.0.1:1")
    assert first.push(1)["event"] == "promoted"
    assert (labels(root).stable, labels(root).canary) == (1, 1)
    path = locate.config_path(root)
    models = models_of(ConfigFile(path).read())
    options = ServerOptions(
        models, port=0, rest_port=None, poll_interval=0.05, config_file=str(path)
    )
    failures, answers, ending = [], [], threading.Event()
    with EmbeddedServer(options) as server:

        def call():
            with ReconstructionClient(server.address, model="simple", label="stable") as client:
                images = spans.read_images(str(spans.golden(root)[1] / "t10k-images-idx3-ubyte"))
                while not ending.is_set():
                    try:
                        answers.append(float(client.score(images[:32]).error.mean()))
                    except Exception as e:
                        failures.append(e)

        def answered():
            """Waits for an answer that was asked for after now."""
            after = len(answers) + 2
            while len(answers) < after and not failures:
                time.sleep(0.01)

        client = threading.Thread(target=call)
        client.start()
        try:
            soak = Soak(root, server.address)
            shutil.copytree(trained_run.model_path, root / "serving" / "simple" / "2")
            assert soak.push(2)["event"] == "promoted"
            assert labels(root).stable == 2 and labels(root).previous == 1
            assert soak.state.serving == 2
            answered()
            shutil.copytree(untrained, root / "serving" / "simple" / "3")
            last = soak.push(3)
            assert last["event"] == "rolled_back" and "limit +5.0%" in last["reason"]
            assert labels(root).stable == labels(root).canary == 2
            answered()
            # One that does not load is withdrawn, too.
            (root / "serving" / "simple" / "4").mkdir()
            (root / "serving" / "simple" / "4" / "saved_model.pb").write_bytes(b"no model")
            assert soak.push(4)["event"] == "rolled_back"
            assert labels(root).stable == 2
            answered()
        finally:
            ending.set()
            client.join()
    assert failures == []
    # Not one answer came from the bad version.
    assert max(answers) < 0.05


def test_a_soak_goes_on_where_a_killed_watcher_left_it(root, trained_run):
    Soak(root, "127.0.0.1:1").push(1)
    shutil.copytree(trained_run.model_path, root / "serving" / "simple" / "2")
    models = models_of(ConfigFile(locate.config_path(root)).read())
    with EmbeddedServer(ServerOptions(models, port=0, rest_port=None)) as server:
        soak = Soak(root, server.address)
        soak._promotion.begin(soak.state, 2)
        soak._promotion.step(soak.state, lambda: state.write(root, soak.state))
        assert labels(root).canary == 2
        again = Soak(root, server.address)
        again.state = state.read(root)
        assert again.state.rollout["version"] == 2
        while again.state.rollout:
            again._promotion.step(again.state, lambda: None)
            time.sleep(0.05)
        assert labels(root).stable == 2


class Probed:
    """A Promotion of version 2 over 1, in the file; ``found`` is what a comparison gives."""

    def __init__(self, root, monkeypatch, **continuous):
        self.root = root
        for version in ("1", "2"):
            (root / "serving" / "simple" / version).mkdir(parents=True)
            (root / "serving" / "simple" / version / "saved_model.pb").write_bytes(b"-")
        self.rollout().canary(2)
        monkeypatch.setattr(promotion.Promotion, "compare", lambda *_: self._compare())
        self.found = {"canary": 0.01, "stable": 0.01}
        self.now = 1_000.0
        monkeypatch.setattr(time, "monotonic", lambda: self.now)
        self.told = []
        conf = config.parse({"root": str(root), "model": "simple", "continuous": continuous})
        # Without a target the labels are moved in the file alone.
        options = watcher.WatchOptions(None, [], auto_promote=True)
        events = watcher.make_events(conf, self.told.append)
        self.promotion = promotion.Promotion(conf, options, events)
        self.state = state.State()
        self.promotion.begin(self.state, 2)
        self.state.rollout.update(started=time.time(), stable=1)

    def rollout(self):
        return Rollout(locate.find("simple", self.root), ConfigFile(locate.config_path(self.root)))

    def _compare(self):
        if isinstance(self.found, Exception):
            raise self.found
        return self.found

    def step(self, seconds, save=lambda: None):
        """A look after so many seconds; gives the events since."""
        self.now += seconds
        before = len(self.told)
        self.promotion.step(self.state, save)
        return [event["event"] for event in self.told[before:]]


AWAY = [
    errors.ServerUnavailableError("no server answers"),
    errors.DeadlineExceededError("no answer within 10 s"),
    errors.ModelNotFoundError("Servable not found for request: Specific(simple, 2)"),
    errors.ServerBusyError("too much"),
]


@pytest.mark.parametrize("error", AWAY, ids=lambda e: type(e).__name__)
def test_a_server_that_is_away_withdraws_nobody(tmp_path, monkeypatch, error):
    soak = Probed(tmp_path, monkeypatch, soak_seconds=60.0, soak_checks=2)
    assert soak.step(0) == []
    soak.found = error
    assert [soak.step(60) for _ in range(3)] == [["waiting"], [], []]
    assert soak.promotion.holds(soak.state)
    # It does not keep runs waiting for ever; told once.
    assert [soak.step(60) for _ in range(3)] == [["undecided"], [], []]
    assert not soak.promotion.holds(soak.state) and soak.state.rollout["version"] == 2
    assert labels(tmp_path).as_dict() == {"stable": 1, "canary": 2}
    soak.found = {"canary": 0.01, "stable": 0.01}
    assert soak.step(60) == ["promoted"]
    assert labels(tmp_path).stable == 2


@pytest.mark.parametrize(
    "error, event",
    [*((error, "waiting") for error in AWAY), (errors.InvalidRequestError("-"), "rolled_back")],
    ids=lambda given: type(given).__name__ if isinstance(given, Exception) else given,
)
def test_a_canary_that_fails_after_the_stable_version_answered(
    tmp_path, monkeypatch, digits, error, event
):
    """A server that restarts between the two probes says nothing of the canary."""

    class Client(contextlib.nullcontext):
        def __init__(self, target, *, model, version, timeout):
            super().__init__(self)
            self.version = version

        def call(self, signature, inputs, outputs):
            if self.version == 2:
                raise error
            return {contract.MSE: np.full(len(inputs[contract.EXAMPLES]), 0.01)}

    compare = promotion.Promotion.compare
    soak = Probed(tmp_path, monkeypatch, soak_seconds=60.0)
    monkeypatch.setattr(promotion.Promotion, "compare", compare)
    monkeypatch.setattr(client, "ReconstructionClient", Client)
    spans.publish_golden(tmp_path, *digits["eval"], source={"kind": "numpy"})
    assert soak.step(0) == [event]
    assert bool(soak.state.rollout) == (event == "waiting")


@pytest.mark.parametrize("canary, event", [(0.01, "promoted"), (0.02, "rolled_back")])
def test_a_full_disk_delays_a_verdict_and_does_not_change_it(tmp_path, monkeypatch, canary, event):
    soak = Probed(tmp_path, monkeypatch, soak_seconds=60.0, soak_checks=1)
    soak.step(0)
    soak.found = {"canary": canary, "stable": 0.01}
    before = labels(tmp_path)

    def full(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(files, "write_atomically", full)
        assert [soak.step(100) for _ in range(2)] == [["waiting"], []]
        assert soak.state.rollout["verdict"]["event"] == event
        # What is decided stays, whatever the next comparison would say.
        soak.found = {"canary": 0.01, "stable": 0.01}
        with pytest.raises(OSError, match="No space"):
            soak.step(100, save=full)
    assert labels(tmp_path) == before and soak.state.rollout
    assert soak.step(100) == [event]
    assert labels(tmp_path).stable == soak.state.serving == (2 if event == "promoted" else 1)


def test_a_version_that_cannot_be_withdrawn_is_withdrawn_later(tmp_path, monkeypatch):
    soak = Probed(tmp_path, monkeypatch, soak_seconds=60.0)
    soak.found = {"canary": 0.02, "stable": 0.01}
    (tmp_path / "metadata.sqlite").write_bytes(b"not a database, or one that is locked")
    assert soak.step(0) == ["waiting"]
    assert "cannot be withdrawn" in soak.told[-1]["reason"]
    assert labels(tmp_path).canary == 2
    (tmp_path / "metadata.sqlite").unlink()
    assert soak.step(100) == ["rolled_back"]
    assert labels(tmp_path).canary == 1


def test_who_moves_labels_by_hand_has_the_last_word(tmp_path, monkeypatch):
    soak = Probed(tmp_path, monkeypatch, soak_seconds=60.0)
    soak.rollout().rollback()
    assert soak.step(0) == ["undecided"]
    assert soak.state.rollout == {} and soak.state.serving == 1
    assert labels(tmp_path).as_dict() == {"stable": 1, "canary": 1}


def test_few_images_decide_nothing(root, trained_run, digits, monkeypatch):
    Soak(root, "127.0.0.1:1").push(1)
    shutil.rmtree(root / "spans" / "golden")
    images, digit = digits["eval"]
    spans.publish_golden(root, images[:99], digit[:99], source={"kind": "numpy"})
    shutil.copytree(trained_run.model_path, root / "serving" / "simple" / "2")
    models = models_of(ConfigFile(locate.config_path(root)).read())
    with EmbeddedServer(ServerOptions(models, port=0, rest_port=None)) as server:
        soak = Soak(root, server.address)
        soak._promotion.begin(soak.state, 2)
        while soak.told[-1:] == [] or soak.told[-1]["event"] != "waiting":
            soak._promotion.step(soak.state, lambda: None)
            time.sleep(0.05)
    assert "99 evaluation images" in soak.told[-1]["reason"]
    assert labels(root).stable == 1 and soak.state.rollout


def test_a_clock_that_jumps_promotes_nobody(tmp_path, monkeypatch):
    soak = Probed(tmp_path, monkeypatch, soak_seconds=600.0, soak_checks=2)
    assert soak.step(0) == []
    for days in (1, -1):
        now = time.time
        with monkeypatch.context() as patch:
            patch.setattr(time, "time", lambda now=now, days=days: now() + days * 86_400)
            assert soak.step(60) == []
    assert soak.state.rollout["version"] == 2
    assert soak.step(600) == ["promoted"]
    assert soak.state.rollout == {} and soak.state.serving == 2


def test_a_soak_has_as_many_comparisons_as_was_said(tmp_path, monkeypatch):
    soak = Probed(tmp_path, monkeypatch, soak_seconds=600.0, soak_checks=4)
    # As where the watcher sleeps longer than the soak, or is a cron job.
    assert [soak.step(1_000) for _ in range(4)] == [[], [], [], ["promoted"]]


def test_a_reboot_starts_the_clock_of_a_soak_again(tmp_path, monkeypatch):
    soak = Probed(tmp_path, monkeypatch, soak_seconds=600.0, soak_checks=1)
    assert soak.step(0) == []
    soak.state.rollout["boot"] = "another"
    assert soak.step(100_000) == []
    assert soak.step(599) == []
    assert soak.step(60) == ["promoted"]


def test_a_worse_canary_is_rolled_back_at_once(tmp_path, monkeypatch):
    soak = Probed(tmp_path, monkeypatch, soak_seconds=600.0)
    soak.found = {"canary": 0.02, "stable": 0.01}
    assert soak.step(0) == ["rolled_back"]
    assert "limit +5.0%" in soak.told[-1]["reason"]
    assert soak.state.serving == 1


def test_a_withdrawn_version_is_marked_in_the_metadata(trained_run, tmp_path):
    shutil.copy(trained_run.root / "metadata.sqlite", tmp_path)
    version = os.path.basename(trained_run.model_path)
    assert withdraw.withdraw(str(tmp_path), version) >= 1
    store = history.open_store(str(tmp_path / "metadata.sqlite"))
    (run_id,) = {r.run_id for r in history.runs(store) if r.run_id == trained_run.result["run_id"]}
    for blessing in history.run_outputs(store, run_id, "ModelBlessing"):
        assert blessing.custom_properties["withdrawn"].int_value == 1
    assert withdraw.withdraw(str(tmp_path), "1") == 0
