"""The charts of a report, by matplotlib: SVG for the page, PNG beside it.

The SVG's ink is CSS variables, so that the page's light or dark theme colours
it. Nothing is told by colour alone: series differ in marker or line, classes
are drawn as their digits.
"""

from __future__ import annotations

import contextlib
import io
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib import patheffects, ticker
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from components.report.blocks import Chart

# What matplotlib draws with, and the CSS variable that takes its place.
INK = "#1b1f24"
MUTED = "#656c76"
GRID = "#d8dbe0"
PAPER = "#fefefe"
FIRST = "#2463b4"
SECOND = "#c2571a"
THIRD = "#6b7280"
_VARIABLES = {
    INK: "--ink",
    MUTED: "--muted",
    GRID: "--line",
    PAPER: "--surface",
    FIRST: "--series-1",
    SECOND: "--series-2",
    THIRD: "--series-3",
}
# Ten hues that stand out on white and on near black.
DIGIT_COLOURS = ["#3b7dd8", "#d9652b", "#2e9e5b", "#d1495b", "#8a63d2"]
DIGIT_COLOURS += ["#9c6b3f", "#d65fa6", "#7a8291", "#a39a1c", "#1ba3b8"]

_STYLE: dict[str, dict[str, Any]] = {
    "axes": {
        "edgecolor": MUTED,
        "labelcolor": INK,
        "labelsize": 9,
        "spines.right": False,
        "spines.top": False,
        "grid": True,
        "axisbelow": True,
    },
    "font": {"size": 9},
    "grid": {"color": GRID, "linewidth": 0.7},
    "legend": {"fontsize": 8.5, "frameon": False},
    "lines": {"linewidth": 1.8},
    "svg": {"fonttype": "none", "hashsalt": "report"},
    "text": {"color": INK},
    "xtick": {"color": MUTED, "labelcolor": INK, "labelsize": 8.5},
    "ytick": {"color": MUTED, "labelcolor": INK, "labelsize": 8.5},
}
# At 96 CSS pixels an inch a figure is as wide as a phone shows it.
_WIDTH, _HEIGHT = 3.7, 2.75
_PNG_DPI = 160


@contextlib.contextmanager
def _axes(height: float = _HEIGHT) -> Iterator[tuple[Any, list[Chart]]]:
    """Axes to draw on; the chart is appended to the list at the end."""
    drawn: list[Chart] = []
    style = {f"{of}.{key}": value for of, keys in _STYLE.items() for key, value in keys.items()}
    with matplotlib.rc_context(style):
        figure = Figure(figsize=(_WIDTH, height), layout="constrained")
        FigureCanvasAgg(figure)
        yield figure.add_subplot(), drawn
        drawn.append(Chart(_svg(figure), _png(figure)))


def _svg(figure: Any) -> str:
    buffer = io.StringIO()
    metadata = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    figure.savefig(buffer, format="svg", transparent=True, metadata=metadata)
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    for colour, variable in _VARIABLES.items():
        text = text.replace(colour, f"var({variable})")
    # Size comes from the page; the view box keeps the proportions.
    text = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", text, count=1)
    text = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", text, count=1)
    return text.replace("DejaVu Sans", "inherit").replace("<svg ", '<svg role="img" ', 1)


def _png(figure: Any) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=_PNG_DPI, facecolor="white")
    return buffer.getvalue()


