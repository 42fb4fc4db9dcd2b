"""What the check before the push measures."""

from __future__ import annotations

import time

import pytest

from components.serving_validator import validation


class Machine:
    """Answers in ``slow`` seconds for so many calls, then at once."""

    def __init__(self, calls: int, slow: float = 0.004) -> None:
        self.calls, self.slow, self.asked = calls, slow, 0

    def __call__(self) -> None:
        self.asked += 1
        if self.asked <= self.calls:
            time.sleep(self.slow)


def test_a_machine_that_is_busy_for_a_moment_is_asked_again() -> None:
    machine = Machine(calls=60)
    assert validation.measure_latency(machine, budget_ms=2.0, pause=0) < 2.0
    assert machine.asked > 60


def test_a_machine_that_stays_slow_is_not_asked_for_ever() -> None:
    machine = Machine(calls=1_000)
    assert validation.measure_latency(machine, budget_ms=2.0, pause=0) > 2.0
    assert machine.asked <= 200


def test_what_is_quick_enough_is_measured_once() -> None:
    machine = Machine(calls=0)
    started = time.monotonic()
    assert validation.measure_latency(machine, budget_ms=50.0) < 50.0
    assert machine.asked <= 50 and time.monotonic() - started < 1


def test_samples_need_images() -> None:
    with pytest.raises(validation.ServingError, match="no examples to validate with"):
        validation.TrialExamples.from_examples([])
    with pytest.raises(validation.ServingError, match="no feature 'image' of 784 bytes"):
        validation.TrialExamples.from_examples([b""])
