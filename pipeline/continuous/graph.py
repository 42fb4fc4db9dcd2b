"""The nodes of a continuous run: one span in, perhaps a better model out."""

from __future__ import annotations

import dataclasses
import json
import os
from typing import Any

from tfx.components.evaluator.component import Evaluator
from tfx.components.schema_gen.import_schema_gen.component import ImportSchemaGen
from tfx.components.trainer.component import Trainer
from tfx.components.transform.component import Transform
from tfx.proto import pusher_pb2

from components import baseline, evaluation, features, window
from components.drift import executor as drift_executor
from components.drift.component import DriftMonitor
from components.image_index.component import ImageIndex
from components.mnist_example_gen.component import MnistExampleGen
from components.pca_reference import PcaReference
from components.pusher import AtomicPusher
from components.report.component import RunReport
from components.serving_validator.component import ServingValidator
from components.span_gate.component import SpanGate
from components.verdict_gate import VerdictGate
from pipeline import pipeline
from pipeline.config import PipelineConfig
from pipeline.continuous import spans

SPAN_GEN = "MnistExampleGen"
GOLDEN_GEN = "GoldenExampleGen"
DRIFT = "DriftMonitor"


@dataclasses.dataclass(frozen=True)
class SpanRun:
    """What a continuous run is about.

    Attributes:
      span: Number of the span; None is the newest there is when it is ingested.
      version: Its version.
      golden_folder: Where the golden set's IDX files are.
      golden_labelled: Whether it has labels.
      accepted: How often a person has let the span in.
      cold: Whether to train afresh.
    """

    span: int | None
    version: int
    golden_folder: str
    golden_labelled: bool = True
    accepted: int = 0
    cold: bool = False

    @property
    def key(self) -> str:
        """``N.V``, or ``window.LATEST``."""
        return window.LATEST if self.span is None else f"{self.span}.{self.version}"


