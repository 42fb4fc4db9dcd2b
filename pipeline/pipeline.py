"""create_pipeline: digits in, a served model out, as in the README's diagram."""

from __future__ import annotations

from typing import Any

from tfx.orchestration import pipeline

from pipeline.config import PipelineConfig
from pipeline.nodes import Builder


def create_pipeline(
    config: PipelineConfig,
    *,
    data_folder: str,
    labelled: bool = True,
    data_pattern: str = "",
    data_span: int | None = None,
    **options: Any,
) -> pipeline.Pipeline:
    """Wires a run on one data set, for every way of running it.

    Args:
      labelled: Whether the images have labels, so that losses can be sliced.
      data_pattern: Folder of a span below ``data_folder``, such as
        ``span-{SPAN}``; "" where the files lie in ``data_folder`` itself.
      data_span: Which span; the latest when None.
      **options: As for :class:`pipeline.nodes.Builder`.

    Returns:
      A TFX pipeline whose nodes are in topological order.
    """
    build = Builder(config, **options)
    examples = build.example_gen(data_folder, data_pattern, data_span)
    data_gate = build.validation(examples)
    transform = build.transform(examples, after=data_gate)
    reference = build.pca_reference(examples, after=data_gate)
    tuner = build.tuner(examples, transform)
    trainer = build.trainer(examples, transform, tuner=tuner)
    evaluator = build.evaluator(
        examples,
        trainer,
        against=build.baseline_resolver(trainer),
        by_label=labelled,
        max_increase=config.evaluator.max_increase,
    )
    servable = build.serving_validator(trainer, examples)
    build.pusher(servable, judge=evaluator)
    build.run_report(
        examples,
        trainer,
        evaluator=evaluator,
        judge=evaluator,
        validator=servable,
        reference=reference,
        index=build.image_index(examples, trainer, reference),
    )
    return build.pipeline()
