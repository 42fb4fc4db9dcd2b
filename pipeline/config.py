"""The configuration of a pipeline: parsed once, validated once, then passed on.

A YAML file and ``--set a.b=value`` fill the same frozen classes. What is
not said is a default here, or, for a model and its training, in the catalogue.
"""

from __future__ import annotations

import difflib
import math
import re
import shlex
import typing
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, TypeVar

import pydantic
import yaml
from annotated_types import Interval

from pipeline.errors import UserError
from trainer.job import TrainingOptions
from trainer.models.catalogue import ModelChoice, UnknownModelError, get_model_spec
from trainer.models.checked_values import (
    Count,
    Fraction,
    FractionOrZero,
    ListOf,
    NonNegative,
    PositiveFloat,
    PositiveInt,
    Settings,
)

_Schema = TypeVar("_Schema", bound=Settings)

DEFAULT_MODEL = "best"
DEFAULT_ROOT = "runs"

_QUANTITY = re.compile(r"[0-9]+(\.[0-9]+)?(m|k|M|G|T|Ki|Mi|Gi|Ti)?")
_ENVIRONMENT_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_DNS_NAME = r"^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$"
_SECRET_KEY = re.compile(r"[a-z0-9]([-.a-z0-9]*[a-z0-9])?/[-._A-Za-z0-9]+")
_LABEL = re.compile(r"([a-z0-9.-]+/)?[A-Za-z0-9]([-._A-Za-z0-9]*[A-Za-z0-9])?")
_LABEL_VALUE = re.compile(r"([A-Za-z0-9]([-._A-Za-z0-9]*[A-Za-z0-9])?)?")
# A password in the address would stand in the compiled file for all to read.
_CREDENTIALS = re.compile(r"//[^/@]*:[^/@]*@")

# The environment variable that a node reads the database's password from.
METADATA_PASSWORD = "MNIST_AE_METADATA_PASSWORD"


def _quantity(value: str | int | float) -> str | int | float:
    if not _QUANTITY.fullmatch(str(value)):
        raise ValueError("no Kubernetes quantity, such as 500m or 2Gi")
    return value


Digit = Annotated[int, Interval(ge=0, le=9)]
BeamValue = bool | int | float | str | ListOf[str]
DnsName = Annotated[str, pydantic.Field(pattern=_DNS_NAME)]
Quantity = Annotated[str | int | float, pydantic.AfterValidator(_quantity)]


class DataConfig(Settings):
    """What to train on.

    Attributes:
      dir: Folder with the four IDX files.
      dataset: ``auto``, ``mnist`` or ``mnist-5k``.
      keep_labels: Digits to train on; None is all (one-class training).
      drop_labels: Digits to leave out; the complement of ``keep_labels``.
    """

    dir: str | None = None
    dataset: Literal["auto", "mnist", "mnist-5k"] = "auto"
    keep_labels: ListOf[Digit] | None = None
    drop_labels: ListOf[Digit] | None = None

    def check(self) -> None:
        """Refuses to train on no digit."""
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


class TunerConfig(Settings):
    """The search for better hyper-parameters before the training.

    Attributes:
      epochs: Epochs of a trial; None is a fifth of the training's, at least one.
    """

    enabled: bool = False
    trials: PositiveInt = 8
    epochs: PositiveInt | None = None


class EvaluatorConfig(Settings):
    """When a model is good enough.

    Attributes:
      max_mse: Absolute bound on the mean MSE; None takes the catalogue's.
      max_increase: How much worse than the baseline, relative to it.
      baseline: Compare with the last blessed model of the servable.
    """

    max_mse: PositiveFloat | None = None
    max_increase: NonNegative = 0.05
    baseline: bool = True


class ValidatorConfig(Settings):
    """What a model must show before it is pushed.

    Attributes:
      latency_budget_ms: For one image over gRPC, 95th percentile, on this machine.
    """

    latency_budget_ms: PositiveFloat = 250.0


