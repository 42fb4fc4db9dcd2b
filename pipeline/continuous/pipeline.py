"""create_continuous_pipeline: one span in, perhaps a better model out."""

from __future__ import annotations

import dataclasses
from typing import Any

from ml_metadata.proto import metadata_store_pb2
from tfx.orchestration import pipeline

from components import resolvers
from pipeline import nodes
from pipeline.config import PipelineConfig
from pipeline.continuous import spans

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
        """``N.V``, or ``resolvers.LATEST``."""
        return resolvers.LATEST if self.span is None else f"{self.span}.{self.version}"


def create_continuous_pipeline(
    config: PipelineConfig,
    run: SpanRun,
    *,
    spans_folder: str,
    labelled: bool = True,
    pattern: str = spans.PATTERN,
    workers: dict[str, Any] | None = None,
    metadata_connection: metadata_store_pb2.ConnectionConfig | None = None,
    pipeline_root: str | None = None,
) -> pipeline.Pipeline:
    """Wires a run on a new span, for every way of running it.

    The span is ingested and judged; where it was let in, the window that it is
    now part of is trained on, from the serving model, and the result is
    compared with that on the newest span and on the golden set.

    Args:
      config: What to run.
      run: The span.
      spans_folder: The folder of the spans.
      labelled: Whether the span has labels.
      pattern: Folder of a span, and perhaps of its version, below that.
      workers: As in ``create_pipeline``.
      metadata_connection: As in ``create_pipeline``.
      pipeline_root: As in ``create_pipeline``.

    Returns:
      A TFX pipeline whose nodes are in topological order.
    """
    own = config.continuous
    span = nodes.example_gen(config, spans_folder, pattern=pattern, span=run.span)
    nodes.stamp(span.outputs["examples"], **{resolvers.ROLE: resolvers.ROLE_SPAN})
    golden = nodes.golden_example_gen(config, run.golden_folder)
    schema = nodes.schema_gen()
    statistics, validator, data_gate = nodes.validation(span, schema)
    serving = nodes.serving_model_resolver(config, run.key)
    before = nodes.reference_resolver(config, span, after=data_gate)
    drift = nodes.drift_monitor(
        config,
        span,
        golden=golden,
        reference=before,
        serving=serving,
        accepted=run.accepted,
        after=data_gate,
    )
    verdict = nodes.verdict_gate(drift)
    chosen = nodes.window_resolver(config, drift, after=verdict)
    transform = nodes.transform(chosen, schema)
    reference = nodes.pca_reference(span, after=verdict)
    base = None if run.cold else serving
    tuner = nodes.tuner(config, chosen, transform, schema, base=base)
    trainer = nodes.trainer(
        config,
        chosen,
        transform,
        schema,
        tuner=tuner,
        base=base,
        workers=workers,
        span_key=run.key,
    )
    on_span = nodes.evaluator(
        config,
        span,
        trainer,
        schema,
        against=serving,
        by_label=labelled,
        max_increase=own.max_span_increase,
        max_digit_increase=own.max_span_digit_increase,
    ).with_id("SpanEvaluator")
    on_golden = nodes.evaluator(
        config,
        golden,
        trainer,
        schema,
        against=serving,
        by_label=run.golden_labelled,
        max_increase=own.max_golden_increase,
        max_digit_increase=own.max_digit_increase,
    ).with_id("GoldenEvaluator")
    servable = nodes.serving_validator(config, trainer, golden)
    gate = nodes.span_gate(
        config,
        trainer,
        drift=drift,
        window=chosen,
        golden=golden,
        on_span=on_span,
        on_golden=on_golden,
        validator=servable,
        serving=serving,
    )
    pusher = nodes.pusher(config, servable, judge=gate)
    index = nodes.image_index(span, trainer, reference)
    report = nodes.run_report(
        config,
        span,
        trainer,
        evaluator=on_span,
        judge=gate,
        validator=servable,
        reference=reference,
        index=index,
    )
    wired = [span, golden, schema, statistics, validator, data_gate, serving, before, drift]
    wired += [verdict, chosen, transform, reference, tuner, trainer, on_span, on_golden]
    wired += [servable, gate, pusher, index, report]
    return nodes.assemble(config, wired, metadata_connection, pipeline_root)
