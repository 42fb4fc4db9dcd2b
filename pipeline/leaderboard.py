"""A leaderboard of runs, from the figures in ML Metadata."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Callable, Sequence
from typing import IO, TYPE_CHECKING, Any

from pipeline import output_files

if TYPE_CHECKING:
    from pipeline.history import RunRecord


@dataclasses.dataclass(frozen=True)
class Column:
    """A figure by which runs are compared.

    Attributes:
      key: In the properties of a RunReport, and on the command line.
      show: A value as people read it.
      descending: Whether more is better.
    """

    key: str
    title: str
    show: Callable[[Any], str]
    descending: bool = False


COLUMNS = (
    Column("mse", "MSE", "{:,.5f}".format),
    Column("bce", "BCE", "{:,.4f}".format),
    Column("worst_mse", "worst digit", "{:,.5f}".format),
    Column("code_size", "code", "{:,.0f}".format),
    Column("bits_per_pixel", "bits/pixel", "{:,.2f}".format),
    Column("parameters", "parameters", "{:,.0f}".format),
    Column("training_seconds", "training s", "{:,.1f}".format),
    Column("model_bytes", "model kB", lambda value: f"{value / 1e3:,.0f}"),
    Column("latency_ms", "latency ms", "{:,.1f}".format),
    Column("auroc", "AUROC", "{:,.4f}".format, descending=True),
    Column("precision_at_10", "precision@10", "{:,.4f}".format, descending=True),
    Column("knn_accuracy", "10-NN", "{:,.4f}".format, descending=True),
)
_WORDS = ("servable", "dataset")
SORTABLE = (*_WORDS, *(column.key for column in COLUMNS))


def leaderboard(
    records: Sequence[RunRecord], sort: str, reverse: bool = False
) -> list[dict[str, Any]]:
    """Runs as plain values, best first; runs without the figure come last."""
    keys = "model servable dataset blessed worst_digit accuracy pca_mse aupr".split()
    keys = [*keys, *(column.key for column in COLUMNS)]
    rows: list[dict[str, Any]] = [
        {
            "run_id": record.run_id,
            **{key: record.properties.get(key) for key in keys},
            "blessed": bool(record.properties.get("blessed")),
            "report": record.report_uri,
        }
        for record in records
    ]
    descending = any(column.key == sort and column.descending for column in COLUMNS)
    known = sorted(
        (row for row in rows if row[sort] is not None),
        key=lambda row: row[sort],
        reverse=descending != reverse,
    )
    return known + [row for row in rows if row[sort] is None]


def show(stream: IO[str], rows: Sequence[dict]) -> None:
    """Prints the leaderboard; the best of each column stands out where there is a terminal."""
    from rich.text import Text

    from pipeline import console

    titles = [column.title for column in COLUMNS]
    several = len({row["dataset"] for row in rows}) > 1
    words = ("blessed", "data", "run") if several else ("blessed", "run")
    table = console.table("model", *titles, *words, right=titles)
    best = {column.key: _best(rows, column) for column in COLUMNS}
    for row in rows:
        cells: list[str | Text] = [str(row["servable"])]
        for column in COLUMNS:
            text = _shown(row, column)
            bold = len(rows) > 1 and row[column.key] is not None
            bold = bold and row[column.key] == best[column.key]
            cells.append(Text(text, style="bold" if bold else ""))
        cells.append("yes" if row["blessed"] else "no")
        if several:
            cells.append(str(row["dataset"]))
        table.add_row(*cells, row["run_id"])
    console.make_console(stream).print(table)


def _shown(row: dict, column: Column) -> str:
    value = row[column.key]
    if value is None:
        return "-"
    text = column.show(value)
    return f"{row['worst_digit']}: {text}" if column.key == "worst_mse" else text


def _best(rows: Sequence[dict], column: Column) -> Any:
    values = [row[column.key] for row in rows if row[column.key] is not None]
    return (max if column.descending else min)(values, default=None)


# Pictures that reports have, in the order of the page.
_PICTURES = (
    ("reconstructions", "Reconstructions"),
    ("worst_reconstructions", "Worst of each digit"),
    ("denoising", "Denoising"),
    ("losses_by_digit", "Losses by digit"),
    ("errors", "Reconstruction errors"),
    ("anomalies", "Anomalies"),
    ("codes", "Codes"),
    ("codes_pca", "Codes, PCA"),
    ("codes_tsne", "Codes, t-SNE"),
    ("codes_as_images", "Codes as images"),
    ("search", "Image search"),
    ("manifold", "Manifold"),
    ("samples", "Random samples"),
    ("styles", "One style, ten digits"),
    ("training_loss", "Training"),
)


def write_page(path: str, rows: Sequence[dict]) -> None:
    """Writes one self-contained page: the leaderboard, and the reports' pictures side by side.

    Raises:
      UserError: It cannot be written.
    """
    from components.report import page

    pictures = []
    for name, title in _PICTURES:
        found = [_picture(row["report"], name) for row in rows]
        if any(found):
            pictures.append((title, found))
    text = (
        page.environment()
        .get_template("compare.html.j2")
        .render(
            rows=rows,
            columns=[
                (
                    column.title,
                    column.key,
                    [_shown(row, column) for row in rows],
                    [row[column.key] == _best(rows, column) for row in rows],
                )
                for column in COLUMNS
            ],
            pictures=pictures,
        )
    )
    output_files.write(path, text)


def _picture(report: str | None, name: str) -> bytes | None:
    if report is None:
        return None
    try:
        return (pathlib.Path(report) / "pictures" / f"{name}.png").read_bytes()
    except OSError:
        return None
