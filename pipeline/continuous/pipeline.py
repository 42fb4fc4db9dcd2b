"""create_continuous_pipeline: one span in, perhaps a better model out."""

from __future__ import annotations

from typing import Any

from tfx.orchestration import pipeline

from components import resolvers
from pipeline.config import PipelineConfig
from pipeline.continuous import spans
from pipeline.nodes import Builder, stamp

DRIFT = "DriftMonitor"


def create_continuous_pipeline(
    config: PipelineConfig,
    *,
    data_folder: str,
    golden_folder: str,
    data_pattern: str = spans.PATTERN,
    data_span: int | None = None,
    version: int = 0,
    labelled: bool = True,
    golden_labelled: bool = True,
    accepted: int = 0,
    cold: bool = False,
    **options: Any,
) -> pipeline.Pipeline:
    """Wires a run on a new span, for every way of running it.

    The span is ingested and judged by DriftMonitor. Whoever runs the pipeline ends
    it there where the verdict is not to train: the local runner itself, on Kubeflow
    a condition over all that follows. Else the window that the span is now part of
    is trained on, from the serving model, and the result is compared with that on
    the newest span and on the golden set.

    Args:
      data_folder: The folder of the spans.
      golden_folder: Where the golden set's IDX files are.
      data_pattern: Folder of a span, and perhaps of its version, below ``data_folder``.
      data_span: Number of the span; None is the newest there is when it is ingested.
      version: Its version.
      labelled: Whether the span has labels.
      golden_labelled: Whether the golden set has.
      accepted: How often a person has let the span in.
      cold: Whether to train afresh.
      **options: As for :class:`pipeline.nodes.Builder`.

    Returns:
      A TFX pipeline whose nodes are in topological order.
    """
    own = config.continuous
    key = resolvers.LATEST if data_span is None else f"{data_span}.{version}"
    build = Builder(config, **options)
    span = build.example_gen(data_folder, data_pattern, data_span)
    stamp(span.outputs["examples"], **{resolvers.ROLE: resolvers.ROLE_SPAN})
    golden = build.golden_example_gen(golden_folder)
    data_gate = build.validation(span)
    serving = build.serving_model_resolver(key)
    drift = build.drift_monitor(
        span,
        golden=golden,
        reference=build.reference_resolver(span, after=data_gate),
        serving=serving,
        accepted=accepted,
        after=data_gate,
    )
    window = build.window_resolver(drift)
    transform = build.transform(window)
    reference = build.pca_reference(span, after=drift)
    base = None if cold else serving
    tuner = build.tuner(window, transform, base=base)
    trainer = build.trainer(window, transform, tuner=tuner, base=base, span_key=key)
    on_span = build.evaluator(
        span,
        trainer,
        against=serving,
        by_label=labelled,
        max_increase=own.max_span_increase,
        max_digit_increase=own.max_span_digit_increase,
        node_id="SpanEvaluator",
    )
    on_golden = build.evaluator(
        golden,
        trainer,
        against=serving,
        by_label=golden_labelled,
        max_increase=own.max_golden_increase,
        max_digit_increase=own.max_digit_increase,
        node_id="GoldenEvaluator",
    )
    servable = build.serving_validator(trainer, golden)
    gate = build.span_gate(
        trainer,
        drift=drift,
        window=window,
        golden=golden,
        on_span=on_span,
        on_golden=on_golden,
        validator=servable,
        serving=serving,
    )
    build.pusher(servable, judge=gate)
    build.run_report(
        span,
        trainer,
        evaluator=on_span,
        judge=gate,
        validator=servable,
        reference=reference,
        index=build.image_index(span, trainer, reference),
    )
    return build.pipeline()
