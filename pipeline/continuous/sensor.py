"""Runs spans on Kubeflow Pipelines instead of here: a sensor.

``python -m pipeline.continuous.sensor JOB.json`` stands in for
:mod:`pipeline.continuous.runner`: it submits one run a span and waits for it.
What the runs decide is in the cluster's ML Metadata.
"""

from __future__ import annotations

import json
import subprocess
import sys

from pipeline.continuous import state
from pipeline.continuous.runner import Job, Progress


def main(path: str) -> int:
    """Runs a job; 0 where every span got an outcome."""
    job = Job.read(path)
    progress = Progress(job.result)
    words = [sys.executable, "-m", "pipeline.cli", "kubeflow", "submit", "--wait", "--json"]
    if job.config_path:
        words += ["--config", job.config_path]
    for assignment in job.assignments:
        if not assignment.startswith("root="):
            words += ["--set", assignment]
    for key in job.batch:
        progress.begin(key)
        span = key.split(".")[0]
        done = subprocess.run(
            [*words, "--param", f"span={span}", *job.submit],
            stdout=subprocess.PIPE, text=True, check=False,
        )  # fmt: skip
        print(done.stdout, flush=True)
        run_id = _run_id(done.stdout)
        if done.returncode == 0:
            progress.end(key, status=state.SUBMITTED, run_id=run_id, reason="the run succeeded")
        else:
            progress.end(key, status="error", run_id=run_id, reason=_reason(done))
    progress.finish()
    return 0


def _run_id(text: str) -> str | None:
    for line in reversed(text.strip().splitlines()):
        try:
            return json.loads(line).get("run_id")
        except (ValueError, AttributeError):
            continue
    return None


def _reason(done: subprocess.CompletedProcess[str]) -> str:
    lines = done.stdout.strip().splitlines()
    return f"'kubeflow submit' ended with code {done.returncode}" + (
        f": {lines[-1][:500]}" if lines else "; the log has its words"
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
