"""VerdictGate: a span that is nothing new, or too strange, is not trained on."""

# No postponed annotations here: @component reads them.
from tfx.dsl.component.experimental.annotations import InputArtifact
from tfx.dsl.component.experimental.decorators import component

from components.drift import comparison
from components.drift.component import DriftReportArtifact
from components.errors import SpanStoppedError


@component
def VerdictGate(drift: InputArtifact[DriftReportArtifact]) -> None:  # noqa: N802
    """Ends a run where the span is not to be trained on.

    The local runner stops before this node; elsewhere its failure is what
    people see.

    Raises:
      SpanStoppedError: With the verdict and its reason.
    """
    verdict = drift.get_string_custom_property("verdict")
    if verdict != comparison.TRAIN:
        span = drift.get_int_custom_property("span")
        reason = drift.get_string_custom_property("reason")
        raise SpanStoppedError(f"span {span}: {verdict}: {reason}")
