"""The story of the spans: what came, what was decided and why, what is serving."""

from __future__ import annotations

import dataclasses
import html
import pathlib
import sys
from collections.abc import Sequence
from typing import Any

from pipeline import output_files
from pipeline.continuous import spans
from pipeline.continuous import state as state_lib
from pipeline.continuous.state import State
from serving import locate
from serving.errors import ServingError


def tell(root: str, model: str | None = None) -> dict[str, Any]:
    """All there is to say, as plain data.

    Args:
      root: Of spans and runs.
      model: The servable; the latest pushed one when None.

    Returns:
      ``root``, ``gaps``, ``serving`` (version, or None) and ``spans``, in
      numeric order, each with ``span``, ``version``, ``time``, ``images``,
      ``labelled``, ``source``, ``status``, ``reason``, ``drift``, ``run_id``,
      ``window``, ``epochs``, ``warm_start``, ``golden`` and ``newest_span``
      (losses before and after), ``pushed_version``, ``rolled_back``.
    """
    known = state_lib.read(root)
    manifests = spans.scan(root)
    rows = []
    for manifest in manifests:
        record = known.spans.get(manifest.key, {})
        rows.append(
            {
                "span": manifest.span,
                "version": manifest.version,
                "time": manifest.time,
                "images": manifest.count,
                "labelled": manifest.labelled,
                "source": manifest.source,
                "status": record.get("status", state_lib.NEW),
                **{
                    key: record.get(key)
                    for key in (
                        "reason",
                        "drift",
                        "run_id",
                        "window",
                        "epochs",
                        "warm_start",
                        "training_images",
                        "golden",
                        "newest_span",
                        "pushed_version",
                        "rolled_back",
                        "decided",
                        "tries",
                    )
                },
            }
        )
    return {
        "root": root,
        "gaps": spans.missing(manifests),
        "serving": serving_version(root, known, model),
        "spans": rows,
    }


def span_rows(manifests: Sequence[spans.Manifest], known: State) -> list[dict[str, Any]]:
    """The spans as plain data: what their manifests say, and what was decided on them."""
    rows = []
    for manifest in manifests:
        record = known.spans.get(manifest.key, {})
        rows.append(
            {
                **dataclasses.asdict(manifest),
                "status": known.status(manifest.key),
                "drift": (record.get("drift") or {}).get("distance"),
                "reason": record.get("reason", ""),
                "in_window": manifest.key in known.window,
            }
        )
    return rows


def serving_version(root: str, known: State, model: str | None) -> int | None:
    """The version that callers get: the stable one where there are labels, else the newest."""
    from serving.rollout import ConfigFile, entry_of, labels_of

    folder = pathlib.Path(root)
    try:
        found = locate.find(model, folder)
        labels = labels_of(entry_of(ConfigFile(locate.config_path(folder)).read(), found.name))
    except ServingError:
        return known.serving
    return labels.stable if labels is not None else found.latest


def last(known: State) -> dict[str, Any] | None:
    """The last decision, or None."""
    decided = [(r["decided"], key) for key, r in known.spans.items() if r.get("decided")]
    if not decided:
        return None
    _, key = max(decided)
    record = known.spans[key]
    return {"span": key, "status": record["status"], "reason": record.get("reason", "")}


def show(story: dict[str, Any]) -> None:
    """Prints the story as a table."""
    from pipeline.console import make_console, table

    figures = ("drift", "golden MSE", "span MSE")
    headings = ("span", "when", "images", "labels", *figures, "verdict", "version", "why")
    shown = table(*headings, right=("images", *figures))
    for row in story["spans"]:
        drift = (row["drift"] or {}).get("distance")
        version = row["pushed_version"] or ""
        if version and int(version) == story["serving"]:
            version += " (serving)"
        shown.add_row(
            f"{row['span']}.{row['version']}",
            row["time"][:16].replace("T", " "),
            f"{row['images']:,}",
            "yes" if row["labelled"] else "no",
            "-" if drift is None else f"{drift:.3f}",
            _change(row["golden"]),
            _change(row["newest_span"]),
            "rolled back" if row["rolled_back"] else row["status"],
            version,
            row["rolled_back"] or row["reason"] or "",
        )
    console = make_console(sys.stdout)
    console.print(shown)
    if story["gaps"]:
        console.print("gap: no span " + ", ".join(map(str, story["gaps"])), markup=False)
    console.print(f"serving: {story['serving'] or 'nothing yet'}", markup=False)


