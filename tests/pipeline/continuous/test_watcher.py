"""The watcher's decisions, with a stand-in for the run; test_month.py has the real one."""

import errno
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import psutil
import pytest

from pipeline import cli, config
from pipeline.continuous import spans, state, watcher
from serving import files

SOURCE = {"kind": "numpy", "images": "-"}

# Does with each span what <root>/plan.json says: a status, or how to fail.
RUNNER = """
import json, os, pathlib, signal, sys, time
job = json.loads(pathlib.Path(sys.argv[1]).read_text())
root = pathlib.Path(job["result"]).parent.parent
plan = json.loads((root / "plan.json").read_text()) if (root / "plan.json").exists() else {}
with open(root / "batches.txt", "a") as f:
    print(*job["batch"], *(f"accepted={k}" for k in job["accepted"]), file=f)
result = {"current": None, "outcomes": {}, "window": [], "done": False}
def write():
    path = root / ".result"
    path.write_text(json.dumps(result))
    path.rename(job["result"])
for key in job["batch"]:
    what = plan.get(key, plan.get("*", "pushed"))
    result["current"] = key
    write()
    if what == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if what.startswith("exit"):
        print("error: it went wrong", file=sys.stderr)
        sys.exit(int(what.split()[1]))
    while what == "wait" and not (root / "go").exists():
        time.sleep(0.01)
    what = "pushed" if what == "wait" else what
    outcome = {"status": what, "reason": "because"}
    if what == "pushed":
        outcome.update(pushed_version="7", golden={"before": 0.2, "after": 0.1}, window=[key])
        result["window"] = [key]
    result["outcomes"][key] = outcome
    result["current"] = None
    write()
result["done"] = True
write()
"""


@pytest.fixture
def root(tmp_path):
    folder = tmp_path / "runs"
    folder.mkdir()
    (folder / "runner.py").write_text(RUNNER)
    return folder


def publish(root, digits, number, span=None):
    images = digits["train"][0][number * 20 : number * 20 + 20]
    return spans.publish(root, images, None, source=SOURCE, span=span)


def make(root, said=None, interval=60.0, metrics_url=None, **continuous):
    settings = {"retry_seconds": 0.01, **continuous}
    conf = config.parse({"root": str(root), "model": "simple", "continuous": settings})
    told = watcher.make_events(conf, (said if said is not None else []).append)
    return watcher.Watcher(
        conf,
        watcher.WatchOptions(None, [], interval=interval, metrics_url=metrics_url),
        told,
        runner=(sys.executable, str(root / "runner.py")),
    )


def plan(root, **what):
    (root / "plan.json").write_text(json.dumps({k.replace("_", "."): v for k, v in what.items()}))


def batches(root):
    path = root / "batches.txt"
    return path.read_text().splitlines() if path.exists() else []


def statuses(root):
    return {key: record["status"] for key, record in state.read(root).spans.items()}


def test_spans_are_taken_in_numeric_order_a_window_at_a_time(root, digits):
    for number, span in enumerate([10, 9, 2, 11, 1]):
        publish(root, digits, number, span)
    assert make(root, window=3).once() == 0
    assert batches(root) == ["1.1 2.1 9.1", "10.1 11.1"]
    assert set(statuses(root).values()) == {"pushed"}
    assert make(root, window=3).once() == 0
    assert len(batches(root)) == 2


def test_a_correction_replaces_what_was_not_looked_at(root, digits):
    publish(root, digits, 0, 5)
    publish(root, digits, 1, 5)
    make(root).once()
    assert batches(root) == ["5.2"]
    assert statuses(root) == {"5.1": "superseded", "5.2": "pushed"}
    publish(root, digits, 2, 5)
    make(root).once()
    assert batches(root) == ["5.2", "5.3"]


def test_a_correction_of_what_no_window_sees_is_not_trained_on(root, digits):
    for number in range(4):
        publish(root, digits, number)
        make(root, window=2).once()
    publish(root, digits, 9, 1)
    make(root, window=2).once()
    assert statuses(root)["1.2"] == "skipped"
    assert "older than the window" in state.read(root).spans["1.2"]["reason"]


