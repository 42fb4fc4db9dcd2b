"""Dynamic batching: who goes with whom, what is refused, and what is right."""

from __future__ import annotations

import pathlib
import threading
import time
from concurrent import futures
from typing import Any

import numpy as np
import pytest

from serving.server.batching import BatchingParameters, BatchScheduler, parse_parameters
from serving.server.servable import Servable
from serving.server.status import Code, StatusError


class FakeSignature:
    """Doubles its input; can be held, and refuses batches with a 13 in them."""

    def __init__(self) -> None:
        self.batches: list[int] = []
        self.entered = threading.Semaphore(0)
        self.gate = threading.Event()
        self.gate.set()

    def run(self, inputs: Any, aliases: Any) -> list[Any]:
        self.entered.release()
        assert self.gate.wait(30)
        time.sleep(0.0005)  # work, without the GIL
        x = inputs["x"]
        self.batches.append(len(x))
        if (x == 13).any():
            raise StatusError(Code.INVALID_ARGUMENT, "unlucky")
        return [x * 2 for _ in aliases]


def rows(*values: float) -> dict[str, Any]:
    return {"x": np.array(values, np.float32)}


def scheduler(signature: Any, **options: Any) -> BatchScheduler:
    return BatchScheduler(signature, BatchingParameters(**{"num_batch_threads": 1, **options}))


def test_what_waits_while_one_runs_goes_together() -> None:
    signature = FakeSignature()
    under_test = scheduler(signature, max_batch_size=4)
    signature.gate.clear()
    with futures.ThreadPoolExecutor(16) as pool:
        first = pool.submit(under_test.run, rows(0), ["y"])
        assert signature.entered.acquire(timeout=30)
        others = [pool.submit(under_test.run, rows(i), ["y"]) for i in range(1, 10)]
        while len(under_test._queue) < 9:
            time.sleep(0.001)
        signature.gate.set()
        for i, future in enumerate([first, *others]):
            [y] = future.result(30)
            assert y.tolist() == [2 * i]
    assert signature.batches == [1, 4, 4, 1]


def test_an_idle_scheduler_runs_a_lone_request_at_once_in_its_own_thread() -> None:
    signature = FakeSignature()
    [y] = scheduler(signature).run(rows(1, 2), ["y"])
    assert y.tolist() == [2, 4]
    assert signature.batches == [2]


def test_the_timeout_gathers_company() -> None:
    signature = FakeSignature()
    under_test = scheduler(signature, max_batch_size=3, batch_timeout_micros=20_000_000)
    with futures.ThreadPoolExecutor(3) as pool:
        done = [pool.submit(under_test.run, rows(i), ["y"]) for i in range(3)]
        assert [future.result(10)[0].tolist() for future in done] == [[0], [2], [4]]
    assert signature.batches == [3]  # full long before the timeout


def test_a_bad_request_costs_the_others_nothing() -> None:
    signature = FakeSignature()
    under_test = scheduler(signature, max_batch_size=3, batch_timeout_micros=20_000_000)
    with futures.ThreadPoolExecutor(3) as pool:
        done = [pool.submit(under_test.run, rows(value), ["y"]) for value in (1, 13, 3)]
        assert done[0].result(10)[0].tolist() == [2]
        assert done[2].result(10)[0].tolist() == [6]
        with pytest.raises(StatusError, match="unlucky"):
            done[1].result(10)


def test_mixed_shapes_are_run_apart(built: pathlib.Path) -> None:
    servable = Servable("m", 1, str(built / "conformance" / "123"))
    under_test = scheduler(
        servable.signatures["serving_default"], max_batch_size=2, batch_timeout_micros=20_000_000
    )
    with futures.ThreadPoolExecutor(2) as pool:
        shapes = ((1, 1), (1, 3))
        done = [
            pool.submit(under_test.run, {"x": np.ones(shape, np.float32)}, ["y"])
            for shape in shapes
        ]
        assert [future.result(10)[0].shape for future in done] == list(shapes)
    servable.retire(lambda: None)


def test_padding_goes_up_to_an_allowed_size_and_never_shows() -> None:
    signature = FakeSignature()
    under_test = scheduler(signature, max_batch_size=8, allowed_batch_sizes=(2, 4, 8))
    [y] = under_test.run(rows(1, 2, 3), ["y"])
    assert y.tolist() == [2, 4, 6]
    [y] = under_test.run(rows(), ["y"])
    assert y.tolist() == []
    assert signature.batches == [4, 0]


