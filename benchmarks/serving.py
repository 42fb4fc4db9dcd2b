"""How fast a server and the client are, as ratios to raw Python calls.

    python benchmarks/serving.py                      # embedded server, tiny model
    python benchmarks/serving.py --model FOLDER       # a pushed model
    python benchmarks/serving.py --target HOST:PORT --model FOLDER   # any server of it

The yardstick is a Python loop over the loaded signature ``reconstruct``
(``tf.saved_model.load``), NumPy in and NumPy out. Client and server share the
machine's cores with nothing else, one after the other, in rounds; the ratios
are medians over rounds, since absolute figures swing on a shared machine.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import os
import pathlib
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator

import numpy as np

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

from serving import contract, locate
from serving.client import ReconstructionClient
from serving.grpc_transport import GrpcTransport
from serving.transport import Address

# (name, images in a request, client threads, least ratio wanted)
_CASES = (
    ("one image, 1 client", 1, 1, None),
    ("one image, 8 clients", 1, 8, None),
    ("64 images, 1 client", 64, 1, None),
    ("64 images, 8 clients", 64, 8, 0.35),
)
_CLIENT_LEAST = 0.6


class Rate:
    """Calls a second and the time of each call."""

    def __init__(self, call: Callable[[], object], threads: int, seconds: float) -> None:
        times: list[list[float]] = [[] for _ in range(threads)]
        failures: list[BaseException] = []
        begin = threading.Barrier(threads + 1)
        end = 0.0

        def work(mine: list[float]) -> None:
            begin.wait()
            clock = time.perf_counter
            try:
                now = clock()
                while now < end:
                    call()
                    after = clock()
                    mine.append(after - now)
                    now = after
            except BaseException as error:
                failures.append(error)

        workers = [threading.Thread(target=work, args=(mine,)) for mine in times]
        for worker in workers:
            worker.start()
        started = time.perf_counter()
        end = started + seconds
        begin.wait()
        for worker in workers:
            worker.join()
        elapsed = time.perf_counter() - started
        if failures:
            raise failures[0]
        self.latencies = [item for mine in times for item in mine]
        self.per_second = len(self.latencies) / elapsed


def raw_signature(path: str) -> Callable[[np.ndarray], object]:
    import tensorflow as tf

    loaded = tf.saved_model.load(path)
    signature = loaded.signatures[contract.RECONSTRUCT]

    def call(images: np.ndarray) -> object:
        # `loaded` must live: the signature holds its variables only weakly.
        assert loaded is not None
        outputs = signature(images=tf.constant(images))
        return {alias: value.numpy() for alias, value in outputs.items()}

    return call


@contextlib.contextmanager
def embedded(folder: str) -> Iterator[str]:
    """The embedded server as a process of its own; yields ``host:port``."""
    process = subprocess.Popen(
        [sys.executable, "-m", "serving", folder, "--backend", "embedded"],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        cwd=pathlib.Path(__file__).resolve().parents[1],
    )
    assert process.stdout is not None
    try:
        target = ""
        for line in process.stdout:
            words = line.split()
            if words[:1] == ["gRPC"]:
                target = words[1]
            if words == ["ready"]:
                break
        if not target:
            raise SystemExit("the embedded server did not start")
        yield target
    finally:
        process.terminate()
        process.wait()


def percentiles(rates: list[Rate]) -> str:
    latencies = np.concatenate([rate.latencies for rate in rates]) * 1e3
    p50, p95, p99 = np.percentile(latencies, [50, 95, 99])
    return f"p50 {p50:6.2f}  p95 {p95:6.2f}  p99 {p99:6.2f} ms"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", help="a pushed model or a folder; default: a tiny 784-32-784")
    parser.add_argument("--root", help="where pushed models are")
    parser.add_argument("--target", help="measure this server instead of the embedded one")
    parser.add_argument("--name", help="the model's name there; default: the folder's")
    parser.add_argument("--seconds", type=float, default=0.3, help="for each figure and round")
    parser.add_argument("--rounds", type=int, default=15)
    args = parser.parse_args()
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    with contextlib.ExitStack() as stack:
        if args.model:
            root = locate.root_folder(args.root, os.environ)
            folder = locate.find(args.model, root)
        else:
            from tests.serving import models

            scratch = pathlib.Path(stack.enter_context(tempfile.TemporaryDirectory()))
            models.write_autoencoder(scratch / "tiny", 1)
            folder = locate.find(str(scratch / "tiny"), scratch)
        return measure(args, folder, stack)


def measure(
    args: argparse.Namespace, folder: locate.ModelFolder, stack: contextlib.ExitStack
) -> int:
    raw = raw_signature(str(folder.version_path(folder.latest)))
    name = args.name or folder.name
    target = args.target or stack.enter_context(embedded(str(folder.path)))
    transport = GrpcTransport(Address(target, name, timeout=30.0))
    client = ReconstructionClient(target, model=name, timeout=30.0)
    random = np.random.default_rng(0)
    images = {size: random.integers(0, 256, (size, 28, 28), dtype=np.uint8) for size in (1, 64)}
    requests = {
        size: transport.request(contract.RECONSTRUCT, {contract.IMAGES: batch}, ())
        for size, batch in images.items()
    }
    print(f"{folder.name}, {os.cpu_count()} cores, {args.rounds} rounds of {args.seconds:g} s")
    ok = True
    for title, size, threads, least in _CASES:
        raws, served = [], []
        for _ in range(args.rounds):
            raws.append(Rate(functools.partial(raw, images[size]), threads, args.seconds))
            answer = functools.partial(transport.predict_serialised, requests[size])
            served.append(Rate(answer, threads, args.seconds))
        ok &= show(f"server: {title}", served, raws, "raw", least)
    for threads in (1, 8):
        plain, full = [], []
        for _ in range(args.rounds):
            answer = functools.partial(transport.predict_serialised, requests[64])
            plain.append(Rate(answer, threads, args.seconds))
            full.append(
                Rate(functools.partial(client.reconstruct, images[64]), threads, args.seconds)
            )
        title = f"client: 64 images, {threads} thread{'s' if threads > 1 else ''}"
        ok &= show(title, full, plain, "serialised beforehand", _CLIENT_LEAST)
    return 0 if ok else 1


def show(title: str, ours: list[Rate], base: list[Rate], what: str, least: float | None) -> bool:
    ratios = [a.per_second / b.per_second for a, b in zip(ours, base, strict=True)]
    ratio = float(np.median(ratios))
    rate = float(np.median([item.per_second for item in ours]))
    other = float(np.median([item.per_second for item in base]))
    fine = least is None or ratio >= least
    verdict = "" if least is None else f"  {'ok' if fine else 'TOO SLOW'} (at least {least:g})"
    print(f"{title}")
    print(
        f"  ratio {ratio:.2f} ({min(ratios):.2f}-{max(ratios):.2f}) of {what}{verdict}\n"
        f"  {rate:.0f}/s against {other:.0f}/s   {percentiles(ours)}"
    )
    return fine


if __name__ == "__main__":
    sys.exit(main())