def span_nodes(
    config: PipelineConfig,
    run: SpanRun,
    *,
    spans_folder: str,
    labelled: bool,
    pattern: str = spans.PATTERN,
) -> list[Any]:
    """Wires the nodes of a continuous run, in topological order.

    The span is ingested and judged; where it was let in, the window that it is
    now part of is trained on, from the serving model, and the result is
    compared with that on the newest span and on the golden set.

    Args:
      config: What to run.
      run: The span.
      spans_folder: The folder of the spans.
      labelled: Whether the span has labels.
      pattern: Folder of a span, and perhaps of its version, below that.
    """
    own = config.continuous
    keep = config.data.kept()
    example_gen = MnistExampleGen(
        input_base=spans_folder,
        pattern=pattern,
        keep_labels=keep,
        range_config=pipeline.only_span(run.span),
    ).with_id(SPAN_GEN)
    golden_gen = MnistExampleGen(
        input_base=run.golden_folder, keep_labels=keep, splits=(features.EVAL_SPLIT,)
    ).with_id(GOLDEN_GEN)
    schema = ImportSchemaGen(schema_file=str(features.SCHEMA_FILE))
    code = pipeline.code_digest()
    pipeline.stamp(example_gen.outputs["examples"], code=code, **{window.ROLE: window.ROLE_SPAN})
    pipeline.stamp(golden_gen.outputs["examples"], code=code)
    pipeline.stamp(schema.outputs["schema"], digest=pipeline.digest_of([features.SCHEMA_FILE]))
    examples, golden = example_gen.outputs["examples"], golden_gen.outputs["examples"]
    statistics, validator, data_gate = pipeline.validation(examples, schema.outputs["schema"])
    serving = window.serving_model_resolver(config.servable, run.key).with_id(
        "ServingModelResolver"
    )
    reference = window.window_resolver(own.window, without=examples).with_id("ReferenceResolver")
    limits = {f.name: getattr(own, f.name) for f in dataclasses.fields(drift_executor.Limits)}
    drift = DriftMonitor(
        examples=examples,
        golden=golden,
        reference=reference.outputs[window.EXAMPLES],
        model=serving.outputs[baseline.MODEL],
        limits=limits,
        accepted=run.accepted,
    )
    drift.add_upstream_node(data_gate)
    reference.add_upstream_node(data_gate)
    verdict = VerdictGate(drift=drift.outputs["report"])

    trained_on = window.window_resolver(own.window, current=drift.outputs["report"]).with_id(
        "WindowResolver"
    )
    trained_on.add_upstream_node(verdict)
    chosen = trained_on.outputs[window.EXAMPLES]
    transform = Transform(
        examples=chosen,
        schema=schema.outputs["schema"],
        preprocessing_fn="components.preprocessing.preprocessing_fn",
        materialize=False,
        disable_statistics=True,
    )
    reference_pca = PcaReference(examples=examples)
    reference_pca.add_upstream_node(verdict)
    trainer = Trainer(
        run_fn="trainer.run_fn.run_fn",
        examples=chosen,
        transform_graph=transform.outputs["transform_graph"],
        schema=schema.outputs["schema"],
        base_model=None if run.cold else serving.outputs[baseline.MODEL],
        custom_config={**pipeline.trainer_config(config), "warm": config.warm_options()},
    )
    model = trainer.outputs["model"]
    pipeline.stamp(model, **{baseline.SERVABLE_PROPERTY: config.servable, window.SPAN_KEY: run.key})

    def evaluator(name: str, data: Any, by_label: bool, overall: float, digit: float) -> Evaluator:
        return Evaluator(
            examples=data,
            model=model,
            baseline_model=serving.outputs[baseline.MODEL],
            eval_config=evaluation.eval_config(
                max_mse=config.max_mse(),
                max_increase=overall,
                use_baseline=True,
                by_label=by_label,
                max_digit_increase=digit,
            ),
            example_splits=[features.EVAL_SPLIT],
            schema=schema.outputs["schema"],
        ).with_id(name)

    on_span = evaluator(
        "SpanEvaluator", examples, labelled, own.max_span_increase, own.max_span_digit_increase
    )
    on_golden = evaluator(
        "GoldenEvaluator", golden, run.golden_labelled, own.max_golden_increase,
        own.max_digit_increase,
    )  # fmt: skip
    validator_of_serving = ServingValidator(
        model=model,
        examples=golden,
        model_name=config.servable,
        latency_budget_ms=config.validator.latency_budget_ms,
    )
    gate = SpanGate(
        max_golden_increase=own.max_golden_increase,
        harmful_increase=own.harmful_increase,
        model=model,
        model_run=trainer.outputs["model_run"],
        drift=drift.outputs["report"],
        window=chosen,
        golden=golden,
        span_evaluation=on_span.outputs["evaluation"],
        span_blessing=on_span.outputs["blessing"],
        golden_evaluation=on_golden.outputs["evaluation"],
        golden_blessing=on_golden.outputs["blessing"],
        infra_blessing=validator_of_serving.outputs["blessing"],
        baseline=serving.outputs[baseline.MODEL],
        baseline_blessing=serving.outputs[baseline.BLESSING],
    )
    pusher = AtomicPusher(
        infra_blessing=validator_of_serving.outputs["blessing"],
        model_blessing=gate.outputs["blessing"],
        push_destination=pusher_pb2.PushDestination(
            filesystem=pusher_pb2.PushDestination.Filesystem(
                base_directory=os.path.join(pipeline.serving_dir(config), config.servable)
            )
        ),
    ).with_id("Pusher")
    index = ImageIndex(examples=examples, model=model, reference=reference_pca.outputs["reference"])
    report = RunReport(
        examples=examples,
        model=model,
        model_run=trainer.outputs["model_run"],
        evaluation=on_span.outputs["evaluation"],
        blessing=gate.outputs["blessing"],
        infra_blessing=validator_of_serving.outputs["blessing"],
        reference=reference_pca.outputs["reference"],
        index=index.outputs["index"],
        code_metrics=index.outputs["metrics"],
        model_name=config.model.name,
        servable=config.servable,
        configuration=json.dumps(pipeline.reported_config(config), sort_keys=True),
    )
    return [
        example_gen, golden_gen, schema, statistics, validator, data_gate, serving, reference,
        drift, verdict, trained_on, transform, reference_pca, trainer, on_span, on_golden,
        validator_of_serving, gate, pusher, index, report,
    ]  # fmt: skip
