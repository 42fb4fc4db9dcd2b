"""SpanGate: the component."""

from __future__ import annotations

from typing import ClassVar

from tfx import types
from tfx.dsl.components.base import base_component, executor_spec
from tfx.types import component_spec, standard_artifacts, system_artifacts
from tfx.types.artifact import Artifact, Property, PropertyType

from components.drift.component import DriftReportArtifact
from components.span_gate import executor


class SpanReportArtifact(Artifact):
    """``span.json``: window, warm start, losses before and after, verdict and why.

    The figures that a history lists are custom properties too: ``span``,
    ``version``, ``blessed``, ``harmful``, ``reason``, ``golden_before``,
    ``golden_after``, ``span_before``, ``span_after``, ``window``.
    """

    TYPE_NAME = "SpanReport"
    TYPE_ANNOTATION = system_artifacts.Metrics
    PROPERTIES: ClassVar = {"span": Property(type=PropertyType.INT)}


def _channel(kind: type[Artifact], *, optional: bool = False) -> component_spec.ChannelParameter:
    return component_spec.ChannelParameter(type=kind, optional=optional)


class SpanGateSpec(component_spec.ComponentSpec):
    """Inputs, outputs and parameters of :class:`SpanGate`."""

    PARAMETERS = {  # noqa: RUF012 (TFX reads it off the class)
        executor.MAX_GOLDEN_KEY: component_spec.ExecutionParameter(type=float),
        executor.HARMFUL_KEY: component_spec.ExecutionParameter(type=float),
    }
    INPUTS = {  # noqa: RUF012
        executor.MODEL_KEY: _channel(standard_artifacts.Model),
        executor.MODEL_RUN_KEY: _channel(standard_artifacts.ModelRun),
        executor.DRIFT_KEY: _channel(DriftReportArtifact),
        executor.WINDOW_KEY: _channel(standard_artifacts.Examples),
        executor.GOLDEN_KEY: _channel(standard_artifacts.Examples),
        executor.SPAN_EVALUATION_KEY: _channel(standard_artifacts.ModelEvaluation),
        executor.SPAN_BLESSING_KEY: _channel(standard_artifacts.ModelBlessing),
        executor.GOLDEN_EVALUATION_KEY: _channel(standard_artifacts.ModelEvaluation),
        executor.GOLDEN_BLESSING_KEY: _channel(standard_artifacts.ModelBlessing),
        executor.INFRA_BLESSING_KEY: _channel(standard_artifacts.InfraBlessing),
        executor.BASELINE_KEY: _channel(standard_artifacts.Model, optional=True),
        executor.BASELINE_BLESSING_KEY: _channel(standard_artifacts.ModelBlessing, optional=True),
    }
    OUTPUTS = {  # noqa: RUF012
        executor.BLESSING_KEY: _channel(standard_artifacts.ModelBlessing),
        executor.REPORT_KEY: _channel(SpanReportArtifact),
    }


class SpanGate(base_component.BaseComponent):
    """Blesses a model that every check blesses; else says which did not, and why.

    The ``blessing`` output is the standard ``ModelBlessing``, for a Pusher.
    """

    SPEC_CLASS = SpanGateSpec
    EXECUTOR_SPEC = executor_spec.ExecutorClassSpec(executor.Executor)

    def __init__(
        self, *, max_golden_increase: float, harmful_increase: float, **channels: types.BaseChannel
    ) -> None:
        """Makes the component.

        Args:
          max_golden_increase: How much worse on the golden set than the best
            model so far, relative to it.
          harmful_increase: From which increase on the span is to blame.
          **channels: The inputs; see SpanGateSpec.
        """
        super().__init__(
            SpanGateSpec(
                **{
                    executor.MAX_GOLDEN_KEY: float(max_golden_increase),
                    executor.HARMFUL_KEY: float(harmful_increase),
                    executor.BLESSING_KEY: types.Channel(type=standard_artifacts.ModelBlessing),
                    executor.REPORT_KEY: types.Channel(type=SpanReportArtifact),
                    **channels,
                }
            )
        )
