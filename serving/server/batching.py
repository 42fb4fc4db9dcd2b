"""Dynamic batching: many small requests become one run of the graph.

The parameters are TensorFlow Serving's ``BatchingParameters`` with its
defaults. There are no batch threads of its own: the first request that finds a
free slot becomes the leader, takes what has queued up, runs it and hands the
slot on. So an idle server adds no thread hand-over to a lone request.

Where a graph refuses a mixed batch, the requests are run one by one, so that
one client's bad input costs the others nothing (TensorFlow Serving fails the
whole batch).
"""

from __future__ import annotations

import collections
import dataclasses
import os
import threading
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from serving import protos
from serving.server.servable import Signature
from serving.server.status import Code, StatusError, invalid_argument

Arrays = Mapping[str, np.ndarray[Any, Any]]


@dataclasses.dataclass(frozen=True)
class BatchingParameters:
    """How requests are gathered.

    Attributes:
      max_batch_size: Rows in one run at most.
      batch_timeout_micros: How long the first request of a batch waits for
        company.
      num_batch_threads: Batches of one signature run at the same time; 0
        means one a core.
      max_enqueued_batches: Full batches that may wait; beyond, UNAVAILABLE.
      allowed_batch_sizes: Ascending sizes to pad up to; the last one must
        equal max_batch_size. Empty: no padding.
      enable_large_batch_splitting: Whether a request above max_batch_size is
        run anyway (alone) instead of refused.
    """

    max_batch_size: int = 1000
    batch_timeout_micros: int = 0
    num_batch_threads: int = 0
    max_enqueued_batches: int = 10
    allowed_batch_sizes: tuple[int, ...] = ()
    enable_large_batch_splitting: bool = False

    def __post_init__(self) -> None:
        if self.max_batch_size < 1 or self.max_enqueued_batches < 1:
            raise ValueError("max_batch_size and max_enqueued_batches must be 1 or more")
        if self.batch_timeout_micros < 0 or self.num_batch_threads < 0:
            raise ValueError("batch_timeout_micros and num_batch_threads must not be negative")
        sizes = self.allowed_batch_sizes
        if sizes and (list(sizes) != sorted(set(sizes)) or sizes[0] < 1):
            raise ValueError("allowed_batch_sizes must be positive and ascending")
        if sizes and sizes[-1] != self.max_batch_size:
            raise ValueError("the last of allowed_batch_sizes must equal max_batch_size")


def parse_parameters(text: str) -> BatchingParameters:
    """Reads TensorFlow Serving's batching parameters file, a text proto.

    Args:
      text: Such as ``max_batch_size { value: 128 }``.

    Raises:
      ValueError: Not of that form, or values that make no sense.
    """
    from google.protobuf import text_format

    try:
        proto = text_format.Parse(text, protos.batching_parameters_class()())
    except text_format.ParseError as error:
        raise ValueError(f"not a BatchingParameters text proto: {error}") from None
    if proto.pad_variable_length_inputs:
        raise ValueError("pad_variable_length_inputs is not supported by the embedded server")
    values: dict[str, Any] = {
        field.name: value.value
        for field, value in proto.ListFields()
        if field.message_type is not None and field.name != "thread_pool_name"
    }
    return BatchingParameters(allowed_batch_sizes=tuple(proto.allowed_batch_sizes), **values)


class _Task:
    __slots__ = ("aliases", "done", "error", "inputs", "outputs", "promoted", "rows")

    def __init__(self, inputs: Arrays, aliases: tuple[str, ...], rows: int) -> None:
        self.inputs = inputs
        self.aliases = aliases
        self.rows = rows
        self.outputs: list[np.ndarray[Any, Any]] | None = None
        self.error: Exception | None = None
        self.promoted = False
        # A bare lock is the cheapest event; released exactly once, when the
        # task is done or when it is to lead the next batch.
        self.done = threading.Lock()
        self.done.acquire()


