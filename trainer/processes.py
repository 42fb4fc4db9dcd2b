"""Trainings in processes of their own, which end together.

TensorFlow wants a strategy of several workers made before anything else, and
gives a GPU's memory back only with the process.
"""

from __future__ import annotations

import os
import pathlib
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence

import tensorflow as tf

from serving.errors import Error
from trainer.job import TrainingJob

# Of a worker that lost another one: EX_TEMPFAIL of sysexits.h.
EXIT_LOST = 75
_POLL_SECONDS = 0.1
_DEVICES = "CUDA_VISIBLE_DEVICES"


class TrainingError(Error):
    """A training in processes of its own failed."""


def run(job: TrainingJob, environments: Sequence[Mapping[str, str]] = ({},)) -> None:
    """Runs ``python -m trainer.run_fn`` once for each environment, and waits.

    Args:
      job: The training.
      environments: Variables of each process, beside those of this one.

    Raises:
      TrainingError: One of them failed; none is left running.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        job_file = folder / "job.json"
        job_file.write_text(job.to_json(), encoding="utf-8")
        workers: list[subprocess.Popen[bytes]] = []
        try:
            for index, own in enumerate(environments):
                arguments = [str(job_file), str(folder / str(index))]
                command = [sys.executable, "-m", "trainer.run_fn", *arguments]
                workers.append(subprocess.Popen(command, env={**os.environ, **own}))
            while any(codes := [worker.poll() for worker in workers]) or None in codes:
                if any(codes):
                    raise TrainingError(_why([worker.poll() for worker in workers], folder))
                time.sleep(_POLL_SECONDS)
        finally:
            for worker in workers:
                worker.kill()
                worker.wait()


def _why(codes: Sequence[int | None], folder: pathlib.Path) -> str:
    """What went wrong first: not that a worker lost another one, if that one can tell."""
    blame = [i for i, code in enumerate(codes) if code not in (None, 0, EXIT_LOST)]
    silent = [i for i, code in enumerate(codes) if code is None]
    index = (blame or silent or [i for i, code in enumerate(codes) if code])[0]
    code, reason = codes[index], folder / str(index)
    if code is None:
        how = "does not answer"
    elif code < 0:
        how = f"was killed by {signal.Signals(-code).name}"
    else:
        said = reason.read_text(encoding="utf-8") if reason.exists() else f"exit code {code}"
        how = f"failed: {said}"
    who = f"worker {index} of {len(codes)}" if len(codes) > 1 else "the training's process"
    return f"{who} {how}"


def shares(count: int | None = None) -> list[dict[str, str]]:
    """Environments that give each of several processes its own part of this machine's GPUs.

    Args:
      count: Of the processes; none gets a GPU where there are fewer than that.
        None is one a GPU, or one where there is none.
    """
    gpus = len(tf.config.list_physical_devices("GPU"))
    count = count or max(1, gpus)
    if not gpus:
        return [{} for _ in range(count)]
    visible = (os.environ.get(_DEVICES) or ",".join(map(str, range(gpus)))).split(",")[:gpus]
    return [
        {_DEVICES: ",".join(visible[i::count]) if gpus >= count else "-1"} for i in range(count)
    ]
