"""create_pipeline: the only place where components are wired."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import pathlib
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import tensorflow_data_validation as tfdv
from ml_metadata.proto import metadata_store_pb2
from tfx.components.evaluator.component import Evaluator
from tfx.components.example_validator.component import ExampleValidator
from tfx.components.schema_gen.import_schema_gen.component import ImportSchemaGen
from tfx.components.statistics_gen.component import StatisticsGen
from tfx.components.trainer.component import Trainer
from tfx.components.transform.component import Transform
from tfx.components.tuner.component import Tuner
from tfx.dsl.components.base.base_component import BaseComponent
from tfx.orchestration import metadata, pipeline
from tfx.proto import pusher_pb2, range_config_pb2
from tfx.types.channel import BaseChannel

from components import baseline, evaluation, features
from components.data_gate import DataGate
from components.image_index.component import ImageIndex
from components.mnist_example_gen.component import MnistExampleGen
from components.pca_reference import PcaReference
from components.pusher import AtomicPusher
from components.report.component import RunReport
from components.serving_validator.component import ServingValidator
from pipeline.beam_options import beam_args
from pipeline.config import PipelineConfig

if TYPE_CHECKING:
    from pipeline.continuous.graph import SpanRun

_PACKAGES = ("components", "trainer")
_CODE_SUFFIXES = (".py", ".j2", ".css")


def create_pipeline(
    config: PipelineConfig,
    *,
    data_folder: str,
    labelled: bool = True,
    metadata_connection: metadata_store_pb2.ConnectionConfig | None = None,
    pipeline_root: str | None = None,
    data_pattern: str = "",
    data_span: int | None = None,
    workers: dict[str, Any] | None = None,
    span: SpanRun | None = None,
) -> pipeline.Pipeline:
    """Wires the pipeline, for every way of running it.

    Args:
      config: What to run.
      data_folder: Folder with the IDX files.
      labelled: Whether the images have labels, so that losses can be sliced.
      metadata_connection: ML Metadata store; SQLite under ``config.root`` when
        None.
      pipeline_root: Where artifacts go; under ``config.root`` when None.
      data_pattern: Folder of a span below ``data_folder``, such as
        ``span-{SPAN}``; "" where the files lie in ``data_folder`` itself.
      data_span: Which span; the latest when None.
      workers: Who trains, where it is not the Trainer itself; see
        ``trainer.run_fn.run_fn``.
      span: The new span that a continuous run is about; ``data_folder`` is then
        the folder of the spans.

    Returns:
      A TFX pipeline whose nodes are in topological order.
    """
    if span is not None or config.continuous.golden is not None:
        from pipeline.continuous import graph, spans

        run = span or graph.SpanRun(data_span, 0, str(config.continuous.golden))
        pattern = data_pattern or spans.PATTERN
        return _assemble(
            config,
            graph.span_nodes(
                config, run, spans_folder=data_folder, labelled=labelled, pattern=pattern
            ),
            metadata_connection,
            pipeline_root,
        )
    example_gen = MnistExampleGen(
        input_base=data_folder,
        pattern=data_pattern,
        keep_labels=config.data.kept(),
        range_config=only_span(data_span),
    )
    schema = ImportSchemaGen(schema_file=str(features.SCHEMA_FILE))
    # TFX's cache knows inputs and parameters but neither code nor the content of
    # the schema file: stamped on what comes first, an edit is never answered
    # from the cache.
    stamp(example_gen.outputs["examples"], code=code_digest())
    stamp(schema.outputs["schema"], digest=digest_of([features.SCHEMA_FILE]))
    examples = example_gen.outputs["examples"]
    statistics, validator, gate = validation(examples, schema.outputs["schema"])
    transform = Transform(
        examples=examples,
        schema=schema.outputs["schema"],
        preprocessing_fn="components.preprocessing.preprocessing_fn",
        # The graph has nothing to learn from the data and costs less to run in
        # the input pipeline than its float output to write and read back.
        materialize=False,
        disable_statistics=True,
    )
    reference = PcaReference(examples=examples)
    tuner = None
    if config.tuner.enabled:
        tuner = Tuner(
            tuner_fn="trainer.tuner_fn.tuner_fn",
            examples=examples,
            transform_graph=transform.outputs["transform_graph"],
            schema=schema.outputs["schema"],
            custom_config={**trainer_config(config), "tuner": tuner_config(config)},
        )
    trainer = Trainer(
        hyperparameters=tuner.outputs["best_hyperparameters"] if tuner else None,
        run_fn="trainer.run_fn.run_fn",
        examples=examples,
        transform_graph=transform.outputs["transform_graph"],
        schema=schema.outputs["schema"],
        custom_config=trainer_config(config) | ({"workers": workers} if workers else {}),
    )
    stamp(trainer.outputs["model"], **{baseline.SERVABLE_PROPERTY: config.servable})
    resolver = baseline.baseline_resolver(trainer.outputs["model"])
    evaluator = Evaluator(
        examples=examples,
        model=trainer.outputs["model"],
        baseline_model=resolver.outputs[baseline.MODEL] if config.evaluator.baseline else None,
        eval_config=evaluation.eval_config(
            max_mse=config.max_mse(),
            max_increase=config.evaluator.max_increase,
            use_baseline=config.evaluator.baseline,
            by_label=labelled,
        ),
        example_splits=[features.EVAL_SPLIT],
        schema=schema.outputs["schema"],
    )
    validator_of_serving = ServingValidator(
        model=trainer.outputs["model"],
        examples=examples,
        model_name=config.servable,
        latency_budget_ms=config.validator.latency_budget_ms,
    )
    pusher = AtomicPusher(
        # With its warm-up requests: what was validated is what is pushed.
        infra_blessing=validator_of_serving.outputs["blessing"],
        model_blessing=evaluator.outputs["blessing"],
        push_destination=pusher_pb2.PushDestination(
            filesystem=pusher_pb2.PushDestination.Filesystem(
                base_directory=os.path.join(serving_dir(config), config.servable)
            )
        ),
    ).with_id("Pusher")
    index = ImageIndex(
        examples=examples,
        model=trainer.outputs["model"],
        reference=reference.outputs["reference"],
    )
    report = RunReport(
        examples=examples,
        model=trainer.outputs["model"],
        model_run=trainer.outputs["model_run"],
        evaluation=evaluator.outputs["evaluation"],
        blessing=evaluator.outputs["blessing"],
        infra_blessing=validator_of_serving.outputs["blessing"],
        reference=reference.outputs["reference"],
        index=index.outputs["index"],
        code_metrics=index.outputs["metrics"],
        model_name=config.model.name,
        servable=config.servable,
        configuration=json.dumps(reported_config(config), sort_keys=True),
    )
    for node in (transform, reference):
        node.add_upstream_node(gate)
    nodes = [example_gen, schema, statistics, validator, gate, transform, reference]
    nodes += [tuner, trainer] if tuner else [trainer]
    if config.evaluator.baseline:
        nodes.append(resolver)
    nodes += [evaluator, validator_of_serving, pusher, index, report]
    return _assemble(config, nodes, metadata_connection, pipeline_root)


def _assemble(
    config: PipelineConfig,
    nodes: list[Any],
    metadata_connection: metadata_store_pb2.ConnectionConfig | None,
    pipeline_root: str | None,
) -> pipeline.Pipeline:
    return pipeline.Pipeline(
        pipeline_name=config.name,
        pipeline_root=pipeline_root or os.path.join(os.path.abspath(config.root), "pipeline"),
        components=nodes,
        enable_cache=config.cache,
        metadata_connection_config=metadata_connection
        or metadata.sqlite_metadata_connection_config(metadata_path(config)),
        beam_pipeline_args=beam_args(config),
    )


def validation(
    examples: BaseChannel, schema: BaseChannel
) -> tuple[StatisticsGen, ExampleValidator, BaseComponent]:
    """The nodes that look at examples and end the run where they are bad."""
    statistics = StatisticsGen(
        examples=examples,
        schema=schema,
        stats_options=tfdv.StatsOptions(num_top_values=10, num_rank_histogram_buckets=10),
    )
    validator = ExampleValidator(statistics=statistics.outputs["statistics"], schema=schema)
    gate = DataGate(
        statistics=statistics.outputs["statistics"], anomalies=validator.outputs["anomalies"]
    )
    return statistics, validator, gate


def only_span(span: int | None) -> range_config_pb2.RangeConfig | None:
    """What ExampleGen is told to read one span; None for the latest."""
    if span is None:
        return None
    return range_config_pb2.RangeConfig(
        static_range=range_config_pb2.StaticRange(start_span_number=span, end_span_number=span)
    )


def metadata_path(config: PipelineConfig) -> str:
    """The SQLite file of ML Metadata."""
    return os.path.join(os.path.abspath(config.root), "metadata.sqlite")


def serving_dir(config: PipelineConfig) -> str:
    """The folder above the servables."""
    return os.path.abspath(config.pusher.dir or os.path.join(config.root, "serving"))


def trainer_config(config: PipelineConfig) -> dict[str, Any]:
    """The Trainer's ``custom_config``: plain data, part of its cache key."""
    return {
        "model": config.model.name,
        "hyperparameters": dataclasses.asdict(config.model.hyperparameters),
        "options": config.training_options(),
        "facts": {"servable": config.servable},
    }