def test_what_is_too_large_is_refused_or_run_alone() -> None:
    signature = FakeSignature()
    with pytest.raises(
        StatusError, match="Task size 65 is larger than maximum input batch size 64"
    ):
        scheduler(signature, max_batch_size=64).run(rows(*range(65)), ["y"])
    splitting = scheduler(signature, max_batch_size=4, enable_large_batch_splitting=True)
    assert len(splitting.run(rows(*range(9)), ["y"])[0]) == 9


def test_scalars_and_unequal_rows_are_refused() -> None:
    under_test = scheduler(FakeSignature())
    with pytest.raises(StatusError, match="at least one dimension"):
        under_test.run({"x": np.array(1.0)}, ["y"])
    with pytest.raises(StatusError, match="equal 0th-dimension size"):
        under_test.run({"x": np.zeros(1), "z": np.zeros(2)}, ["y"])


def test_a_full_queue_is_unavailable_and_a_deadline_frees_its_place() -> None:
    signature = FakeSignature()
    under_test = scheduler(signature, max_batch_size=1, max_enqueued_batches=1)
    signature.gate.clear()
    with futures.ThreadPoolExecutor(4) as pool:
        first = pool.submit(under_test.run, rows(1), ["y"])
        assert signature.entered.acquire(timeout=30)
        late = pool.submit(under_test.run, rows(2), ["y"], time.monotonic() + 0.3)
        while not under_test._queue:
            time.sleep(0.001)
        with pytest.raises(
            StatusError, match="queue to which this task was submitted is full"
        ) as e:
            under_test.run(rows(3), ["y"])
        assert e.value.code is Code.UNAVAILABLE
        with pytest.raises(StatusError) as caught:
            late.result(10)
        assert caught.value.code is Code.DEADLINE_EXCEEDED
        waiting = pool.submit(under_test.run, rows(4), ["y"])
        signature.gate.set()
        assert first.result(10)[0].tolist() == [2]
        assert waiting.result(10)[0].tolist() == [8]
    assert signature.batches == [1, 1]


def test_under_load_every_request_gets_its_own_answer() -> None:
    signature = FakeSignature()
    under_test = scheduler(signature, max_batch_size=16, num_batch_threads=2)

    def ask(index: int) -> bool:
        size = 1 + index % 3
        deadline = time.monotonic() + 30
        [y] = under_test.run(rows(*[index % 1000 * 100] * size), ["y"], deadline)
        return y.tolist() == [index % 1000 * 200] * size

    with futures.ThreadPoolExecutor(32) as pool:
        assert all(pool.map(ask, range(5000)))
    assert max(signature.batches) > 3  # it did batch
    assert under_test._slots == 2 and not under_test._queue and under_test._queued_rows == 0


def test_the_parameters_file_is_tensorflow_servings() -> None:
    text = """
      max_batch_size { value: 128 }
      batch_timeout_micros { value: 0 }
      max_enqueued_batches { value: 1000000 }
      num_batch_threads { value: 8 }
      thread_pool_name { value: "pool" }
      allowed_batch_sizes: 64
      allowed_batch_sizes: 128
    """
    assert parse_parameters(text) == BatchingParameters(128, 0, 8, 1_000_000, (64, 128))
    assert parse_parameters("") == BatchingParameters()
    for bad in (
        "max_batch_size: 3",
        "nonsense { value: 1 }",
        "max_batch_size { value: 0 }",
        "max_batch_size { value: 8 } allowed_batch_sizes: 4",
        "pad_variable_length_inputs: true",
    ):
        with pytest.raises(ValueError):
            parse_parameters(bad)


def test_a_batching_server_answers_as_one_without(built: pathlib.Path, start_server: Any) -> None:
    from serving.client import ReconstructionClient

    images = np.random.default_rng(0).integers(0, 256, (40, 28, 28), dtype=np.uint8)
    server = start_server(
        {"autoencoder": built / "autoencoder"}, batching=BatchingParameters(max_batch_size=16)
    )
    with ReconstructionClient(server.address, model="autoencoder", batch_size=16) as client:
        together = client.reconstruct(images)
        with futures.ThreadPoolExecutor(8) as pool:
            apart = list(pool.map(client.reconstruct, images))
        np.testing.assert_allclose(
            np.concatenate([item.images for item in apart]), together.images, rtol=1e-5
        )
