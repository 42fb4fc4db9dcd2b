"""create_pipeline: digits in, a served model out, as in the README's diagram."""

from __future__ import annotations

from typing import Any

from ml_metadata.proto import metadata_store_pb2
from tfx.orchestration import pipeline

from pipeline import nodes
from pipeline.config import PipelineConfig


def create_pipeline(
    config: PipelineConfig,
    *,
    data_folder: str,
    labelled: bool = True,
    data_pattern: str = "",
    data_span: int | None = None,
    workers: dict[str, Any] | None = None,
    metadata_connection: metadata_store_pb2.ConnectionConfig | None = None,
    pipeline_root: str | None = None,
) -> pipeline.Pipeline:
    """Wires a run on one data set, for every way of running it.

    Args:
      labelled: Whether the images have labels, so that losses can be sliced.
      data_pattern: Folder of a span below ``data_folder``, such as
        ``span-{SPAN}``; "" where the files lie in ``data_folder`` itself.
      data_span: Which span; the latest when None.
      workers: Who trains, where it is not the Trainer itself; see
        ``trainer.run_fn.run_fn``.
      metadata_connection: ML Metadata store; SQLite under ``config.root`` when
        None.
      pipeline_root: Where artifacts go; under ``config.root`` when None.

    Returns:
      A TFX pipeline whose nodes are in topological order.
    """
    examples = nodes.example_gen(config, data_folder, pattern=data_pattern, span=data_span)
    schema = nodes.schema_gen()
    statistics, validator, data_gate = nodes.validation(examples, schema)
    transform = nodes.transform(examples, schema, after=data_gate)
    reference = nodes.pca_reference(examples, after=data_gate)
    tuner = nodes.tuner(config, examples, transform, schema)
    trainer = nodes.trainer(config, examples, transform, schema, tuner=tuner, workers=workers)
    baseline = nodes.baseline_resolver(config, trainer)
    evaluator = nodes.evaluator(
        config,
        examples,
        trainer,
        schema,
        against=baseline,
        by_label=labelled,
        max_increase=config.evaluator.max_increase,
    )
    servable = nodes.serving_validator(config, trainer, examples)
    pusher = nodes.pusher(config, servable, judge=evaluator)
    index = nodes.image_index(examples, trainer, reference)
    report = nodes.run_report(
        config,
        examples,
        trainer,
        evaluator=evaluator,
        judge=evaluator,
        validator=servable,
        reference=reference,
        index=index,
    )
    wired = [examples, schema, statistics, validator, data_gate, transform, reference, tuner]
    wired += [trainer, baseline, evaluator, servable, pusher, index, report]
    return nodes.assemble(config, wired, metadata_connection, pipeline_root)
