"""ServingValidator: TFX's InfraValidator without Docker, and with more to say."""

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
from tfx.dsl.components.base import base_component, base_executor, executor_spec
from tfx.types import artifact_utils, component_spec, standard_artifacts
from tfx.types.component_spec import ChannelParameter, ExecutionParameter
from tfx.utils import io_utils, path_utils

from components.serving_validator import validation

DEFAULT_LATENCY_BUDGET_MS = 250.0
DEFAULT_NUM_EXAMPLES = 32
DEFAULT_SPLIT = "eval"

REPORT_FILE = "serving_validation.json"
# Custom property of a refused blessing: what alone it was refused for, where
# another try may end otherwise.
REFUSED_FOR_PROPERTY = "refused_for"

# As tfx.components.infra_validator.executor; Pusher looks for the properties.
_BLESSED_PROPERTY = "blessed"
_HAS_MODEL_PROPERTY = "has_model"
_BLESSED_FILE = "INFRA_BLESSED"
_NOT_BLESSED_FILE = "INFRA_NOT_BLESSED"

_WARMUP_BATCH_SIZES = (1, 32)


class ServingValidatorSpec(component_spec.ComponentSpec):
    """Inputs, output and parameters of :class:`ServingValidator`."""

    PARAMETERS = {  # noqa: RUF012 (TFX reads it off the class)
        "model_name": ExecutionParameter(type=str),
        "latency_budget_ms": ExecutionParameter(type=float),
        "num_examples": ExecutionParameter(type=int),
        "split": ExecutionParameter(type=str),
    }
    INPUTS = {  # noqa: RUF012
        "model": ChannelParameter(type=standard_artifacts.Model),
        "examples": ChannelParameter(type=standard_artifacts.Examples),
    }
    OUTPUTS = {  # noqa: RUF012
        "blessing": ChannelParameter(type=standard_artifacts.InfraBlessing),
    }


class ServingValidatorExecutor(base_executor.BaseExecutor):
    """Validates one model and writes its blessing."""

    def Do(  # noqa: N802 (TFX's name)
        self,
        input_dict: dict[str, list[types.Artifact]],
        output_dict: dict[str, list[types.Artifact]],
        exec_properties: dict[str, Any],
    ) -> None:
        """Serves, calls and judges the model; the checks are in ``validation``.

        Raises:
          ServingError: The examples cannot be used; a model that fails is not
            blessed instead.
        """
        self._log_startup(input_dict, output_dict, exec_properties)
        model = artifact_utils.get_single_instance(input_dict["model"])
        blessing = artifact_utils.get_single_instance(output_dict["blessing"])
        split_uri = artifact_utils.get_split_uri(input_dict["examples"], exec_properties["split"])
        samples = validation.TrialExamples.from_examples(
            _read_examples(split_uri, exec_properties["num_examples"])
        )
        with tempfile.TemporaryDirectory(prefix="serving_validator_") as folder:
            candidate = str(pathlib.Path(folder) / exec_properties["model_name"] / "1")
            io_utils.copy_dir(
                path_utils.serving_model_path(model.uri, path_utils.is_old_model_artifact(model)),
                candidate,
            )
            report = _validate(candidate, samples, exec_properties["latency_budget_ms"])
            if report.passed:
                io_utils.copy_dir(candidate, path_utils.stamped_model_path(blessing.uri))
        _bless(blessing, report)


class ServingValidator(base_component.BaseComponent):
    """Serves the candidate in a process of its own and calls every signature.

    The ``blessing`` output is the standard ``InfraBlessing``. When the
    candidate passes, it also holds the model with warm-up requests, so that a
    Pusher that is given ``infra_blessing`` and no ``model`` pushes that one::

        validator = ServingValidator(
            model=trainer.outputs["model"], examples=example_gen.outputs["examples"]
        )
        Pusher(infra_blessing=validator.outputs["blessing"], push_destination=...)

    TFX's own InfraValidator has the same channels and can take its place where
    Docker or Kubernetes exist (with ``request_spec.make_warmup``).
    """

    SPEC_CLASS = ServingValidatorSpec
    EXECUTOR_SPEC = executor_spec.ExecutorClassSpec(ServingValidatorExecutor)

    def __init__(
        self,
        model: types.BaseChannel,
        examples: types.BaseChannel,
        *,
        model_name: str = "candidate",
        latency_budget_ms: float = DEFAULT_LATENCY_BUDGET_MS,
        num_examples: int = DEFAULT_NUM_EXAMPLES,
        split: str = DEFAULT_SPLIT,
    ) -> None:
        """Makes the component.

        Args:
          model: ``Model`` of the Trainer.
          examples: ``Examples`` with the feature ``image`` (784 raw bytes).
          model_name: The name it will be served under.
          latency_budget_ms: Milliseconds for one image over gRPC, 95th percentile.
          num_examples: How many examples to call it with.
          split: The split that they are taken from.
        """
        super().__init__(
            ServingValidatorSpec(
                model=model,
                examples=examples,
                blessing=types.Channel(type=standard_artifacts.InfraBlessing),
                model_name=model_name,
                latency_budget_ms=float(latency_budget_ms),
                num_examples=num_examples,
                split=split,
            )
        )


def _validate(
    candidate: str, samples: validation.TrialExamples, latency_budget_ms: float
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


def _read_examples(split_uri: str, count: int) -> list[bytes]:
    """The first examples of a split, in file order."""
    files = sorted(
        os.path.join(split_uri, name)
        for name in tf.io.gfile.listdir(split_uri)
        if not name.startswith((".", "_"))
    )
    dataset = tf.data.TFRecordDataset(files, compression_type="GZIP").take(count)
    return [record.numpy() for record in dataset]
