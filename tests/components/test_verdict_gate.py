"""VerdictGate: what is not to be trained on ends the run."""

import pytest

from components.drift.component import DriftReportArtifact
from components.errors import SpanStoppedError
from components.verdict_gate import VerdictGate


def report(verdict):
    artifact = DriftReportArtifact()
    artifact.set_int_custom_property("span", 4)
    artifact.set_string_custom_property("verdict", verdict)
    artifact.set_string_custom_property("reason", "ink is at a distance of 0.90")
    return artifact


def test_a_span_to_be_trained_on_passes():
    VerdictGate.test_call(drift=report("train"))


@pytest.mark.parametrize("verdict", ["skip", "stop"])
def test_another_one_ends_the_run_with_its_reason(verdict):
    with pytest.raises(SpanStoppedError) as error:
        VerdictGate.test_call(drift=report(verdict))
    assert str(error.value) == f"span 4: {verdict}: ink is at a distance of 0.90"
    assert error.value.exit_code == 2
