"""Requests are kept for retraining: a part of them, up to a size, at no one's cost."""

import os
import pathlib
import threading
import time

import numpy as np

from serving.client import ReconstructionClient
from serving.server import sampling


def served(start_server, built, **options):
    return start_server({"autoencoder": built / "autoencoder"}, **options)


def kept(folder):
    files = sorted(pathlib.Path(folder).glob("*.npy"))
    arrays = [np.load(f, allow_pickle=False) for f in files]
    return np.concatenate(arrays) if arrays else np.zeros((0, 28, 28), np.uint8)


def options(folder, rate=1.0, max_bytes=2**20):
    return sampling.SamplingOptions(str(folder), rate, max_bytes)


def images(count, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, 28, 28), np.uint8)


def test_every_signature_and_protocol_is_sampled_whole_at_rate_one(start_server, built, tmp_path):
    server = served(start_server, built, sampling=options(tmp_path / "samples"), rest_port=0)
    sent = images(9)
    with ReconstructionClient(server.address, model="autoencoder") as client:
        client.reconstruct(sent[:4])
        client.score(sent[4:6])
    with ReconstructionClient(server.rest_address, model="autoencoder", rest=True) as client:
        client.encode(sent[6:9])
    server.stop()
    found = kept(tmp_path / "samples")
    order = np.lexsort(found.reshape(-1, 784).T), np.lexsort(sent.reshape(-1, 784).T)
    np.testing.assert_array_equal(found[order[0]], sent[order[1]])


def test_without_consent_nothing_is_kept(start_server, built, tmp_path):
    server = served(start_server, built)
    with ReconstructionClient(server.address, model="autoencoder") as client:
        client.reconstruct(images(3))
    server.stop()
    assert server.sampler is None
    assert list(tmp_path.iterdir()) == []


def test_the_rate_is_kept(tmp_path):
    sampler = sampling.Sampler(options(tmp_path, rate=0.25, max_bytes=2**24))
    for start in range(20):
        sampler.offer("score", {"images": images(200, start)})
    sampler.close()
    assert 800 < len(kept(tmp_path)) < 1_200
    assert sampler.dropped == 0


def test_the_size_is_limited_and_the_folder_stays_readable(tmp_path):
    sampler = sampling.Sampler(options(tmp_path, max_bytes=300_000))
    for start in range(20):
        sampler.offer("score", {"images": images(100, start)})
    sampler.close()
    size = sum(f.stat().st_size for f in tmp_path.iterdir())
    assert 0 < size <= 300_000
    assert sampler.kept == len(kept(tmp_path)) and sampler.kept + sampler.dropped == 2_000


def test_a_disk_that_hangs_delays_no_answer(tmp_path, monkeypatch):
    release = threading.Event()
    monkeypatch.setattr(sampling.np, "save", lambda *arguments: release.wait(30))
    sampler = sampling.Sampler(options(tmp_path))
    started = time.monotonic()
    for start in range(600):
        sampler.offer("score", {"images": images(10, start % 3)})
    assert time.monotonic() - started < 1
    assert sampler.dropped > 0
    release.set()


def test_what_is_no_image_is_left_out(tmp_path):
    sampler = sampling.Sampler(options(tmp_path))
    rows = np.empty(2, object)
    rows[:] = [b"no example", b""]
    sampler.offer("serving_default", {"examples": rows})
    sampler.offer("score", {"images": np.zeros((2, 5, 5), np.uint8)})
    sampler.offer("decode", {"code": np.zeros((2, 5), np.float32)})
    sampler.offer("evaluate", {"examples": rows})
    sampler.close()
    assert os.listdir(tmp_path) == []


def test_errors_are_counted_by_version(start_server, built):
    server = served(start_server, built)
    with ReconstructionClient(server.address, model="autoencoder") as client:
        client.score(images(7))
    text = server.metrics.render()
    assert 'version_reconstruction_error_count{model_name="autoencoder",version="1"} 7' in text
    assert ':reconstruction_error_count{model_name="autoencoder"} 7' in text
