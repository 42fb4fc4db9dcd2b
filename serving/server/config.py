"""The served model configuration: TensorFlow Serving's ModelServerConfig.

Checks and texts follow server_core.cc.
"""

from __future__ import annotations

import dataclasses
import os
from typing import Any

from serving import protos
from serving.server.status import Code, StatusError, invalid_argument
from serving.server.storage import VersionPolicy

_PLATFORM = "tensorflow"


@dataclasses.dataclass(frozen=True)
class ModelSettings:
    """One served model.

    Attributes:
      name: What clients call it.
      base_path: The folder with its numbered versions.
      policy: Which versions to serve.
      labels: Label to version.
    """

    name: str
    base_path: str
    policy: VersionPolicy = VersionPolicy()
    labels: dict[str, int] = dataclasses.field(default_factory=dict)


def parse_text(text: str, source: str) -> Any:
    """Parses a ModelServerConfig text proto, the form of ``--model_config_file``.

    Args:
      text: The file's text.
      source: Its name, for the message.

    Raises:
      StatusError: INVALID_ARGUMENT; not a ModelServerConfig.
    """
    from google.protobuf import text_format

    try:
        return text_format.Parse(text, protos.ModelServerConfig(), descriptor_pool=protos.pool())
    except text_format.ParseError as error:
        raise invalid_argument(f"Invalid protobuf file: '{source}': {error}") from None


def from_proto(config: Any) -> dict[str, ModelSettings]:
    """Checks a ModelServerConfig and returns its models by name.

    Args:
      config: A ``ModelServerConfig`` with a model_config_list.

    Raises:
      StatusError: As TensorFlow Serving's ReloadConfig.
    """
    if config.WhichOneof("config") == "custom_model_config":
        raise invalid_argument("Custom model configurations are not supported; use a list.")
    models: dict[str, ModelSettings] = {}
    for item in config.model_config_list.config:
        _check_platform(item)
        if item.name in models:
            raise invalid_argument(
                "Illegal to list model " f"{item.name} multiple times in config list"
            )
        if item.base_path and not os.path.isabs(item.base_path) and "://" not in item.base_path:
            raise invalid_argument(
                f"Expected model {item.name} to have an absolute path or URI; got base_path()="
                f"{item.base_path}"
            )
        models[item.name] = ModelSettings(
            item.name, item.base_path, _policy(item), dict(item.version_labels)
        )
    return models


def _check_platform(item: Any) -> None:
    if item.model_type:
        if item.model_platform:
            raise invalid_argument(
                "Illegal setting both model_type(deprecated) and model_platform."
            )
        platform = _PLATFORM if item.model_type == 1 else "other"
    else:
        platform = item.model_platform
    if not platform:
        raise invalid_argument("Illegal setting neither model_type(deprecated) nor model_platform.")
    if platform != _PLATFORM:
        raise invalid_argument(
            f"Could not find platform {platform}; this server serves 'tensorflow'"
        )


def _policy(item: Any) -> VersionPolicy:
    policy = item.model_version_policy
    kind = policy.WhichOneof("policy_choice")
    if kind == "specific":
        if not policy.specific.versions:
            raise invalid_argument("Specific version policy lists no versions.")
        return VersionPolicy("specific", versions=tuple(policy.specific.versions))
    if kind == "all":
        return VersionPolicy("all")
    return VersionPolicy("latest", count=policy.latest.num_versions or 1)


def label_error(version: int, model: str) -> StatusError:
    """What a label on a version that does not answer is refused with."""
    return StatusError(
        Code.FAILED_PRECONDITION,
        f"Request to assign label to version {version} of model {model}, which is not "
        "currently available for inference",
    )