def loss_curves(curves: Mapping[str, Sequence[float]], ylabel: str, *, log: bool = True) -> Chart:
    """Lines over epochs: ``curves`` by name, on a log axis where all values are positive."""
    with _axes() as (axes, drawn):
        styles = ((FIRST, "-", "o"), (SECOND, "--", "s"), (THIRD, ":", "^"), (INK, "-.", "v"))
        for (name, values), (colour, line, marker) in zip(curves.items(), styles):
            epochs = np.arange(1, len(values) + 1)
            marks = {"marker": marker, "markersize": 3.5, "markevery": max(1, len(values) // 8)}
            axes.plot(epochs, values, line, color=colour, label=name, **marks)
        everything = np.concatenate([np.asarray(v, float) for v in curves.values()])
        if log and len(everything) and everything.min() > 0:
            axes.set_yscale("log")
            _plain_log_ticks(axes.yaxis, everything)
        axes.set_xlabel("epoch")
        axes.set_ylabel(ylabel)
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.legend()
    return drawn[0]


def _plain_log_ticks(axis: Any, values: np.ndarray) -> None:
    """Numbers as people write them, also where the range is below a decade."""
    axis.set_major_locator(ticker.LogLocator(subs=(1.0, 2.0, 5.0), numticks=8))
    axis.set_major_formatter(ticker.FuncFormatter(lambda value, _: f"{value:.4g}"))
    if values.max() / values.min() < 2:
        axis.set_major_locator(ticker.MaxNLocator(5))
    axis.set_minor_formatter(ticker.NullFormatter())


def by_digit(series: Mapping[str, Mapping[str, float]], xlabel: str) -> Chart:
    """A row a digit, a mark a series; ``series`` are values by digit, the model's first."""
    digits = sorted({digit for values in series.values() for digit in values})
    with _axes(height=3.3) as (axes, drawn):
        marks = ((FIRST, "o", 6.5), (THIRD, "D", 5), (SECOND, "|", 10))
        for (name, values), (colour, marker, size) in zip(series.items(), marks):
            places = [i for i, digit in enumerate(digits) if digit in values]
            axes.plot(
                [values[digits[i]] for i in places],
                places,
                marker,
                color=colour,
                label=name,
                markersize=size,
                markeredgewidth=2 if marker == "|" else 1,
                markerfacecolor="none" if marker == "D" else colour,
            )
        axes.set_yticks(range(len(digits)), digits)
        axes.set_ylim(len(digits) - 0.4, -0.6)
        axes.set_xlim(left=0)
        axes.set_xlabel(xlabel)
        axes.set_ylabel("digit")
        place = {"loc": "upper center", "bbox_to_anchor": (0.5, 1.14)}
        axes.legend(**place, ncols=3, handletextpad=0.2, columnspacing=1.0)
    return drawn[0]


def score_histogram(
    scores: np.ndarray, threshold: float, strange: np.ndarray | None, strange_name: str
) -> Chart:
    """How the scores of normal images and of anomalies lie about the threshold.

    Args:
      scores: Anomaly scores of normal images, float [n].
      strange: Those of anomalies, float [m], or None.
    """
    # Anomalies have no upper bound: what is far beyond the threshold is drawn at the edge.
    low = min(scores.min(), threshold)
    edges = np.linspace(low, threshold + (threshold - low) + 1e-6, 50)
    with _axes() as (axes, drawn):

        def histogram(values: np.ndarray, label: str, **style: Any) -> None:
            values = np.clip(values, *edges[[0, -1]])
            axes.hist(values, edges, label=label, density=True, **style)

        histogram(scores, "eval images", color=FIRST, alpha=0.85)
        if strange is not None:
            line = {"histtype": "step", "linewidth": 1.8, "linestyle": "--"}
            histogram(strange, strange_name, color=SECOND, **line)
        axes.axvline(threshold, color=INK, linewidth=1.4, label=f"threshold {threshold:.2f}")
        axes.set_xlabel("anomaly score")
        axes.set_ylabel("share")
        axes.set_yticks([])
        axes.grid(visible=False)
        axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=2, columnspacing=1.0)
    return drawn[0]


def scatter(points: np.ndarray, labels: np.ndarray, xlabel: str, ylabel: str) -> Chart:
    """Points in the plane, each drawn as its digit, or as a dot where it has none.

    Args:
      points: float [n, 2].
      labels: int64 [n], -1 where unknown.
      xlabel: Name of the first axis, "" where axes have no meaning.
    """
    with _axes(height=3.6) as (axes, drawn):
        for digit in np.unique(labels):
            of_digit = points[labels == digit]
            known = digit >= 0
            colour, marker = (DIGIT_COLOURS[digit], f"${digit}$") if known else (FIRST, ".")
            mark = {"marker": marker, "markersize": 5.5, "markeredgewidth": 0.2}
            axes.plot(*of_digit.T, linestyle="", color=colour, alpha=0.8, **mark)
        for digit in np.unique(labels[labels >= 0]):
            middle = np.median(points[labels == digit], axis=0)
            bold = {"fontsize": 15, "fontweight": "bold", "ha": "center", "va": "center"}
            halo = [patheffects.withStroke(linewidth=4, foreground=PAPER)]
            axes.text(*middle, str(digit), color=INK, path_effects=halo, **bold)
        low, high = np.quantile(points, [0.002, 0.998], axis=0)
        margin = (high - low) * 0.08 + 1e-6
        axes.set_xlim(low[0] - margin[0], high[0] + margin[0])
        axes.set_ylim(low[1] - margin[1], high[1] + margin[1])
        axes.set_xlabel(xlabel)
        axes.set_ylabel(ylabel)
        if not xlabel:
            axes.set_xticks([])
            axes.set_yticks([])
    return drawn[0]