class PusherConfig(Settings):
    """Where models are served from.

    Attributes:
      dir: Folder above the servables; None is ``<root>/serving``.
      name: What the model is served as; None is the model's name, and for a
        one-class model its name and digits.
    """

    dir: str | None = None
    name: Annotated[str, pydantic.Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")] | None = None


class ReportConfig(Settings):
    """What the page of a run is drawn from.

    Attributes:
      images: Of each split; where there are more, so many chosen at random.
    """

    images: PositiveInt = 60_000


class ContinuousConfig(Settings):
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
    skip_distance: FractionOrZero = 0.0
    max_span_increase: NonNegative = 0.05
    max_golden_increase: NonNegative = 0.0
    max_digit_increase: NonNegative = 0.1
    max_span_digit_increase: NonNegative = 0.3
    harmful_increase: NonNegative = 0.05
    tries: PositiveInt = 3
    retry_seconds: NonNegative = 10.0
    keep_runs: Count = 10
    keep_versions: PositiveInt = 5
    notify_command: str | None = None
    notify_url: Annotated[str, pydantic.Field(pattern=r"^https?://")] | None = None
    soak_seconds: NonNegative = 600.0
    soak_checks: PositiveInt = 5
    soak_tolerance: NonNegative = 0.05
    sample_images: PositiveInt = 1_000
    max_served_ratio: PositiveFloat = 1.5
    golden: str | None = None

    def check(self) -> None:
        """Refuses a command whose quotes do not close."""
        try:
            shlex.split(self.notify_command or "")
        except ValueError as e:
            raise ValueError(f"notify_command {self.notify_command!r}: {e}") from None


class NodeConfig(Settings):
    """What one node's pod gets; None leaves it to ``defaults``.

    Attributes:
      cpu: Kubernetes quantity, requested and the limit.
      memory: Kubernetes quantity, requested and the limit.
      gpus: Number of ``nvidia.com/gpu``; nodes that train only.
      node_selector: Labels of the machines to run on.
      retries: How often KFP tries again after a failure.
      backoff_seconds: Pause before the first retry; doubled for each further one.
      timeout_seconds: After which the node gives up; 0 never does.
      env: Environment variables.
      secrets: Environment variables from secrets, as ``secret-name/key``.
    """

    cpu: Quantity | None = None
    memory: Quantity | None = None
    gpus: Count | None = None
    node_selector: dict[str, str] = pydantic.Field(default_factory=dict)
    retries: Count | None = None
    backoff_seconds: PositiveInt | None = None
    timeout_seconds: Count | None = None
    env: dict[str, str] = pydantic.Field(default_factory=dict)
    secrets: dict[str, str] = pydantic.Field(default_factory=dict)

    def check(self) -> None:
        """Refuses what Kubernetes would refuse."""
        for name in (*self.env, *self.secrets):
            if not _ENVIRONMENT_NAME.fullmatch(name):
                raise ValueError(f"{name!r} is no name of an environment variable")
        for name, reference in self.secrets.items():
            if not _SECRET_KEY.fullmatch(reference):
                raise ValueError(f"secrets.{name}: expected secret-name/key, got {reference!r}")
        for label, value in self.node_selector.items():
            if not _LABEL.fullmatch(label) or not _LABEL_VALUE.fullmatch(value):
                raise ValueError(f"node_selector: {label}={value} is no Kubernetes label")

    def over(self, defaults: NodeConfig) -> NodeConfig:
        """These values, with ``defaults`` for what is not said; mappings are joined."""
        values = dict(defaults)
        for key, own in self:
            if isinstance(own, dict):
                values[key] = {**values[key], **own}
            elif own is not None:
                values[key] = own
        return NodeConfig(**values)


_STANDARD = NodeConfig(
    cpu="1", memory="1536Mi", gpus=0, retries=2, backoff_seconds=30, timeout_seconds=3_600
)
_METADATA_SECRET = "mnist-ae-metadata/password"


class WorkersConfig(Settings):
    """Distributed training: workers of a MultiWorkerMirroredStrategy.

    Attributes:
      count: Pods that train together; 1 trains in the Trainer's own pod.
      kind: ``job`` (an indexed Kubernetes Job), ``tfjob`` (Kubeflow's training
        operator) or ``local`` (processes of the Trainer's pod).
      port: The port that workers talk on.
      gpus: Number of ``nvidia.com/gpu`` a worker.
      cpu: Kubernetes quantity a worker.
      memory: Kubernetes quantity a worker.
    """

    count: PositiveInt = 1
    kind: Literal["job", "tfjob", "local"] = "job"
    port: Annotated[int, Interval(ge=1024, le=65535)] = 2222
    gpus: Count = 0
    cpu: Quantity = "2"
    memory: Quantity = "4Gi"


class KubeflowConfig(Settings):
    """Where a pipeline runs on a cluster, and with what.

    Attributes:
      image: The project's image, with a tag or digest.
      namespace: Namespace of the runs and of what they start.
      volume_claim: PersistentVolumeClaim that every node mounts; None for none.
      mount_path: The folder where it is mounted.
      data_dir: Folder with the IDX files, or with ``span-N`` folders of them.
      span: Which span: ``latest`` or a number.
      pipeline_root: Where artifacts go: on the volume or ``gs://``.
      push_dir: Folder above the servables, that TensorFlow Serving reads.
      metadata_url: ML Metadata store: ``mysql://USER@HOST:PORT/DATABASE``,
        ``grpc://HOST:PORT`` or ``sqlite:///PATH``.
      defaults: What every node gets, over one CPU, 1.5 GiB, two retries and an hour.
      nodes: By node, over the defaults.
      workers: Distributed training.
    """

    image: Annotated[str, pydantic.Field(pattern=r"^[^\s:]+(:[0-9]+/[^\s:]+)?[:@][^\s]+$")] = (
        "mnist-autoencoder:0.1.0"
    )
    namespace: DnsName = "kubeflow"
    volume_claim: DnsName | None = "mnist-ae-models"
    mount_path: str = "/mnt/mnist-ae"
    data_dir: str = "/mnt/mnist-ae/data"
    span: str | int = "latest"
    pipeline_root: str = "/mnt/mnist-ae/pipeline"
    push_dir: str = "/mnt/mnist-ae/models"
    metadata_url: str = "mysql://mnist-ae@mnist-ae-metadata:3306/mnist_ae"
    defaults: NodeConfig = NodeConfig()
    nodes: dict[str, NodeConfig] = pydantic.Field(default_factory=dict)
    workers: WorkersConfig = WorkersConfig()

    def check(self) -> None:
        """Refuses a password for all to read, and a span that is no number."""
        if _CREDENTIALS.search(self.metadata_url):
            raise ValueError(
                "metadata_url holds a password; give it as a secret instead: "
                f"kubeflow.defaults.secrets.{METADATA_PASSWORD}=secret-name/key"
            )
        if str(self.span) != "latest" and not str(self.span).isdigit():
            raise ValueError(f"span is 'latest' or a number, not {self.span!r}")

    def node(self, node_id: str) -> NodeConfig:
        """What the pod of a node gets."""
        standard = _STANDARD
        if self.metadata_url.startswith("mysql:"):
            secret = {METADATA_PASSWORD: _METADATA_SECRET}
            standard = standard.replaced(secrets=secret)
        return self.nodes.get(node_id, NodeConfig()).over(self.defaults).over(standard)


class PipelineConfig(Settings):
    """Everything a run needs to know.

    Attributes:
      name: The pipeline's name in ML Metadata.
      root: Folder of all that a run writes.
      cache: Use again what was computed from the same input.
      model: The selected model and its hyper-parameters.
      beam: Beam's pipeline options, by name.
    """

    name: str = "mnist-autoencoder"
    root: str = DEFAULT_ROOT
    cache: bool = True
    data: DataConfig = DataConfig()
    model: ModelChoice = pydantic.Field(default_factory=lambda: ModelChoice.of(DEFAULT_MODEL))
    trainer: TrainingOptions = pydantic.Field(TrainingOptions(), validate_default=True)
    tuner: TunerConfig = TunerConfig()
    evaluator: EvaluatorConfig = EvaluatorConfig()
    validator: ValidatorConfig = ValidatorConfig()
    pusher: PusherConfig = PusherConfig()
    report: ReportConfig = ReportConfig()
    beam: dict[str, BeamValue] = pydantic.Field(default_factory=dict)
    continuous: ContinuousConfig = ContinuousConfig()
    kubeflow: KubeflowConfig = KubeflowConfig()

    @pydantic.field_validator("trainer")
    @classmethod
    def _resolved(cls, options: TrainingOptions, info: pydantic.ValidationInfo) -> TrainingOptions:
        return options.resolved(info.data["model"].spec.training)

    @property
    def servable(self) -> str:
        """What the model is served as: the name of its folder of versions."""
        if self.pusher.name is not None:
            return self.pusher.name
        kept = self.data.kept()
        digits = "" if kept is None else "-only-" + "".join(map(str, kept))
        return self.model.name + digits

    def warm_options(self) -> dict[str, Any]:
        """What of ``trainer`` is another in a warm start."""
        own = self.continuous
        return {
            "epochs": own.warm_epochs or max(1, math.ceil(self.trainer.epochs / 3)),
            "learning_rate": own.warm_learning_rate or self.trainer.learning_rate,
        }

    def max_mse(self) -> float:
        """The absolute bound on the mean MSE."""
        own = self.evaluator.max_mse
        return own if own is not None else self.model.spec.max_mse


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
    values = {} if path is None else _read_yaml(path)
    for assignment in assignments:
        assign(values, assignment)
    return values


def parse(values: Mapping[str, Any], where: str = "configuration") -> PipelineConfig:
    """Checks a mapping and makes a configuration of it; see :func:`load`."""
    choice = _parse_model(values.get("model"), where)
    return _validate(PipelineConfig, {**values, "model": choice}, where)


def check_labels(config: PipelineConfig, labelled: int) -> None:
    """Refuses a model that wants more labels than the training split has.

    Args:
      labelled: Labelled images that are left for training.

    Raises:
      UserError: Naming model and field.
    """
    model = f"configuration: model {config.model.name!r}"
    wanted = config.model.hyperparameters.label_budget
    if wanted is None and not labelled:
        raise UserError(f"{model} learns from labels, and these images have none")
    if wanted is not None and wanted > labelled:
        raise UserError(
            f"{model}, model.labels: {wanted:,} labels wanted, but only {labelled:,} training "
            "images have one"
        )


# Errors of pydantic that say that a key is none.
_UNKNOWN_KEY = ("extra_forbidden", "invalid_key")


class _Loader(yaml.SafeLoader):
    """YAML as people write it: ``1e-3`` is a number, and a date is a name as any other."""


_Loader.yaml_implicit_resolvers = {
    letter: [(tag, pattern) for tag, pattern in resolvers if not tag.endswith("timestamp")]
    for letter, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}

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
        value = {}
    if isinstance(value, str):
        value = {"name": value}
    if not isinstance(value, dict):
        raise UserError(f"{where}: model: expected a name or a mapping with 'name'")
    given = dict(value)
    try:
        spec = get_model_spec(str(given.pop("name", DEFAULT_MODEL)))
    except UnknownModelError as e:
        raise UserError(f"{where}: {e}") from None
    values = {**dict(spec.hyperparameters), **given}
    where = f"{where}: model {spec.name!r}"
    hyperparameters = _validate(type(spec.hyperparameters), values, where, "model")
    return ModelChoice(name=spec.name, hyperparameters=hyperparameters)


def _validate(
    schema: type[_Schema], values: Mapping[str, Any], where: str, section: str = ""
) -> _Schema:
    try:
        return schema.model_validate(values)
    except pydantic.ValidationError as e:
        errors = e.errors(include_url=False)
        unknown = [error for error in errors if error["type"] in _UNKNOWN_KEY]
        error = (unknown or errors)[0]
        path = _path_into(values, error["loc"])
        key = ".".join(map(str, (section, *path) if section else path))
        if unknown:
            problem = _unknown_key(key, _section_at(schema, path[:-1]))
        else:
            problem = f"{key or 'configuration'}: {_reason(error)}"
        raise UserError(f"{where}{', ' if section else ': '}{problem}") from None


def _path_into(values: Any, location: Sequence[int | str]) -> list[int | str]:
    """The part of an error's location that names keys, not members of a union."""
    path = []
    for part in location:
        try:
            values = values[part]
        except (TypeError, KeyError, IndexError):
            break
        path.append(part)
    return path


def _section_at(schema: type[Settings], path: Sequence[int | str]) -> type[Settings]:
    """The class of the section that ``path`` leads to."""
    parts = iter(path)
    for part in parts:
        hint: Any = schema.model_fields[str(part)].annotation
        if typing.get_origin(hint) is dict:
            hint = typing.get_args(hint)[1]
            next(parts, None)
        schema = hint
    return schema


def _unknown_key(key: str, section: type[Settings]) -> str:
    *parents, last = key.split(".")
    near = difflib.get_close_matches(last, section.model_fields, n=1, cutoff=0.5)
    if near:
        return f"unknown key {key!r}; did you mean {'.'.join([*parents, *near])!r}?"
    return f"unknown key {key!r}; known: {', '.join(section.model_fields)}"


def _reason(error: Any) -> str:
    """What is wrong with a value, and the value."""
    given = error["input"]
    if error["type"] in ("model_type", "dict_type"):
        return f"expected a mapping, got {given!r}"
    shown = "" if isinstance(given, dict) else f" (got {given!r})"
    if error["type"] == "tuple_type":
        return f"expected a list{shown}"
    reason = error["msg"].removeprefix("Value error, ")
    if error["type"] == "literal_error":
        expected = re.findall(r"'([^']*)'", error["ctx"]["expected"])
        near = difflib.get_close_matches(str(given), expected, n=1, cutoff=0.5)
        reason += f"; did you mean {near[0]!r}?" if near else ""
    return reason + shown
