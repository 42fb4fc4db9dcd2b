"""Labels move as ordered, in the file and on a live server, and lose no request."""

from __future__ import annotations

import pathlib
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from serving import errors, locate, protos
from serving.grpc_transport import GrpcTransport
from serving.rollout import ConfigFile, Rollout
from serving.standin.server import EmbeddedServer
from serving.standin.settings import ModelSettings
from serving.standin.status import StatusError
from serving.transport import Address

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
                    **{"timeout": 300.0, **options})
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
    stop = threading.Event()
    failures: list[Exception] = []
    seen: dict[str, list[int]] = {"stable": [], "canary": [], "previous": []}

    def ask(label: str) -> None:
        transport = GrpcTransport(Address(server.address, "m", label=label, retries=0))
        request = transport.request("serving_default", X, ())
        while not stop.is_set():
            try:
                answer = protos.PredictResponse.FromString(transport.predict_serialised(request))
                seen[label].append(answer.model_spec.version.value)
            except errors.ServingError as error:
                failures.append(error)
        transport.close()

    def answered() -> None:
        """Waits until either label was asked for, and answered, after now."""
        wanted = {label: len(seen[label]) + 2 for label in ("stable", "canary")}
        while not failures and any(len(seen[label]) < wanted[label] for label in wanted):
            time.sleep(0.001)

    threads = [threading.Thread(target=ask, args=(label,)) for label in ("stable", "canary")]
    for thread in threads:
        thread.start()
    try:
        for _ in range(5):
            for order in ("promote", "rollback", "canary", "rollback", "canary"):
                answered()
                getattr(rollout(**live), order)(*([20] if order == "canary" else []))
        answered()
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert not failures
    assert set(seen["stable"]) == {20, 30}


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
