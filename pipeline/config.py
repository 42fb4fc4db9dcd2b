"""The configuration of a pipeline: parsed once, validated once, then passed on.

A YAML file and ``--set a.b=value`` fill the same frozen dataclasses. What is
not said is a default here, or, for a model and its training, in the catalogue.
"""

from __future__ import annotations

import dataclasses
import difflib
import json
import math
import re
import types
import typing
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

import annotated_types
import pydantic
import yaml

from pipeline.cluster import KubeflowConfig
from pipeline.errors import UserError
from trainer.models.catalogue import (
    Hyperparameters,
    ModelSpec,
    UnknownModelError,
    get_model_spec,
)

DEFAULT_MODEL = "best"
DEFAULT_ROOT = "runs"

Digit = Annotated[int, annotated_types.Interval(ge=0, le=9)]
Fraction = Annotated[float, annotated_types.Interval(gt=0, lt=1)]
Count = Annotated[int, annotated_types.Ge(0)]
PositiveInt = Annotated[int, annotated_types.Ge(1)]
PositiveFloat = Annotated[float, annotated_types.Gt(0), annotated_types.Lt(float("inf"))]
BeamValue = bool | int | float | str | tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """What to train on.

    Attributes:
      dir: Folder with the four IDX files.
      dataset: ``auto``, ``mnist`` or ``mnist-5k``.
      keep_labels: Digits to train on; None is all (one-class training).
      drop_labels: Digits to leave out; the complement of ``keep_labels``.
    """

    dir: str | None = None
    dataset: Literal["auto", "mnist", "mnist-5k"] = "auto"
    keep_labels: tuple[Digit, ...] | None = None
    drop_labels: tuple[Digit, ...] | None = None

    def __post_init__(self) -> None:
        if self.keep_labels is not None and self.drop_labels is not None:
            raise ValueError("keep_labels and drop_labels exclude each other")
        if self.kept() == ():
            raise ValueError("keep_labels and drop_labels leave no digit")

    def kept(self) -> tuple[int, ...] | None:
        """The digits to train on, or None for all, labelled or not."""
        if self.keep_labels is not None:
            return tuple(sorted(set(self.keep_labels)))
        if self.drop_labels is not None:
            return tuple(d for d in range(10) if d not in self.drop_labels)
        return None


@dataclasses.dataclass(frozen=True)
class TrainerConfig:
    """How to train; None takes what the catalogue says for the model.

    Attributes: see ``trainer.run_fn.TrainingOptions``.
    """

    epochs: PositiveInt | None = None
    batch_size: PositiveInt | None = None
    learning_rate: PositiveFloat | None = None
    xla: bool | None = None
    steps_per_execution: PositiveInt = 50
    mixed_precision: bool = False
    strategy: Literal["auto", "mirrored", "multi_worker", "none"] = "auto"
    seed: Count = 0
    validation_fraction: Fraction = 0.05
    patience: Count = 10
    streaming: bool = False
    anomaly_quantile: Fraction = 0.99


@dataclasses.dataclass(frozen=True)
class TunerConfig:
    """Whether and how to search for better hyper-parameters before the training.

    Attributes:
      enabled: Whether to.
      trials: Trainings to try.
      epochs: Of a trial; None is a fifth of the training's, at least one.
    """

    enabled: bool = False
    trials: PositiveInt = 8
    epochs: PositiveInt | None = None


@dataclasses.dataclass(frozen=True)
class EvaluatorConfig:
    """When a model is good enough.

    Attributes:
      max_mse: Absolute bound on the mean MSE; None takes the catalogue's.
      max_increase: How much worse than the baseline, relative to it.
      baseline: Whether to compare with the last blessed model of the servable.
    """

    max_mse: PositiveFloat | None = None
    max_increase: Annotated[float, annotated_types.Ge(0)] = 0.05
    baseline: bool = True


@dataclasses.dataclass(frozen=True)
class ValidatorConfig:
    """What a model must show before it is pushed.

    Attributes:
      latency_budget_ms: For one image over gRPC, 95th percentile, on this machine.
    """

    latency_budget_ms: PositiveFloat = 250.0