@pytest.mark.parametrize("what", ["error", "kill"])
def test_a_poisoned_span_is_set_aside_and_blocks_no_other(root, digits, what):
    for number in range(3):
        publish(root, digits, number)
    plan(root, **{"2_1": what})
    said = []
    watch = make(root, said, tries=3)
    while statuses(root).get("2.1") != "failed":
        watch.once()
        time.sleep(0.01)
    assert statuses(root) == {"1.1": "pushed", "2.1": "failed", "3.1": "pushed"}
    retries = [e for e in said if e["event"] == "retry"]
    assert [e["tries"] for e in retries] == [1, 2]
    assert retries[1]["seconds"] == 2 * retries[0]["seconds"]
    assert [e["span"] for e in said if e["event"] == "set_aside"] == ["2.1"]
    before = len(batches(root))
    make(root).once()
    assert len(batches(root)) == before
    # A person may let it in again, another version may take its place.
    plan(root)
    assert state.accept(root, 2) == "2.1"
    make(root).once()
    assert statuses(root)["2.1"] == "pushed"
    assert batches(root)[-1] == "2.1 accepted=2.1"


def test_the_pause_before_a_retry_is_kept(root, digits):
    publish(root, digits, 0)
    plan(root, **{"1_1": "error"})
    make(root, retry_seconds=1000.0).once()
    make(root, retry_seconds=1000.0).once()
    assert len(batches(root)) == 1
    assert state.read(root).spans["1.1"]["next_try"] > time.time() + 900


@pytest.mark.parametrize("code, event", [(74, "disk_full"), (2, "run_error"), (1, "run_error")])
def test_what_is_no_spans_fault_is_not_counted_against_one(root, digits, code, event):
    publish(root, digits, 0)
    plan(root, **{"1_1": f"exit {code}"})
    for _ in range(5):
        said = []
        watch = make(root, said, tries=2)
        assert watch.once() == 1
        assert [e["event"] for e in said if e["event"] not in ("arrived", "run")] == [event]
        time.sleep(max(0, state.read(root).paused_until - time.time()))
    assert statuses(root) == {"1.1": "new"}
    plan(root)
    assert make(root).once() == 0
    assert statuses(root) == {"1.1": "pushed"}
    assert state.read(root).errors == 0


def test_another_run_in_the_root_is_waited_for(root, digits):
    publish(root, digits, 0)
    plan(root, **{"1_1": "exit 75"})
    said = []
    assert make(root, said).once() == 0
    assert [e["event"] for e in said][-1] == "busy"
    assert statuses(root) == {"1.1": "new"}


def test_what_was_quarantined_waits_for_a_person(root, digits, capsys):
    publish(root, digits, 0)
    plan(root, **{"1_1": "quarantined"})
    make(root).once()
    make(root).once()
    assert batches(root) == ["1.1"]
    assert cli.main(["spans", "accept", "2", "--root", str(root)]) == 2
    assert "no span 2" in capsys.readouterr().err
    assert cli.main(["spans", "accept", "1", "--root", str(root)]) == 0
    plan(root)
    make(root).once()
    assert batches(root) == ["1.1", "1.1 accepted=1.1"]
    assert cli.main(["spans", "accept", "1", "--root", str(root)]) == 2
    assert "was not set aside" in capsys.readouterr().err


def test_gaps_and_folders_without_a_manifest_are_told_once(root, digits):
    publish(root, digits, 0, 1)
    publish(root, digits, 1, 4)
    (root / "spans" / "span-9" / "version-1").mkdir(parents=True)
    said = []
    make(root, said).once()
    make(root, said).once()
    assert [e["span"] for e in said if e["event"] == "gap"] == ["2-3"]
    assert sum(e["event"] == "ignored" for e in said) == 1
    assert batches(root) == ["1.1 4.1"]


def test_a_wake_up_with_nothing_new_is_cheap_and_leaks_nothing(root, digits):
    for number in range(8):
        publish(root, digits, number)
    watch = make(root)
    watch.once()
    process = psutil.Process()
    for _ in range(100):
        watch.wake_up()
    before, started = process.memory_info().rss, time.process_time()
    for _ in range(1_000):
        assert not watch.wake_up()
    assert (time.process_time() - started) / 1_000 < 0.1  # of the processor
    assert process.memory_info().rss - before < 2 * 2**20
    assert len(batches(root)) == 2


