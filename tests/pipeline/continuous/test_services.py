"""The unit and the compose file start a command that exists, with options that exist."""

import configparser
import pathlib
import shlex

import yaml

import pipeline
from pipeline.commands.continuous import watch

DEPLOY = pathlib.Path(pipeline.__file__).parent / "deploy"


def test_the_systemd_unit():
    unit = configparser.RawConfigParser(strict=False)
    unit.optionxform = str
    unit.read(DEPLOY / "mnist-ae-watch.service")
    command = shlex.split(unit["Service"]["ExecStart"].replace("$WATCH_OPTIONS", "--once"))
    assert command[0].endswith("/mnist-ae")
    assert command[1] == "watch"
    given = watch.make_context("watch", command[2:]).params
    assert (given["metrics_port"], given["as_json"]) == (9108, True)
    assert unit["Service"]["Restart"] == "on-failure"


def test_the_compose_service():
    service = yaml.safe_load((DEPLOY / "compose.yaml").read_text())["services"]["watch"]
    assert service["command"][0] == "mnist-ae"
    assert service["command"][1] == "watch"
    given = watch.make_context("watch", service["command"][2:]).params
    assert (given["root"], given["metrics_port"]) == ("/runs", 9108)
    probe = service["healthcheck"]["test"]
    assert probe[:3] == ["CMD", "python", "-c"]
    compile(probe[3], "healthcheck", "exec")
