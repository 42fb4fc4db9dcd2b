"""Runs the pipeline for a batch of spans, in a process of its own.

``python -m pipeline.continuous.runner JOB.json``. The watcher starts it, so
that TFX's memory ends with every run, and reads what it left in the job's
result file. That file is replaced after every step: after a kill it says which
span was at work.
"""

from __future__ import annotations

import json
import logging
import os
import pathlib
import sys
import traceback
from typing import Any

from pipeline import config as config_lib
from pipeline import history
from pipeline.beam_options import check_engine
from pipeline.config import PipelineConfig
from pipeline.continuous import spans, state
from pipeline.continuous.job import EXIT_BUSY, EXIT_NO_SPACE, Outcomes, RunnerJob
from pipeline.errors import BusyError, UserError
from pipeline.locking import locked, new_run_id
from serving import files, quiet
from serving.errors import Error

# The golden set and its folder.
Golden = tuple[spans.Manifest, pathlib.Path]
_DRIFT_FIGURES = ("span", "version", "verdict", "reason", "distance", "error_ratio")


def main(path: str) -> int:
    """Runs a job.

    Returns:
      0 where every span got an outcome, :data:`EXIT_BUSY`, or the ``exit_code``
      of an error that no span is to blame for.
    """
    logging.basicConfig(
        level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s"
    )
    quiet.settle_environment()
    del sys.argv[1:]
    job = RunnerJob.read(path)
    config = config_lib.load(job.options.config_path, job.options.assignments)
    try:
        check_engine(config)
        with locked(config.root):
            outcomes = Outcomes(job.result)
            _Batch(config, job, outcomes).process()
            outcomes.finish()
    except BusyError as e:
        print(f"error: {e}", file=sys.stderr)
        return EXIT_BUSY
    except Exception as e:
        traceback.print_exc()
        print(f"error: {_one_line(e)}", file=sys.stderr)
        if files.is_disk_full(e):
            return EXIT_NO_SPACE
        return e.exit_code if isinstance(e, Error) else 1
    return 0


class _Batch:
    """The spans of a job on their way through the pipeline."""

    def __init__(self, config: PipelineConfig, job: RunnerJob, outcomes: Outcomes) -> None:
        self._config = config
        self._job = job
        self._outcomes = outcomes

    def process(self) -> None:
        """Takes every span as far as it goes; the last that is let in is trained on."""
        config, outcomes = self._config, self._outcomes
        known = {m.key: m for m in spans.scan(config.root)}
        # Before TFX is imported: what is damaged costs a second, not ten.
        batch = [known[key] for key in self._job.batch if key in known and self._check(known[key])]
        if not batch:
            return
        from pipeline import local_runner
        from pipeline.continuous import retention

        local_runner.recover(config)
        golden = _golden(config)
        admitted = []
        trained = False
        for manifest in batch:
            last = manifest is batch[-1]
            if self._attempt(golden, manifest, train=last) == "train":
                admitted.append(manifest)
                trained = last
        if admitted and not trained:
            # What came last was set aside: the newest of the others stands for them.
            trained = self._attempt(golden, admitted[-1], train=True) == "train"
        if admitted and trained:
            reason = f"trained with span {admitted[-1].span}"
            for manifest in admitted[:-1]:
                outcomes.end(manifest.key, status=state.COALESCED, reason=reason)
        retention.clean(config)

    def _check(self, manifest: spans.Manifest) -> bool:
        """Whether a span is what was published."""
        self._outcomes.begin(manifest.key)
        folder = spans.version_folder(self._config.root, manifest.span, manifest.version)
        try:
            spans.check(folder, manifest)
        except (OSError, ValueError) as e:
            self._outcomes.end(manifest.key, status="error", reason=_one_line(e))
            return False
        return True

    def _attempt(self, golden: Golden, manifest: spans.Manifest, *, train: bool) -> str | None:
        """Runs the pipeline for a span, at least until it is judged.

        Returns:
          The verdict, or None where the span failed.
        """
        from trainer.warm_start import WarmStartError

        self._outcomes.begin(manifest.key)
        try:
            outcome = self._run(golden, manifest, train=train)
        except WarmStartError:
            raise
        except Exception as e:
            if files.is_disk_full(e):
                raise
            traceback.print_exc()
            self._outcomes.end(manifest.key, status="error", reason=_one_line(e))
            return None
        verdict = outcome.pop("verdict")
        if outcome.get("window"):
            self._outcomes.window = outcome["window"]
        self._outcomes.end(manifest.key, **outcome)
        return verdict

    def _run(self, golden: Golden, manifest: spans.Manifest, *, train: bool) -> dict[str, Any]:
        from tfx.dsl.compiler import compiler

        from pipeline import local_runner
        from pipeline.continuous.pipeline import DRIFT, create_continuous_pipeline

        config = self._config
        golden_manifest, golden_folder = golden
        run_id = new_run_id()
        pipeline = create_continuous_pipeline(
            config,
            data_folder=str(spans.folder_of(config.root)),
            golden_folder=str(golden_folder),
            data_span=manifest.span,
            version=manifest.version,
            labelled=manifest.labelled,
            golden_labelled=golden_manifest.labelled,
            accepted=self._job.accepted.get(manifest.key, 0),
            cold=self._job.options.cold,
        )
        metadata = history.metadata_path(config.root)
        drift: dict[str, Any] = {}

        def judged(node_id: str) -> bool:
            if node_id != DRIFT:
                return False
            report = history.run_outputs(history.open_store(metadata), run_id, "DriftReport")[-1]
            values = history.values(report)
            drift.update({key: values.get(key) for key in _DRIFT_FIGURES})
            if drift["version"] != manifest.version:
                raise UserError(f"span {manifest.span} got a new version meanwhile")
            return drift["verdict"] != "train" or not train

        timings = local_runner.launch(compiler.Compiler().compile(pipeline), run_id, until=judged)
        store = history.open_store(metadata)
        outcome = {
            "verdict": drift["verdict"],
            "run_id": run_id,
            "drift": drift,
            "seconds": round(sum(timing.seconds for timing in timings), 2),
        }
        if drift["verdict"] != "train":
            status = state.SKIPPED if drift["verdict"] == "skip" else state.QUARANTINED
            return {**outcome, "status": status, "reason": drift["reason"]}
        if not train:
            # For whoever reads the lineage: this run ended here on purpose.
            report = history.run_outputs(store, run_id, "DriftReport")[-1]
            report.custom_properties["coalesced"].int_value = 1
            store.put_artifacts([report])
            return {**outcome, "status": state.COALESCED, "reason": "waits for the run"}
        return {**outcome, **_result(store, run_id)}