def _change(losses: dict[str, Any] | None) -> str:
    if not losses:
        return "-"
    before = "" if losses["before"] is None else f"{losses['before']:.5f} > "
    return f"{before}{losses['after']:.5f}"


def write_page(story: dict[str, Any], path: str) -> None:
    """Writes the story as one self-contained page.

    Raises:
      UserError: It cannot be written.
    """
    curves = (
        (
            "Loss on the golden set (MSE): of the candidate, and of what was serving before",
            [
                ("candidate", [(r["golden"] or {}).get("after") for r in story["spans"]]),
                ("serving before", [(r["golden"] or {}).get("before") for r in story["spans"]]),
            ],
        ),
        (
            "Loss on the newest span (MSE)",
            [
                ("candidate", [(r["newest_span"] or {}).get("after") for r in story["spans"]]),
                (
                    "serving before",
                    [(r["newest_span"] or {}).get("before") for r in story["spans"]],
                ),
            ],
        ),
        (
            "Drift: the largest Jensen-Shannon distance",
            [("distance", [(r["drift"] or {}).get("distance") for r in story["spans"]])],
        ),
    )
    names = [f"{row['span']}.{row['version']}" for row in story["spans"]]
    body = "".join(_chart(title, series, names) for title, series in curves)
    rows = "".join(
        "<tr>"
        + "".join(
            f"<td>{html.escape(str(cell))}</td>"
            for cell in (
                name,
                row["time"][:16].replace("T", " "),
                f"{row['images']:,}",
                "rolled back" if row["rolled_back"] else row["status"],
                row["pushed_version"] or "",
                _change(row["golden"]),
                row["rolled_back"] or row["reason"] or "",
            )
        )
        + "</tr>"
        for name, row in zip(names, story["spans"])
    )
    page = f"""<!doctype html>
<html lang="en"><meta charset="utf-8"><title>Spans</title>
<style>
body {{ font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 60rem;
  padding: 0 1rem; color: #1a1a1a; background: #fff }}
table {{ border-collapse: collapse; width: 100% }}
td, th {{ text-align: left; padding: .2rem .6rem; border-bottom: 1px solid #ddd;
  vertical-align: top }}
svg {{ width: 100%; height: auto }}
text {{ font: 12px system-ui, sans-serif; fill: #444 }}
</style>
<h1>Spans</h1>
<p>Serving version: {story["serving"] or "none yet"}</p>
{body}
<h2>What was decided</h2>
<table><tr><th>span</th><th>when</th><th>images</th><th>verdict</th><th>version</th>
<th>golden MSE</th><th>why</th></tr>{rows}</table>
</html>
"""
    output_files.write(path, page)


_COLOURS = ("#1f6feb", "#999999")
_WIDTH, _HEIGHT, _MARGIN = 800, 220, 48


def _chart(title: str, series: list[tuple[str, list[float | None]]], names: list[str]) -> str:
    """A line chart as inline SVG; missing values leave gaps."""
    values = [v for _, points in series for v in points if v is not None]
    if not values:
        return ""
    top = max(values) * 1.05 or 1.0
    low = min(0.0, *values)

    def x(i: int) -> float:
        return _MARGIN + (_WIDTH - 2 * _MARGIN) * (i / max(len(names) - 1, 1))

    def y(value: float) -> float:
        return _HEIGHT - 30 - (_HEIGHT - 50) * ((value - low) / (top - low))

    parts = [
        f'<text x="{_MARGIN - 6}" y="{y(tick):.0f}" text-anchor="end">{tick:.3g}</text>'
        f'<line x1="{_MARGIN}" x2="{_WIDTH - _MARGIN}" y1="{y(tick):.0f}" y2="{y(tick):.0f}" '
        'stroke="#e4e4e4"/>'
        for tick in (low, (low + top) / 2, top)
    ]
    step = max(1, len(names) // 16)
    parts += [
        f'<text x="{x(i):.0f}" y="{_HEIGHT - 10}" text-anchor="middle">{html.escape(name)}</text>'
        for i, name in enumerate(names)
        if i % step == 0
    ]
    for (name, points), colour in zip(series, _COLOURS):
        known = [(x(i), y(v)) for i, v in enumerate(points) if v is not None]
        path = " ".join(f"{a:.1f},{b:.1f}" for a, b in known)
        parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>')
        parts += [
            f'<circle cx="{a:.1f}" cy="{b:.1f}" r="3" fill="{colour}"><title>{html.escape(name)}'
            "</title></circle>"
            for a, b in known
        ]
    return (
        f"<h2>{html.escape(title)}</h2>"
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{html.escape(title)}">'
        + "".join(parts)
        + "</svg>"
    )
