"""Labels move as ordered, in the file and on a live server, and lose no request."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import pathlib
import random
import shutil
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import pytest

from serving import errors, files, locate, protos
from serving.grpc_transport import GrpcTransport
from serving.rollout import ConfigFile, Rollout, ensure_listed
from serving.standin.server import EmbeddedServer
from serving.standin.settings import ModelSettings
from serving.standin.status import StatusError
from serving.transport import Address
from tests.serving.process import RealServer, needs_binary
from tests.serving.test_deploy import shipped

Push = Callable[..., pathlib.Path]
X = {"x": np.ones((1, 1), np.float32)}


@pytest.fixture
def root(tmp_path: pathlib.Path, push: Push) -> pathlib.Path:
    for version in (10, 20, 30):
        push(tmp_path / "serving" / "m", version)
    return tmp_path


@pytest.fixture
def server(root: pathlib.Path, start_server: Any) -> EmbeddedServer:
    folder = root / "serving" / "m"
    return start_server(
        {"m": ModelSettings("m", str(folder))}, config_file=str(locate.config_path(root))
    )


@pytest.fixture
def rollout(root: pathlib.Path) -> Iterator[Callable[..., Rollout]]:
    made = []

    def make(**options: Any) -> Rollout:
        made.append(
            Rollout(locate.find("m", root), ConfigFile(locate.config_path(root)),
                    **{"timeout": 300.0, "poll": 0.0, **options})
        )  # fmt: skip
        return made[-1]

    yield make
    for item in made:
        item.close()


def answering(server: EmbeddedServer, **choice: Any) -> int:
    with server.models.lease("m", **choice) as servable:
        return servable.version


def test_canary_promote_rollback_in_the_file(rollout: Callable[..., Rollout]) -> None:
    assert rollout().labels is None
    assert rollout().canary(20).as_dict() == {"stable": 10, "canary": 20}
    assert rollout().promote().as_dict() == {"stable": 20, "canary": 20, "previous": 10}
    assert rollout().canary(30).as_dict() == {"stable": 20, "canary": 30, "previous": 10}
    assert rollout().rollback().as_dict() == {"stable": 20, "canary": 20, "previous": 10}
    assert rollout().rollback().as_dict() == {"stable": 10, "canary": 10}
    with pytest.raises(errors.RolloutError, match="neither a canary nor a previous version"):
        rollout().rollback()


def test_orders_that_make_no_sense_change_nothing(
    rollout: Callable[..., Rollout], root: pathlib.Path
) -> None:
    for order in ("promote", "rollback"):
        with pytest.raises(errors.RolloutError, match="no rollout yet"):
            getattr(rollout(), order)()
    with pytest.raises(errors.ModelFolderError, match="no version 99; it has 10, 20, 30"):
        rollout().canary(99)
    assert not locate.config_path(root).exists()
    assert os.listdir(root / "serving") == ["m"]
    rollout().canary(20)
    rollout().promote()
    with pytest.raises(errors.RolloutError, match="no canary"):
        rollout().promote()
    locate.config_path(root).write_text("model_config_list { nonsense }")
    with pytest.raises(errors.RolloutError, match="is not a model configuration"):
        rollout()


def test_the_file_is_a_model_config_file_and_keeps_the_last_versions(
    rollout: Callable[..., Rollout], root: pathlib.Path
) -> None:
    other = protos.ModelServerConfig()
    other.model_config_list.config.add(name="other", base_path="/x", model_platform="tensorflow")
    ConfigFile(locate.config_path(root)).write(other)
    rollout(keep=2).canary(30)
    config = ConfigFile(locate.config_path(root)).read()
    first, second = config.model_config_list.config
    assert first.name == "other"  # untouched
    assert second.base_path == str(root / "serving" / "m")
    assert second.model_platform == "tensorflow"
    assert list(second.model_version_policy.specific.versions) == [20, 30]
    rollout(keep=3).rollback()
    [_, second] = ConfigFile(locate.config_path(root)).read().model_config_list.config
    # 30 was withdrawn: loaded, it would take the calls without a label.
    assert list(second.model_version_policy.specific.versions) == [10, 20]


def test_on_a_live_server(server: EmbeddedServer, rollout: Callable[..., Rollout]) -> None:
    live = {"target": server.address}
    assert answering(server) == 30  # before any rollout: the latest
    rollout(**live).canary(20)
    assert answering(server, label="canary") == 20
    assert answering(server, label="stable") == 30
    rollout(**live).promote()
    assert answering(server, label="stable") == 20
    rollout(**live).rollback()
    assert answering(server, label="stable") == 30
    assert answering(server, label="canary") == 30


def test_what_does_not_load_is_not_labelled(
    server: EmbeddedServer, rollout: Callable[..., Rollout], root: pathlib.Path
) -> None:
    rollout(target=server.address, keep=2).canary(20)
    rollout(target=server.address, keep=2).promote()
    broken = root / "serving" / "m" / "10" / "variables"
    for file in broken.iterdir():
        file.write_bytes(b"")
    before = locate.config_path(root).read_text()
    with pytest.raises(errors.RolloutError, match="version 10 of model 'm' does not load"):
        rollout(target=server.address, keep=2).canary(10)
    assert answering(server, label="stable") == answering(server, label="canary") == 20
    assert locate.config_path(root).read_text() == before


def test_a_rollback_under_load_loses_no_request(
    server: EmbeddedServer, rollout: Callable[..., Rollout]
) -> None:
    live = {"target": server.address}
    rollout(**live).canary(20)
    with Callers([server]) as callers:
        for _ in range(5):
            for order in ("promote", "rollback", "canary", "rollback", "canary"):
                callers.answered()
                getattr(rollout(**live), order)(*([20] if order == "canary" else []))
        callers.answered()
    assert not callers.failures
    assert set(callers.seen["stable"]) == {20, 30}


def test_a_server_that_is_down_changes_nothing(
    rollout: Callable[..., Rollout], root: pathlib.Path
) -> None:
    with pytest.raises(errors.ServerUnavailableError):
        rollout(target="127.0.0.1:1").canary(20)
    assert not locate.config_path(root).exists()


def test_a_first_rollout_reaches_a_server_that_only_watches_the_file(
    server: EmbeddedServer, rollout: Callable[..., Rollout]
) -> None:
    rollout().canary(20)  # the file did not exist when the server started

    def labelled() -> bool:
        try:
            return (answering(server, label="stable"), answering(server, label="canary")) == (
                10,
                20,
            )
        except StatusError:
            return False

    assert server.models.wait_for(labelled, 300)
    assert server.models.wait_for(lambda: server.models.available() == {"m": [10, 20]}, 300)


NAME = "models.example"
Server = EmbeddedServer | RealServer


class Deployment:
    """Replicas of one deployment: they share a volume and a name.

    Args:
      servers: Which they are.

    Attributes:
      names: The addresses behind the name, one a server.
      live: What a rollout is told of them.
    """

    def __init__(self, servers: Sequence[Server], monkeypatch: Any) -> None:
        self.servers = servers
        hosts = ("127.0.0.1", "127.0.0.2")
        port = servers[0].address.rpartition(":")[2]
        self.names = [f"{host}:{port}" for host in hosts]
        # A real server listens on all addresses, so that two need two ports.
        places = {name: server.address for name, server in zip(self.names, servers)}

        def connect(address: Address) -> GrpcTransport:
            return GrpcTransport(dataclasses.replace(address, target=places[address.target]))

        self.live: dict[str, Any] = {"target": f"{NAME}:{port}", "connect": connect}
        known = socket.getaddrinfo
        monkeypatch.setattr(
            socket,
            "getaddrinfo",
            lambda host, *rest, **more: [
                item
                for one in (hosts if host == NAME else (host,))
                for item in known(one, *rest, **more)
            ],
        )

    def labels(self) -> list[dict[str, int]]:
        """What each replica answers with, by label."""
        found: list[dict[str, int]] = []
        for server in self.servers:
            with contextlib.closing(GrpcTransport(Address(server.address, "m"))) as transport:
                asked = {name: transport.version_of(name) for name in ("stable", "canary")}
            found.append({name: number for name, number in asked.items() if number is not None})
        return found

    def polls(self, times: int = 3) -> None:
        """Waits until each replica has applied its file so many times more."""
        counted = []
        for server in self.servers:
            if isinstance(server, RealServer):
                server.polls(times)
                continue
            applied = threading.Semaphore(0)
            reload = server.models.reload

            def counting(*given: Any, reload: Any = reload, applied: Any = applied) -> None:
                reload(*given)
                applied.release()

            server.models.reload = counting  # type: ignore[method-assign]
            counted.append((server, reload, applied))
        for server, reload, applied in counted:
            for _ in range(times):
                applied.acquire()
            server.models.reload = reload  # type: ignore[method-assign]


Deploy = Callable[..., Deployment]


@pytest.fixture(params=["stand-in", pytest.param("real", marks=needs_binary)])
def deploy(
    request: pytest.FixtureRequest, root: pathlib.Path, start_server: Any, monkeypatch: Any
) -> Iterator[Deploy]:
    """Starts two replicas, as shipped, or looking at their file more often."""
    ensure_listed(locate.find("m", root), ConfigFile(locate.config_path(root)))
    with contextlib.ExitStack() as stack:

        def start(as_shipped: bool = False) -> Deployment:
            if request.param == "real":
                instead = {} if as_shipped else {"model_config_file_poll_wait_seconds": 1}
                servers = [
                    stack.enter_context(RealServer("m", *shipped(root, **instead)))
                    for _ in range(2)
                ]
                return Deployment(servers, monkeypatch)
            options = {
                "config_file": str(locate.config_path(root)),
                "real_reloads": True,
                "poll_interval": 5.0 if as_shipped else 0.1,
                "load_retry_interval": 0.5,
            }
            settings = {"m": ModelSettings("m", str(root / "serving" / "m"))}
            first = start_server(settings, **options)
            second = start_server(settings, host="127.0.0.2", port=first.port, **options)
            return Deployment([first, second], monkeypatch)

        yield start


@pytest.fixture
def deployment(deploy: Deploy) -> Deployment:
    return deploy()


ONLY_STAND_INS = pytest.mark.parametrize("deploy", ["stand-in"], indirect=True)


class Callers:
    """Threads that call both labels of every server without pause or retry."""

    def __init__(self, servers: Sequence[Server], each: int = 1) -> None:
        self.failures: list[Exception] = []
        self.seen: dict[str, list[int]] = {"stable": [], "canary": []}
        self._stop = threading.Event()
        self._threads = [
            threading.Thread(target=self._call, args=(server.address, label))
            for _ in range(each)
            for server in servers
            for label in self.seen
        ]

    @property
    def answers(self) -> int:
        return sum(map(len, self.seen.values()))

    def answered(self) -> None:
        """Waits until either label was asked for, and answered, after now."""
        wanted = {label: len(versions) + 2 for label, versions in self.seen.items()}
        while not self.failures and any(len(self.seen[label]) < wanted[label] for label in wanted):
            time.sleep(0.001)

    def _call(self, address: str, label: str) -> None:
        choice = Address(address, "m", label=label, retries=0, timeout=300.0)
        with contextlib.closing(GrpcTransport(choice)) as transport:
            request = transport.request("serving_default", X, ())
            while not self._stop.is_set():
                try:
                    data = transport.predict_serialised(request)
                    answer = protos.PredictResponse.FromString(data)
                    self.seen[label].append(answer.model_spec.version.value)
                except errors.ServingError as error:
                    self.failures.append(error)

    def __enter__(self) -> Callers:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()


def test_a_rollout_is_not_undone_by_the_next_poll_of_any_replica(
    deployment: Deployment, rollout: Callable[..., Rollout]
) -> None:
    live = deployment.live
    assert rollout(**live).canary(20).as_dict() == {"stable": 30, "canary": 20}
    steps = [
        ("promote", (), (20, 20)), ("rollback", (), (30, 30)), ("canary", (10,), (30, 10)),
        ("rollback", (), (30, 30)), ("canary", (20,), (30, 20)), ("promote", (), (20, 20)),
    ]  # fmt: skip
    with Callers(deployment.servers, each=2) as callers:
        for order, arguments, (stable, canary) in steps:
            getattr(rollout(**live), order)(*arguments)
            expected = [{"stable": stable, "canary": canary}] * 2
            assert deployment.labels() == expected
            deployment.polls()
            assert deployment.labels() == expected
    assert callers.failures == [] and callers.answers > 100


@pytest.mark.slow
@pytest.mark.timeout(1_800)
def test_as_shipped_under_a_minute_of_load(deploy: Deploy, rollout: Callable[..., Rollout]) -> None:
    """Labels are right half a minute, six polls, after each order."""
    seconds = float(os.environ.get("SERVING_LOAD_SECONDS", "60"))
    deployment = deploy(as_shipped=True)
    live = deployment.live
    rollout(**live).canary(20)
    end = time.monotonic() + seconds
    steps = 0
    with Callers(deployment.servers, each=2) as callers:
        while steps < 3 or time.monotonic() < end:
            for order, arguments in (("canary", (20,)), ("promote", ()), ("rollback", ())):
                labels = getattr(rollout(**live), order)(*arguments)
                deployment.polls(6)
                expected = {"stable": labels.stable, "canary": labels.canary}
                assert deployment.labels() == [expected] * 2
                steps += 1
    print(f"{steps} orders, {callers.answers} answers, failures: {callers.failures[:3]}")
    assert callers.failures == []


def test_an_order_to_the_file_alone_reaches_servers_that_poll_it(
    deployment: Deployment, rollout: Callable[..., Rollout]
) -> None:
    alone = {"poll": 3.0, "keep": 1}
    steps = [
        ("canary", (20,), (10, 20)), ("rollback", (), (10, 10)), ("canary", (30,), (10, 30)),
        ("promote", (), (30, 30)), ("canary", (20,), (30, 20)),
    ]  # fmt: skip
    for order, arguments, (stable, canary) in steps:
        getattr(rollout(**alone), order)(*arguments)
        while deployment.labels() != [{"stable": stable, "canary": canary}] * 2:
            deployment.polls(1)


def test_a_version_that_was_repaired_becomes_the_canary(
    deployment: Deployment, root: pathlib.Path, rollout: Callable[..., Rollout]
) -> None:
    live = deployment.live
    rollout(**live).canary(20)
    rollout(**live).promote()
    broken = root / "serving" / "m" / "40"
    shutil.copytree(root / "serving" / "m" / "10", broken)
    good = (broken / "saved_model.pb").read_bytes()
    (broken / "saved_model.pb").write_bytes(b"no model")
    before = locate.config_path(root).read_text()
    for _ in range(2):  # the second time the failure of the first is in the status
        with pytest.raises(errors.RolloutError, match="version 40 of model 'm' does not load"):
            rollout(**live).canary(40)
        assert locate.config_path(root).read_text() == before
        assert deployment.labels() == [{"stable": 20, "canary": 20}] * 2
    (broken / "saved_model.pb").write_bytes(good)
    rollout(**live).canary(40)
    assert deployment.labels() == [{"stable": 20, "canary": 40}] * 2


def test_a_replica_that_does_not_follow_is_named(
    deployment: Deployment, rollout: Callable[..., Rollout], root: pathlib.Path
) -> None:
    live = {**deployment.live, "timeout": 3.0}
    rollout(**live).canary(20)
    before = locate.config_path(root).read_text()
    deployment.servers[1].stop(0)
    gone = deployment.names[1]
    with pytest.raises(errors.ServingError, match=f"not every server follows.*{gone}"):
        rollout(**live).promote()
    # Those that are there, and the one that comes back, do what the file says.
    assert locate.config_path(root).read_text() != before
    with contextlib.closing(rollout(**live)) as looking:
        assert list(looking.disagreements(looking.replicas())) == [gone]
    # A version that has to be loaded everywhere first is not begun.
    after = locate.config_path(root).read_text()
    shutil.copytree(root / "serving" / "m" / "10", root / "serving" / "m" / "40")
    with pytest.raises(errors.RolloutError, match=f"{gone}.*labels stay as they were"):
        rollout(**live).canary(40)
    assert locate.config_path(root).read_text() == after


@ONLY_STAND_INS
def test_a_server_that_goes_its_own_way_is_named(
    deployment: Deployment, rollout: Callable[..., Rollout]
) -> None:
    live = deployment.live
    rollout(**live).canary(20)
    looking = rollout(**live)
    assert looking.disagreements(looking.replicas()) == {}
    first = deployment.servers[0]
    assert isinstance(first, EmbeddedServer)
    first.models.reload = lambda *_: None  # type: ignore[method-assign]
    with first.models._changed:
        first.models._models["m"].labels = {"stable": 30, "canary": 30}
    assert looking.disagreements(looking.replicas()) == {
        deployment.names[0]: "canary is 30, not 20"
    }


def test_two_rollouts_at_once_are_one_and_a_refusal(
    deployment: Deployment, rollout: Callable[..., Rollout]
) -> None:
    live = deployment.live
    rollout(**live).canary(20)
    refused = []

    def move(seed: int) -> None:
        for _ in range(5):
            try:
                rollout(**live).canary(random.Random(seed).choice([10, 20, 30]))
            except errors.RolloutError as error:
                refused.append(str(error))

    threads = [threading.Thread(target=move, args=(seed,)) for seed in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all("another rollout is under way" in text for text in refused)
    labels = rollout(**live).labels
    assert labels is not None
    assert deployment.labels() == [{"stable": labels.stable, "canary": labels.canary}] * 2


def test_a_file_that_cannot_be_written_moves_nothing(
    deployment: Deployment, rollout: Callable[..., Rollout], root: pathlib.Path, monkeypatch: Any
) -> None:
    live = deployment.live
    rollout(**live).canary(20)
    before = locate.config_path(root).read_text()

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(files, "write_atomically", full)
        with pytest.raises(errors.RolloutError, match="No space left"):
            rollout(**live).promote()
    deployment.polls()
    assert deployment.labels() == [{"stable": 30, "canary": 20}] * 2
    assert locate.config_path(root).read_text() == before


def test_an_entry_keeps_the_path_by_which_its_servers_know_the_folder(
    rollout: Callable[..., Rollout], root: pathlib.Path
) -> None:
    rollout(base_path="/models/m").canary(20)
    rollout().promote()
    [entry] = ConfigFile(locate.config_path(root)).read().model_config_list.config
    assert entry.base_path == "/models/m"
