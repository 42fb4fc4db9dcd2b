"""Two runs at once against one MySQL-compatible metadata store."""

from __future__ import annotations

import os
import pathlib
import re
import shutil
import socket
import subprocess
import threading

import pytest
from ml_metadata import metadata_store

from kubeflow import store as stores
from pipeline import history

pytestmark = pytest.mark.e2e

PASSWORD = "not-in-any-file"


@pytest.fixture(scope="module")
def mysql(tmp_path_factory):
    """The address of a MariaDB server of our own."""
    server = shutil.which("mariadbd") or shutil.which("mysqld") or "/usr/sbin/mariadbd"
    install = shutil.which("mariadb-install-db") or shutil.which("mysql_install_db")
    if not os.path.exists(server) or install is None:
        pytest.skip("no MySQL-compatible server; apt-get install mariadb-server")
    folder = tmp_path_factory.mktemp("mysql")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    user = ["--user=root"] if os.geteuid() == 0 else []
    common = ["--no-defaults", f"--datadir={folder}/data", *user]
    words = [install, *common, "--auth-root-authentication-method=normal"]
    subprocess.run(words, check=True, capture_output=True)
    start = folder / "init.sql"
    start.write_text(
        "CREATE DATABASE mnist_ae;\n"
        f"CREATE USER 'mnist-ae'@'%' IDENTIFIED BY '{PASSWORD}';\n"
        "GRANT ALL ON mnist_ae.* TO 'mnist-ae'@'%';\n"
    )
    words = [server, *common, "--bind-address=127.0.0.1", f"--port={port}", "--skip-name-resolve"]
    words += [f"--socket={folder}/sock", f"--pid-file={folder}/pid", f"--init-file={start}"]
    # Who waits for another's lock is told after a second, not after 50.
    words.append("--innodb-lock-wait-timeout=1")
    process = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    yield f"mysql://mnist-ae@127.0.0.1:{port}/mnist_ae"
    process.terminate()
    process.wait()


def contend(url: str, ended: threading.Event, held: list[bool]) -> None:
    """Holds every execution again and again, for longer than the server lets others wait."""
    port = url.rpartition(":")[2].partition("/")[0]
    words = ["mariadb", "--host=127.0.0.1", f"--port={port}", "--user=mnist-ae", "mnist_ae"]
    hold = "START TRANSACTION; SELECT COUNT(*) FROM Execution FOR UPDATE; DO SLEEP(1.5); COMMIT;"
    while not ended.wait(3):
        # No such table before the first node.
        environment = {**os.environ, "MYSQL_PWD": PASSWORD}
        done = subprocess.run([*words, f"--execute={hold}"], env=environment, capture_output=True)
        held.append(done.returncode == 0)


def test_two_runs_at_once_share_the_store(mysql, tmp_path, digits_folder, driver_of):
    """Their transactions contend, with each other and with a third party that is in no hurry."""
    (tmp_path / "data").symlink_to(digits_folder)
    driver = driver_of(
        pathlib.Path(tmp_path),
        f"kubeflow.metadata_url={mysql}",
        "trainer.epochs=8",
        "trainer.batch_size=64",
        "evaluator.max_increase=0.5",
        "evaluator.max_mse=0.06",
        "validator.latency_budget_ms=60000",
    )
    secrets = {"mnist-ae-metadata/password": PASSWORD}
    assert PASSWORD not in (tmp_path / "pipeline.yaml").read_text()
    done = {}

    def run(run_id: str, epochs: float) -> None:
        done[run_id] = driver.run({"epochs": epochs}, run_id=run_id, secrets=secrets)

    threads = [threading.Thread(target=run, args=(f"run-{i}", 8.0 + i)) for i in range(2)]
    ended, held = threading.Event(), []
    contender = threading.Thread(target=contend, args=(mysql, ended, held))
    for thread in (contender, *threads):
        thread.start()
    for thread in threads:
        thread.join()
    ended.set()
    contender.join()
    for execution in done.values():
        assert execution.failed is None, execution.attempts[-1].stderr[-2_000:]
        # No attempt but the first, in which the first epoch came once.
        (trained,) = execution.of("trainer")
        assert len(re.findall(r'"epoch 1/\d+ [^"]*val_', trained.stderr)) == 1
    assert sum(held) > 5
    store = metadata_store.MetadataStore(stores.connection(mysql, PASSWORD))
    records = [history.run(store, run_id) for run_id in done]
    assert [r.state for r in records] == ["complete", "complete"]
    pushed = {r.pushed_version for r in records}
    assert len(pushed) == 2
    assert pushed == set(os.listdir(tmp_path / "models" / "simple"))


def test_a_store_that_comes_up_late_is_waited_for(mysql, driver_of, tmp_path):
    """Unreachable for the first attempt; the second one, which KFP makes, finds it."""
    driver = driver_of(
        pathlib.Path(tmp_path), f"kubeflow.metadata_url={mysql}", "kubeflow.defaults.retries=1"
    )
    secrets = {"mnist-ae-metadata/password": PASSWORD}

    class Late:
        tries = 0

    def before(task: str, attempt: int) -> dict[str, str]:
        Late.tries += 1
        # The first attempt gets a wrong password: the server lets nobody in.
        return {"MNIST_AE_METADATA_PASSWORD": "wrong"} if attempt == 0 else {}

    done = driver.run(
        {}, run_id="run-late", secrets=secrets, before=before, only=["mnist-example-gen"]
    )
    assert done.failed is None
    assert [a.code for a in done.attempts] == [3, 0]
    assert Late.tries == 2
    assert PASSWORD not in done.attempts[0].stderr
