"""What a client sends is kept for retraining: a part of it, up to a size, at no one's cost."""

import os
import pathlib
import threading

import numpy as np
import pytest

from serving import contract, errors, files, protos
from serving.client import ReconstructionClient
from serving.sampling import Sampler


def served(start_server, built, **options):
    return start_server({"autoencoder": built / "autoencoder"}, **options)


def kept(folder):
    files = sorted(pathlib.Path(folder).glob("*.npy"))
    arrays = [np.load(f, allow_pickle=False) for f in files]
    return np.concatenate(arrays) if arrays else np.zeros((0, 28, 28), np.uint8)


def images(count, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, 28, 28), np.uint8)


def in_any_order(rows):
    return rows[np.lexsort(rows.reshape(-1, 784).T)]


def test_every_signature_and_way_of_calling_is_sampled_whole_at_fraction_one(
    start_server, built, tmp_path
):
    server = served(start_server, built, rest_port=0)
    sent = images(17)
    keep = {"sample_dir": str(tmp_path / "samples"), "sample_fraction": 1.0}
    grpc = {"model": "autoencoder", "batch_size": 2, **keep}
    with ReconstructionClient(server.address, **grpc) as client:
        client.reconstruct(sent[:4])
        client.score(sent[4:5])
        assert len(list(client.reconstruct_stream([sent[5:7], sent[7:8]]))) == 2
        examples = np.empty(1, object)
        example = protos.Example()
        example.features.feature[contract.IMAGE_FEATURE].bytes_list.value.append(sent[8].tobytes())
        examples[0] = example.SerializeToString()
        client.call(contract.SERVING_DEFAULT, {contract.EXAMPLES: examples})
    with ReconstructionClient(
        server.rest_address, model="autoencoder", rest=True, **keep
    ) as client:
        client.encode(sent[9:12])
    version = str(built / "autoencoder" / "1")
    with ReconstructionClient.from_folder(version, **keep) as client:
        client.classify(sent[12:])
    np.testing.assert_array_equal(in_any_order(kept(tmp_path / "samples")), in_any_order(sent))


def test_a_request_that_failed_is_not_kept(start_server, built, tmp_path):
    server = served(start_server, built)
    with ReconstructionClient(
        server.address, model="autoencoder", label="none", sample_dir=tmp_path, sample_fraction=1.0
    ) as client:
        for rows in (1, 600):
            with pytest.raises(errors.ModelNotFoundError):
                client.score(images(rows))
    assert list(tmp_path.iterdir()) == []


def test_without_consent_nothing_is_kept(start_server, built, tmp_path):
    server = served(start_server, built)
    for half in ({}, {"sample_dir": str(tmp_path)}, {"sample_fraction": 1.0}):
        with ReconstructionClient(server.address, model="autoencoder", **half) as client:
            client.reconstruct(images(3))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("fraction", [-0.1, 1.1])
def test_a_fraction_that_is_none_is_refused(tmp_path, fraction):
    with pytest.raises(errors.InputError, match="sample_fraction"):
        ReconstructionClient(model="m", sample_dir=str(tmp_path), sample_fraction=fraction)


def test_the_fraction_is_kept(tmp_path):
    sampler = Sampler(tmp_path, 0.25, 2**24)
    for start in range(20):
        sampler.offer("score", {"images": images(200, start)})
    sampler.close()
    assert 800 < len(kept(tmp_path)) < 1_200
    assert sampler.dropped == 0


def test_the_size_is_limited_and_the_folder_stays_readable(tmp_path):
    sampler = Sampler(tmp_path, 1.0, 300_000)
    for start in range(20):
        sampler.offer("score", {"images": images(100, start)})
    sampler.close()
    size = sum(f.stat().st_size for f in tmp_path.iterdir())
    assert 0 < size <= 300_000
    assert sampler.kept == len(kept(tmp_path)) and sampler.kept + sampler.dropped == 2_000


def test_a_disk_that_hangs_delays_no_answer(tmp_path, monkeypatch):
    release = threading.Event()
    monkeypatch.setattr(files.os, "fsync", lambda *arguments: release.wait())
    sampler = Sampler(tmp_path, 1.0)
    for start in range(600):
        sampler.offer("score", {"images": images(10, start % 3)})
    assert sampler.dropped > 0
    release.set()


def test_what_is_no_image_is_left_out(tmp_path):
    sampler = Sampler(tmp_path, 1.0)
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
