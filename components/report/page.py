"""The report as one HTML file that asks for nothing else, and the model card."""

from __future__ import annotations

import base64
import dataclasses
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import jinja2
from markdown_it import MarkdownIt

from components.report.blocks import Section, strip_png
from components.report.summary import worst_digit

_TEMPLATES = pathlib.Path(__file__).parent
PAGE_TEMPLATE = "page.html.j2"
CARD_TEMPLATE = "model_card.md.j2"
STYLE_FILE = "style.css"


def environment() -> jinja2.Environment:
    """Jinja with what the templates use."""
    env = jinja2.Environment(
        loader=jinja2.FileSystemLoader(str(_TEMPLATES)),
        autoescape=lambda name: name is not None and name.endswith(".html.j2"),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    env.filters |= {
        "data_uri": data_uri,
        "duration": duration,
        "size": file_size,
        "strip_png": strip_png,
        "fraction": _fraction,
    }
    env.globals["style"] = (_TEMPLATES / STYLE_FILE).read_text(encoding="utf-8")
    return env


def data_uri(png: bytes) -> str:
    """A PNG inside a page."""
    return "data:image/png;base64," + base64.b64encode(png).decode()


def duration(seconds: float) -> str:
    """Seconds as people say them."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"


def file_size(count: int) -> str:
    """Bytes as people say them."""
    return f"{count / 1e6:.1f} MB" if count >= 1e6 else f"{count / 1e3:.0f} kB"


def _fraction(cells: Sequence[Any], value: Any) -> float:
    """The fraction that a number has of all numbers of its row."""
    total = sum(cell for cell in cells if isinstance(cell, (int, float)))
    return value / total if isinstance(value, (int, float)) and total else 0.0


@dataclasses.dataclass(frozen=True)
class Tile:
    """A figure at the head of the page.

    Attributes:
      name: Name of the figure, as an HTML id.
      shown: The figure as people read it.
      value: The figure as ``summary.json`` has it.
      note: What to compare it with.
    """

    name: str
    title: str
    shown: str
    value: float | int
    note: str = ""


def tiles(summary: dict[str, Any]) -> list[Tile]:
    """The key figures of a run."""
    metrics = summary["metrics"]
    overall, anomaly, training = metrics["overall"], metrics["anomaly"], summary["training"]
    code_note = f"floats; {summary['bits_per_pixel']:.2f} bits a pixel"
    found: list[Tile] = []

    def add(name: str, title: str, value: float, shown: str, note: str) -> None:
        found.append(Tile(name, title, shown.format(value), value, note))

    add("mse", "MSE", overall["mse"], "{:.5f}", "eval split, a pixel")
    add("pca_mse", "PCA's MSE", metrics["pca_mse"], "{:.5f}", "same code size")
    add("bce", "BCE", overall["bce"], "{:.4f}", "nats a pixel")
    if worst := worst_digit(metrics["by_label"]):
        add("worst_mse", f"worst digit: {worst[0]}", worst[1], "{:.5f}", "its MSE")
    if search := metrics["search"]:
        note = f"PCA: {search['pca']['precision_at_10']:.4f}"
        add("precision_at_10", "search precision@10", search["precision_at_10"], "{:.4f}", note)
    add("auroc", "anomaly AUROC", anomaly["auroc"], "{:.4f}", f"AUPR {anomaly['aupr']:.4f}")
    if classification := metrics["classification"]:
        add("accuracy", "accuracy", classification["accuracy"], "{:.4f}", "of the classifier")
    add("code_size", "code", summary["code_size"], "{:,}", code_note)
    size = file_size(summary["model_bytes"])
    add("parameters", "parameters", summary["parameters"], "{:,}", size)
    seconds, epochs = training["seconds"], f"{training['epochs']} epochs"
    add("training_seconds", "training", seconds, duration(seconds), epochs)
    if (latency := summary["latency_ms"]) is not None:
        add("latency_ms", "latency", latency, "{:.1f} ms", "one image over gRPC, p95")
    return found


def model_card(summary: dict[str, Any], metadata: dict[str, Any]) -> str:
    """The model card, in Markdown."""
    template = environment().get_template(CARD_TEMPLATE)
    metrics = summary["metrics"]
    worst = worst_digit(metrics["by_label"])
    return template.render(summary=summary, metadata=metadata, metrics=metrics, worst=worst)


def render(
    sections: Sequence[Section],
    summary: dict[str, Any],
    metadata: dict[str, Any],
    card: str,
    lineage: Mapping[str, Any],
) -> str:
    """The page; ``lineage`` names the artifacts that it was made from."""
    # The card's own title would be a second one on the page.
    body = card.partition("\n")[2]
    html = MarkdownIt("commonmark").enable("table").render(body)
    for level in (3, 2):
        html = html.replace(f"h{level}>", f"h{level + 1}>")
    html = html.replace("<table>", '<div class="scroll"><table>').replace(
        "</table>", "</table></div>"
    )
    template = environment().get_template(PAGE_TEMPLATE)
    return template.render(
        sections=sections,
        summary=summary,
        metadata=metadata,
        card=html,
        lineage=lineage,
        tiles=tiles(summary),
        configuration=flatten(summary["configuration"]),
    )


def flatten(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """A nested mapping with dotted keys."""
    found: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, dict) and value:
            found.update(flatten(value, f"{prefix}{key}."))
        else:
            found[prefix + key] = value
    return found