@pytest.mark.parametrize("code, event", [(errno.ENOSPC, "disk_full"), (errno.EIO, "run_error")])
@pytest.mark.parametrize("place", ["write_json", "scan", "open"])
def test_what_the_disk_refuses_is_waited_out_and_told_once(
    root, digits, monkeypatch, code, event, place
):
    publish(root, digits, 0)
    said = []
    watch = make(root, said, retry_seconds=0.05)

    def refuse(*arguments, **options):
        raise OSError(code, os.strerror(code), "state.json")

    if place == "write_json":
        monkeypatch.setattr(files, "write_json", refuse)
    elif place == "scan":
        monkeypatch.setattr(spans, "scan", refuse)
    else:
        monkeypatch.setattr(watcher, "open", refuse, raising=False)
    for _ in range(4):
        assert watch.once() == 1
        wait_for(lambda: time.time() >= watch.state.paused_until)
    assert [e["seconds"] for e in said if e["event"] == event][:1] == [0.05]
    assert watch.state.errors == 4
    assert sum(e["event"] == event for e in said) == 1
    monkeypatch.undo()
    watch.once()
    watch.once()
    assert statuses(root) == {"1.1": "pushed"}
    assert watch.state.errors == 0


def test_pauses_grow_to_an_hour_and_not_for_ever(root, digits):
    publish(root, digits, 0)
    plan(root, **{"1_1": "exit 1"})
    known = state.State(errors=5_000)
    state.write(root, known)
    said = []
    make(root, said, retry_seconds=10.0).once()
    assert [e["seconds"] for e in said if e["event"] == "run_error"] == [3_600.0]


def test_a_clock_that_is_put_back_delays_no_retry(root, digits, monkeypatch):
    publish(root, digits, 0)
    plan(root, **{"1_1": "error"})
    now = time.time
    monkeypatch.setattr(time, "time", lambda: now() + 86_400)
    make(root, retry_seconds=5.0).once()
    monkeypatch.undo()
    plan(root)
    make(root).once()
    assert statuses(root) == {"1.1": "pushed"}


def test_spans_that_are_numbered_by_date_cost_nothing(root, digits):
    publish(root, digits, 0, 7)
    publish(root, digits, 1, 20240101)
    publish(root, digits, 2, 20240103)
    said = []
    watch = make(root, said)
    started = time.process_time()
    watch.once()
    assert time.process_time() - started < 5  # of the processor: nobody counts to 20,000,000
    gaps = [e["span"] for e in said if e["event"] == "gap"]
    assert gaps == ["8-20240100", "20240102"]
    assert (root / "continuous" / "state.json").stat().st_size < 10_000


def test_a_status_keeps_no_watcher_out(root):
    with watcher.watching(str(root)) as alone:
        assert alone and watcher.owner(str(root)) == os.getpid()
        with watcher.watching(str(root)) as second:
            assert not second
    ending = threading.Event()
    asking = threading.Thread(
        target=lambda: [watcher.owner(str(root)) for _ in iter(ending.is_set, True)]
    )
    asking.start()
    for _ in range(300):
        with watcher.watching(str(root)) as alone:
            assert alone
    ending.set()
    asking.join()
    assert watcher.owner(str(root)) is None


