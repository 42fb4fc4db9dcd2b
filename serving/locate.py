"""Finds pushed models: ``<root>/serving/<model>/<version>/``."""

from __future__ import annotations

import dataclasses
import os
import pathlib
from collections.abc import Mapping

from serving.errors import ModelFolderError

ROOT_VARIABLE = "MNIST_AE_ROOT"
DEFAULT_ROOT = "runs"
PUSHED = "serving"
CONFIG_FILE = "models.config"
SAMPLES = "samples"


@dataclasses.dataclass(frozen=True)
class ModelFolder:
    """A folder with numbered SavedModel versions.

    Attributes:
      name: The model's name: the folder's.
      path: The folder, absolute.
      versions: The version numbers that hold a SavedModel, ascending.
      version: The one version asked for, or None for the latest.
    """

    name: str
    path: pathlib.Path
    versions: tuple[int, ...]
    version: int | None = None

    @property
    def latest(self) -> int:
        """The version asked for, or the highest."""
        return self.versions[-1] if self.version is None else self.version

    def version_path(self, version: int) -> pathlib.Path:
        """The folder of a version.

        Raises:
          ModelFolderError: There is none.
        """
        for child in self.path.iterdir():
            if _number(child.name) == version and _is_saved_model(child):
                return child
        known = ", ".join(map(str, self.versions))
        raise ModelFolderError(f"model {self.name!r} has no version {version}; it has {known}")


def root_folder(given: str | None, environ: Mapping[str, str]) -> pathlib.Path:
    """The project's output folder: as given, else from the environment, else ``runs``."""
    return pathlib.Path(given or environ.get(ROOT_VARIABLE) or DEFAULT_ROOT)


def config_path(root: pathlib.Path) -> pathlib.Path:
    """The served model configuration of a root."""
    return root / PUSHED / CONFIG_FILE


def samples_path(root: pathlib.Path) -> pathlib.Path:
    """Where clients leave images for retraining; pipeline.continuous.samples gathers them."""
    return root / SAMPLES


def pushed_models(root: pathlib.Path) -> list[ModelFolder]:
    """All pushed models, the most recently pushed last."""
    try:
        children = sorted((root / PUSHED).iterdir())
    except OSError:
        return []
    found = [folder for child in children if (folder := _inspect(child)) is not None]
    return sorted(found, key=lambda folder: (folder.versions[-1], folder.name))


def find(given: str | None, root: pathlib.Path) -> ModelFolder:
    """The model that a command line names.

    Args:
      given: A pushed model's name, a folder with numbered versions, one such
        version's folder, or None for the most recently pushed model.
      root: Where pushed models are.

    Raises:
      ModelFolderError: Nothing there, with what to do.
    """
    if given is None:
        models = pushed_models(root)
        if not models:
            raise ModelFolderError(
                f"no pushed model under {root / PUSHED}; run `make run` first, or name a folder "
                "with numbered SavedModel versions, or set --root"
            )
        return models[-1]
    candidates = [pathlib.Path(given)]
    if os.sep not in given:
        candidates.insert(0, root / PUSHED / given)
    for candidate in candidates:
        folder = _inspect(candidate)
        if folder is not None:
            return folder
    for candidate in candidates:
        if _is_saved_model(candidate):
            path = candidate.absolute()
            number = _number(path.name)
            if number is None:
                raise ModelFolderError(
                    f"{candidate} is a SavedModel without a version; move it to "
                    f"{candidate / '1'} and serve {candidate}"
                )
            folder = _inspect(path.parent)
            assert folder is not None
            return dataclasses.replace(folder, version=number)
    if any(candidate.is_dir() for candidate in candidates):
        raise ModelFolderError(
            f"{given} holds no numbered SavedModel versions, such as {given}/1/saved_model.pb"
        )
    names = ", ".join(folder.name for folder in pushed_models(root)) or "none"
    raise ModelFolderError(
        f"no model {given!r}: neither a folder nor pushed under {root / PUSHED} (there: {names})"
    )


def served_name(given: str | None, root: pathlib.Path) -> str:
    """The name by which a server knows the model that a command line names.

    Args:
      given: As for :func:`find`; a bare name need not be pushed here.
      root: Where pushed models are.

    Raises:
      ModelFolderError: No such folder, or no model is pushed.
    """
    if given is None:
        models = pushed_models(root)
        if not models:
            raise ModelFolderError("which model of the server? give --model NAME")
        return models[-1].name
    return find(given, root).name if os.sep in given else given


def _number(name: str) -> int | None:
    # serving.standin.versions has TensorFlow Serving's full rule; people write digits.
    return int(name) if name.isascii() and name.isdigit() else None


def _is_saved_model(path: pathlib.Path) -> bool:
    return any((path / name).is_file() for name in ("saved_model.pb", "saved_model.pbtxt"))


def _inspect(path: pathlib.Path) -> ModelFolder | None:
    try:
        children = list(path.iterdir())
    except OSError:
        return None
    versions = sorted(
        number
        for child in children
        if (number := _number(child.name)) is not None and _is_saved_model(child)
    )
    if not versions:
        return None
    full = path.absolute()
    return ModelFolder(full.name, full, tuple(versions))
