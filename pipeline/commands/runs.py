"""``mnist-ae runs``, ``report`` and ``compare``: what past runs left."""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib
import sys

import click

from pipeline import leaderboard
from pipeline.commands import options
from pipeline.commands.group import command
from pipeline.commands.options import flag, option
from pipeline.errors import UserError


@command()
@options.root
@options.as_json("a JSON list")
def runs(root: str, as_json: bool) -> None:
    """List past runs, newest last."""
    path = os.path.join(os.path.abspath(root), "metadata.sqlite")
    records = []
    if os.path.exists(path):
        from pipeline import history

        records = history.runs(history.open_store(path))
    if as_json:
        print(json.dumps([dataclasses.asdict(r) for r in records], default=str))
    elif records:
        from pipeline import console

        console.show_runs(sys.stdout, records)
    else:
        print(f"no runs in {os.path.abspath(root)}; start one with 'mnist-ae run'")


@command()
@click.argument("name", required=False, metavar="[RUN]")
@options.root
@flag("--path", "print where it is instead", to="show_path")
@flag("--card", "print the model card instead")
def report(name: str | None, root: str, show_path: bool, card: bool) -> None:
    """Open the page of a run.

    RUN is a run, the beginning of one, or a model, whose last run is taken; default: the last.
    """
    from pipeline import runs

    record = runs.choose(runs.some_runs(root), name)
    folder = pathlib.Path(record.report_uri or "")
    page = folder / ("model_card.md" if card else "report.html")
    if not page.is_file():
        raise UserError(f"run {record.run_id} has no {page.name}; run the same model again")
    if card:
        print(page.read_text(encoding="utf-8"), end="")
        return
    if show_path:
        print(page)
        return
    import webbrowser

    print(f"run {record.run_id}: {page}")
    if not webbrowser.open(page.absolute().as_uri()):
        print("no browser was found here; open that file in one", file=sys.stderr)


@command()
@click.argument("names", nargs=-1, metavar="[RUN|MODEL]...")
@options.root
@option(
    "--sort FIGURE",
    f"by which figure; one of {', '.join(leaderboard.SORTABLE)}",
    type=click.Choice(leaderboard.SORTABLE),
    default="mse",
)
@flag("--reverse", "worst first")
@options.as_json("a JSON list")
@option("--html FILE", "write a page with the pictures, too")
def compare(
    names: tuple[str, ...], root: str, sort: str, reverse: bool, as_json: bool, html: str | None
) -> None:
    """Compare runs, best first; default: the last run of every model."""
    from pipeline import runs

    records = runs.some_runs(root)
    chosen = [runs.choose(records, name) for name in names] or runs.last_of_each(records)
    rows = leaderboard.leaderboard(chosen, sort, reverse)
    if html:
        leaderboard.write_page(html, rows)
    if as_json:
        print(json.dumps(rows))
        return
    leaderboard.show(sys.stdout, rows)
    if html:
        print(f"wrote {html}")
