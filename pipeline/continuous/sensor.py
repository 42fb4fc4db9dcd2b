"""Runs spans on Kubeflow Pipelines instead of here: a sensor.

``python -m pipeline.continuous.sensor JOB.json`` stands in for
:mod:`pipeline.continuous.runner`: it submits one run a span and waits for it.
What the runs decide is in the cluster's ML Metadata.
"""

from __future__ import annotations

import functools
import re
import subprocess
import sys
from collections.abc import Callable

from pipeline.continuous import state
from pipeline.continuous.job import Outcomes, RunnerJob

SUBMIT = (sys.executable, "-m", "pipeline.cli", "kubeflow", "submit", "--wait", "--json")
# Its exit code where the run has ended, and not well.
RUN_FAILED = 1

_RUN = re.compile(r"run (\S+)")


def main(path: str) -> int:
    """Runs a job; 0 where every span got an outcome."""
    job = RunnerJob.read(path)
    progress = Outcomes(job.result)
    words = [*SUBMIT]
    if job.options.config_path:
        words += ["--config", job.options.config_path]
    for assignment in job.options.assignments:
        if not assignment.startswith("root="):
            words += ["--set", assignment]
    for key in job.batch:
        progress.begin(key)
        span = key.split(".")[0]
        started = job.run_ids.get(key)
        command = [*words, "--param", f"span={span}", *(job.options.submit or [])]
        if started is not None:
            # A sensor that was stopped goes on waiting; the span is not trained twice.
            command += ["--started", started]
        code, run_id, last = _follow(command, functools.partial(progress.started, key))
        if code == 0:
            progress.end(key, status=state.SUBMITTED, run_id=run_id, reason="the run succeeded")
            continue
        reason = f"'kubeflow submit' ended with code {code}"
        reason += f": {last[:500]}" if last else "; the log has its words"
        progress.end(key, status="error", run_id=run_id, reason=reason)
        if run_id is not None and code != RUN_FAILED:
            # It may still be under way: the next try waits for it.
            progress.started(key, run_id)
    progress.finish()
    return 0


def _follow(command: list[str], started: Callable[[str], None]) -> tuple[int, str | None, str]:
    """Runs ``kubeflow submit --wait``, which says ``run ID`` as soon as there is one.

    Args:
      started: Called with the identifier when it is known.

    Returns:
      The exit code, the identifier and the last line.
    """
    run_id, last = None, ""
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            print(line, end="", flush=True)
            last = line.strip() or last
            said = _RUN.fullmatch(line.strip())
            if said is not None and run_id is None:
                run_id = said[1]
                started(run_id)
    return process.returncode, run_id, last


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
