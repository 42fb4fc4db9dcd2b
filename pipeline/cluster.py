"""The ``kubeflow`` section of a configuration: what a cluster has to provide."""

from __future__ import annotations

import dataclasses
import re
from typing import Annotated, Any, Literal

import annotated_types
import pydantic

_QUANTITY = re.compile(r"[0-9]+(\.[0-9]+)?(m|k|M|G|T|Ki|Mi|Gi|Ti)?")
_ENVIRONMENT_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_DNS_NAME = r"^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$"
_SECRET_KEY = re.compile(r"[a-z0-9]([-.a-z0-9]*[a-z0-9])?/[-._A-Za-z0-9]+")
_LABEL = re.compile(r"([a-z0-9.-]+/)?[A-Za-z0-9]([-._A-Za-z0-9]*[A-Za-z0-9])?")
_LABEL_VALUE = re.compile(r"([A-Za-z0-9]([-._A-Za-z0-9]*[A-Za-z0-9])?)?")
# A password in the address would stand in the compiled file for all to read.
_CREDENTIALS = re.compile(r"//[^/@]*:[^/@]*@")

DnsName = Annotated[str, pydantic.Field(pattern=_DNS_NAME)]
PositiveInt = Annotated[int, annotated_types.Ge(1)]
Count = Annotated[int, annotated_types.Ge(0)]
Quantity = str | int | float

# The environment variable that a node reads the database's password from.
METADATA_PASSWORD = "MNIST_AE_METADATA_PASSWORD"


@dataclasses.dataclass(frozen=True)
class NodeConfig:
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
    node_selector: dict[str, str] = dataclasses.field(default_factory=dict)
    retries: Count | None = None
    backoff_seconds: PositiveInt | None = None
    timeout_seconds: Count | None = None
    env: dict[str, str] = dataclasses.field(default_factory=dict)
    secrets: dict[str, str] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("cpu", "memory"):
            value = getattr(self, name)
            if value is not None and not _QUANTITY.fullmatch(str(value)):
                raise ValueError(f"{name} {value!r} is no Kubernetes quantity, such as 500m or 2Gi")
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
        values: dict[str, Any] = {}
        for field in dataclasses.fields(self):
            own, default = getattr(self, field.name), getattr(defaults, field.name)
            values[field.name] = (
                {**default, **own} if isinstance(own, dict) else (default if own is None else own)
            )
        return NodeConfig(**values)


_STANDARD = NodeConfig(
    cpu="1", memory="2Gi", gpus=0, retries=2, backoff_seconds=30, timeout_seconds=3_600
)
_METADATA_SECRET = "mnist-ae-metadata/password"


@dataclasses.dataclass(frozen=True)
class WorkersConfig:
    """Distributed training: workers of a MultiWorkerMirroredStrategy.

    Attributes:
      count: Pods that train together; 1 trains in the Trainer's own pod.
      kind: ``job`` (an indexed Kubernetes Job), ``tfjob`` (Kubeflow's training
        operator) or ``local`` (processes of the Trainer's pod).
      port: Of the workers.
      gpus: Number of ``nvidia.com/gpu`` a worker.
      cpu: Kubernetes quantity a worker.
      memory: Kubernetes quantity a worker.
    """

    count: PositiveInt = 1
    kind: Literal["job", "tfjob", "local"] = "job"
    port: Annotated[int, annotated_types.Interval(ge=1024, le=65535)] = 2222
    gpus: Count = 0
    cpu: Quantity = "2"
    memory: Quantity = "4Gi"

    def __post_init__(self) -> None:
        for name in ("cpu", "memory"):
            value = getattr(self, name)
            if not _QUANTITY.fullmatch(str(value)):
                raise ValueError(f"{name} {value!r} is no Kubernetes quantity, such as 500m or 2Gi")


@dataclasses.dataclass(frozen=True)
class KubeflowConfig:
    """Where a pipeline runs on a cluster, and with what.

    Attributes:
      image: The project's image, with a tag or digest.
      namespace: Of the runs and of what they start.
      volume_claim: PersistentVolumeClaim that every node mounts; None for none.
      mount_path: Where it is mounted.
      data_dir: Folder with the IDX files, or with ``span-N`` folders of them.
      span: Which span: ``latest`` or a number.
      pipeline_root: Where artifacts go: on the volume or ``gs://``.
      push_dir: Folder above the servables, that TensorFlow Serving reads.
      metadata_url: ML Metadata store: ``mysql://USER@HOST:PORT/DATABASE``,
        ``grpc://HOST:PORT`` or ``sqlite:///PATH``.
      defaults: Of all nodes, over one CPU, 2 GiB, two retries and an hour.
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
    nodes: dict[str, NodeConfig] = dataclasses.field(default_factory=dict)
    workers: WorkersConfig = WorkersConfig()

    def __post_init__(self) -> None:
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
            standard = dataclasses.replace(standard, secrets=secret)
        return self.nodes.get(node_id, NodeConfig()).over(self.defaults).over(standard)