class BatchScheduler:
    """Gathers the requests of one signature of one loaded version.

    Args:
      signature: What to run.
      parameters: How to gather.
    """

    def __init__(self, signature: Signature, parameters: BatchingParameters) -> None:
        self._signature = signature
        self._parameters = parameters
        self._slots = parameters.num_batch_threads or os.cpu_count() or 1
        self._queue: collections.deque[_Task] = collections.deque()
        self._queued_rows = 0
        self._arrived = threading.Condition(threading.Lock())

    def run(
        self, inputs: Arrays, aliases: Sequence[str], deadline: float | None = None
    ) -> list[np.ndarray[Any, Any]]:
        """As :meth:`Signature.run`, in company.

        Args:
          inputs: An array for each input; all with the same first dimension.
          aliases: The outputs to compute.
          deadline: On ``time.monotonic``'s clock; None for no limit.

        Raises:
          StatusError: As the graph, or INVALID_ARGUMENT for a scalar or too
            many rows, UNAVAILABLE when the queue is full, DEADLINE_EXCEEDED.
        """
        rows = _rows(inputs)
        parameters = self._parameters
        if rows > parameters.max_batch_size:
            if not parameters.enable_large_batch_splitting:
                raise invalid_argument(
                    f"Task size {rows} is larger than maximum input batch size "
                    f"{parameters.max_batch_size}"
                )
            return self._signature.run(inputs, aliases)
        task = _Task(inputs, tuple(aliases), rows)
        with self._arrived:
            leading = self._slots > 0
            if leading:
                self._slots -= 1
            else:
                self._enqueue(task)
        if not leading:
            timeout = -1.0 if deadline is None else max(0.0, deadline - time.monotonic())
            if not task.done.acquire(timeout=timeout):
                self._abandon(task)
            leading = task.promoted
        if leading:
            try:
                self._run_batch(self._gather(task), task)
            finally:
                self._hand_over()
        if task.error is not None:
            raise task.error
        assert task.outputs is not None
        return task.outputs

    def _enqueue(self, task: _Task) -> None:
        limit = self._parameters.max_enqueued_batches * self._parameters.max_batch_size
        if self._queued_rows + task.rows > limit:
            raise StatusError(
                Code.UNAVAILABLE,
                "The batch scheduling queue to which this task was submitted is full; "
                f"{self._queued_rows} rows wait and at most {limit} may",
            )
        self._queue.append(task)
        self._queued_rows += task.rows
        self._arrived.notify()

    def _abandon(self, task: _Task) -> None:
        """Takes a task that waited too long out of the queue, if still there."""
        with self._arrived:
            if task in self._queue:
                self._queue.remove(task)
                self._queued_rows -= task.rows
                raise StatusError(Code.DEADLINE_EXCEEDED, "Deadline exceeded in the batch queue")
        task.done.acquire()  # it is being run, or is to lead: either comes now

    def _gather(self, leader: _Task) -> list[_Task]:
        """The leader's task and those of the queue that go with it."""
        parameters = self._parameters
        batch, rows = [leader], leader.rows
        end = time.monotonic() + parameters.batch_timeout_micros / 1e6
        with self._arrived:
            while True:
                while self._queue:
                    first = self._queue[0]
                    if (
                        rows + first.rows > parameters.max_batch_size
                        or first.aliases != leader.aliases
                    ):
                        return batch
                    batch.append(self._queue.popleft())
                    rows += first.rows
                    self._queued_rows -= first.rows
                left = end - time.monotonic()
                if rows >= parameters.max_batch_size or left <= 0:
                    return batch
                self._arrived.wait(left)

    def _hand_over(self) -> None:
        """Makes the longest waiting task the next leader, or frees the slot."""
        with self._arrived:
            if not self._queue:
                self._slots += 1
                return
            successor = self._queue.popleft()
            self._queued_rows -= successor.rows
            successor.promoted = True
        successor.done.release()

    def _run_batch(self, batch: list[_Task], leader: _Task) -> None:
        try:
            self._run_together(batch)
        except Exception as error:
            if len(batch) == 1:
                leader.error = error
            else:
                for task in batch:
                    try:
                        task.outputs = self._signature.run(task.inputs, task.aliases)
                    except Exception as own:
                        task.error = own
        for task in batch:
            if task is not leader:
                task.done.release()

    def _run_together(self, batch: list[_Task]) -> None:
        rows = sum(task.rows for task in batch)
        padding = self._padding(rows)
        if len(batch) == 1 and not padding:
            batch[0].outputs = self._signature.run(batch[0].inputs, batch[0].aliases)
            return
        inputs = {}
        for alias in batch[0].inputs:
            pieces = [task.inputs[alias] for task in batch]
            if padding:
                pieces.append(np.repeat(pieces[0][:1], padding, axis=0))
            inputs[alias] = np.concatenate(pieces)
        outputs = self._signature.run(inputs, batch[0].aliases)
        for output in outputs:
            if output.ndim == 0 or output.shape[0] != rows + padding:
                raise StatusError(
                    Code.FAILED_PRECONDITION,
                    "Batched output tensor's 0th dimension does not equal the sum of the 0th "
                    "dimension sizes of the input tensors",
                )
        start = 0
        for task in batch:
            task.outputs = [output[start : start + task.rows] for output in outputs]
            start += task.rows

    def _padding(self, rows: int) -> int:
        if rows == 0:
            return 0
        for size in self._parameters.allowed_batch_sizes:
            if size >= rows:
                return size - rows
        return 0


def _rows(inputs: Arrays) -> int:
    sizes = set()
    for array in inputs.values():
        if array.ndim == 0:
            raise invalid_argument("Batching input tensors must have at least one dimension")
        sizes.add(array.shape[0])
    if len(sizes) != 1:
        raise invalid_argument("Batching input tensors must have equal 0th-dimension size")
    return int(sizes.pop())
