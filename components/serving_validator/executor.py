"""The work of ServingValidator; the checks are in ``validation``."""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib
import tempfile
from typing import Any

import tensorflow as tf
from absl import logging
from tfx import types
from tfx.dsl.components.base import base_executor
from tfx.types import artifact_utils
from tfx.utils import io_utils, path_utils

from components.serving_validator import validation

MODEL_KEY = "model"
EXAMPLES_KEY = "examples"
BLESSING_KEY = "blessing"
MODEL_NAME_KEY = "model_name"
LATENCY_BUDGET_KEY = "latency_budget_ms"
NUM_EXAMPLES_KEY = "num_examples"
SPLIT_KEY = "split"

# As tfx.components.infra_validator.executor; Pusher looks for the properties.
BLESSED_PROPERTY = "blessed"
HAS_MODEL_PROPERTY = "has_model"
BLESSED_FILE = "INFRA_BLESSED"
NOT_BLESSED_FILE = "INFRA_NOT_BLESSED"
REPORT_FILE = "serving_validation.json"

_WARMUP_BATCH_SIZES = (1, 32)


class Executor(base_executor.BaseExecutor):
    """Validates one model and writes its blessing."""

    def Do(  # noqa: N802 (TFX's name)
        self,
        input_dict: dict[str, list[types.Artifact]],
        output_dict: dict[str, list[types.Artifact]],
        exec_properties: dict[str, Any],
    ) -> None:
        """See :class:`components.serving_validator.component.ServingValidator`.

        Args:
          input_dict: ``model`` and ``examples``.
          output_dict: ``blessing``.
          exec_properties: Model name, latency budget, number of examples, split.

        Raises:
          ServingError: The examples cannot be used; a model that fails is not
            blessed instead.
        """
        self._log_startup(input_dict, output_dict, exec_properties)
        model = artifact_utils.get_single_instance(input_dict[MODEL_KEY])
        blessing = artifact_utils.get_single_instance(output_dict[BLESSING_KEY])
        split_uri = artifact_utils.get_split_uri(
            input_dict[EXAMPLES_KEY], exec_properties[SPLIT_KEY]
        )
        samples = validation.Samples.from_examples(
            _read_examples(split_uri, exec_properties[NUM_EXAMPLES_KEY])
        )
        with tempfile.TemporaryDirectory(prefix="serving_validator_") as folder:
            candidate = str(pathlib.Path(folder) / exec_properties[MODEL_NAME_KEY] / "1")
            io_utils.copy_dir(
                path_utils.serving_model_path(model.uri, path_utils.is_old_model_artifact(model)),
                candidate,
            )
            report = _validate(candidate, samples, exec_properties[LATENCY_BUDGET_KEY])
            if report.passed:
                io_utils.copy_dir(candidate, path_utils.stamped_model_path(blessing.uri))
        _bless(blessing, report)


def _validate(
    candidate: str, samples: validation.Samples, latency_budget_ms: float
) -> validation.Report:
    try:
        validation.write_warmup_requests(candidate, samples, _WARMUP_BATCH_SIZES)
    except validation.ServingError as error:
        return validation.Report(problems=[str(error)])
    return validation.validate(candidate, samples, latency_budget_ms=latency_budget_ms)


def _bless(blessing: types.Artifact, report: validation.Report) -> None:
    io_utils.write_string_file(
        os.path.join(blessing.uri, REPORT_FILE), json.dumps(dataclasses.asdict(report), indent=2)
    )
    if report.passed:
        logging.info(
            "The model passed: %d signatures, %.1f ms for one image, %.1f s in all.",
            len(report.signatures), report.latency_ms or 0.0, report.seconds,
        )  # fmt: skip
        io_utils.write_string_file(os.path.join(blessing.uri, BLESSED_FILE), "")
        blessing.set_int_custom_property(BLESSED_PROPERTY, 1)
        blessing.set_int_custom_property(HAS_MODEL_PROPERTY, 1)
        return
    for problem in report.problems:
        logging.error("The model is not servable: %s", problem)
    io_utils.write_string_file(os.path.join(blessing.uri, NOT_BLESSED_FILE), "")
    blessing.set_int_custom_property(BLESSED_PROPERTY, 0)


def _read_examples(split_uri: str, count: int) -> list[bytes]:
    """The first examples of a split, in file order."""
    files = sorted(
        os.path.join(split_uri, name)
        for name in tf.io.gfile.listdir(split_uri)
        if not name.startswith((".", "_"))
    )
    dataset = tf.data.TFRecordDataset(files, compression_type="GZIP").take(count)
    return [record.numpy() for record in dataset]
