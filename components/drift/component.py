"""DriftMonitor: how a span differs from the window before it, and what follows."""

# No postponed annotations here: @component reads them.
import json
import logging
import os
from typing import ClassVar

import tensorflow as tf
from tfx.dsl.component.experimental.annotations import InputArtifact, OutputArtifact, Parameter
from tfx.dsl.component.experimental.decorators import component
from tfx.types import standard_artifacts, system_artifacts
from tfx.types.artifact import Artifact, Property, PropertyType
from tfx.utils import io_utils, path_utils

from components.drift import comparison
from components.drift.comparison import Limits

REPORT_FILE = "drift.json"
ANOMALIES_FILE = "anomalies.pbtxt"
STATISTICS_FILE = "{of}_statistics.binpb"

_logger = logging.getLogger(__name__)


class DriftReportArtifact(Artifact):
    """``drift.json``: distances, error quantiles and the verdict on a span.

    Custom properties: ``span``, ``version``, ``verdict`` (``train``, ``skip``
    or ``stop``), ``accepted`` (how often a person let it in), ``reason``,
    ``distance``, ``error_ratio``.
    """

    TYPE_NAME = "DriftReport"
    TYPE_ANNOTATION = system_artifacts.Statistics
    PROPERTIES: ClassVar = {"span": Property(type=PropertyType.INT)}


@component
def DriftMonitor(  # noqa: N802: components are named like classes
    examples: InputArtifact[standard_artifacts.Examples],
    golden: InputArtifact[standard_artifacts.Examples],
    report: OutputArtifact[DriftReportArtifact],
    limits: Parameter[str],
    accepted: Parameter[int],
    reference: InputArtifact[list[standard_artifacts.Examples]] = None,
    model: InputArtifact[standard_artifacts.Model] = None,
) -> None:
    """Compares a span with the window before it and with the golden set.

    ``reference`` is the window, one artifact a span; it and ``model``, the
    serving one, may be missing. ``limits`` is ``Limits.to_json()``. ``accepted``
    is how often a person has let the span in, whatever its drift; once more is
    a verdict of its own.
    """
    if model is not None:
        folder = path_utils.serving_model_path(model.uri, path_utils.is_old_model_artifact(model))
        model = tf.saved_model.load(folder)
    bounds = Limits(**json.loads(limits))
    found, statistics, anomalies = comparison.examine(
        comparison.read_sample([examples]),
        comparison.read_sample(reference or []),
        comparison.read_sample([golden]),
        model,
        bounds,
    )
    verdict, reason = comparison.judge(found, bounds, accepted=bool(accepted))
    _logger.info("drift: %s (%s)", verdict, reason)
    for name, value in statistics.items():
        path = os.path.join(report.uri, STATISTICS_FILE.format(of=name))
        io_utils.write_bytes_file(path, value.SerializeToString())
    io_utils.write_pbtxt_file(os.path.join(report.uri, ANOMALIES_FILE), anomalies)
    io_utils.write_string_file(
        os.path.join(report.uri, REPORT_FILE),
        json.dumps({"verdict": verdict, "reason": reason, **found}, indent=2),
    )
    for name in ("span", "version"):
        if examples.has_custom_property(name):
            report.set_int_custom_property(name, examples.get_int_custom_property(name))
    report.set_string_custom_property("verdict", verdict)
    report.set_string_custom_property("reason", reason)
    report.set_int_custom_property("accepted", accepted)
    report.set_float_custom_property("distance", found["distance"])
    report.set_float_custom_property("error_ratio", found["error_ratio"])
