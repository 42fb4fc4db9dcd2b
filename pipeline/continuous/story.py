"""The story of the spans: what came, what was decided and why, what is serving."""

from __future__ import annotations

import dataclasses
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

# What a span's record may say of it.
_DECIDED = "reason drift run_id window epochs warm_start training_images golden newest_span".split()
_DECIDED += "pushed_version rolled_back decided tries".split()


def tell(root: str, model: str | None = None) -> dict[str, Any]:
    """All there is to say, as plain data.

    Args:
      model: The servable; the latest pushed one when None.

    Returns:
      ``root``, ``gaps``, ``serving`` (version, or None) and ``spans``, in
      numeric order, each with what its manifest and the watcher's state say;
      ``golden`` and ``newest_span`` are losses before and after.
    """
    known = state_lib.read(root)
    manifests = spans.scan(root)
    rows = [
        {
            "span": manifest.span,
            "version": manifest.version,
            "time": manifest.time,
            "images": manifest.count,
            "labelled": manifest.labelled,
            "source": manifest.source,
            "status": known.status(manifest.key),
            **{key: known.spans.get(manifest.key, {}).get(key) for key in _DECIDED},
        }
        for manifest in manifests
    ]
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
    import jinja2

    rows = story["spans"]

    def losses(of: str) -> dict[str, list[float | None]]:
        keys = {"candidate": "after", "serving before": "before"}
        return {name: [(row[of] or {}).get(key) for row in rows] for name, key in keys.items()}

    distances = [(row["drift"] or {}).get("distance") for row in rows]
    curves = {
        "Loss on the golden set (MSE): of the candidate, and of what was serving before": losses(
            "golden"
        ),
        "Loss on the newest span (MSE)": losses("newest_span"),
        "Drift: the largest Jensen-Shannon distance": {"distance": distances},
    }
    names = [f"{row['span']}.{row['version']}" for row in rows]
    charts = [_chart(title, series, names) for title, series in curves.items()]
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(pathlib.Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
    )
    template = environment.get_template("history.html.j2")
    page = template.render(story=story, charts=[c for c in charts if c], change=_change)
    output_files.write(path, page)


def _chart(
    title: str, series: dict[str, list[float | None]], names: list[str]
) -> dict[str, Any] | None:
    """What the page draws, in its 800 x 220 points; missing values leave gaps."""
    values = [v for points in series.values() for v in points if v is not None]
    if not values:
        return None
    top, low = max(values) * 1.05 or 1.0, min(0.0, *values)
    across = [round(48 + 704 * i / max(len(names) - 1, 1), 1) for i in range(len(names))]

    def up(value: float) -> float:
        return round(190 - 170 * (value - low) / (top - low), 1)

    return {
        "title": title,
        "ticks": [(up(value), f"{value:.3g}") for value in (low, (low + top) / 2, top)],
        "names": list(zip(across, names))[:: max(1, len(names) // 16)],
        "series": [
            (name, [(x, up(v)) for x, v in zip(across, points) if v is not None])
            for name, points in series.items()
        ],
    }
