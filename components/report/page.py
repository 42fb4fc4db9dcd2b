"""The report as one HTML file that asks for nothing else, and the model card."""

from __future__ import annotations

import base64
import dataclasses
import pathlib
from collections.abc import Sequence
from typing import Any

import jinja2
from markdown_it import MarkdownIt

from components.report import png
from components.report.blocks import Section
from components.report.summary import worst_digit

_TEMPLATES = pathlib.Path(__file__).parent
PAGE_TEMPLATE = "page.html.j2"
CARD_TEMPLATE = "model_card.md.j2"
STYLE_FILE = "style.css"


@dataclasses.dataclass(frozen=True)
class Origin:
    """An artifact that the report was made from, for its lineage.

    Attributes:
      id: Its number there; 0 where the orchestrator does not tell.
    """

    name: str
    type_name: str
    id: int
    uri: str


def environment() -> jinja2.Environment:
    """Jinja with what the templates use."""
    env = jinja2.Environment(
        loader=jinja2.FileSystemLoader(str(_TEMPLATES)),
        autoescape=lambda name: name is not None and name.endswith(".html.j2"),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    env.filters["data_uri"] = data_uri
    env.filters["duration"] = duration
    env.filters["size"] = file_size
    env.filters["strip_png"] = png.sheet
    env.filters["fraction"] = _fraction
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
    found = [
        _tile("mse", "MSE", overall["mse"], ".5f", "eval split, a pixel"),
        _tile("pca_mse", "PCA's MSE", metrics["pca_mse"], ".5f", "same code size"),
        _tile("bce", "BCE", overall["bce"], ".4f", "nats a pixel"),
    ]
    if worst := worst_digit(metrics["by_label"]):
        found.append(_tile("worst_mse", f"worst digit: {worst[0]}", worst[1], ".5f", "its MSE"))
    if search := metrics["search"]:
        note = f"PCA: {search['pca']['precision_at_10']:.4f}"
        precision = search["precision_at_10"]
        found.append(_tile("precision_at_10", "search precision@10", precision, ".4f", note))
    note = f"AUPR {anomaly['aupr']:.4f}"
    found.append(_tile("auroc", "anomaly AUROC", anomaly["auroc"], ".4f", note))
    if classification := metrics["classification"]:
        accuracy = classification["accuracy"]
        found.append(_tile("accuracy", "accuracy", accuracy, ".4f", "of the classifier"))
    size = file_size(summary["model_bytes"])
    found += [
        _tile("code_size", "code", summary["code_size"], ",", code_note),
        _tile("parameters", "parameters", summary["parameters"], ",", size),
        Tile(
            "training_seconds",
            "training",
            duration(training["seconds"]),
            training["seconds"],
            f"{training['epochs']} epochs",
        ),
    ]
    if summary["latency_ms"] is not None:
        latency = summary["latency_ms"]
        found.append(
            Tile("latency_ms", "latency", f"{latency:.1f} ms", latency, "one image over gRPC, p95")
        )
    return found


def _tile(name: str, title: str, value: float, form: str, note: str) -> Tile:
    return Tile(name, title, format(value, form), value, note)


def model_card(summary: dict[str, Any], metadata: dict[str, Any]) -> str:
    """The model card, in Markdown."""
    template = environment().get_template(CARD_TEMPLATE)
    return template.render(
        summary=summary,
        metadata=metadata,
        metrics=summary["metrics"],
        worst=worst_digit(summary["metrics"]["by_label"]),
    )


def render(
    sections: Sequence[Section],
    summary: dict[str, Any],
    metadata: dict[str, Any],
    card: str,
    lineage: Sequence[Origin],
) -> str:
    """The page."""
    # The card's own title would be a second one on the page.
    body = card.partition("\n")[2]
    html = MarkdownIt("commonmark").enable("table").render(body)
    for level in (3, 2):
        html = html.replace(f"h{level}>", f"h{level + 1}>")
    html = html.replace("<table>", '<div class="scroll"><table>').replace(
        "</table>", "</table></div>"
    )
    return (
        environment()
        .get_template(PAGE_TEMPLATE)
        .render(
            sections=sections,
            summary=summary,
            metadata=metadata,
            card=html,
            lineage=lineage,
            tiles=tiles(summary),
            configuration=flatten(summary["configuration"]),
        )
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
