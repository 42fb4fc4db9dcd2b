"""One node in a process of its own: retries, cancellation, exit codes, the store."""

from __future__ import annotations

import contextlib
import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import pytest
from ml_metadata.proto import metadata_store_pb2

from kubeflow import node
from kubeflow import store as stores
from pipeline import history
from pipeline.config import METADATA_PASSWORD
from pipeline.errors import UserError

STATES = metadata_store_pb2.Execution
RUN = "5f1d2c3b-run"


@pytest.fixture(scope="module")
def place(tmp_path_factory, digits_folder) -> pathlib.Path:
    """A folder as a cluster's volume would be, with the embedded digits."""
    folder = tmp_path_factory.mktemp("volume")
    (folder / "data").symlink_to(digits_folder)
    return folder


@pytest.fixture(scope="module")
def driver(driver_of, place):
    return driver_of(place)


@pytest.fixture(scope="module")
def ingested(driver, place):
    """The nodes up to the data, executed from the compiled file."""
    done = driver.run({}, run_id=RUN, only=["mnist-example-gen"])
    assert done.failed is None, done.attempts[-1].stderr
    return done


def store_of(place: pathlib.Path):
    return history.open_store(str(place / "metadata.sqlite"))


def execute(driver, task: str, run_id: str = RUN, **parameters) -> subprocess.CompletedProcess:
    return subprocess.run(
        driver.command(task, parameters, run_id), capture_output=True, text=True, check=False
    )


def test_a_node_leaves_its_execution_and_artifact(ingested, place):
    store = store_of(place)
    (execution,) = history.node_executions(store, RUN, "MnistExampleGen")
    assert execution.last_known_state == STATES.COMPLETE
    (examples,) = history.run_outputs(store, RUN, "Examples")
    assert examples.custom_properties["count_train"].int_value == 4_500
    assert os.path.isdir(examples.uri)


def test_its_log_is_json_a_line(ingested):
    lines = ingested.of("mnist-example-gen")[0].stderr.splitlines()
    records = [json.loads(line) for line in lines if line.startswith("{")]
    assert records[-1]["message"].startswith("MnistExampleGen done in")
    assert {r["node"] for r in records} == {"MnistExampleGen"}
    assert {r["run"] for r in records} == {RUN}


def test_an_attempt_that_ended_well_is_not_repeated(ingested, driver, place):
    done = execute(driver, "mnist-example-gen")
    assert done.returncode == 0
    assert "done already" in done.stderr
    store = store_of(place)
    assert len(history.node_executions(store, RUN, "MnistExampleGen")) == 1
    assert len(history.run_outputs(store, RUN, "Examples")) == 1


def states_of(place, node: str) -> list[int]:
    return [e.last_known_state for e in history.node_executions(store_of(place), RUN, node)]


@contextlib.contextmanager
def started(command: list[str]):
    """A node's process, which does not outlive the test."""
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


def scripted(driver, script: str, task: str, *more: str) -> list[str]:
    """A node's command around a script."""
    command = [*driver.command(task, {}, RUN), *more]
    return [sys.executable, "-c", script, *command[command.index("kubeflow.node") + 1 :]]


# A node that stops where its work begins, as if that took for ever.
HELD = """
import os, signal, sys
from tfx.orchestration.portable import python_executor_operator as operator
from kubeflow import node

def hold(*arguments):
    os.kill(os.getpid(), signal.SIGSTOP)
    return run(*arguments)

run, operator.run_with_executor = operator.run_with_executor, hold
sys.exit(node.main(sys.argv[1:]))
"""


@contextlib.contextmanager
def at_work(driver, place, task: str, node: str, *more: str):
    """A node that is held in its work, however busy the machine is."""
    with started(scripted(driver, HELD, task, *more)) as process:
        # Its end, too, would be the end of the wait.
        how = os.waitid(os.P_PID, process.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)
        assert how.si_code == os.CLD_STOPPED, process.communicate()[1][-2_000:]
        assert states_of(place, node)[-1] == STATES.RUNNING
        yield process