def start(root, *arguments):
    """The watcher as a user starts it, with the stand-in for the run."""
    code = (
        "import sys; from pipeline.continuous import watcher; from pipeline import cli;"
        "watcher.Watcher.__init__.__defaults__ = ([sys.executable, sys.argv.pop(1)],);"
        "sys.exit(cli.main(sys.argv[1:]))"
    )
    return subprocess.Popen(
        [
            sys.executable,
            "-c",
            code,
            str(root / "runner.py"),
            "watch",
            "--root",
            str(root),
            "--model",
            "simple",
            "--json",
            *arguments,
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_for(check):
    """Another process: nothing to wait on but what it leaves; pytest gives up, nobody else."""
    while not check():
        time.sleep(0.05)


def test_a_file_system_event_wakes_it_and_sigterm_ends_it(root, digits, capsys):
    process = start(root, "--interval", "1000")
    try:
        assert json.loads(process.stdout.readline())["event"] == "started"
        plan(root, **{"1_1": "wait"})
        publish(root, digits, 0)
        wait_for(lambda: batches(root))
        publish(root, digits, 1)
        publish(root, digits, 2)
        (root / "go").touch()
        wait_for(lambda: list(statuses(root).values()) == ["pushed"] * 3)
        # A burst is one run.
        assert batches(root) == ["1.1", "2.1 3.1"]
        assert cli.main(["watch", "status", "--json", "--root", str(root)]) == 0
        status = json.loads(capsys.readouterr().out)
        assert status["process"] == process.pid
        assert status["waiting"] == [] and status["window"]
        # Only one at a time.
        second = start(root)
        assert second.wait() == 2
        assert "another watcher" in second.stderr.read()
        once = start(root, "--once")
        assert once.wait() == 0
        # Graceful also while a run is under way, which is repeated later.
        (root / "go").unlink()
        plan(root, **{"4_1": "wait"})
        publish(root, digits, 5)
        wait_for(lambda: batches(root)[-1] == "4.1")
        assert cli.main(["watch", "status", "--json", "--root", str(root)]) == 0
        assert json.loads(capsys.readouterr().out)["run_under_way"]
    finally:
        process.send_signal(signal.SIGTERM)
    assert process.wait() == 0
    assert statuses(root)["4.1"] == "new"
    assert "interrupted" in process.stdout.read()


def test_a_kill_at_any_point_loses_and_repeats_nothing_that_counts(root, digits):
    random = np.random.default_rng(0)
    for number in range(12):
        publish(root, digits, number)
    plan(root, **{"3_1": "quarantined", "5_1": "refused"})
    for _ in range(8):
        process = start(root, "--interval", "0.05", "--set", "continuous.window=1")
        # At work, on a busy machine, too; how far it comes is left to chance.
        assert json.loads(process.stdout.readline())["event"] == "started"
        time.sleep(random.uniform(0, 0.5))
        process.kill()
        process.communicate()
        state.read(root)
    make(root, window=1).once()
    expected = {f"{n}.1": "pushed" for n in range(1, 13)}
    assert statuses(root) == {**expected, "3.1": "quarantined", "5.1": "refused"}
    done = [line for line in batches(root)]
    assert set(done) == {f"{n}.1" for n in range(1, 13)}
    with open(root / "continuous" / "events.jsonl") as f:
        told = [json.loads(line) for line in f]
    for key in expected:
        decisions = [
            e
            for e in told
            if e.get("span") == key and e["event"] in ("pushed", "quarantined", "refused")
        ]
        assert 1 <= len(decisions) <= 2


def test_metrics_for_prometheus(root, digits, tmp_path):
    import urllib.request

    publish(root, digits, 0)
    with __import__("socket").socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    process = start(root, "--metrics-port", str(port), "--interval", "0.2")
    try:
        wait_for(lambda: statuses(root) == {"1.1": "pushed"})
        text = ""
        while 'spans{status="pushed"} 1.0' not in text:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics") as answer:
                text = answer.read().decode()
    finally:
        process.terminate()
        process.wait()
    assert 'mnist_ae_watch_spans{status="pushed"} 1.0' in text
    assert re.search(r"^mnist_ae_watch_runs_total 1\.0$", text, re.M)
    assert re.search(r"^mnist_ae_watch_golden_mse 0\.1$", text, re.M)
    assert "mnist_ae_watch_spans" in (root / "continuous" / "metrics.prom").read_text()


def test_cron_decides_as_a_watcher_does(root, digits, tmp_path):
    other = tmp_path / "cron"
    other.mkdir()
    (other / "runner.py").write_text(RUNNER)
    for folder in (root, other):
        plan(folder, **{"2_1": "quarantined", "4_1": "refused", "7_1": "skipped"})
    process = start(root, "--interval", "0.1", "--set", "continuous.window=2")
    try:
        for number, span in enumerate([1, 2, 4, 3, 6, 6, 7]):
            for folder in (root, other):
                publish(folder, digits, number, span)
            make(other, window=2).once()
            wait_for(lambda: statuses(root) == statuses(other))
    finally:
        process.terminate()
        process.wait()
    ours, theirs = state.read(root), state.read(other)
    assert ours.window == theirs.window and ours.serving == theirs.serving
    assert batches(root) == batches(other)
