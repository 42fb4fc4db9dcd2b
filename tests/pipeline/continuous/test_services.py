"""The unit and the compose file start a command that exists, with options that exist."""

import configparser
import pathlib
import shlex
import subprocess

import yaml

import pipeline
from pipeline.cli import mnist_ae
from pipeline.commands.continuous import watch

DEPLOY = pathlib.Path(pipeline.__file__).parent / "deploy"


def options_of(words):
    """What ``watch`` makes of its words, called as the command line calls it."""
    # Without the root a command forgets for good that -h is help, too.
    root = mnist_ae.make_context("mnist-ae", ["watch"])
    return watch.make_context("watch", words, parent=root).params


def test_the_systemd_unit():
    unit = configparser.RawConfigParser(strict=False)
    unit.optionxform = str
    unit.read(DEPLOY / "mnist-ae-watch.service")
    command = shlex.split(unit["Service"]["ExecStart"].replace("$WATCH_OPTIONS", "--once"))
    assert command[0].endswith("/mnist-ae")
    assert command[1] == "watch"
    given = options_of(command[2:])
    assert (given["metrics_port"], given["as_json"]) == (9108, True)
    assert unit["Service"]["Restart"] == "on-failure"


def test_the_compose_service():
    service = yaml.safe_load((DEPLOY / "compose.yaml").read_text())["services"]["watch"]
    assert service["command"][0] == "mnist-ae"
    assert service["command"][1] == "watch"
    given = options_of(service["command"][2:])
    assert (given["root"], given["metrics_port"]) == ("/runs", 9108)
    probe = service["healthcheck"]["test"]
    assert probe[:3] == ["CMD", "python", "-c"]
    compile(probe[3], "healthcheck", "exec")


def test_a_folder_that_cannot_be_written_starts_nothing(tmp_path):
    services = yaml.safe_load((DEPLOY / "compose.yaml").read_text())["services"]
    needed = services["watch"]["depends_on"]["watch-start"]
    assert needed == {"condition": "service_completed_successfully"}
    start = services["watch-start"]
    assert (start["user"], start["volumes"][0]) == (
        services["watch"]["user"],
        services["watch"]["volumes"][0],
    )
    shell, option, script = start["command"]
    for folder, code in ((tmp_path, 0), (tmp_path / "missing", 2)):
        words = [shell, option, script.replace("/runs", str(folder))]
        done = subprocess.run(words, capture_output=True, text=True, check=False)
        assert done.returncode == code
        assert ("sudo chown 1000:1000 ROOT" in done.stderr) is bool(code)