@pytest.fixture
def volume(tmp_path) -> tuple[pathlib.Path, list[str]]:
    """A volume without an execution, and a node's arguments that lead to it."""
    url = f"sqlite://{tmp_path}/metadata.sqlite"
    stores.open_store(stores.connection(url, None), url, patience=0)
    return tmp_path, [f"--metadata-url={url}", f"--pipeline-root={tmp_path}/pipeline"]


INGEST = ("mnist-example-gen", "MnistExampleGen")


def test_a_killed_attempt_is_cleared_away_and_done_again(driver, volume):
    folder, words = volume
    task, node_id = INGEST
    with at_work(driver, folder, task, node_id, *words) as process:
        process.kill()
        process.communicate()
    assert states_of(folder, node_id) == [STATES.RUNNING]
    again = [*driver.command(task, {}, RUN), *words]
    done = subprocess.run(again, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    # TFX gives attempts of a run one execution.
    assert states_of(folder, node_id)[-1] == STATES.COMPLETE
    assert STATES.RUNNING not in states_of(folder, node_id)
    (examples,) = history.run_outputs(store_of(folder), RUN, "Examples")
    folders = os.listdir(folder / "pipeline" / node_id / "examples")
    assert folders == [os.path.basename(examples.uri)]


def test_a_cancelled_node_says_so_in_the_store(driver, volume):
    folder, words = volume
    task, node_id = INGEST
    with at_work(driver, folder, task, node_id, *words) as process:
        process.terminate()
        process.send_signal(signal.SIGCONT)
        _, stderr = process.communicate()
    assert process.returncode == 143, stderr[-2_000:]
    assert stderr.splitlines()[-1] == f"{node_id}: error: cancelled (SIGTERM)"
    assert "done in" not in stderr
    assert states_of(folder, node_id) == [STATES.CANCELED]


# A node whose ingestion is told to stop while Beam runs it.
STOPPED_IN_BEAM = """
import os, signal, sys
from components.mnist_example_gen import executor
from kubeflow import node

def stop(element, *rest):
    os.kill(os.getpid(), signal.SIGTERM)
    return write(element, *rest)

write, executor.write_shard = executor.write_shard, stop
sys.exit(node.main(sys.argv[1:]))
"""


def test_a_node_that_is_cancelled_inside_beam_says_so_everywhere(driver, volume):
    """Beam makes errors of its own, or mere text, of what a signal handler raised."""
    folder, words = volume
    task, node_id = INGEST
    stopped = scripted(driver, STOPPED_IN_BEAM, task, *words)
    done = subprocess.run(stopped, capture_output=True, text=True, check=False)
    assert done.returncode == 143, done.stderr[-2_000:]
    assert done.stderr.splitlines()[-1] == f"{node_id}: error: cancelled (SIGTERM)"
    assert states_of(folder, node_id) == [STATES.CANCELED]
    # KFP may try it again: cancelled is not done.
    again = [*driver.command(task, {}, RUN), *words]
    assert subprocess.run(again, capture_output=True, check=False).returncode == 0
    assert states_of(folder, node_id)[-1] == STATES.COMPLETE


# A node that, once at work, is for ever in a library that hears no signals.
DEAF = """
import importlib, sys, time
from kubeflow import node

def hold(*arguments):
    print("deaf", file=sys.stderr, flush=True)
    while True:
        try:
            time.sleep(86_400)
        except BaseException:
            pass

setattr(importlib.import_module("{module}"), "{function}", hold)
sys.exit(node.main(sys.argv[1:]))
"""


@pytest.mark.parametrize(
    ("module", "function"),
    [
        ("tfx.orchestration.portable.python_executor_operator", "run_with_executor"),
        # Beam calls it.
        ("components.mnist_example_gen.executor", "write_shard"),
    ],
)
def test_a_cancelled_node_says_so_before_its_container_ends(driver, volume, module, function):
    """SIGTERM ends KFP's launcher, and a second later Argo's executor and with it the container."""
    folder, words = volume
    task, node_id = INGEST
    deaf = scripted(driver, DEAF.format(module=module, function=function), task, *words)
    with started(deaf) as process:
        log = []
        while "deaf\n" not in log:
            log.append(process.stderr.readline())
            assert log[-1], "".join(log)
        process.terminate()
        while states_of(folder, node_id) != [STATES.CANCELED]:
            assert process.poll() is None
            time.sleep(0.01)
        process.kill()
    again = [*driver.command(task, {}, RUN), *words]
    done = subprocess.run(again, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert states_of(folder, node_id) == [STATES.COMPLETE]
    (examples,) = history.run_outputs(store_of(folder), RUN, "Examples")
    folders = os.listdir(folder / "pipeline" / node_id / "examples")
    assert folders == [os.path.basename(examples.uri)]


# A task of several nodes that is told to stop when the first one has ended.
STOPPED_BETWEEN = """
import os, signal, sys
from kubeflow import node

def run_and_stop(*arguments):
    run(*arguments)
    os.kill(os.getpid(), signal.SIGTERM)

run, node.run_node = node.run_node, run_and_stop
sys.exit(node.main(sys.argv[1:]))
"""


@pytest.mark.slow
def test_a_task_that_is_cancelled_between_two_nodes_goes_on_there(ingested, driver, place):
    stopped = scripted(driver, STOPPED_BETWEEN, "statistics-gen")
    done = subprocess.run(stopped, capture_output=True, text=True, check=False)
    assert done.returncode == 143, done.stderr[-2_000:]
    assert done.stderr.splitlines()[-1] == "StatisticsGen: error: cancelled (SIGTERM)"
    assert states_of(place, "ImportSchemaGen") == [STATES.COMPLETE]
    assert states_of(place, "StatisticsGen") == []
    again = execute(driver, "statistics-gen")
    assert again.returncode == 0, again.stderr
    assert "ImportSchemaGen is done already" in again.stderr
    assert states_of(place, "DataGate") == [STATES.COMPLETE]


# A node whose first launch meets another one's transaction.
CONTENDED = """
import sys
from ml_metadata import errors
from tfx.orchestration.portable import launcher
from kubeflow import node

def contend(self):
    launcher.Launcher.launch = launch
    raise errors.AbortedError("deadlock found when trying to get lock")

launch, launcher.Launcher.launch = launcher.Launcher.launch, contend
sys.exit(node.main(sys.argv[1:]))
"""


@pytest.mark.slow
def test_contended_metadata_is_tried_again(driver, volume):
    """The runner's error comes from the store's: its class counts, not the outermost one."""
    folder, words = volume
    contended = scripted(driver, CONTENDED, "mnist-example-gen", *words)
    done = subprocess.run(contended, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2_000:]
    assert "trying again" in done.stderr
    assert states_of(folder, "MnistExampleGen") == [STATES.COMPLETE]


def test_a_node_that_is_told_to_stop_when_its_work_is_done_is_done(driver, volume):
    folder, words = volume
    task, node_id = INGEST
    with started([*driver.command(task, {}, RUN), *words]) as process:
        # Another process writes the store: nothing to wait on but what it holds.
        ended = None
        while STATES.COMPLETE not in states_of(folder, node_id):
            assert ended is None, process.communicate()[1][-2_000:]
            ended = process.poll()
            time.sleep(0.01)
        process.terminate()
        _, stderr = process.communicate()
    # It had seconds of tidying up to do, or none: either way it was done.
    assert process.returncode == 0, stderr[-2_000:]
    assert stderr.count(f"{node_id} done in") == 1
    assert "error:" not in stderr
    assert states_of(folder, node_id) == [STATES.COMPLETE]


@pytest.mark.slow
def test_a_node_that_takes_too_long_gives_up(driver, volume):
    folder, words = volume
    task, node_id = INGEST
    with at_work(driver, folder, task, node_id, *words, "--timeout=3600") as process:
        process.send_signal(signal.SIGALRM)  # an hour later
        process.send_signal(signal.SIGCONT)
        _, stderr = process.communicate()
    assert process.returncode == 124, stderr[-2_000:]
    last = stderr.splitlines()[-1]
    assert last == f"{node_id}: error: gave up after its 3600 s (timeout_seconds)"
    assert "done in" not in stderr
    assert states_of(folder, node_id) == [STATES.FAILED]


def test_a_limit_of_a_second_is_kept(ingested, driver, place):
    # Less than the imports take, on any machine.
    command = [*driver.command("transform", {}, RUN), "--timeout=1"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 124, done.stderr[-2_000:]
    assert done.stderr.splitlines()[-1].startswith("Transform: error: gave up after its 1 s")
    assert not stores.is_finished(store_of(place), RUN, "Transform")


def test_a_failing_component_is_the_last_line(ingested, driver, place):
    empty = place / "empty"
    empty.mkdir(exist_ok=True)
    done = execute(driver, "mnist-example-gen", run_id="bad-data", data_dir=str(empty))
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith("MnistExampleGen: error: ")
    assert str(empty) in done.stderr.splitlines()[-1]


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--model=simpel"], "did you mean 'simple'"),
        (["--run-id={{$.pipeline_job_uuid}}"], "left the placeholder as text"),
        (["--config={"], "not JSON"),
        (["--config=[]"], "JSON object"),
        (['--config={"trainer": {"epoch": 3}}'], "did you mean 'trainer.epochs'"),
        (["--span=3"], "no folders span-N"),
        (["--span=x"], "'latest' or a number"),
        (["--epochs=-1"], "trainer.epochs"),
    ],
)
def test_a_bad_argument_is_named(place, words, expected):
    common = ["--node=N", "--run-id=r", "--metadata-url=x", "--pipeline-root=p", "--push-dir=d"]
    args = node.make_parser().parse_args([*common, f"--data-dir={place}/data", *words])
    with pytest.raises(UserError) as caught:
        node.data_source(args, node.node_config(args).data.dataset)
    assert expected in str(caught.value)


def test_spans_are_found_in_the_container(tmp_path):
    for number in (2, 10):
        (tmp_path / f"span-{number}" / "version-1").mkdir(parents=True)
    common = ["--node=N", "--run-id=r", "--metadata-url=x", "--pipeline-root=p", "--push-dir=d"]
    parse = node.make_parser().parse_args
    latest = node.data_source(parse([*common, f"--data-dir={tmp_path}"]), "auto")
    assert latest["data_pattern"] == "span-{SPAN}/version-{VERSION}"
    assert latest["data_span"] is None
    one = node.data_source(parse([*common, f"--data-dir={tmp_path}", "--span=2"]), "auto")
    assert one["data_span"] == 2
    with pytest.raises(UserError, match="there are 2, 10"):
        node.data_source(parse([*common, f"--data-dir={tmp_path}", "--span=3"]), "auto")


@pytest.mark.slow
def test_no_metadata_store_is_exit_code_3_and_the_next_attempt_finds_it(driver, place, tmp_path):
    command = driver.command("mnist-example-gen", {}, "no-store")
    index = next(i for i, w in enumerate(command) if w.startswith("--metadata-url="))
    command[index] = "--metadata-url=mysql://nobody@127.0.0.1:1/nothing"
    command.append("--metadata-patience=1")
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 3
    assert "no answer" in done.stderr.splitlines()[-1]
    assert f"{METADATA_PASSWORD} is not set" in done.stderr.splitlines()[-1]
    password = {**os.environ, METADATA_PASSWORD: "given"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=password)
    assert done.returncode == 3
    assert METADATA_PASSWORD not in done.stderr.splitlines()[-1]
    command[index] = f"--metadata-url=sqlite://{place}/metadata.sqlite"
    assert subprocess.run(command, capture_output=True, check=False).returncode == 0


def test_help_answers_without_tensorflow():
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "kubeflow.node", "--help"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert "--run-id" in done.stdout
    assert "tensorflow" not in done.stderr
