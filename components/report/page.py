"""The report as one HTML file that asks for nothing else, and the model card."""

from __future__ import annotations

import base64
import dataclasses
import importlib.metadata
import io
import pathlib
import platform
from collections.abc import Sequence
from typing import Any

from components.report import pictures
from components.report.sections import Block, Figure, Section, Strips

_TEMPLATES = pathlib.Path(__file__).parent
PAGE_TEMPLATE = "page.html.j2"
CARD_TEMPLATE = "model_card.md.j2"
STYLE_FILE = "style.css"

_PACKAGES = ("tfx", "tensorflow", "tf-keras", "apache-beam", "ml-metadata", "numpy", "scikit-learn")


@dataclasses.dataclass(frozen=True)
class Artifact:
    """An input of the report, for its lineage.

    Attributes:
      name: What it is.
      type_name: Its type in ML Metadata.
      id: There; 0 where the orchestrator does not tell.
      uri: Where it is.
    """

    name: str
    type_name: str
    id: int
    uri: str


def versions() -> dict[str, str]:
    """Of what the run was made with."""
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def environment() -> Any:
    """Jinja with what the templates use."""
    import jinja2

    env = jinja2.Environment(
        loader=jinja2.FileSystemLoader(str(_TEMPLATES)),
        autoescape=lambda name: name is not None and name.endswith(".html.j2"),
        undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    env.filters["data_uri"] = data_uri
    env.filters["duration"] = duration
    env.filters["size"] = file_size
    env.filters["strip_png"] = lambda images, columns: pictures.sheet(images, columns)
    env.filters["share"] = _share
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


def _share(cells: Sequence[Any], value: Any) -> float:
    """The share of a number in the numbers of its row."""
    total = sum(cell for cell in cells if isinstance(cell, (int, float)))
    return value / total if isinstance(value, (int, float)) and total else 0.0


def png_of(block: Block) -> bytes | None:
    """The picture of a block as a file, or None for words and tables."""
    if isinstance(block, Figure):
        return block.chart.png
    if not isinstance(block, Strips):
        return None
    from PIL import Image

    sheets = [
        Image.open(io.BytesIO(pictures.sheet(images, block.columns))).convert("RGB")
        for _, images in block.strips
    ]
    # Strips of images of different sizes are brought to one width.
    width = max(sheet.width for sheet in sheets)
    sheets = [
        s if s.width == width
        else s.resize((width, round(s.height * width / s.width)), Image.Resampling.NEAREST)
        for s in sheets
    ]  # fmt: skip
    gap = 8
    canvas = Image.new("RGB", (width, sum(s.height + gap for s in sheets) - gap), (96, 96, 96))
    top = 0
    for s in sheets:
        canvas.paste(s, (0, top))
        top += s.height + gap
    buffer = io.BytesIO()
    canvas.save(buffer, format="PNG", optimize=True)
    return buffer.getvalue()


def worst_digit(by_label: dict[str, dict[str, float]]) -> tuple[str, float] | None:
    """The digit with the highest MSE and that MSE, or None without labels."""
    if not by_label:
        return None
    digit, figures = max(by_label.items(), key=lambda item: item[1]["mse"])
    return digit, figures["mse"]


@dataclasses.dataclass(frozen=True)
class Tile:
    """A figure at the head of the page.

    Attributes:
      name: Of the figure, as an HTML id.
      title: What it is.
      shown: As people read it.
      value: As it is in ``summary.json``.
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
    found = [
        Tile("mse", "MSE", f"{metrics['overall']['mse']:.5f}", metrics["overall"]["mse"],
             "eval split, a pixel"),
        Tile("pca_mse", "PCA's MSE", f"{metrics['pca_mse']:.5f}", metrics["pca_mse"],
             "same code size"),
        Tile("bce", "BCE", f"{metrics['overall']['bce']:.4f}", metrics["overall"]["bce"],
             "nats a pixel"),
    ]  # fmt: skip
    if worst := worst_digit(metrics["by_label"]):
        found.append(
            Tile("worst_mse", f"worst digit: {worst[0]}", f"{worst[1]:.5f}", worst[1], "its MSE")
        )
    if search := metrics["search"]:
        found.append(
            Tile("precision_at_10", "search precision@10", f"{search['precision_at_10']:.4f}",
                 search["precision_at_10"], f"PCA: {search['pca']['precision_at_10']:.4f}")
        )  # fmt: skip
    anomaly = metrics["anomaly"]
    found.append(
        Tile("auroc", "anomaly AUROC", f"{anomaly['auroc']:.4f}", anomaly["auroc"],
             f"AUPR {anomaly['aupr']:.4f}")
    )  # fmt: skip
    if classification := metrics["classification"]:
        found.append(
            Tile("accuracy", "accuracy", f"{classification['accuracy']:.4f}",
                 classification["accuracy"], "of the classifier")
        )  # fmt: skip
    found += [
        Tile("code_size", "code", f"{summary['code_size']:,}", summary["code_size"],
             f"floats; {summary['bits_per_pixel']:.2f} bits a pixel"),
        Tile("parameters", "parameters", f"{summary['parameters']:,}", summary["parameters"],
             file_size(summary["model_bytes"])),
        Tile("training_seconds", "training", duration(summary["training"]["seconds"]),
             summary["training"]["seconds"], f"{summary['training']['epochs']} epochs"),
    ]  # fmt: skip
    if summary["latency_ms"] is not None:
        found.append(
            Tile("latency_ms", "latency", f"{summary['latency_ms']:.1f} ms", summary["latency_ms"],
                 "one image over gRPC, p95")
        )  # fmt: skip
    return found


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
    lineage: Sequence[Artifact],
) -> str:
    """The page.

    Args:
      sections: What it shows.
      summary: As ``summary.json`` has it.
      metadata: What the model says of itself.
      card: The model card, in Markdown.
      lineage: The artifacts that it was made from.
    """
    from markdown_it import MarkdownIt

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
            sections=sections, summary=summary, metadata=metadata, card=html, lineage=lineage,
            tiles=tiles(summary), configuration=flatten(summary["configuration"]),
        )
    )  # fmt: skip


def flatten(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """A nested mapping with dotted keys."""
    found: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, dict) and value:
            found.update(flatten(value, f"{prefix}{key}."))
        else:
            found[prefix + key] = value
    return found