def reported_config(config: PipelineConfig) -> dict[str, Any]:
    """What a report shows of the configuration: what decides its figures, not where it ran."""
    values = dataclasses.asdict(config)
    values["model"] = {"name": config.model.name, **values["model"]["hyperparameters"]}
    values["trainer"] = config.training_options()
    values["evaluator"]["max_mse"] = config.max_mse()
    for place in ("root", "cache", "beam"):
        del values[place]
    del values["data"]["dir"]
    return values


def tuner_config(config: PipelineConfig) -> dict[str, int]:
    """The Tuner's trials and their epochs."""
    epochs = config.tuner.epochs or max(1, config.training_options()["epochs"] // 5)
    return {"trials": config.tuner.trials, "epochs": epochs}


def code_digest() -> str:
    """Tells versions of the components' code apart."""
    base = pathlib.Path(__file__).parent.parent
    return digest_of(
        sorted(
            path
            for name in _PACKAGES
            for path in (base / name).rglob("*")
            if path.suffix in _CODE_SUFFIXES
        )
    )


def digest_of(paths: Iterable[pathlib.Path]) -> str:
    """Tells contents of files apart."""
    digest = hashlib.sha256()
    for path in paths:
        digest.update(path.name.encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def stamp(channel: Any, **properties: str) -> None:
    """Gives the artifacts of a channel custom properties; they count for the cache."""
    channel.additional_custom_properties = {**channel.additional_custom_properties, **properties}