@dataclasses.dataclass(frozen=True)
class PusherConfig:
    """Where models are served from.

    Attributes:
      dir: Folder above the servables; None is ``<root>/serving``.
      name: What the model is served as; None is the model's name, and for a
        one-class model its name and digits.
    """

    dir: str | None = None
    name: Annotated[str, pydantic.Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")] | None = None


@dataclasses.dataclass(frozen=True)
class ContinuousConfig:
    """How ``mnist-ae watch`` retrains when spans of new images come in.

    Attributes:
      window: How many spans a training sees, the newest included.
      warm_epochs: Epochs of a training that starts from the serving model;
        None is a third of ``trainer.epochs``.
      warm_learning_rate: Its learning rate; None is ``trainer.learning_rate``
        (half of it learnt less from the same images in twelve spans).
      max_distance: Jensen-Shannon distance (0 to 1, the worst of the pixel
        statistics) from the window, or from the golden set, above which a span
        is too strange.
      max_code_distance: The same for the mean over the code's dimensions.
      max_error_ratio: How many times the window's reconstruction errors (median
        and 90th percentile, by the serving model) the span's may be.
      skip_overlap: Part of a span's images that the window has already, from
        which on there is nothing new to train on.
      skip_distance: A span whose distances are all below is skipped, too; 0
        trains on every new one.
      max_span_increase: How much worse than the serving model on the newest
        span, relative to it.
      max_golden_increase: How much worse on the golden set than the best model
        so far.
      max_digit_increase: How much worse than the serving model on any one digit
        of the golden set.
      max_span_digit_increase: As above, of the newest span, which is smaller.
      harmful_increase: A span whose candidate is that much worse on the golden
        set is left out of later windows.
      tries: Tries of a span before it is set aside.
      retry_seconds: Pause before the second try; doubled for each further one.
      keep_runs: Runs whose artifacts stay on the disk; of older ones the
        lineage alone is kept. 0 keeps all.
      keep_versions: Pushed versions that stay, beside those with a label.
      notify_command: Run at every notable event, which it gets as JSON on stdin.
      notify_url: Gets the event as a JSON POST.
      soak_seconds: How long a canary is compared before it is promoted.
      soak_checks: Comparisons within that time.
      soak_tolerance: How much higher the canary's served errors may be.
      sample_images: Sampled requests that make a span.
      max_served_ratio: Served errors, relative to the golden set's, that make a
        span of the sampled requests early.
      golden: Folder of the golden set's labelled IDX files, as the nodes see it.
        Kubeflow runs are then continuous ones: the data folder holds spans.
    """

    window: PositiveInt = 4
    warm_epochs: PositiveInt | None = None
    warm_learning_rate: PositiveFloat | None = None
    max_distance: Fraction = 0.3
    max_code_distance: Fraction = 0.4
    max_error_ratio: PositiveFloat = 2.0
    skip_overlap: Fraction = 0.98
    skip_distance: Annotated[float, annotated_types.Interval(ge=0, lt=1)] = 0.0
    max_span_increase: Annotated[float, annotated_types.Ge(0)] = 0.05
    max_golden_increase: Annotated[float, annotated_types.Ge(0)] = 0.0
    max_digit_increase: Annotated[float, annotated_types.Ge(0)] = 0.1
    max_span_digit_increase: Annotated[float, annotated_types.Ge(0)] = 0.3
    harmful_increase: Annotated[float, annotated_types.Ge(0)] = 0.05
    tries: PositiveInt = 3
    retry_seconds: Annotated[float, annotated_types.Ge(0)] = 10.0
    keep_runs: Count = 10
    keep_versions: PositiveInt = 5
    notify_command: str | None = None
    notify_url: Annotated[str, pydantic.Field(pattern=r"^https?://")] | None = None
    soak_seconds: Annotated[float, annotated_types.Ge(0)] = 600.0
    soak_checks: PositiveInt = 5
    soak_tolerance: Annotated[float, annotated_types.Ge(0)] = 0.05
    sample_images: PositiveInt = 1_000
    max_served_ratio: PositiveFloat = 1.5
    golden: str | None = None


@dataclasses.dataclass(frozen=True)
class ModelChoice:
    """The selected model.

    Attributes:
      name: In the catalogue.
      hyperparameters: Complete and checked.
    """

    name: str
    hyperparameters: Hyperparameters

    @property
    def spec(self) -> ModelSpec:
        """Its catalogue entry."""
        return get_model_spec(self.name)


def _default_choice() -> ModelChoice:
    return ModelChoice(DEFAULT_MODEL, get_model_spec(DEFAULT_MODEL).hyperparameters())


@dataclasses.dataclass(frozen=True)
class PipelineConfig:
    """Everything a run needs to know.

    Attributes:
      name: Of the pipeline, in ML Metadata.
      root: Folder of all that a run writes.
      cache: Whether what was computed from the same input is used again.
      data: What to train on.
      model: The selected model and its hyper-parameters.
      trainer: How to train.
      tuner: Whether to search for better hyper-parameters first.
      evaluator: When a model is good enough.
      validator: What it must show before it is pushed.
      pusher: Where models are served from.
      beam: Beam's pipeline options, by name.
      continuous: How spans of new images are trained on.
      kubeflow: What a cluster has to provide.
    """

    name: str = "mnist-autoencoder"
    root: str = DEFAULT_ROOT
    cache: bool = True
    data: DataConfig = DataConfig()
    model: ModelChoice = dataclasses.field(default_factory=_default_choice)
    trainer: TrainerConfig = TrainerConfig()
    tuner: TunerConfig = TunerConfig()
    evaluator: EvaluatorConfig = EvaluatorConfig()
    validator: ValidatorConfig = ValidatorConfig()
    pusher: PusherConfig = PusherConfig()
    beam: dict[str, BeamValue] = dataclasses.field(default_factory=dict)
    continuous: ContinuousConfig = ContinuousConfig()
    kubeflow: KubeflowConfig = KubeflowConfig()

    @property
    def servable(self) -> str:
        """What the model is served as: the name of its folder of versions."""
        if self.pusher.name is not None:
            return self.pusher.name
        kept = self.data.kept()
        digits = "" if kept is None else "-only-" + "".join(map(str, kept))
        return self.model.name + digits

    def training_options(self) -> dict[str, Any]:
        """``trainer`` with the catalogue's values for what is None."""
        values = dataclasses.asdict(self.trainer)
        defaults = self.model.spec.training
        for key in ("epochs", "batch_size", "learning_rate", "xla"):
            if values[key] is None:
                values[key] = getattr(defaults, key)
        return values

    def warm_options(self) -> dict[str, Any]:
        """What of :meth:`training_options` is another in a warm start."""
        options, own = self.training_options(), self.continuous
        return {
            "epochs": own.warm_epochs or max(1, math.ceil(options["epochs"] / 3)),
            "learning_rate": own.warm_learning_rate or options["learning_rate"],
        }

    def max_mse(self) -> float:
        """The absolute bound on the mean MSE."""
        if self.evaluator.max_mse is not None:
            return self.evaluator.max_mse
        return self.model.spec.max_mse

    def beam_args(self) -> list[str]:
        """``beam`` as flags."""
        flags = []
        for key, value in self.beam.items():
            if isinstance(value, bool):
                flags += [f"--{key}"] if value else []
            elif isinstance(value, (tuple, list)):
                flags += [f"--{key}={item}" for item in value]
            else:
                flags.append(f"--{key}={value}")
        return flags


def load(path: str | None, assignments: Sequence[str] = ()) -> PipelineConfig:
    """Reads a configuration.

    Args:
      path: A YAML file, or None.
      assignments: ``a.b=value`` with a YAML value; they win over the file.

    Raises:
      UserError: Unreadable file, no YAML, unknown key, wrong type or value; the
        message names the key, where it stands and the nearest known one.
    """
    return parse(read(path, assignments), where=path or "command line")


def read(path: str | None, assignments: Sequence[str] = ()) -> dict[str, Any]:
    """What :func:`load` parses: the file's mapping with the assignments in it."""
    values: dict[str, Any] = {}
    if path is not None:
        values = _read_yaml(path)
    for assignment in assignments:
        assign(values, assignment)
    return values


def parse(values: Mapping[str, Any], where: str = "configuration") -> PipelineConfig:
    """Checks a mapping and makes a configuration of it; see :func:`load`."""
    values = dict(values)
    choice = _parse_model(values.pop("model", None), where)
    config = _validate(PipelineConfig, values, where, prefix=())
    config = dataclasses.replace(config, model=choice)
    if config.trainer.streaming and getattr(choice.hyperparameters, "labels", None):
        raise UserError(
            f"{where}: trainer.streaming: model {choice.name!r} looks at labels, "
            "which are chosen in memory"
        )
    return config


def check_labels(config: PipelineConfig, labelled: int, where: str = "configuration") -> None:
    """Refuses a model that wants more labels than the training split has.

    Args:
      config: With the model.
      labelled: Labelled images that are left for training.
      where: For the message.

    Raises:
      UserError: Naming model and field.
    """
    wanted = getattr(config.model.hyperparameters, "labels", None) or 0
    if config.model.spec.needs_labels and not labelled:
        raise UserError(
            f"{where}: model {config.model.name!r} learns from labels, and these images have none"
        )
    if wanted > labelled:
        raise UserError(
            f"{where}: model {config.model.name!r}, model.labels: {wanted:,} labels wanted, "
            f"but only {labelled:,} training images have one"
        )


class _Loader(yaml.SafeLoader):
    """YAML as people write it: ``1e-3`` is a number (YAML 1.1 wants ``1.0e-3``)."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?[0-9][0-9_]*(?:\.[0-9_]*)?[eE][-+]?[0-9]+$"),
    list("-+0123456789"),
)


def _read_yaml(path: str) -> dict[str, Any]:
    try:
        with open(path, encoding="utf-8") as f:
            values = yaml.load(f, _Loader)
    except OSError as e:
        raise UserError(f"{path}: cannot be read ({e.strerror})") from None
    except (yaml.YAMLError, UnicodeDecodeError) as e:
        mark = getattr(e, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark else ""
        problem = getattr(e, "problem", None) or "no text"
        raise UserError(f"{path}{line}: not YAML ({problem})") from None
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise UserError(f"{path}: a configuration is a YAML mapping, such as 'model: simple'")
    return values


def assign(values: dict[str, Any], assignment: str) -> None:
    """Puts ``a.b=value`` into a mapping that :func:`parse` takes.

    Raises:
      UserError: No such form, or the value is not YAML.
    """
    key, sign, text = assignment.partition("=")
    if not sign or not key:
        raise UserError(f"--set {assignment}: expected KEY=VALUE, such as trainer.epochs=10")
    try:
        value = yaml.load(text, _Loader)
    except yaml.YAMLError:
        raise UserError(f"--set {assignment}: the value is not YAML; quote it") from None
    *parents, last = key.split(".")
    target = values
    for parent in parents:
        inner = target.setdefault(parent, {})
        if parent == "model" and isinstance(inner, str):
            inner = target[parent] = {"name": inner}
        if not isinstance(inner, dict):
            raise UserError(f"--set {assignment}: {parent!r} is not a section")
        target = inner
    if not parents and last == "model" and isinstance(target.get("model"), dict):
        target = target["model"]
        last = "name"
    target[last] = value


def _parse_model(value: Any, where: str) -> ModelChoice:
    if value is None:
        return _default_choice()
    if isinstance(value, str):
        value = {"name": value}
    if not isinstance(value, dict):
        raise UserError(f"{where}: model: expected a name or a mapping with 'name'")
    given = dict(value)
    name = given.pop("name", DEFAULT_MODEL)
    try:
        spec = get_model_spec(str(name))
    except UnknownModelError as e:
        raise UserError(f"{where}: {e}") from None
    hyperparameters = _validate(
        spec.hyperparameters, given, where, prefix=("model",), subject=f"model {spec.name!r}, "
    )
    return ModelChoice(spec.name, hyperparameters)


def _validate(
    schema: type, values: Mapping[str, Any], where: str, prefix: tuple[str, ...], subject: str = ""
) -> Any:
    _refuse_unknown(schema, values, where, prefix, subject)
    try:
        # By way of JSON, so that strictness still lets a list be a tuple.
        adapter: pydantic.TypeAdapter[Any] = pydantic.TypeAdapter(schema)
        return adapter.validate_json(json.dumps(values, default=str), strict=True)
    except pydantic.ValidationError as e:
        error = e.errors(include_url=False)[0]
        path = [str(part) for part in error["loc"] if not _is_union_member(part)]
        key = ".".join([*prefix, *path])
        reason = error["msg"].removeprefix("Value error, ")
        if error["type"] == "literal_error":
            expected = re.findall(r"'([^']*)'", error["ctx"]["expected"])
            near = difflib.get_close_matches(str(error["input"]), expected, n=1, cutoff=0.5)
            reason += f"; did you mean {near[0]!r}?" if near else ""
        shown = "" if isinstance(error["input"], dict) else f" (got {error['input']!r})"
        raise UserError(f"{where}: {subject}{key or 'configuration'}: {reason}{shown}") from None


def _is_union_member(part: int | str) -> bool:
    """Whether a part of an error's location is a type's name, not a key."""
    return isinstance(part, str) and not part.replace("_", "").isalnum()


def _refuse_unknown(
    schema: type, values: Mapping[str, Any], where: str, prefix: tuple[str, ...], subject: str
) -> None:
    if not isinstance(values, Mapping):
        raise UserError(f"{where}: {subject}{'.'.join(prefix)}: expected a mapping, got {values!r}")
    hints = typing.get_type_hints(schema)
    known = [field.name for field in dataclasses.fields(schema) if field.init]
    for key, value in values.items():
        full = ".".join([*prefix, str(key)])
        if key not in known:
            near = difflib.get_close_matches(str(key), known, n=1, cutoff=0.5)
            hint = (
                f"did you mean {'.'.join([*prefix, near[0]])!r}?"
                if near
                else f"known: {', '.join(known)}"
            )
            raise UserError(f"{where}: {subject}unknown key {full!r}; {hint}")
        inner = _dataclass_of(hints[key])
        if inner is not None:
            _refuse_unknown(inner, value, where, (*prefix, key), subject)
        elif typing.get_origin(hints[key]) is dict and isinstance(value, Mapping):
            entry = _dataclass_of(typing.get_args(hints[key])[1])
            if entry is not None:
                for name, inner_value in value.items():
                    _refuse_unknown(entry, inner_value, where, (*prefix, key, name), subject)


def _dataclass_of(hint: Any) -> type | None:
    if isinstance(hint, type) and not isinstance(hint, types.GenericAlias):
        return hint if dataclasses.is_dataclass(hint) else None
    return None