def _one_line(error: Exception) -> str:
    return (" ".join(str(error).split()) or type(error).__name__)[:1000]


def _result(store: Any, run_id: str) -> dict[str, Any]:
    """The outcome of a run that trained, from its artifacts."""
    from components.span_gate.component import REPORT_FILE

    record = history.run(store, run_id)
    report = history.run_outputs(store, run_id, "SpanReport")[-1]
    with open(os.path.join(report.uri, REPORT_FILE), encoding="utf-8") as f:
        summary = json.load(f)
    pushed = record.pushed_version is not None
    better = "no worse on the golden set and on the newest span"
    reasons = "; ".join(summary["reasons"])
    if summary["harmful"]:
        reasons += " (the span is left out of later windows)"
    return {
        "status": state.PUSHED if pushed else state.REFUSED,
        "reason": (better if summary["golden"]["before"] is not None else "the first")
        if pushed
        else reasons,
        "pushed_version": record.pushed_version,
        "harmful": summary["harmful"],
        "window": summary["window"],
        "golden": summary["golden"],
        "newest_span": summary["newest_span"],
        "warm_start": summary["warm_start"],
        "epochs": summary["epochs"],
        "training_images": summary["training_images"],
    }


def _golden(config: PipelineConfig) -> Golden:
    """The golden set; made of the data set's eval split where none was given."""
    found = spans.golden(config.root)
    if found is not None:
        return found
    from components.mnist_example_gen import datasets, idx

    dataset = datasets.find(
        config.data.dataset, config.data.dir or os.environ.get("MNIST_DATA_DIR") or None
    )
    names = sorted(pathlib.Path(dataset.folder).glob(f"{idx.SPLIT_PREFIXES['eval']}-*"))
    split = idx.find_split_files([str(name) for name in names], where=dataset.folder)
    labels = spans.read_labels(split.labels) if split.labels else None
    source = {"kind": "idx", "images": split.images, "dataset": dataset.name}
    images = spans.read_images(split.images)
    done = spans.publish_golden(config.root, images, labels, source=source)
    return done.manifest, done.folder


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
