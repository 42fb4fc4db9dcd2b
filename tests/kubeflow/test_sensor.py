"""A span appears, a run is submitted; and the continuous graph runs node by node."""

import json

import pytest

from pipeline import cli, history
from pipeline.continuous import spans, state

SOURCE = {"kind": "numpy", "images": "-"}


@pytest.mark.e2e
@pytest.mark.parametrize(
    "ending, status, count", [("SUCCEEDED", "submitted", 1), ("FAILED", "retry", 2)]
)
def test_a_span_that_appears_becomes_a_run(backend, digits, tmp_path, ending, status, count):
    backend.run_states = [{"run_id": "r-1", "state": ending}]
    images = digits["train"][0]
    for number in range(count):
        spans.publish(tmp_path, images[number * 20 : number * 20 + 20], None, source=SOURCE)
    words = ["watch", "--once", "--root", str(tmp_path), "--model", "simple"]
    words += ["--set", "continuous.golden=/data/spans/golden/version-1"]
    words += ["--submit", f"--host {backend.host}"]
    assert cli.main(words) == 0
    assert cli.main(words) == 0
    assert {r["status"] for r in state.read(tmp_path).spans.values()} == {status}
    posted = [r.json["runtime_config"]["parameters"]["span"] for r in backend.posts("/runs")]
    assert posted == ["1", "2"][:count]
    (upload,) = backend.posts("/pipelines/upload_version")
    upload = upload.body.decode()
    assert "GoldenExampleGen" in upload and "DriftMonitor" in upload


@pytest.mark.e2e
@pytest.mark.timeout(3_600)
def test_spans_run_node_by_node(digits, tmp_path, driver_of):
    images, labels = digits["train"]
    golden = spans.publish_golden(tmp_path / "data", *digits["eval"], source=SOURCE)
    driver = driver_of(
        tmp_path,
        "trainer.epochs=12",
        "trainer.batch_size=64",
        "evaluator.max_mse=0.2",
        f"continuous.golden={golden.folder}",
        f"kubeflow.data_dir={tmp_path}/data/spans",
    )
    windows = []
    for number in range(2):
        rows = slice(number * 1_500, number * 1_500 + 1_500)
        spans.publish(tmp_path / "data", images[rows], labels[rows], source=SOURCE)
        done = driver.run({}, run_id=f"run-{number}")
        assert done.failed is None, done.attempts[-1].stderr[-2_000:]
        store = history.open_store(str(tmp_path / "metadata.sqlite"))
        (report,) = history.run_outputs(store, done.run_id, "SpanReport")
        windows.append(report.custom_properties["window"].string_value)
        with open(f"{report.uri}/span.json") as f:
            summary = json.load(f)
        assert summary["blessed"], summary["reasons"]
    assert windows == ["1.1", "1.1 2.1"]
    assert summary["warm_start"]["restored"] == 4
    versions = sorted(p.name for p in (tmp_path / "models" / "simple").iterdir())
    spans.publish(tmp_path / "data", 255 - images[3_000:], None, source=SOURCE)
    strange = driver.run({}, run_id="run-strange")
    # In another order: what was published already is no new span.
    spans.publish(tmp_path / "data", images[rows][::-1], labels[rows][::-1], source=SOURCE)
    known = driver.run({}, run_id="run-known")
    for done, verdict, reason in ((strange, "stop", "too strange"), (known, "skip", "nothing new")):
        assert done.failed is None, done.attempts[-1].stderr[-2_000:]
        assert done.outputs["drift-monitor"]["verdict"] == verdict
        assert reason in done.outputs["drift-monitor"]["reason"]
        assert {"transform", "trainer", "pusher", "run-report"} <= set(done.skipped)
        assert history.run(store, done.run_id).state == "stopped"
    assert sorted(p.name for p in (tmp_path / "models" / "simple").iterdir()) == versions
