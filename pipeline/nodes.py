"""Builders of single nodes, shared by both pipelines: no node is built elsewhere.

A builder takes the nodes that it reads from. The two pipeline functions put
them together.
"""

from __future__ import annotations

import dataclasses
import json
import os
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
from pipeline import code_digest, history
from pipeline.beam_options import beam_args
from pipeline.config import PipelineConfig
from trainer.job import CustomConfig, TunerOptions

GOLDEN_GEN = "GoldenExampleGen"
# Parameter of every component: which code it runs.
CODE = "code"


class Builder:
    """Builds the nodes of a pipeline, one after the other, in topological order.

    Args:
      workers: Who trains, where it is not the Trainer itself; see
        ``trainer.run_fn.run_fn``.
      metadata_connection: ML Metadata store; SQLite under ``config.root`` when None.
      pipeline_root: Where artifacts go; under ``config.root`` when None.
    """

    def __init__(
        self,
        config: PipelineConfig,
        *,
        workers: dict[str, Any] | None = None,
        metadata_connection: metadata_store_pb2.ConnectionConfig | None = None,
        pipeline_root: str | None = None,
    ) -> None:
        self._config = config
        self._workers = workers
        self._metadata_connection = metadata_connection
        self._pipeline_root = pipeline_root
        self._nodes: list[BaseNode] = []
        self._schema: BaseChannel | None = None

    def pipeline(self) -> pipeline.Pipeline:
        """The pipeline of all nodes that were built."""
        config = self._config
        for node in self._nodes:
            if isinstance(node, BaseComponent):
                # TFX's cache knows parameters, not code: as a parameter, an edit is
                # never answered from the cache.
                node.exec_properties[CODE] = code_digest.digest(references(config, node))
        return pipeline.Pipeline(
            pipeline_name=config.name,
            pipeline_root=self._pipeline_root or history.artifacts_folder(config.root),
            components=self._nodes,
            enable_cache=config.cache,
            metadata_connection_config=self._metadata_connection
            or metadata.sqlite_metadata_connection_config(history.metadata_path(config.root)),
            beam_pipeline_args=beam_args(config),
        )

    def _add(self, node: Any, node_id: str = "", after: BaseNode | None = None) -> Any:
        if node_id:
            node.with_id(node_id)
        if after is not None:
            node.add_upstream_node(after)
        self._nodes.append(node)
        return node

    # Data.

    def example_gen(self, folder: str, pattern: str = "", span: int | None = None) -> BaseNode:
        """The images to train on and to evaluate with.

        Args:
          folder: Of the IDX files, or of the spans.
          pattern: Folder of a span below that, such as ``span-{SPAN}``; "" where the
            files lie in ``folder`` itself.
          span: Its number; the latest when None.
        """
        only = None
        if span is not None:
            numbers = range_config_pb2.StaticRange(start_span_number=span, end_span_number=span)
            only = range_config_pb2.RangeConfig(static_range=numbers)
        kept = self._config.data.kept()
        return self._add(MnistExampleGen(folder, pattern, keep_labels=kept, range_config=only))

    def golden_example_gen(self, folder: str) -> BaseNode:
        """The golden set: images to evaluate with, the same in every run."""
        kept = self._config.data.kept()
        node = MnistExampleGen(folder, keep_labels=kept, splits=(features.EVAL_SPLIT,))
        return self._add(node, GOLDEN_GEN)

    def validation(self, examples: BaseNode) -> BaseNode:
        """The curated schema, and the nodes that end the run where examples do not fit it."""
        schema = self._add(ImportSchemaGen(schema_file=str(features.SCHEMA_FILE)))
        self._schema = schema.outputs["schema"]
        stamp(self._schema, digest=code_digest.digest_of_file(features.SCHEMA_FILE))
        options = tfdv.StatsOptions(num_top_values=10, num_rank_histogram_buckets=10)
        generator = StatisticsGen(_examples(examples), schema=self._schema, stats_options=options)
        statistics = self._add(generator).outputs["statistics"]
        validator = self._add(ExampleValidator(statistics, schema=self._schema))
        anomalies = validator.outputs["anomalies"]
        return self._add(DataGate(statistics=statistics, anomalies=anomalies))

    def transform(self, examples: BaseNode, *, after: BaseNode | None = None) -> BaseNode:
        """The graph from bytes to floats in [0, 1]."""
        node = Transform(
            examples=_examples(examples),
            schema=self._schema,
            preprocessing_fn="components.preprocessing.preprocessing_fn",
            # The graph has nothing to learn from the data and costs less to run in
            # the input pipeline than its float output to write and read back.
            materialize=False,
            disable_statistics=True,
        )
        return self._add(node, after=after)

    def pca_reference(self, examples: BaseNode, *, after: BaseNode) -> BaseNode:
        """What PCA makes of the images."""
        return self._add(PcaReference(examples=_examples(examples)), after=after)

    # Training.

    def tuner(
        self, examples: BaseNode, transform: BaseNode, *, base: BaseNode | None = None
    ) -> BaseNode | None:
        """The search for better hyper-parameters, where it is wanted.

        ``base`` finds the model to start from; its architecture is kept.
        """
        own = self._config.tuner
        if not own.enabled:
            return None
        epochs = own.epochs or max(1, self._config.trainer.epochs // 5)
        search = TunerOptions(trials=own.trials, epochs=epochs)
        node = Tuner(
            tuner_fn="trainer.tuner_fn.tuner_fn",
            examples=_examples(examples),
            transform_graph=transform.outputs["transform_graph"],
            schema=self._schema,
            base_model=base.outputs[resolvers.MODEL] if base else None,
            custom_config=self._custom_config(warm=base is not None, tuner=search),
        )
        return self._add(node)

    def trainer(
        self,
        examples: BaseNode,
        transform: BaseNode,
        *,
        tuner: BaseNode | None = None,
        base: BaseNode | None = None,
        span_key: str | None = None,
    ) -> BaseNode:
        """The training of the selected autoencoder.

        Args:
          base: Finds the model to start from.
          span_key: The span that the model is trained for, as "N.V".
        """
        node = Trainer(
            run_fn="trainer.run_fn.run_fn",
            examples=_examples(examples),
            transform_graph=transform.outputs["transform_graph"],
            schema=self._schema,
            hyperparameters=tuner.outputs["best_hyperparameters"] if tuner else None,
            base_model=base.outputs[resolvers.MODEL] if base else None,
            custom_config=self._custom_config(warm=base is not None, workers=self._workers),
        )
        stamp(node.outputs["model"], **{resolvers.SERVABLE_PROPERTY: self._config.servable})
        if span_key is not None:
            stamp(node.outputs["model"], **{resolvers.SPAN_KEY: span_key})
        return self._add(node)

    def _custom_config(self, *, warm: bool, **special: Any) -> dict[str, Any]:
        """What the Trainer and the Tuner are told; part of their cache keys."""
        return CustomConfig(
            model=self._config.model,
            options=self._config.trainer,
            facts={"servable": self._config.servable},
            warm=self._config.warm_options() if warm else {},
            **special,
        ).to_dict()

    # Judging.

    def baseline_resolver(self, trainer: BaseNode) -> BaseNode | None:
        """The last blessed model of the servable, where candidates are compared with it."""
        if not self._config.evaluator.baseline:
            return None
        channels = _ever(resolvers.MODEL, resolvers.BLESSING)
        channels[resolvers.CANDIDATE] = trainer.outputs["model"]
        node = Resolver(strategy_class=resolvers.LatestOtherBlessedModel, **channels)
        return self._add(node, "BaselineResolver")

    def evaluator(
        self,
        examples: BaseNode,
        trainer: BaseNode,
        *,
        against: BaseNode | None,
        by_label: bool,
        max_increase: float,
        max_digit_increase: float | None = None,
        node_id: str = "",
    ) -> BaseNode:
        """The losses of the candidate, and its blessing.

        Args:
          against: Finds the baseline; None compares with none.
          by_label: Whether there are labels to slice by.
          max_increase: How much worse than the baseline, relative to it.
          max_digit_increase: As above, on any one digit; None sets no limit.
        """
        node = Evaluator(
            examples=_examples(examples),
            model=trainer.outputs["model"],
            baseline_model=against.outputs[resolvers.MODEL] if against else None,
            eval_config=evaluation.eval_config(
                max_mse=self._config.max_mse(),
                max_increase=max_increase,
                use_baseline=against is not None,
                by_label=by_label,
                max_digit_increase=max_digit_increase,
            ),
            example_splits=[features.EVAL_SPLIT],
            schema=self._schema,
        )
        return self._add(node, node_id)

    def serving_validator(self, trainer: BaseNode, examples: BaseNode) -> BaseNode:
        """The check that a server could serve the candidate."""
        node = ServingValidator(
            model=trainer.outputs["model"],
            examples=_examples(examples),
            model_name=self._config.servable,
            latency_budget_ms=self._config.validator.latency_budget_ms,
        )
        return self._add(node)

    def pusher(self, validator: BaseNode, judge: BaseNode) -> BaseNode:
        """What makes a blessed model a version of its servable."""
        folder = os.path.join(serving_dir(self._config), self._config.servable)
        destination = pusher_pb2.PushDestination.Filesystem(base_directory=folder)
        node = AtomicPusher(
            # With its warm-up requests: what was validated is what is pushed.
            infra_blessing=validator.outputs["blessing"],
            model_blessing=judge.outputs["blessing"],
            push_destination=pusher_pb2.PushDestination(filesystem=destination),
        )
        return self._add(node, "Pusher")

    def image_index(self, examples: BaseNode, trainer: BaseNode, reference: BaseNode) -> BaseNode:
        """Codes and errors of all images, for search and anomaly figures."""
        node = ImageIndex(
            examples=_examples(examples),
            model=trainer.outputs["model"],
            reference=reference.outputs["reference"],
        )
        return self._add(node)

    def run_report(
        self,
        examples: BaseNode,
        trainer: BaseNode,
        *,
        evaluator: BaseNode,
        judge: BaseNode,
        validator: BaseNode,
        reference: BaseNode,
        index: BaseNode,
    ) -> BaseNode:
        """The page of the run; ``judge`` is whose blessing the Pusher asked for."""
        node = RunReport(
            examples=_examples(examples),
            model=trainer.outputs["model"],
            model_run=trainer.outputs["model_run"],
            evaluation=evaluator.outputs["evaluation"],
            blessing=judge.outputs["blessing"],
            infra_blessing=validator.outputs["blessing"],
            reference=reference.outputs["reference"],
            index=index.outputs["index"],
            code_metrics=index.outputs["metrics"],
            model_name=self._config.model.name,
            servable=self._config.servable,
            configuration=json.dumps(reported_config(self._config), sort_keys=True),
            images=self._config.report.images,
        )
        return self._add(node)

    # Of continuous runs only.

    def serving_model_resolver(self, span_key: str) -> BaseNode:
        """The model that is served, to start from and to compare with."""
        node = Resolver(
            strategy_class=resolvers.ServingModel,
            config={"servable": self._config.servable, "span_key": span_key},
            **_ever(resolvers.MODEL, resolvers.BLESSING),
        )
        return self._add(node, "ServingModelResolver")

    def reference_resolver(self, examples: BaseNode, *, after: BaseNode) -> BaseNode:
        """The window before the span of ``examples``."""
        before = {resolvers.WITHOUT: _examples(examples)}
        return self._add(self._window(**before), "ReferenceResolver", after)

    def window_resolver(self, drift: BaseNode) -> BaseNode:
        """The window that the span of ``drift`` is now part of."""
        current = {resolvers.CURRENT: drift.outputs["report"]}
        return self._add(self._window(**current), "WindowResolver")

    def _window(self, **given: BaseChannel) -> Resolver:
        return Resolver(
            strategy_class=resolvers.RollingWindow,
            config={"size": self._config.continuous.window},
            **_ever(resolvers.EXAMPLES, resolvers.DRIFT, resolvers.REPORTS),
            **given,
        )

    def drift_monitor(
        self,
        examples: BaseNode,
        *,
        golden: BaseNode,
        reference: BaseNode,
        serving: BaseNode,
        accepted: int,
        after: BaseNode,
    ) -> BaseNode:
        """The comparison of a span with the window before it and with the golden set."""
        own = self._config.continuous
        limits = Limits(**{f.name: getattr(own, f.name) for f in dataclasses.fields(Limits)})
        node = DriftMonitor(
            examples=_examples(examples),
            golden=_examples(golden),
            reference=_examples(reference),
            model=serving.outputs[resolvers.MODEL],
            limits=limits.to_json(),
            accepted=accepted,
        )
        return self._add(node, after=after)

    def span_gate(
        self,
        trainer: BaseNode,
        *,
        drift: BaseNode,
        window: BaseNode,
        golden: BaseNode,
        on_span: BaseNode,
        on_golden: BaseNode,
        validator: BaseNode,
        serving: BaseNode,
    ) -> BaseNode:
        """The verdict on a candidate, from those of all who looked at it."""
        node = SpanGate(
            max_golden_increase=self._config.continuous.max_golden_increase,
            harmful_increase=self._config.continuous.harmful_increase,
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
        return self._add(node)


def references(config: PipelineConfig, node: BaseComponent) -> list[str]:
    """What of the project a node runs: its executor, what its parameters name, the model."""
    found = [node.executor_spec.executor_class.__module__, node.driver_class.__module__]
    for value in node.exec_properties.values():
        if isinstance(value, str):
            found += code_digest.references_in(value)
    if isinstance(node, (Trainer, Tuner)):
        found.append(config.model.spec.implementation)
    return found


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


def _examples(node: BaseNode) -> BaseChannel:
    """The examples that a node puts out: an ExampleGen, or a resolver of windows."""
    return node.outputs["examples"]


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
