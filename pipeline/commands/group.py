"""A command with commands below it, and how it answers a mistake."""

from __future__ import annotations

import functools
import importlib
from collections.abc import Mapping
from typing import Any

import click


class Command(click.Command):
    """A command whose mistakes name its own help."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Parses; click forgets the command where an option lacks its value."""
        try:
            return super().parse_args(ctx, args)
        except click.UsageError as e:
            e.ctx = e.ctx or ctx
            raise


class Group(click.Group):
    """Commands in the order of their declaration; an unknown one is answered by the nearest."""

    command_class = Command

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The names of the commands."""
        return list(self.commands)

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Refuses a command line that ends before a command was named."""
        if not args:
            ctx.fail(f"missing {self.subcommand_metavar}")
        return super().parse_args(ctx, args)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """The command that is named, and its arguments."""
        known = self.list_commands(ctx)
        if args[0] not in known:
            ctx.fail(f"unknown command {args[0]!r}{did_you_mean(args[0], known)}")
        return super().resolve_command(ctx, args)


command = functools.partial(click.command, cls=Command)


class LazyGroup(Group):
    """Commands that are imported when one of them is called.

    Attributes:
      table: Name to ``module:attribute`` and a line of help.
    """

    def __init__(
        self, *arguments: Any, table: Mapping[str, tuple[str, str]], **options: Any
    ) -> None:
        super().__init__(*arguments, **options)
        self.table = table

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The names of the commands."""
        return list(self.table)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Imports a command."""
        if cmd_name not in self.table:
            return None
        module, _, attribute = self.table[cmd_name][0].partition(":")
        return getattr(importlib.import_module(module), attribute)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Writes the list of commands without importing one."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, line) for name, (_, line) in self.table.items()])


def did_you_mean(name: str, known: list[str]) -> str:
    """A question that names the nearest, to be put behind a message; empty where none is near."""
    import difflib

    # Dashes, which all options share, would make any two alike.
    bare = {other.lstrip("-"): other for other in known}
    near = difflib.get_close_matches(name.lstrip("-"), bare, n=1)
    return f"; did you mean {bare[near[0]]!r}?" if near else ""


def describe(error: click.UsageError) -> str:
    """One line on a command line that cannot be understood."""
    if isinstance(error, click.NoSuchOption):
        near = error.possibilities or []
        message = f"unknown option {error.option_name!r}"
        message += did_you_mean(error.option_name, list(near))
    else:
        message = " ".join(error.format_message().split()).removesuffix(".")
        message = message[:1].lower() + message[1:]
    assert error.ctx is not None
    program = error.ctx.find_root().command_path
    return f"{program}: error: {message}; see '{error.ctx.command_path} --help'"
