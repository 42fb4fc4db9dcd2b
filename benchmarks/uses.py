"""Benchmarks of what a trained model is used for: ``make bench-uses``.

* images per second of ``mnist-ae infer`` on ten times the images, beside those
  of the model alone on arrays in memory, and its peak memory on one and ten
  times the images;
* what the page and the index add to a run on full MNIST;
* precision@10 of image search beside that of PCA;
* bits a pixel and quality of codes as ``mnist-ae compress`` stores them, beside
  JPEG and WebP at quality 30.
"""

from __future__ import annotations

import argparse
import json
import os
import pathlib
import sys
import tempfile
import time

from benchmarks.pipeline import shifted
from components.mnist_example_gen import datasets

_RAW = """
import json, sys, time
import numpy as np
from benchmarks.pipeline import load
from serving.uses import shards
images = load(sys.argv[1], "train")[0].reshape(-1, 28, 28)
predict = shards.Predictor(sys.argv[2], ("code", "reconstruction_error", "is_anomaly"))
predict(images[:1024])
seconds = []
for _ in range(3):
    started = time.monotonic()
    for start in range(0, len(images), shards.BATCH):
        predict(images[start : start + shards.BATCH])
    seconds.append(time.monotonic() - started)
print(json.dumps(len(images) / min(seconds)))
"""

_CODECS = """
import dataclasses, json, pathlib, sys, tempfile
from benchmarks.pipeline import load
from serving.client import ReconstructionClient
from serving.uses import codecs, compress
images = load(sys.argv[1], "eval")[0].reshape(-1, 28, 28)
found = [codecs.of_pictures(images, form, 30) for form in ("JPEG", "WEBP")]
with ReconstructionClient.from_folder(sys.argv[2]) as client, tempfile.TemporaryDirectory() as work:
    for bits in (8, 6, 5, 4):
        stored = compress.compress(
            client, images, bits=bits, servable="model", version=1, digest="0" * 16
        )
        size = compress.save(pathlib.Path(work, "codes.npz"), stored)
        shown = compress.decompress(client, stored)
        found.append(codecs.figures(f"{bits} bits a float", size, images, shown))
print(json.dumps([dataclasses.asdict(figures) for figures in found]))
"""


def run(*command: str) -> tuple[str, float, float]:
    """What a command printed, its seconds and its peak memory in MiB."""
    import resource
    import subprocess

    started = time.monotonic()
    with subprocess.Popen(
        [sys.executable, *command], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        out, err = process.communicate()
    if process.returncode:
        raise SystemExit(err[-2_000:])
    seconds = time.monotonic() - started
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024
    return out, seconds, peak


def infer(root: str, model: str, source: str, target: pathlib.Path) -> tuple[dict, float]:
    """What ``mnist-ae infer`` says of itself, and its peak memory in MiB."""
    command = ["-m", "pipeline.cli", "infer", "--root", root, "--model", model, "--json"]
    # The peak is that of all children so far: a process of its own for each.
    script = (
        "import benchmarks.uses as u, json, sys; out, _, peak = u.run(*sys.argv[1:]);"
        "print(json.dumps([json.loads(out), peak]))"
    )
    out, _, _ = run("-c", script, *command, "--input", source, "--output", str(target))
    result, peak = json.loads(out)
    return result, peak


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data-dir", default=os.environ.get("MNIST_DATA_DIR"))
    parser.add_argument("--root", help="with trained models; default: a new one")
    parser.add_argument("--models", default="simple,best", help="comma-separated")
    args = parser.parse_args()
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    folder = datasets.find(datasets.AUTO, args.data_dir or None).folder
    with tempfile.TemporaryDirectory() as work:
        root = args.root or os.path.join(work, "runs")
        for model in args.models.split(","):
            report(folder, root, model, pathlib.Path(work))


def report(folder: str, root: str, model: str, work: pathlib.Path) -> None:
    """Prints the figures of one model."""
    command = ["-m", "pipeline.cli", "run", "--root", root, "--data-dir", folder]
    result = json.loads(run(*command, "--model", model, "--json")[0])
    seconds = {c["id"]: c["seconds"] for c in result["components"] if not c["cached"]}
    if {"ImageIndex", "RunReport"} <= set(seconds):
        added = seconds["ImageIndex"] + seconds["RunReport"]
        print(
            f"{model}: index {seconds['ImageIndex']:.1f} s, report {seconds['RunReport']:.1f} s, "
            f"together {added:.1f} s (bar: at most 20 s)"
        )
    search = result["metrics"]["search"]
    print(
        f"{model}: precision@10 {search['precision_at_10']:.4f}, "
        f"PCA {search['pca']['precision_at_10']:.4f} (bar: at least PCA's)"
    )
    for codec in json.loads(run("-c", _CODECS, folder, result["pushed_path"])[0]):
        print(
            f"{model}: {codec['codec']}: {codec['bits_per_pixel']:.3f} bits/pixel, "
            f"PSNR {codec['psnr']:.2f} dB, SSIM {codec['ssim']:.4f}"
        )
    raw = json.loads(run("-c", _RAW, folder, result["pushed_path"])[0])
    big = work / "tenfold"
    source = str(big) if big.exists() else shifted(folder, big, 10)
    _, small_peak = infer(root, model, folder, work / f"{model}-one")
    done, peak = infer(root, model, source, work / f"{model}-ten")
    rate = done["images"] / done["seconds"]
    print(
        f"{model}: infer {rate:,.0f} images/s on {done['images']:,}, the model alone {raw:,.0f}: "
        f"ratio {rate / raw:.2f} (bar: at least 0.5)"
    )
    print(f"{model}: peak memory {small_peak:,.0f} MiB on one time, {peak:,.0f} MiB on ten times")


if __name__ == "__main__":
    main()
