"""ServingValidator: TFX's InfraValidator without Docker, and with more to say."""

from __future__ import annotations

from tfx import types
from tfx.dsl.components.base import base_component, executor_spec
from tfx.types import component_spec, standard_artifacts

from components.serving_validator import executor

DEFAULT_LATENCY_BUDGET_MS = 250.0
DEFAULT_NUM_EXAMPLES = 32
DEFAULT_SPLIT = "eval"


class ServingValidatorSpec(component_spec.ComponentSpec):
    """Inputs, output and parameters of :class:`ServingValidator`."""

    PARAMETERS = {  # noqa: RUF012 (TFX reads it off the class)
        executor.MODEL_NAME_KEY: component_spec.ExecutionParameter(type=str),
        executor.LATENCY_BUDGET_KEY: component_spec.ExecutionParameter(type=float),
        executor.NUM_EXAMPLES_KEY: component_spec.ExecutionParameter(type=int),
        executor.SPLIT_KEY: component_spec.ExecutionParameter(type=str),
    }
    INPUTS = {  # noqa: RUF012
        executor.MODEL_KEY: component_spec.ChannelParameter(type=standard_artifacts.Model),
        executor.EXAMPLES_KEY: component_spec.ChannelParameter(type=standard_artifacts.Examples),
    }
    OUTPUTS = {  # noqa: RUF012
        executor.BLESSING_KEY: component_spec.ChannelParameter(
            type=standard_artifacts.InfraBlessing
        ),
    }


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
    EXECUTOR_SPEC = executor_spec.ExecutorClassSpec(executor.Executor)

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
          latency_budget_ms: For one image over gRPC, 95th percentile.
          num_examples: How many examples to call it with.
          split: Where they are taken from.
        """
        super().__init__(
            ServingValidatorSpec(
                **{
                    executor.MODEL_KEY: model,
                    executor.EXAMPLES_KEY: examples,
                    executor.BLESSING_KEY: types.Channel(type=standard_artifacts.InfraBlessing),
                    executor.MODEL_NAME_KEY: model_name,
                    executor.LATENCY_BUDGET_KEY: float(latency_budget_ms),
                    executor.NUM_EXAMPLES_KEY: num_examples,
                    executor.SPLIT_KEY: split,
                }
            )
        )
