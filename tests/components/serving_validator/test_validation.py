"""What the check before the push measures."""

from __future__ import annotations

import pytest

from components.serving_validator import validation


class Machine:
    """Takes ``slow`` seconds for so many answers, then none; its clock is its own."""

    def __init__(self, calls: int, slow: float = 0.004) -> None:
        self.calls, self.slow = calls, slow
        self.asked, self.now, self.slept = 0, 0.0, 0.0

    def __call__(self) -> None:
        self.asked += 1
        if self.asked <= self.calls:
            self.now += self.slow

    def perf_counter(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.slept += seconds

    def latency(self, monkeypatch: pytest.MonkeyPatch, budget_ms: float) -> float:
        monkeypatch.setattr(validation, "time", self)
        return validation.measure_latency(self, budget_ms)


def test_a_machine_that_is_busy_for_a_moment_is_asked_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    machine = Machine(calls=60)
    assert machine.latency(monkeypatch, budget_ms=2.0) < 2.0
    assert machine.asked > 60 and machine.slept > 0


def test_a_machine_that_stays_slow_is_not_asked_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine(calls=1_000)
    assert machine.latency(monkeypatch, budget_ms=2.0) == pytest.approx(4.0)
    assert machine.asked <= 200


def test_what_is_quick_enough_is_measured_once(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine(calls=0)
    assert machine.latency(monkeypatch, budget_ms=50.0) < 50.0
    assert machine.asked <= 50 and machine.slept == 0


def test_samples_need_images() -> None:
    with pytest.raises(validation.ServingError, match="no examples to validate with"):
        validation.TrialExamples.from_examples([])
    with pytest.raises(validation.ServingError, match="no feature 'image' of 784 bytes"):
        validation.TrialExamples.from_examples([b""])
