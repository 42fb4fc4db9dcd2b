"""The sensor, with a stand-in for ``mnist-ae kubeflow submit``; tests/kubeflow has the real one."""

import json
import sys
import threading

import pytest

from pipeline import config
from pipeline.continuous import state, watcher
from tests.pipeline.continuous import test_watcher

root = test_watcher.root
publish, statuses, wait_for = test_watcher.publish, test_watcher.statuses, test_watcher.wait_for

# Says which run it started, then does what the plan says.
SUBMIT = """
import json, pathlib, sys, time
place = pathlib.Path(sys.argv[1])
words = sys.argv[2:]
with open(place / "submitted.txt", "a") as f:
    print(json.dumps(words), file=f)
run = words[words.index("--started") + 1] if "--started" in words else "r-1"
print("run " + run, file=sys.stderr, flush=True)
plan = (place / "plan").read_text()
if plan == "hang":
    time.sleep(600)
print(json.dumps({"run_id": run, "state": "SUCCEEDED"}))
sys.exit(0 if plan == "succeed" else int(plan))
"""
SENSOR = """
import sys
from pipeline.continuous import sensor
sensor.SUBMIT = (sys.executable, sys.argv[1], sys.argv[2])
sys.exit(sensor.main(sys.argv[3]))
"""


@pytest.fixture
def make(root):
    (root / "submit.py").write_text(SUBMIT)
    (root / "sensor.py").write_text(SENSOR)

    def make_one(plan, **continuous):
        (root / "plan").write_text(plan)
        settings = {"retry_seconds": 0.01, **continuous}
        conf = config.parse({"root": str(root), "model": "simple", "continuous": settings})
        options = watcher.WatchOptions(None, [f"root={root}", "seed=1"], submit=["--host", "here"])
        runner = (sys.executable, str(root / "sensor.py"), str(root / "submit.py"), str(root))
        return watcher.Watcher(conf, options, watcher.make_events(conf, lambda _: None), runner)

    return make_one


def submitted(root):
    path = root / "submitted.txt"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def test_a_span_becomes_a_run(root, digits, make):
    publish(root, digits, 0)
    make("succeed").once()
    assert statuses(root) == {"1.1": "submitted"}
    assert state.read(root).spans["1.1"]["run_id"] == "r-1"
    (words,) = submitted(root)
    assert words == ["--set", "seed=1", "--param", "span=1", "--host", "here"]


def test_a_sensor_that_is_stopped_trains_no_span_twice(root, digits, make):
    publish(root, digits, 0)
    watch = make("hang")
    running = threading.Thread(target=watch.once)
    running.start()
    result = root / "continuous" / "result.json"
    wait_for(lambda: result.exists() and "r-1" in result.read_text())
    watch.stop()
    running.join()
    assert statuses(root) == {"1.1": "new"}
    make("succeed").once()
    assert statuses(root) == {"1.1": "submitted"}
    first, second = submitted(root)
    assert "--started" not in first and second[-2:] == ["--started", "r-1"]


@pytest.mark.parametrize("code, again", [(3, True), (1, False)])
def test_a_run_whose_end_nobody_saw_is_waited_for(root, digits, make, code, again):
    """A backend that does not answer is no failed run."""
    publish(root, digits, 0)
    make(str(code), retry_seconds=1.0).once()
    assert statuses(root) == {"1.1": "retry"}
    wait_for(lambda: make("succeed").once() == 0 and statuses(root) == {"1.1": "submitted"})
    assert ("--started" in submitted(root)[-1]) is again


def test_what_was_set_aside_begins_anew(root, digits, make):
    publish(root, digits, 0)
    make("3", tries=1).once()
    assert statuses(root) == {"1.1": "failed"}
    state.accept(root, 1)
    make("succeed").once()
    assert "--started" not in submitted(root)[-1]
