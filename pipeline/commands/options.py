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

Decorator = Callable[[Callable[..., Any]], Callable[..., Any]]


class Number(click.FloatRange):
    """A finite number within bounds."""

    name = "number"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """The number.

        Raises:
          click.BadParameter: It is none, out of bounds, infinite or NaN.
        """
        number = super().convert(value, param, ctx)
        if not math.isfinite(number):
            self.fail(f"{value} is not a finite number", param, ctx)
        return number


class Integer(click.IntRange):
    """A whole number within bounds."""

    name = "integer"


POSITIVE = Number(min=0, min_open=True)
COUNT = Integer(min=1)


def _root(default: str | None) -> Decorator:
    return click.option(
        "--root",
        default=default,
        envvar=locate.ROOT_VARIABLE,
        show_envvar=True,
        show_default=locate.DEFAULT_ROOT,
        metavar="DIR",
        help="folder of all that is written: spans, runs, models",
    )


root = _root(locate.DEFAULT_ROOT)


def as_json(what: str) -> Decorator:
    """The option ``--json``; the function gets ``as_json``.

    Args:
      what: What is printed then.
    """
    return click.option("--json", "as_json", is_flag=True, help=f"print {what}")


dataset = click.option(
    "--dataset",
    metavar="NAME",
    show_default="auto",
    help="auto, mnist (all 70,000 or an error) or mnist-5k (embedded)",
)
data_dir = click.option(
    "--data-dir", metavar="DIR", help="folder with the four IDX files [env var: MNIST_DATA_DIR]"
)
beam = click.option(
    "--beam",
    multiple=True,
    metavar="KEY=VALUE",
    help="an option of Beam, such as runner=FlinkRunner (repeatable)",
)


def images(function: Callable[..., Any]) -> Callable[..., Any]:
    """The argument ``IMAGE...`` and what goes with it; the function gets ``paths``, ``invert``."""
    said = inspect.cleandoc(function.__doc__ or "")
    function.__doc__ = f"{said}\n\nIMAGE is a PNG, JPEG or IDX file (IDX may be gzipped)."
    argument = click.argument("paths", nargs=-1, required=True, metavar="IMAGE...")
    return argument(invert(function))


invert = click.option(
    "--invert",
    type=click.Choice(["auto", "yes", "no"]),
    default="auto",
    help="swap light and dark of pictures; auto: where the border is light",
)


def model(default: str = "the most recently pushed model") -> Decorator:
    """The option ``--model`` of commands that use a pushed model."""
    return click.option(
        "--model",
        metavar="MODEL_OR_FOLDER",
        show_default=default,
        help="a pushed model's name, or a folder with numbered SavedModel versions",
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


@dataclasses.dataclass(frozen=True)
class ConfigSource:
    """Where a command's configuration comes from.

    Attributes:
      path: A YAML file, or None.
      model: ``--model`` as given, or None.
      values: ``KEY=VALUE`` over the file; later ones win.
      root: ``--root`` as given, or None; it is among the values.
      data_dir: ``--data-dir`` as given, or None; it is among the values.
    """

    path: str | None
    model: str | None
    values: tuple[str, ...]
    root: str | None
    data_dir: str | None

    @classmethod
    def of_options(
        cls,
        config: str | None,
        model: str | None,
        assigned: tuple[str, ...],
        beam: tuple[str, ...],
        dataset: str | None,
        data_dir: str | None,
        root: str | None,
    ) -> ConfigSource:
        """What the options of :func:`configuration` say."""
        named = {"data.dataset": dataset, "data.dir": data_dir, "root": root}
        values = [f"{key}={json.dumps(v)}" for key, v in named.items() if v is not None]
        values += assigned
        values += [f"beam.{option.lstrip('-')}" for option in beam]
        return cls(config, model, tuple(values), root, data_dir)

    @property
    def assignments(self) -> list[str]:
        """``KEY=VALUE`` over the file, the model's name among them."""
        named = [] if self.model is None else [f"model.name={json.dumps(self.model)}"]
        return [*named, *self.values]

    def below(self, *assignments: str) -> ConfigSource:
        """The same with further assignments, over which the present ones win."""
        return dataclasses.replace(self, values=(*assignments, *self.values))

    def load(self) -> PipelineConfig:
        """The configuration.

        Raises:
          UserError: Unreadable file, unknown key, wrong value.
        """
        from pipeline import config

        return config.load(self.path, self.assignments)


def configuration(models: str = "NAME", which: str = "which autoencoder") -> Decorator:
    """The options that describe a configuration; the function gets ``source``, a ConfigSource.

    Args:
      models: What ``--model`` takes.
      which: What it means.
    """
    return gathered(
        "source",
        ConfigSource.of_options,
        click.option("--config", metavar="FILE", help="YAML file with a configuration"),
        click.option("--model", metavar=models, help=f"{which}; see 'mnist-ae models'"),
        click.option(
            "--set",
            "assigned",
            multiple=True,
            metavar="KEY=VALUE",
            help="a value of the configuration, such as trainer.epochs=10 (repeatable)",
        ),
        beam,
        dataset,
        data_dir,
        _root(None),
    )
