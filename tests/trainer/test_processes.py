"""Trainings in processes of their own: who gets which GPU, and what is said of one that failed."""

import pytest
import tensorflow as tf

from trainer import processes


@pytest.fixture
def gpus(monkeypatch):
    """Pretends that TensorFlow sees so many GPUs."""

    def see(count, visible=None):
        monkeypatch.setattr(tf.config, "list_physical_devices", lambda kind: [kind] * count)
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
        if visible is not None:
            monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)

    return see


@pytest.mark.parametrize(
    "count, visible, processes_, devices",
    [
        (0, None, 2, [None, None]),
        (0, None, None, [None]),
        (4, None, 2, ["0,2", "1,3"]),
        (2, "5,7", None, ["5", "7"]),
        (1, None, 2, ["-1", "-1"]),
    ],
)
def test_every_process_has_gpus_of_its_own(gpus, count, visible, processes_, devices):
    gpus(count, visible)
    found = [share.get("CUDA_VISIBLE_DEVICES") for share in processes.shares(processes_)]
    assert found == devices


def test_a_process_that_is_killed_is_said_to_be(make_job, monkeypatch, tmp_path):
    script = tmp_path / "python"
    script.write_text("#!/bin/sh\nkill -KILL $$\n")
    script.chmod(0o755)
    monkeypatch.setattr(processes.sys, "executable", str(script))
    with pytest.raises(processes.TrainingError, match="was killed by SIGKILL"):
        processes.run(make_job("simple"))
