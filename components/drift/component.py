"""DriftMonitor: the component."""

from __future__ import annotations

from typing import Any, ClassVar

from tfx import types
from tfx.dsl.components.base import base_component, executor_spec
from tfx.types import component_spec, standard_artifacts, system_artifacts
from tfx.types.artifact import Artifact, Property, PropertyType

from components.drift import executor


class DriftReportArtifact(Artifact):
    """``drift.json``: distances, error quantiles and the verdict on a span.

    Custom properties: ``span``, ``version``, ``verdict`` (``train``, ``skip``
    or ``stop``), ``accepted`` (how often a person let it in), ``reason``,
    ``distance``, ``error_ratio``.
    """

    TYPE_NAME = "DriftReport"
    TYPE_ANNOTATION = system_artifacts.Statistics
    PROPERTIES: ClassVar = {"span": Property(type=PropertyType.INT)}


class DriftMonitorSpec(component_spec.ComponentSpec):
    """Inputs, output and parameters of :class:`DriftMonitor`."""

    PARAMETERS = {  # noqa: RUF012 (TFX reads it off the class)
        executor.LIMITS_KEY: component_spec.ExecutionParameter(type=str),
        executor.ACCEPTED_KEY: component_spec.ExecutionParameter(type=int),
    }
    INPUTS = {  # noqa: RUF012
        executor.EXAMPLES_KEY: component_spec.ChannelParameter(type=standard_artifacts.Examples),
        executor.GOLDEN_KEY: component_spec.ChannelParameter(type=standard_artifacts.Examples),
        executor.REFERENCE_KEY: component_spec.ChannelParameter(
            type=standard_artifacts.Examples, optional=True
        ),
        executor.MODEL_KEY: component_spec.ChannelParameter(
            type=standard_artifacts.Model, optional=True
        ),
    }
    OUTPUTS = {  # noqa: RUF012
        executor.REPORT_KEY: component_spec.ChannelParameter(type=DriftReportArtifact),
    }


class DriftMonitor(base_component.BaseComponent):
    """Compares a span with the window before it and with the golden set."""

    SPEC_CLASS = DriftMonitorSpec
    EXECUTOR_SPEC = executor_spec.ExecutorClassSpec(executor.Executor)

    def __init__(
        self,
        examples: types.BaseChannel,
        golden: types.BaseChannel,
        *,
        reference: types.BaseChannel | None = None,
        model: types.BaseChannel | None = None,
        limits: dict[str, Any],
        accepted: int = 0,
    ) -> None:
        """Makes the component.

        Args:
          examples: Of the span.
          golden: Examples of the golden set.
          reference: Examples of the window, one artifact a span, perhaps none.
          model: The serving model, perhaps none.
          limits: Fields of ``executor.Limits``.
          accepted: How often a person has let the span in, whatever its drift;
            once more is a verdict of its own.
        """
        super().__init__(
            DriftMonitorSpec(
                **{
                    executor.EXAMPLES_KEY: examples,
                    executor.GOLDEN_KEY: golden,
                    executor.REFERENCE_KEY: reference,
                    executor.MODEL_KEY: model,
                    executor.LIMITS_KEY: executor.Limits(**limits).to_json(),
                    executor.ACCEPTED_KEY: accepted,
                    executor.REPORT_KEY: types.Channel(type=DriftReportArtifact),
                }
            )
        )
