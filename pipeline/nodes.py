"""Builders of single nodes, shared by both pipelines: no node is built elsewhere.

A builder takes the nodes that it reads from and what of the configuration it
depends on. The two pipeline functions put them together.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Sequence
from typing import Any

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
from tfx.dsl.components.base.base_node import BaseNode
from tfx.dsl.components.common.resolver import Resolver
from tfx.orchestration import metadata, pipeline
from tfx.proto import pusher_pb2, range_config_pb2
from tfx.types import standard_artifacts
from tfx.types.channel import BaseChannel, Channel

from components import evaluation, features, resolvers
from components.data_gate import DataGate
from components.drift.comparison import Limits
from components.drift.component import DriftMonitor, DriftReportArtifact
from components.image_index.component import ImageIndex
from components.mnist_example_gen.component import MnistExampleGen
from components.pca_reference import PcaReference
from components.pusher.component import AtomicPusher
from components.report.component import RunReport
from components.serving_validator.component import ServingValidator
from components.span_gate.component import SpanGate, SpanReportArtifact
from components.verdict_gate import VerdictGate
from pipeline import code_digest, history
from pipeline.beam_options import beam_args
from pipeline.config import PipelineConfig
from trainer.job import CustomConfig, TunerOptions

GOLDEN_GEN = "GoldenExampleGen"
# Parameter of every component: which code it runs.
CODE = "code"


def assemble(
    config: PipelineConfig,
    nodes: Sequence[BaseNode | None],
    metadata_connection: metadata_store_pb2.ConnectionConfig | None = None,
    pipeline_root: str | None = None,
) -> pipeline.Pipeline:
    """A pipeline of the nodes.

    Args:
      nodes: In topological order; None stands for one that is left out.
      metadata_connection: ML Metadata store; SQLite under ``config.root`` when
        None.
      pipeline_root: Where artifacts go; under ``config.root`` when None.
    """
    present = [node for node in nodes if node is not None]
    for node in present:
        if isinstance(node, BaseComponent):
            # TFX's cache knows parameters, not code: as a parameter, an edit is
            # never answered from the cache.
            node.exec_properties[CODE] = code_digest.digest(references(config, node))
    return pipeline.Pipeline(
        pipeline_name=config.name,
        pipeline_root=pipeline_root or history.artifacts_folder(config.root),
        components=present,
        enable_cache=config.cache,
        metadata_connection_config=metadata_connection
        or metadata.sqlite_metadata_connection_config(history.metadata_path(config.root)),
        beam_pipeline_args=beam_args(config),
    )


def references(config: PipelineConfig, node: BaseComponent) -> list[str]:
    """What of the project a node runs: its executor, what its parameters name, the model."""
    found = [node.executor_spec.executor_class.__module__, node.driver_class.__module__]
    for value in node.exec_properties.values():
        if isinstance(value, str):
            found += code_digest.references_in(value)
    if isinstance(node, (Trainer, Tuner)):
        found.append(config.model.spec.implementation)
    return found


# Data.


def example_gen(
    config: PipelineConfig, folder: str, *, pattern: str = "", span: int | None = None
) -> MnistExampleGen:
    """The images to train on and to evaluate with.

    Args:
      folder: Of the IDX files, or of the spans.
      pattern: Folder of a span below that, such as ``span-{SPAN}``; "" where the
        files lie in ``folder`` itself.
      span: Its number; the latest when None.
    """
    only = None
    if span is not None:
        only = range_config_pb2.RangeConfig(
            static_range=range_config_pb2.StaticRange(start_span_number=span, end_span_number=span)
        )
    return MnistExampleGen(
        input_base=folder,
        pattern=pattern,
        keep_labels=config.data.kept(),
        range_config=only,
    )


def golden_example_gen(config: PipelineConfig, folder: str) -> MnistExampleGen:
    """The golden set: images to evaluate with, the same in every run."""
    return MnistExampleGen(
        input_base=folder,
        keep_labels=config.data.kept(),
        splits=(features.EVAL_SPLIT,),
    ).with_id(GOLDEN_GEN)


def schema_gen() -> ImportSchemaGen:
    """The curated schema."""
    node = ImportSchemaGen(schema_file=str(features.SCHEMA_FILE))
    stamp(node.outputs["schema"], digest=code_digest.digest_of_file(features.SCHEMA_FILE))
    return node


def validation(
    examples: BaseNode, schema: BaseNode
) -> tuple[StatisticsGen, ExampleValidator, BaseComponent]:
    """The nodes that look at examples and end the run where they are bad."""
    statistics = StatisticsGen(
        examples=_examples(examples),
        schema=schema.outputs["schema"],
        stats_options=tfdv.StatsOptions(num_top_values=10, num_rank_histogram_buckets=10),
    )
    validator = ExampleValidator(
        statistics=statistics.outputs["statistics"], schema=schema.outputs["schema"]
    )
    gate = DataGate(
        statistics=statistics.outputs["statistics"], anomalies=validator.outputs["anomalies"]
    )
    return statistics, validator, gate


def transform(examples: BaseNode, schema: BaseNode, *, after: BaseNode | None = None) -> Transform:
    """The graph from bytes to floats in [0, 1]."""
    node = Transform(
        examples=_examples(examples),
        schema=schema.outputs["schema"],
        preprocessing_fn="components.preprocessing.preprocessing_fn",
        # The graph has nothing to learn from the data and costs less to run in
        # the input pipeline than its float output to write and read back.
        materialize=False,
        disable_statistics=True,
    )
    return _after(node, after)


def pca_reference(examples: BaseNode, *, after: BaseNode) -> BaseComponent:
    """What PCA makes of the images."""
    return _after(PcaReference(examples=_examples(examples)), after)


# Training.


def tuner(
    config: PipelineConfig,
    examples: BaseNode,
    transform: BaseNode,
    schema: BaseNode,
    *,
    base: BaseNode | None = None,
) -> Tuner | None:
    """The search for better hyper-parameters, where it is wanted.

    Args:
      base: Finds the model to start from; its architecture is kept.
    """
    if not config.tuner.enabled:
        return None
    epochs = config.tuner.epochs or max(1, config.trainer.epochs // 5)
    search = TunerOptions(trials=config.tuner.trials, epochs=epochs)
    return Tuner(
        tuner_fn="trainer.tuner_fn.tuner_fn",
        examples=_examples(examples),
        transform_graph=transform.outputs["transform_graph"],
        schema=schema.outputs["schema"],
        base_model=base.outputs[resolvers.MODEL] if base else None,
        custom_config=_custom_config(config, warm=base is not None, tuner=search),
    )


def trainer(
    config: PipelineConfig,
    examples: BaseNode,
    transform: BaseNode,
    schema: BaseNode,
    *,
    tuner: BaseNode | None = None,
    base: BaseNode | None = None,
    workers: dict[str, Any] | None = None,
    span_key: str | None = None,
) -> Trainer:
    """The training of the selected autoencoder.

    Args:
      workers: Who trains, where it is not the Trainer itself; see
        ``trainer.run_fn.run_fn``.
      span_key: The span that the model is trained for, as "N.V".
    """
    node = Trainer(
        run_fn="trainer.run_fn.run_fn",
        examples=_examples(examples),
        transform_graph=transform.outputs["transform_graph"],
        schema=schema.outputs["schema"],
        hyperparameters=tuner.outputs["best_hyperparameters"] if tuner else None,
        base_model=base.outputs[resolvers.MODEL] if base else None,
        custom_config=_custom_config(config, warm=base is not None, workers=workers),
    )
    stamp(node.outputs["model"], **{resolvers.SERVABLE_PROPERTY: config.servable})
    if span_key is not None:
        stamp(node.outputs["model"], **{resolvers.SPAN_KEY: span_key})
    return node


# Judging.


def baseline_resolver(config: PipelineConfig, trainer: BaseNode) -> Resolver | None:
    """The last blessed model of the servable, where candidates are compared with it."""
    if not config.evaluator.baseline:
        return None
    return Resolver(
        strategy_class=resolvers.LatestOtherBlessedModel,
        **_ever(resolvers.MODEL, resolvers.BLESSING),
        **{resolvers.CANDIDATE: trainer.outputs["model"]},
    ).with_id("BaselineResolver")


def evaluator(
    config: PipelineConfig,
    examples: BaseNode,
    trainer: BaseNode,
    schema: BaseNode,
    *,
    against: BaseNode | None,
    by_label: bool,
    max_increase: float,
    max_digit_increase: float | None = None,
) -> Evaluator:
    """The losses of the candidate, and its blessing.

    Args:
      against: Finds the baseline; None compares with none.
      by_label: Whether there are labels to slice by.
      max_increase: How much worse than the baseline, relative to it.
      max_digit_increase: As above, on any one digit; None sets no limit.
    """
    return Evaluator(
        examples=_examples(examples),
        model=trainer.outputs["model"],
        baseline_model=against.outputs[resolvers.MODEL] if against else None,
        eval_config=evaluation.eval_config(
            max_mse=config.max_mse(),
            max_increase=max_increase,
            use_baseline=against is not None,
            by_label=by_label,
            max_digit_increase=max_digit_increase,
        ),
        example_splits=[features.EVAL_SPLIT],
        schema=schema.outputs["schema"],
    )


def serving_validator(
    config: PipelineConfig, trainer: BaseNode, examples: BaseNode
) -> BaseComponent:
    """The check that a server could serve the candidate."""
    return ServingValidator(
        model=trainer.outputs["model"],
        examples=_examples(examples),
        model_name=config.servable,
        latency_budget_ms=config.validator.latency_budget_ms,
    )


def pusher(config: PipelineConfig, validator: BaseNode, judge: BaseNode) -> BaseComponent:
    """What makes a blessed model a version of its servable."""
    return AtomicPusher(
        # With its warm-up requests: what was validated is what is pushed.
        infra_blessing=validator.outputs["blessing"],
        model_blessing=judge.outputs["blessing"],
        push_destination=pusher_pb2.PushDestination(
            filesystem=pusher_pb2.PushDestination.Filesystem(
                base_directory=os.path.join(serving_dir(config), config.servable)
            )
        ),
    ).with_id("Pusher")


def image_index(examples: BaseNode, trainer: BaseNode, reference: BaseNode) -> BaseComponent:
    """Codes and errors of all images, for search and anomaly figures."""
    return ImageIndex(
        examples=_examples(examples),
        model=trainer.outputs["model"],
        reference=reference.outputs["reference"],
    )


def run_report(
    config: PipelineConfig,
    examples: BaseNode,
    trainer: BaseNode,
    *,
    evaluator: BaseNode,
    judge: BaseNode,
    validator: BaseNode,
    reference: BaseNode,
    index: BaseNode,
) -> BaseComponent:
    """The page of the run; ``judge`` is whose blessing the Pusher asked for."""
    return RunReport(
        examples=_examples(examples),
        model=trainer.outputs["model"],
        model_run=trainer.outputs["model_run"],
        evaluation=evaluator.outputs["evaluation"],
        blessing=judge.outputs["blessing"],
        infra_blessing=validator.outputs["blessing"],
        reference=reference.outputs["reference"],
        index=index.outputs["index"],
        code_metrics=index.outputs["metrics"],
        model_name=config.model.name,
        servable=config.servable,
        configuration=json.dumps(reported_config(config), sort_keys=True),
    )


# Of continuous runs only.


def serving_model_resolver(config: PipelineConfig, span_key: str) -> Resolver:
    """The model that is served, to start from and to compare with."""
    return Resolver(
        strategy_class=resolvers.ServingModel,
        config={"servable": config.servable, "span_key": span_key},
        **_ever(resolvers.MODEL, resolvers.BLESSING),
    ).with_id("ServingModelResolver")


def reference_resolver(config: PipelineConfig, examples: BaseNode, *, after: BaseNode) -> Resolver:
    """The window before the span of ``examples``."""
    before = {resolvers.WITHOUT: _examples(examples)}
    return _after(_window(config, **before).with_id("ReferenceResolver"), after)


def window_resolver(config: PipelineConfig, drift: BaseNode, *, after: BaseNode) -> Resolver:
    """The window that the span of ``drift`` is now part of."""
    current = {resolvers.CURRENT: drift.outputs["report"]}
    return _after(_window(config, **current).with_id("WindowResolver"), after)


def _window(config: PipelineConfig, **given: BaseChannel) -> Resolver:
    return Resolver(
        strategy_class=resolvers.RollingWindow,
        config={"size": config.continuous.window},
        **_ever(resolvers.EXAMPLES, resolvers.DRIFT, resolvers.REPORTS),
        **given,
    )


def _ever(*keys: str) -> dict[str, BaseChannel]:
    """All artifacts there are, of any run, for a resolver to choose from."""
    types = {
        resolvers.MODEL: standard_artifacts.Model,
        resolvers.BLESSING: standard_artifacts.ModelBlessing,
        resolvers.EXAMPLES: standard_artifacts.Examples,
        resolvers.DRIFT: DriftReportArtifact,
        resolvers.REPORTS: SpanReportArtifact,
    }
    return {key: Channel(type=types[key]) for key in keys}


def drift_monitor(
    config: PipelineConfig,
    examples: BaseNode,
    *,
    golden: BaseNode,
    reference: BaseNode,
    serving: BaseNode,
    accepted: int,
    after: BaseNode,
) -> BaseComponent:
    """The comparison of a span with the window before it and with the golden set."""
    own = config.continuous
    limits = {f.name: getattr(own, f.name) for f in dataclasses.fields(Limits)}
    node = DriftMonitor(
        examples=_examples(examples),
        golden=_examples(golden),
        reference=_examples(reference),
        model=serving.outputs[resolvers.MODEL],
        limits=Limits(**limits).to_json(),
        accepted=accepted,
    )
    return _after(node, after)


def verdict_gate(drift: BaseNode) -> BaseComponent:
    """The end of a run whose span is not to be trained on."""
    return VerdictGate(drift=drift.outputs["report"])


def span_gate(
    config: PipelineConfig,
    trainer: BaseNode,
    *,
    drift: BaseNode,
    window: BaseNode,
    golden: BaseNode,
    on_span: BaseNode,
    on_golden: BaseNode,
    validator: BaseNode,
    serving: BaseNode,
) -> BaseComponent:
    """The verdict on a candidate, from those of all who looked at it."""
    return SpanGate(
        max_golden_increase=config.continuous.max_golden_increase,
        harmful_increase=config.continuous.harmful_increase,
        model=trainer.outputs["model"],
        model_run=trainer.outputs["model_run"],
        drift=drift.outputs["report"],
        window=_examples(window),
        golden=_examples(golden),
        span_evaluation=on_span.outputs["evaluation"],
        span_blessing=on_span.outputs["blessing"],
        golden_evaluation=on_golden.outputs["evaluation"],
        golden_blessing=on_golden.outputs["blessing"],
        infra_blessing=validator.outputs["blessing"],
        baseline=serving.outputs[resolvers.MODEL],
        baseline_blessing=serving.outputs[resolvers.BLESSING],
    )


# What the nodes are told.


def serving_dir(config: PipelineConfig) -> str:
    """The folder above the servables."""
    return os.path.abspath(config.pusher.dir or os.path.join(config.root, "serving"))


def reported_config(config: PipelineConfig) -> dict[str, Any]:
    """What a report shows of the configuration: what decides its figures, not where it ran."""
    values = config.model_dump()
    values["evaluator"]["max_mse"] = config.max_mse()
    for place in ("root", "cache", "beam"):
        del values[place]
    del values["data"]["dir"]
    return values


def stamp(channel: BaseChannel, **properties: str) -> None:
    """Gives the artifacts of a channel custom properties; they count for the cache."""
    channel.additional_custom_properties = {**channel.additional_custom_properties, **properties}


def _custom_config(config: PipelineConfig, *, warm: bool, **special: Any) -> dict[str, Any]:
    """What the Trainer and the Tuner are told; part of their cache keys."""
    return CustomConfig(
        model=config.model,
        options=config.trainer,
        facts={"servable": config.servable},
        warm=config.warm_options() if warm else {},
        **special,
    ).to_dict()


def _examples(node: BaseNode) -> BaseChannel:
    """The examples that a node puts out: an ExampleGen, or a resolver of windows."""
    return node.outputs["examples"]


def _after(node: Any, upstream: BaseNode | None) -> Any:
    if upstream is not None:
        node.add_upstream_node(upstream)
    return node
