"""Runs the pipeline for a batch of spans, in a process of its own.

``python -m pipeline.continuous.runner JOB.json``. The watcher starts it, so
that TFX's memory ends with every run, and reads what it left in the job's
result file. That file is replaced after every step: after a kill it says which
span was at work.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import pathlib
import sys
import traceback
from typing import TYPE_CHECKING, Any

from pipeline.continuous import spans, state
from pipeline.errors import BusyError, UserError
from serving import files, quiet
from serving.errors import Error

if TYPE_CHECKING:
    from pipeline.config import PipelineConfig

# The golden set and its folder.
Golden = tuple[spans.Manifest, pathlib.Path]
# Another run holds the root; as sysexits.h's EX_TEMPFAIL.
EXIT_BUSY = 75
# The disk is full: no span is to blame.
EXIT_NO_SPACE = 74


@dataclasses.dataclass(frozen=True)
class RunnerJob:
    """What to run.

    Attributes:
      config_path: A YAML file, or None.
      assignments: ``KEY=VALUE`` over it.
      batch: Keys (``N.V``) of spans, in the order to look at them.
      accepted: Those of them that a person has let in, and how often.
      cold: Whether to train afresh.
      result: Where the outcome goes.
      submit: More arguments of ``mnist-ae kubeflow submit``; see sensor.py.
      run_ids: Those spans whose runs on Kubeflow were started by a sensor that
        did not see their end.
    """

    config_path: str | None
    assignments: list[str]
    batch: list[str]
    accepted: dict[str, int]
    cold: bool
    result: str
    submit: list[str] = dataclasses.field(default_factory=list)
    run_ids: dict[str, str] = dataclasses.field(default_factory=dict)

    def write(self, path: pathlib.Path) -> None:
        """As JSON."""
        files.write_json(path, dataclasses.asdict(self))

    @classmethod
    def read(cls, path: str) -> RunnerJob:
        """The inverse of :meth:`write`."""
        with open(path, encoding="utf-8") as f:
            return cls(**json.load(f))


class Outcomes:
    """The result file: what is at work, what came out, whether all is done."""

    def __init__(self, path: str):
        """Makes it empty."""
        self._path = pathlib.Path(path)
        self.outcomes: dict[str, dict[str, Any]] = {}
        self.current: str | None = None
        self.window: list[str] = []
        self.run_ids: dict[str, str] = {}
        self._write(done=False)

    def begin(self, key: str) -> None:
        """A span is at work."""
        self.current = key
        self._write(done=False)

    def started(self, key: str, run_id: str) -> None:
        """The run of a span is under way elsewhere."""
        self.run_ids[key] = run_id
        self._write(done=False)

    def end(self, key: str, **outcome: Any) -> None:
        """What came of a span."""
        self.outcomes[key] = {**self.outcomes.get(key, {}), **outcome}
        self.run_ids.pop(key, None)
        self.current = None
        self._write(done=False)

    def finish(self) -> None:
        """Nothing more will come."""
        self._write(done=True)

    def _write(self, *, done: bool) -> None:
        values = {
            "current": self.current,
            "outcomes": self.outcomes,
            "window": self.window,
            "run_ids": self.run_ids,
            "done": done,
        }
        files.write_json(self._path, values)


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
    from pipeline import config as config_lib
    from pipeline.locking import locked

    config = config_lib.load(job.config_path, job.assignments)
    try:
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

        from pipeline import history, local_runner
        from pipeline.continuous.pipeline import DRIFT, SpanRun, create_continuous_pipeline
        from pipeline.locking import new_run_id

        config = self._config
        golden_manifest, golden_folder = golden
        run = SpanRun(
            span=manifest.span,
            version=manifest.version,
            golden_folder=str(golden_folder),
            golden_labelled=golden_manifest.labelled,
            accepted=self._job.accepted.get(manifest.key, 0),
            cold=self._job.cold,
        )
        run_id = new_run_id()
        pipeline = create_continuous_pipeline(
            config,
            run,
            spans_folder=str(spans.folder_of(config.root)),
            labelled=manifest.labelled,
        )
        drift: dict[str, Any] = {}

        def judged(node_id: str) -> bool:
            if node_id != DRIFT:
                return False
            drift.update(_drift_of(history.open_store(history.metadata_path(config.root)), run_id))
            if drift["version"] != manifest.version:
                raise UserError(f"span {manifest.span} got a new version meanwhile")
            return drift["verdict"] != "train" or not train

        ir = compiler.Compiler().compile(pipeline)
        timings = local_runner.launch(ir, run_id, until=judged)
        store = history.open_store(history.metadata_path(config.root))
        outcome = {
            "verdict": drift["verdict"],
            "run_id": run_id,
            "drift": drift,
            "seconds": round(sum(timing.seconds for timing in timings), 2),
        }
        if drift["verdict"] == "skip":
            return {**outcome, "status": state.SKIPPED, "reason": drift["reason"]}
        if drift["verdict"] != "train":
            return {**outcome, "status": state.QUARANTINED, "reason": drift["reason"]}
        if not train:
            _mark_coalesced(store, run_id)
            return {**outcome, "status": state.COALESCED, "reason": "waits for the run"}
        return {**outcome, **_result(store, run_id)}


def _one_line(error: Exception) -> str:
    return (" ".join(str(error).split()) or type(error).__name__)[:1000]


def _result(store: Any, run_id: str) -> dict[str, Any]:
    """The outcome of a run that trained, from its artifacts."""
    from components.span_gate.component import REPORT_FILE
    from pipeline import history

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


def _drift_of(store: Any, run_id: str) -> dict[str, Any]:
    """What DriftMonitor found in a run."""
    from pipeline import history

    artifact = history.run_outputs(store, run_id, "DriftReport")[-1]
    values = history.values(artifact)
    keys = ("span", "version", "verdict", "reason", "distance", "error_ratio")
    return {key: values.get(key) for key in keys}


def _mark_coalesced(store: Any, run_id: str) -> None:
    """Says in ML Metadata that a run ended here on purpose."""
    from pipeline import history

    artifact = history.run_outputs(store, run_id, "DriftReport")[-1]
    artifact.custom_properties["coalesced"].int_value = 1
    store.put_artifacts([artifact])


def _golden(config: PipelineConfig) -> Golden:
    """The golden set; made of the data set's eval split where none was given."""
    found = spans.golden(config.root)
    if found is not None:
        return found
    from components.mnist_example_gen import datasets, idx

    dataset = datasets.find(
        config.data.dataset, config.data.dir or os.environ.get("MNIST_DATA_DIR") or None
    )
    names = [
        os.path.join(dataset.folder, name)
        for name in sorted(os.listdir(dataset.folder))
        if name.startswith(idx.SPLIT_PREFIXES["eval"] + "-")
    ]
    split = idx.find_split_files(names, where=dataset.folder)
    labels = spans.read_labels(split.labels) if split.labels else None
    source = {"kind": "idx", "images": split.images, "dataset": dataset.name}
    images = spans.read_images(split.images)
    done = spans.publish_golden(config.root, images, labels, source=source)
    return done.manifest, done.folder


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
