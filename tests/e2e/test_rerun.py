"""Runs after the first: cached, refused, better, killed."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import tensorflow as tf
from sklearn.metrics import roc_auc_score

from components.mnist_example_gen import idx
from pipeline import history


def run(cli, root, *arguments):
    done = cli("run", "--root", str(root), "--json", *arguments)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def cached(result):
    return {c["id"] for c in result["components"] if c["cached"]}


def all_ids(result):
    return {c["id"] for c in result["components"]}


@pytest.mark.slow
def test_the_same_command_is_answered_from_the_cache(trained_run, cli):
    again = run(cli, trained_run.root, *trained_run.arguments)
    assert cached(again) == all_ids(again)
    for key in ("metrics", "blessed", "pushed_version", "pushed_path", "dataset"):
        assert again[key] == trained_run.result[key]
    assert again["run_id"] != trained_run.result["run_id"]
    listed = json.loads(cli("runs", "--json", "--root", str(trained_run.root)).stdout)
    assert {trained_run.result["run_id"], again["run_id"]} <= {r["run_id"] for r in listed}
    table = cli("runs", "--root", str(trained_run.root)).stdout
    assert again["run_id"] in table and again["pushed_version"] in table


def test_a_bad_model_is_refused_with_the_reason_and_not_pushed(trained_run, cli):
    before = os.listdir(os.path.dirname(trained_run.model_path))
    done = cli(
        "run", *trained_run.arguments, "--root", str(trained_run.root), "--json",
        "--set", "evaluator.max_mse=0.001",
    )  # fmt: skip
    result = json.loads(done.stdout)
    assert not result["blessed"]
    assert result["pushed_version"] is None and result["pushed_path"] is None
    assert "above the bound 0.001" in done.stderr
    assert os.listdir(os.path.dirname(trained_run.model_path)) == before
    assert {"MnistExampleGen", "Trainer"} <= cached(result)


@pytest.mark.slow
def test_a_worse_model_than_the_baseline_is_refused(trained_run, cli):
    result = run(
        cli,
        trained_run.root,
        *trained_run.arguments,
        "--set",
        "trainer.epochs=8",
        "--set",
        "evaluator.max_mse=0.1",
    )
    assert not result["blessed"]
    (reason,) = result["refusals"]
    assert "baseline" in reason
    assert result["metrics"]["baseline"]["mse"] == pytest.approx(
        trained_run.result["metrics"]["overall"]["mse"]
    )
    allowed = run(
        cli,
        trained_run.root,
        *trained_run.arguments,
        "--set",
        "trainer.epochs=8",
        "--set",
        "evaluator.max_mse=0.1",
        "--set",
        "evaluator.baseline=false",
        "--set",
        "pusher.name=other",
    )
    assert allowed["blessed"]
    assert os.path.basename(os.path.dirname(allowed["pushed_path"])) == "other"


@pytest.mark.slow
def test_a_deleted_version_is_pushed_again(trained_run, cli):
    root = trained_run.root
    first = run(cli, root, *trained_run.arguments, "--set", "pusher.name=deleted")
    shutil.rmtree(os.path.dirname(first["pushed_path"]))
    again = run(cli, root, *trained_run.arguments, "--set", "pusher.name=deleted")
    assert os.path.exists(os.path.join(again["pushed_path"], "saved_model.pb"))
    assert "Trainer" in cached(again)


@pytest.mark.slow
def test_unlabelled_images_run_without_slices(digits, tmp_path, cli):
    for split, prefix in idx.SPLIT_PREFIXES.items():
        idx.write_idx(str(tmp_path / f"{prefix}-{idx.IMAGES}"), digits[split][0][:500])
    result = run(
        cli, tmp_path / "runs", "--data-dir", str(tmp_path), "--set", "trainer.epochs=4",
        "--set", "evaluator.max_mse=0.3", "--model", "simple",
    )  # fmt: skip
    assert result["metrics"]["by_label"] == {}
    assert result["metrics"]["search"] is None
    assert result["metrics"]["anomaly"]["auroc"] > 0.5
    assert result["metrics"]["overall"]["example_count"] == 500
    assert result["dataset"]["name"] == tmp_path.name
    assert result["blessed"]


def start_and_kill(trained_run, root, component, seconds=0.1):
    """Starts the shared run in ``root`` and kills it when it comes to a component."""
    command = ["run", *trained_run.arguments, "--root", str(root), "-v"]
    process = subprocess.Popen(
        [sys.executable, "-m", "pipeline.cli", *command],
        stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True, errors="replace",
        env={k: v for k, v in os.environ.items() if k != "MNIST_DATA_DIR"},
        start_new_session=True,
    )  # fmt: skip
    reached = False
    for line in process.stderr:
        if re.search(rf": {component} starts$", line):
            reached = True
            break
    time.sleep(seconds)
    os.killpg(process.pid, signal.SIGKILL)
    process.stderr.read()
    process.wait()
    assert reached, f"{component} never started"


def assert_undisturbed(result, root, reference):
    for loss in ("mse", "bce"):
        assert result["metrics"]["overall"][loss] == pytest.approx(
            reference["metrics"]["overall"][loss], rel=1e-3
        )
    serving = os.path.dirname(result["pushed_path"])
    assert os.listdir(serving) == [result["pushed_version"]]
    store = history.open_store(os.path.join(root, "metadata.sqlite"))
    states = [r.state for r in history.runs(store)]
    assert states[-1] == "complete"
    assert "running" not in states
    # Nothing of the killed executions is left.
    uris = {a.uri for a in store.get_artifacts()}
    for component in os.scandir(os.path.join(root, "pipeline")):
        for output in os.scandir(component):
            if output.is_dir() and output.name not in (".system", "checkpoints"):
                for execution in os.scandir(output):
                    assert execution.path in uris, execution.path


@pytest.mark.slow
def test_a_run_killed_while_training_is_repeated_as_if_undisturbed(trained_run, tmp_path, cli):
    root = tmp_path / "runs"
    start_and_kill(trained_run, root, "Trainer", seconds=2)
    result = run(cli, root, *trained_run.arguments)
    assert {"MnistExampleGen", "StatisticsGen", "Transform"} <= cached(result)
    assert_undisturbed(result, root, trained_run.result)


@pytest.mark.e2e
@pytest.mark.parametrize(
    "component",
    ["MnistExampleGen", "StatisticsGen", "ExampleValidator", "DataGate", "PcaReference",
     "Transform", "ImageIndex", "Evaluator", "ServingValidator", "Pusher", "RunReport"],
)  # fmt: skip
def test_a_run_killed_at_any_component_is_repeated(trained_run, tmp_path, cli, component):
    root = tmp_path / "runs"
    start_and_kill(trained_run, root, component)
    assert_undisturbed(run(cli, root, *trained_run.arguments), root, trained_run.result)


@pytest.mark.e2e
def test_beam_on_a_portable_runner(trained_run, cli):
    """The job server that Beam ships in Python, as Flink, Spark and Dataflow would be used."""
    result = run(
        cli, trained_run.root, *trained_run.arguments,
        "--beam", "runner=PortableRunner", "--beam", "job_endpoint=embed",
        "--beam", "environment_type=LOOPBACK",
    )  # fmt: skip
    on_beam = {"MnistExampleGen", "StatisticsGen", "Transform", "Evaluator", "ImageIndex"}
    assert on_beam.isdisjoint(cached(result))
    assert result["metrics"]["overall"]["mse"] == pytest.approx(
        trained_run.result["metrics"]["overall"]["mse"], rel=1e-3
    )


@pytest.mark.e2e
@pytest.mark.parametrize("model, epochs, bar", [("simple", 10, 0.100), ("conv", 3, 0.122)])
def test_the_bar_on_full_mnist(full_mnist, tmp_path, cli, model, epochs, bar):
    done = cli(
        "run", "--model", model, "--set", f"trainer.epochs={epochs}", "--root", str(tmp_path),
        "--json", MNIST_DATA_DIR=full_mnist, timeout=1_200,
    )  # fmt: skip
    result = json.loads(done.stdout)
    assert result["dataset"]["train"] == 60_000
    assert result["metrics"]["overall"]["bce"] <= bar
    assert np.isclose(
        result["metrics"]["pca_mse"], {32: 0.0168, 128: 0.0042}[result["code_size"]], atol=1e-4
    )


@pytest.mark.slow
def test_one_class_models_find_other_digits_strange(trained_run, cli):
    result = run(
        cli, trained_run.root, *trained_run.arguments, "--set", "data.keep_labels=[1]",
    )  # fmt: skip
    assert result["servable"] == "simple-only-1"
    assert set(result["metrics"]["by_label"]) == {"1"}
    assert result["dataset"]["train"] == 450
    model = tf.saved_model.load(result["pushed_path"]).signatures["score"]
    folder = json.loads(cli("data", "--json", "--dataset", "mnist-5k").stdout)["folder"]
    images = next(idx.read_images(os.path.join(folder, f"t10k-{idx.IMAGES}"))).reshape(-1, 28, 28)
    labels = next(idx.read_labels(os.path.join(folder, f"t10k-{idx.LABELS}")))
    scores = model(images=tf.constant(images))
    strange = scores["is_anomaly"].numpy()
    assert strange[labels != 1].mean() > 0.5 > strange[labels == 1].mean()
    measured = roc_auc_score(labels != 1, scores["anomaly_score"].numpy())
    assert measured > 0.9
    anomaly = result["metrics"]["anomaly"]
    assert anomaly["against"] == "held_out" and set(anomaly["by_kind"]) == set("023456789")
    assert anomaly["auroc"] == pytest.approx(measured, abs=1e-4)
    assert anomaly["aupr"] > anomaly["base_rate"]
    # All neighbours are ones, whatever the code.
    assert result["metrics"]["search"] is None


@pytest.mark.e2e
def test_tuned_values_are_used_and_recorded(trained_run, cli):
    result = run(
        cli, trained_run.root, *trained_run.arguments, "--tune", "--set", "tuner.trials=2",
        "--set", "tuner.epochs=2", "--set", "evaluator.baseline=false",
    )  # fmt: skip
    store = history.open_store(os.path.join(trained_run.root, "metadata.sqlite"))
    (artifact,) = store.get_artifacts_by_type("HyperParameters")
    with open(os.path.join(artifact.uri, "best_hyperparameters.txt")) as f:
        tuned = json.load(f)["values"]
    with open(os.path.join(result["pushed_path"], "assets.extra", "autoencoder.json")) as f:
        facts = json.load(f)
    assert facts["training"]["learning_rate"] == tuned["learning_rate"]
