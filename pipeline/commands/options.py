"""Options that several commands share, each declared once."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import json
import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click

from serving import locate

if TYPE_CHECKING:
    from pipeline.config import PipelineConfig
    from serving.images import Loaded

Decorator = Callable[[Callable[..., Any]], Callable[..., Any]]


class Number(click.FloatRange):
    """A finite number within bounds."""

    name = "number"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """The number; click.BadParameter where it is none or out of bounds."""
        number = super().convert(value, param, ctx)
        if not math.isfinite(number):
            self.fail(f"{value} is not a finite number", param, ctx)
        return number


class Integer(click.IntRange):
    """A whole number within bounds."""

    name = "integer"


def option(spelling: str, text: str, *, to: str | None = None, **more: Any) -> Decorator:
    """An option with a value.

    Args:
      spelling: As in the help: ``"-o --out FILE"``.
      to: The function's parameter, where it is called otherwise.
    """
    *names, last = spelling.split()
    if last.startswith("-"):
        names.append(last)
    else:
        more["metavar"] = last
    return click.option(*names, *([to] if to else []), help=text, **more)


def flag(spelling: str, text: str, *, to: str | None = None) -> Decorator:
    """An option without a value; see :func:`option`."""
    return option(spelling, text, to=to, is_flag=True)


POSITIVE = Number(min=0, min_open=True)
COUNT = Integer(min=1)
PORT = Integer(0, 65535)


def _root(default: str | None) -> Decorator:
    return option(
        "--root DIR",
        "folder of all that is written: spans, runs, models",
        default=default,
        envvar=locate.ROOT_VARIABLE,
        show_envvar=True,
        show_default=locate.DEFAULT_ROOT,
        # As in `--root "$FOLDER"` where there is no such variable.
        callback=lambda ctx, param, value: value or param.resolve_envvar_value(ctx) or default,
    )


root = _root(locate.DEFAULT_ROOT)


def as_json(what: str) -> Decorator:
    """The option ``--json``; the function gets ``as_json``."""
    return flag("--json", f"print {what}", to="as_json")


dataset = option(
    "--dataset NAME",
    "auto, mnist (all 70,000 or an error) or mnist-5k (embedded)",
    show_default="auto",
)
data_dir = option("--data-dir DIR", "folder with the four IDX files [env var: MNIST_DATA_DIR]")
beam = option(
    "--beam KEY=VALUE", "an option of Beam, such as runner=FlinkRunner (repeatable)", multiple=True
)


invert = option(
    "--invert",
    "swap light and dark of pictures; auto: where the border is light",
    type=click.Choice(["auto", "yes", "no"]),
    default="auto",
)


def model(default: str = "the most recently pushed model") -> Decorator:
    """The option ``--model`` of commands that use a pushed model."""
    return option(
        "--model MODEL_OR_FOLDER",
        "a pushed model's name, or a folder with numbered SavedModel versions",
        show_default=default,
    )


def together(*options: Decorator) -> Decorator:
    """Several options at once, in this order."""

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        for option in reversed(options):
            function = option(function)
        return function

    return decorate


def gathered(name: str, make: Callable[..., Any], *options: Decorator) -> Decorator:
    """Several options that reach the function as one argument.

    Args:
      name: The argument's name.
      make: Makes it of the options, which are among its parameters.
      options: The options.
    """
    taken = tuple(inspect.signature(make).parameters)

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        def command(**values: Any) -> Any:
            made = make(**{key: values.pop(key) for key in taken if key in values})
            return function(**{name: made}, **values)

        return together(*options)(functools.update_wrapper(command, function))

    return decorate


def _load(paths: tuple[str, ...], invert: Any) -> list[Loaded]:
    """All images first: a bad one stops before anything is sent or written."""
    from serving import images

    return [images.load(path, invert) for path in paths]


def images(function: Callable[..., Any]) -> Callable[..., Any]:
    """The argument ``IMAGE...`` and what goes with it; the function gets ``files``, as loaded."""
    said = inspect.cleandoc(function.__doc__ or "")
    function.__doc__ = f"{said}\n\nIMAGE is a PNG, JPEG or IDX file (IDX may be gzipped)."
    argument = click.argument("paths", nargs=-1, required=True, metavar="IMAGE...")
    return gathered("files", _load, argument, invert)(function)


@dataclasses.dataclass(frozen=True)
class ConfigSource:
    """Where a command's configuration comes from: the options as they were given.

    Attributes:
      assigned: ``KEY=VALUE`` over the file; later ones win.
      beam: ``KEY=VALUE`` of Beam's options.
      dataset: ``auto``, ``mnist``, ``mnist-5k`` or None.
    """

    config: str | None
    model: str | None
    assigned: tuple[str, ...]
    beam: tuple[str, ...]
    dataset: str | None
    data_dir: str | None
    root: str | None

    @property
    def assignments(self) -> list[str]:
        """All of them but the file, as ``KEY=VALUE`` over it."""
        named = {
            "model.name": self.model,
            "data.dataset": self.dataset,
            "data.dir": self.data_dir,
            "root": self.root,
        }
        given = [f"{key}={json.dumps(value)}" for key, value in named.items() if value is not None]
        beam = [f"beam.{option.lstrip('-')}" for option in self.beam]
        return [*given, *self.assigned, *beam]

    def below(self, *assignments: str) -> ConfigSource:
        """The same with further assignments, over which the present ones win."""
        return dataclasses.replace(self, assigned=(*assignments, *self.assigned))

    def load(self) -> PipelineConfig:
        """The configuration, or a UserError that names what is wrong in it."""
        from pipeline import config

        return config.load(self.config, self.assignments)


def configuration(models: str = "NAME", which: str = "which autoencoder") -> Decorator:
    """The options that describe a configuration; the function gets ``source``, a ConfigSource."""
    return gathered(
        "source",
        ConfigSource,
        option("--config FILE", "YAML file with a configuration"),
        click.option("--model", metavar=models, help=f"{which}; see 'mnist-ae models'"),
        option(
            "--set KEY=VALUE",
            "a value of the configuration, such as trainer.epochs=10 (repeatable)",
            to="assigned",
            multiple=True,
        ),
        beam,
        dataset,
        data_dir,
        _root(None),
    )
