"""Benchmarks of the pipeline: ``make bench``.

Compares, on one machine in one go:

* ExampleGen + StatisticsGen + Transform + Evaluator with the same four of TFX's
  own MNIST example (``tfx.examples.mnist``) on the same 70,000 images;
* the Trainer's images per second with plain ``model.fit`` on NumPy arrays;
* a fully cached rerun;
* the peak memory on ten times the images with that on one;
* with ``--only scale``, hours: peak memory and seconds of every component on 70 thousand, 700
  thousand and 7 million images, each in a process of its own as on Kubeflow.
"""

from __future__ import annotations

import argparse
import json
import os
import pathlib
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence

import numpy as np

from components.mnist_example_gen import datasets, idx

_BEAM_ARGS = ["--runner=DirectRunner", "--direct_running_mode=in_memory", "--direct_num_workers=1"]
FOUR = ("ExampleGen", "StatisticsGen", "Transform", "Evaluator")


def load(folder: str, split: str) -> tuple[np.ndarray, np.ndarray]:
    """Images uint8 [n, 784] and labels of a split."""
    prefix = idx.SPLIT_PREFIXES[split]
    paths = [os.path.join(folder, name) for name in os.listdir(folder) if name.startswith(prefix)]
    files = idx.find_split_files(paths, folder)
    assert files.labels is not None
    return (
        np.concatenate(list(idx.read_images(files.images))),
        np.concatenate(list(idx.read_labels(files.labels))),
    )


def tfx_example(folder: str, work: pathlib.Path) -> dict[str, float]:
    """Seconds by component of TFX's own MNIST example."""
    import tensorflow_transform  # noqa: F401: chooses Keras 2, as the example needs
    from tensorflow_model_analysis.proto import config_pb2
    from tfx.components import Evaluator, ImportExampleGen, SchemaGen, StatisticsGen, Transform
    from tfx.components.trainer.component import Trainer
    from tfx.dsl.compiler import compiler
    from tfx.orchestration import metadata, pipeline
    from tfx.proto import trainer_pb2

    from pipeline import local_runner

    write_tfx_input(folder, work / "input")
    module = "tfx.examples.mnist.mnist_utils_native_keras"
    example_gen = ImportExampleGen(input_base=str(work / "input"))
    examples = example_gen.outputs["examples"]
    statistics_gen = StatisticsGen(examples=examples)
    schema = SchemaGen(statistics=statistics_gen.outputs["statistics"], infer_feature_shape=True)
    transform = Transform(
        examples=examples,
        schema=schema.outputs["schema"],
        preprocessing_fn=f"{module}.preprocessing_fn",
    )
    trainer = Trainer(
        run_fn=f"{module}.run_fn",
        examples=transform.outputs["transformed_examples"],
        transform_graph=transform.outputs["transform_graph"],
        schema=schema.outputs["schema"],
        train_args=trainer_pb2.TrainArgs(num_steps=100),
        eval_args=trainer_pb2.EvalArgs(num_steps=10),
    )
    evaluator = Evaluator(
        examples=examples,
        model=trainer.outputs["model"],
        eval_config=config_pb2.EvalConfig(
            model_specs=[config_pb2.ModelSpec(label_key="image_class")],
            slicing_specs=[config_pb2.SlicingSpec()],
            metrics_specs=[
                config_pb2.MetricsSpec(
                    metrics=[config_pb2.MetricConfig(class_name="SparseCategoricalAccuracy")]
                )
            ],
        ),
    )
    ir = compiler.Compiler().compile(
        pipeline.Pipeline(
            pipeline_name="tfx-example",
            pipeline_root=str(work / "pipeline"),
            components=[example_gen, statistics_gen, schema, transform, trainer, evaluator],
            metadata_connection_config=metadata.sqlite_metadata_connection_config(
                str(work / "metadata.sqlite")
            ),
            beam_pipeline_args=_BEAM_ARGS,
        )
    )
    timings = local_runner.launch(ir, "bench")
    return {timing.id: timing.seconds for timing in timings}


def write_tfx_input(folder: str, target: pathlib.Path) -> None:
    """The 70,000 images in the form that TFX's example reads."""
    import pyarrow as pa
    import tensorflow as tf
    from tfx_bsl.coders import example_coder

    target.mkdir(parents=True)
    with tf.io.TFRecordWriter(str(target / "mnist.tfrecord.gz"), "GZIP") as writer:
        for split in idx.SPLIT_PREFIXES:
            images, labels = load(folder, split)
            for start in range(0, len(images), 5_000):
                rows = images[start : start + 5_000].astype(np.float32) / 255 - 0.5
                count = len(rows)
                batch = pa.RecordBatch.from_arrays(
                    [
                        pa.ListArray.from_arrays(
                            np.arange(count + 1, dtype=np.int32) * 784, pa.array(rows.ravel())
                        ),
                        pa.ListArray.from_arrays(
                            np.arange(count + 1, dtype=np.int32),
                            pa.array(labels[start : start + count].astype(np.int64)),
                        ),
                    ],
                    ["image_floats", "image_class"],
                )
                for example in example_coder.RecordBatchToExamples(batch):
                    writer.write(example)


