"""A training on two devices is the training on one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
DETERMINISTIC = "simple low_level conv lstm stacked best".split()
# Replicas draw noise of their own, so these agree only as two draws do.
NOISY = "tied_denoising vae aae supervised_aae semi_supervised_aae".split()


def _losses(names: list[str]) -> dict[str, tuple[float, float]]:
    script = str(Path(__file__).with_name("two_devices.py"))
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "TF_CPP_MIN_LOG_LEVEL": "2"}
    output = subprocess.run(
        [sys.executable, script, *names],
        check=True,
        capture_output=True,
        text=True,
        env=environment,
    ).stdout
    lines = [json.loads(line) for line in output.splitlines() if line.startswith("{")]
    return {line["name"]: (line["one"], line["two"]) for line in lines}


@pytest.mark.e2e
def test_two_devices_train_the_same_model_of_every_family() -> None:
    losses = _losses([*DETERMINISTIC, *NOISY])
    for name in DETERMINISTIC:
        assert losses[name][1] == pytest.approx(losses[name][0], rel=2e-3), name
    for name in NOISY:
        assert losses[name][1] == pytest.approx(losses[name][0], rel=0.1), name
