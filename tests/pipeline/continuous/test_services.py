"""The unit and the compose file start a command that exists, with options that exist."""

import configparser
import pathlib
import shlex

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