def numpy_fit(folder: str, model_name: str, epochs: int) -> float:
    """Images per second of plain ``model.fit`` on NumPy arrays, median epoch.

    Plain is what the tutorials do: the same layers, Keras's cross-entropy of the
    image itself, Adam.
    """
    import tensorflow as tf

    from trainer.models import build_model, get_model_spec
    from trainer.models.keras_api import keras

    spec = get_model_spec(model_name)
    images, _ = load(folder, "train")
    images = images.reshape(-1, 28, 28).astype(np.float32) / 255
    autoencoder = build_model(model_name)
    model = keras.Sequential(
        [autoencoder.encoder, autoencoder.decoder, keras.layers.Activation("sigmoid")]
    )
    model.compile(keras.optimizers.Adam(spec.training.learning_rate), "binary_crossentropy")
    seconds = []

    class Clock(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            self.started = time.monotonic()

        def on_epoch_end(self, epoch, logs=None):
            seconds.append(time.monotonic() - self.started)

    model.fit(
        images,
        images,
        batch_size=spec.training.batch_size,
        epochs=epochs,
        verbose=0,
        callbacks=[Clock()],
    )
    assert tf.executing_eagerly()
    return len(images) / statistics.median(seconds[1:] or seconds)


def run_cli(folder: str, root: pathlib.Path, *arguments: str) -> tuple[dict, float, float]:
    """Runs ``mnist-ae run``: its result, seconds, and peak memory in MiB."""
    started = time.monotonic()
    process = subprocess.Popen(
        [sys.executable, "-m", "pipeline.cli", "run", "--json", "--root", str(root), *arguments],
        env={**os.environ, "MNIST_DATA_DIR": folder},
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    assert process.stdout is not None
    output = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"mnist-ae run failed in {root}; see its logs folder")
    return json.loads(output), time.monotonic() - started, usage.ru_maxrss / 1024


def trainer_rate(root: pathlib.Path) -> float:
    """Images per second of the last training in ``root``, median epoch."""
    newest = max(
        (root / "pipeline/Trainer/model_run").glob("*/training.json"), key=os.path.getmtime
    )
    training = json.loads(newest.read_text())
    seconds = training["epoch_seconds"]
    batch = training["training"]["batch_size"]
    images = training["training_images"] // batch * batch
    return images / statistics.median(seconds[1:] or seconds)


def shifted(folder: str, target: pathlib.Path, times: int) -> str:
    """A folder with every image of ``folder`` so many times, moved by up to three pixels."""
    target.mkdir()
    rng = np.random.default_rng(0)
    for split, prefix in idx.SPLIT_PREFIXES.items():
        images, labels = load(folder, split)
        images = images.reshape(-1, 28, 28)
        idx.write_idx(str(target / f"{prefix}-{idx.LABELS}"), np.tile(labels, times))
        with open(target / f"{prefix}-{idx.IMAGES}", "wb") as f:
            f.write(idx.header((len(images) * times, 28, 28)))
            for _ in range(times):
                moves = rng.integers(-3, 4, (len(images), 2))
                for image, move in zip(images, moves):
                    f.write(np.roll(image, move, (0, 1)).tobytes())
    return str(target)


def node_by_node(folder: str, root: pathlib.Path, settings: dict) -> dict[str, tuple[float, float]]:
    """Runs every component in a process of its own: seconds and peak memory in MiB by name."""
    from kubeflow import compiler
    from pipeline import config, local_runner

    ir = compiler.make_ir(config.parse(settings), pipeline_root="/nowhere", data_folder="/nowhere")
    found = {}
    for node in ir.nodes:
        name = node.pipeline_node.node_info.id
        started = time.monotonic()
        process = subprocess.Popen(
            [sys.executable, "-m", "kubeflow.node", "--node", name, "--run-id", "scale"]
            + ["--config", json.dumps(settings), "--data-dir", folder]
            + ["--metadata-url", f"sqlite://{root}/metadata.sqlite"]
            + ["--pipeline-root", str(root / "pipeline"), "--push-dir", str(root / "models")],
            stderr=subprocess.PIPE,
        )
        assert process.stderr is not None
        log = process.stderr.read()
        _, status, usage = os.wait4(process.pid, 0)
        if status:
            raise SystemExit(log[-2_000:].decode())
        if not local_runner.is_resolver(ir, name):
            found[name] = time.monotonic() - started, usage.ru_maxrss / 1024
    return found


def scale(folder: str, work: pathlib.Path, sizes: Sequence[int]) -> None:
    """Prints a table of every component's memory and time by number of images."""
    settings = {
        "model": "simple",
        "trainer": {"epochs": 2, "streaming": True},
        "validator": {"latency_budget_ms": 60_000},
        "evaluator": {"max_mse": 1},
    }
    for times in sizes:
        root = work / f"times-{times}"
        data = shifted(folder, work / f"data-{times}", times)
        found = node_by_node(data, root, settings)
        disk = sum(f.stat().st_size for f in root.rglob("*") if f.is_file()) / 1e9
        print(f"{times * 70_000:,} images, {disk:.1f} GB of artifacts:")
        for name, (seconds, peak) in found.items():
            print(f"{name:<18}{peak:>8,.0f} MiB{seconds:>9.1f} s", flush=True)
        shutil.rmtree(root)
        shutil.rmtree(data)


def in_process_of_its_own(what: str, folder: str, *arguments: str) -> dict:
    """Runs a part of this module in a fresh process and returns what it prints."""
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.pipeline", "--part", what, "--data-dir", folder]
        + [f"--argument={a}" for a in arguments],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise SystemExit(done.stderr[-2_000:])
    return json.loads(done.stdout.strip().splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data-dir", default=os.environ.get("MNIST_DATA_DIR"))
    parser.add_argument("--only", choices=["components", "training", "memory", "scale"])
    parser.add_argument("--times", type=int, nargs="+", default=[1, 10, 100], help="of scale")
    parser.add_argument("--part", help=argparse.SUPPRESS)
    parser.add_argument("--argument", action="append", default=[], help=argparse.SUPPRESS)
    args = parser.parse_args()
    folder = datasets.find(datasets.AUTO, args.data_dir or None).folder
    if args.part == "tfx":
        with tempfile.TemporaryDirectory() as work:
            print(json.dumps(tfx_example(folder, pathlib.Path(work))))
        return
    if args.part == "numpy":
        print(json.dumps({"rate": numpy_fit(folder, args.argument[0], int(args.argument[1]))}))
        return
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    with tempfile.TemporaryDirectory() as work:
        if args.only == "scale":
            scale(folder, pathlib.Path(work), args.times)
        else:
            report(folder, pathlib.Path(work), args.only)


def report(folder: str, work: pathlib.Path, only: str | None) -> None:
    """Runs the benchmarks and prints their figures as they come."""
    simple = ("--model", "simple", "--set", "trainer.epochs=10", "--set", "trainer.patience=0")
    result, seconds, peak = run_cli(folder, work / "runs", *simple)
    ours = {c["id"].removeprefix("Mnist"): c["seconds"] for c in result["components"]}
    print(f"mnist-ae run {' '.join(simple)}: {seconds:.1f} s, peak memory {peak:,.0f} MiB")
    if only in (None, "components"):
        theirs = in_process_of_its_own("tfx", folder)
        theirs["ExampleGen"] = theirs.pop("ImportExampleGen")
        print(f"{'component':<16}{'ours':>8}{'TFX example':>14}")
        for name in FOUR:
            print(f"{name:<16}{ours[name]:>7.1f}s{theirs[name]:>13.1f}s")
        total = sum(ours[n] for n in FOUR), sum(theirs[n] for n in FOUR)
        print(
            f"{'together':<16}{total[0]:>7.1f}s{total[1]:>13.1f}s"
            f"   ratio {total[0] / total[1]:.2f} (bar: at most 0.33)"
        )
        _, again, _ = run_cli(folder, work / "runs", *simple)
        print(f"fully cached rerun: {again:.1f} s (bar: at most 25 s)")
    if only in (None, "training"):
        for model, epochs, bar in (("simple", 10, 2.0), ("conv", 3, 1.1)):
            if model != "simple":
                run_cli(
                    folder, work / "runs", "--model", model, "--set", f"trainer.epochs={epochs}"
                )
            rate = trainer_rate(work / "runs")
            plain = in_process_of_its_own("numpy", folder, model, str(epochs))["rate"]
            print(
                f"{model}: {rate:,.0f} images/s in the Trainer, {plain:,.0f} with plain model.fit: "
                f"ratio {rate / plain:.2f} (bar: at least {bar})"
            )
    if only in (None, "memory"):
        big = shifted(folder, work / "tenfold", 10)
        few = ("--model", "simple", "--set", "trainer.epochs=2")
        _, _, peak = run_cli(folder, work / "one", *few)
        _, _, peak_big = run_cli(big, work / "ten", *few)
        print(
            f"peak memory: {peak:,.0f} MiB on one time, {peak_big:,.0f} MiB on ten times the "
            f"images: ratio {peak_big / peak:.2f} (bar: at most 2.5)"
        )


if __name__ == "__main__":
    main()
