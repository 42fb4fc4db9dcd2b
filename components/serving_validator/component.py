"""ServingValidator: TFX's InfraValidator without Docker, and with more to say."""

# No postponed annotations here: @component reads them.
import dataclasses
import json
import os
import pathlib
import tempfile

import tensorflow as tf
from absl import logging
from tfx import types
from tfx.dsl.component.experimental.annotations import InputArtifact, OutputArtifact, Parameter
from tfx.dsl.component.experimental.decorators import component
from tfx.types import artifact_utils, standard_artifacts
from tfx.utils import io_utils, path_utils

from components import features
from components.serving_validator import validation

REPORT_FILE = "serving_validation.json"
# Custom property of a refused blessing: what alone it was refused for, where
# another try may end otherwise.
REFUSED_FOR_PROPERTY = "refused_for"

# As tfx.components.infra_validator.executor; Pusher looks for the properties.
_BLESSED_PROPERTY = "blessed"
_HAS_MODEL_PROPERTY = "has_model"
_BLESSED_FILE = "INFRA_BLESSED"
_NOT_BLESSED_FILE = "INFRA_NOT_BLESSED"


@component
def ServingValidator(  # noqa: N802: components are named like classes
    model: InputArtifact[standard_artifacts.Model],
    examples: InputArtifact[standard_artifacts.Examples],
    blessing: OutputArtifact[standard_artifacts.InfraBlessing],
    model_name: Parameter[str],
    latency_budget_ms: Parameter[float],
    num_examples: Parameter[int] = 32,
) -> None:
    """Serves the candidate in a process of its own and calls every signature.

    The ``blessing`` output is the standard ``InfraBlessing``. When the
    candidate passes, it also holds the model with warm-up requests, so that a
    Pusher that is given ``infra_blessing`` and no ``model`` pushes that one.
    ``latency_budget_ms`` is for one image over gRPC, 95th percentile.

    TFX's own InfraValidator has the same channels and can take its place where
    Docker or Kubernetes exist (with ``request_spec.make_warmup``).

    Raises:
      ServingError: The examples cannot be used; a model that fails is not
        blessed instead.
    """
    split_uri = artifact_utils.get_split_uri([examples], features.EVAL_SPLIT)
    files = sorted(tf.io.gfile.glob(os.path.join(split_uri, "*.gz")))
    records = tf.data.TFRecordDataset(files, "GZIP").take(num_examples)
    samples = validation.TrialExamples.from_examples(list(records.as_numpy_iterator()))
    with tempfile.TemporaryDirectory(prefix="serving_validator_") as folder:
        candidate = str(pathlib.Path(folder) / model_name / "1")
        source = path_utils.serving_model_path(model.uri, path_utils.is_old_model_artifact(model))
        io_utils.copy_dir(source, candidate)
        report = validation.validate(candidate, samples, latency_budget_ms=latency_budget_ms)
        if report.passed:
            io_utils.copy_dir(candidate, path_utils.stamped_model_path(blessing.uri))
    _bless(blessing, report)


def _bless(blessing: types.Artifact, report: validation.Report) -> None:
    io_utils.write_string_file(
        os.path.join(blessing.uri, REPORT_FILE), json.dumps(dataclasses.asdict(report), indent=2)
    )
    blessing.set_int_custom_property(_BLESSED_PROPERTY, int(report.passed))
    file = _BLESSED_FILE if report.passed else _NOT_BLESSED_FILE
    io_utils.write_string_file(os.path.join(blessing.uri, file), "")
    if report.passed:
        blessing.set_int_custom_property(_HAS_MODEL_PROPERTY, 1)
        found = f"{len(report.signatures)} signatures, {report.latency_ms:.1f} ms for one image"
        logging.info("The model passed: %s, %.1f s in all.", found, report.seconds)
    if report.refused_for:
        blessing.set_string_custom_property(REFUSED_FOR_PROPERTY, report.refused_for)
    for problem in report.problems:
        logging.error("The model is not servable: %s", problem)
