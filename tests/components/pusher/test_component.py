import json
import os
import socket
import threading
import time

import pytest

from components.pusher import component


@pytest.fixture
def model(tmp_path):
    folder = tmp_path / "model"
    (folder / "variables").mkdir(parents=True)
    (folder / "saved_model.pb").write_bytes(b"graph")
    for shard in range(20):
        (folder / "variables" / f"variables.data-{shard}").write_bytes(b"x" * 50_000)
    return str(folder)


def files(folder):
    return sorted(
        os.path.relpath(os.path.join(root, name), folder)
        for root, _, names in os.walk(folder)
        for name in names
    )


def test_a_version_holds_the_model_and_its_origin(tmp_path, model):
    path = component.push(model, str(tmp_path / "serving"), "uri/7")
    assert files(path) == sorted([*files(model), component.ORIGIN_FILE])
    with open(os.path.join(path, component.ORIGIN_FILE)) as f:
        assert json.load(f) == {"uri": "uri/7"}


def test_versions_only_grow_even_when_the_clock_goes_back(tmp_path, model, monkeypatch):
    base = str(tmp_path / "serving")
    clock = iter([1_000, 1_000, 900])
    monkeypatch.setattr(component.time, "time", lambda: next(clock))
    names = [os.path.basename(component.push(model, base, f"uri/{i}")) for i in range(3)]
    assert names == ["1000", "1001", "1002"]


def test_the_same_model_is_not_pushed_twice(tmp_path, model):
    base = str(tmp_path / "serving")
    assert component.push(model, base, "uri/1") == component.push(model, base, "uri/1")
    assert len(component.versions(base)) == 1


def test_an_older_model_is_pushed_again_as_the_newest(tmp_path, model):
    base = str(tmp_path / "serving")
    first = component.push(model, base, "uri/1")
    component.push(model, base, "uri/2")
    again = component.push(model, base, "uri/1")
    assert again != first
    assert os.path.basename(again) == str(component.versions(base)[-1])


def test_what_a_killed_push_left_is_removed(tmp_path, model):
    base = tmp_path / "serving"
    (base / "_tmp.1234").mkdir(parents=True)
    component.push(model, str(base), "uri/1")
    assert [name for name in os.listdir(base) if not name.isdigit()] == []


def test_the_push_of_another_pod_is_left_alone(tmp_path, model):
    base = tmp_path / "serving"
    (base / "_tmp.1234.7@another-pod").mkdir(parents=True)
    (base / f"_tmp.5678.{os.getpid()}@{socket.gethostname()}").mkdir()
    component.push(model, str(base), "uri/1")
    assert len([name for name in os.listdir(base) if name.startswith("_tmp.")]) == 2


def test_two_pods_that_push_in_the_same_second_get_two_versions(tmp_path, model):
    base, paths = str(tmp_path / "serving"), []

    def push(i: int) -> None:
        paths.append(component.push(model, base, f"uri/{i}"))

    threads = [threading.Thread(target=push, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(paths)) == 4
    assert sorted(os.listdir(base)) == sorted(os.path.basename(p) for p in paths)


def test_a_watcher_never_sees_half_a_version(tmp_path, model):
    base = str(tmp_path / "serving")
    os.makedirs(base)
    expected = sorted([*files(model), component.ORIGIN_FILE])
    done, partial, looks = threading.Event(), [], [0]

    def watch():
        while not done.is_set():
            for version in component.versions(base):
                looks[0] += 1
                found = files(os.path.join(base, str(version)))
                if found != expected:
                    partial.append(found)

    watcher = threading.Thread(target=watch)
    watcher.start()
    for i in range(15):
        component.push(model, base, f"uri/{i}")
    while not looks[0]:
        time.sleep(0.001)
    done.set()
    watcher.join()
    assert partial == []
