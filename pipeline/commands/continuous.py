"""``mnist-ae ingest``, ``spans``, ``watch`` and ``history``: continuous retraining."""

from __future__ import annotations

import dataclasses
import json
import os
import shlex
import signal
import sys
from typing import Any

import click

from pipeline.commands import options
from pipeline.commands.group import command
from pipeline.commands.options import PORT, POSITIVE, Number, flag, option
from pipeline.continuous.job import WatchOptions
from pipeline.errors import UserError
from serving import locate

_OPEN_FRACTION = Number(0, 1, min_open=True, max_open=True)


def _span(text: str) -> int | None:
    """A span's number, or None for ``next``."""
    if text == "next":
        return None
    if not text.isascii() or not text.isdigit():
        raise click.BadParameter(f"{text} is neither a number (0 or more) nor 'next'")
    return int(text)


def _words(text: str) -> list[str]:
    """Arguments in one word, quoted as in a shell."""
    try:
        return shlex.split(text)
    except ValueError as e:
        raise click.BadParameter(f"{text!r}: {e}") from None


@command()
@click.argument("images", metavar="IMAGES")
@option("--labels FILE", "IDX file or .npy, a digit an image")
@option(
    "--span N|next",
    "the span's number; where it is taken already: the next version of that span; "
    "next: one above the highest",
    type=_span,
    show_default="next",
)
@flag("--golden", "the fixed set that no new model may be worse on, instead of a span")
@option(
    "--eval-fraction PART", "part set aside for evaluation", type=_OPEN_FRACTION, show_default="0.1"
)
@options.as_json("a JSON object")
@options.root
def ingest(
    images: str,
    labels: str | None,
    span: int | None,
    golden: bool,
    eval_fraction: float | None,
    as_json: bool,
    root: str,
) -> None:
    """Check images and publish them as a span, whole or not at all.

    IMAGES is an IDX file, .npy, .npz, or a folder of IDX files, of PNGs or of folders 0 to 9 of
    PNGs.
    """
    from pipeline.continuous import sources, spans

    if golden and span is not None:
        raise UserError("--golden and --span exclude each other")
    pixels, digits, kind = sources.read(images, labels)
    source = {"kind": kind, "images": os.path.abspath(images)}
    if labels:
        source["labels"] = os.path.abspath(labels)
    root = os.path.abspath(root)
    if golden:
        done = spans.publish_golden(root, pixels, digits, source=source)
    else:
        fraction = eval_fraction or spans.DEFAULT_EVAL_FRACTION
        done = spans.publish(root, pixels, digits, source=source, span=span, eval_fraction=fraction)
    manifest = done.manifest
    if as_json:
        values = dataclasses.asdict(manifest)
        print(json.dumps({**values, "folder": str(done.folder), "duplicate": done.duplicate}))
        return
    name = "golden set" if golden else f"span {manifest.span}"
    if done.duplicate:
        print(
            f"nothing new: these {manifest.count:,} images are {name}, version "
            f"{manifest.version}, already (digest {manifest.digest[:12]})"
        )
        return
    labelled = "labelled" if manifest.labelled else "no labels"
    print(
        f"{name}, version {manifest.version}: {manifest.count:,} images, {labelled}, "
        f"{manifest.train:,} to train on and {manifest.eval:,} for evaluation "
        f"(digest {manifest.digest[:12]})"
    )
    print(f"folder  {done.folder}")
    _say_gaps(spans.missing(spans.scan(root)))


def _say_gaps(missing: list[int]) -> None:
    if missing:
        shown = ", ".join(map(str, missing[:10])) + (" ..." if len(missing) > 10 else "")
        print(f"gap     no span {shown}")


@command("spans")
@click.argument("action", type=click.Choice(["list", "accept"]), default="list")
@click.argument("span", type=int, required=False, metavar="[N]")
@options.as_json("JSON")
@options.root
def spans_(action: str, span: int | None, as_json: bool, root: str) -> None:
    """List the spans; 'spans accept N' lets a span in that was set aside."""
    from pipeline.continuous import spans, state, story

    root = os.path.abspath(root)
    if action == "accept":
        if span is None:
            raise UserError("which span? 'mnist-ae spans accept N'")
        print(f"span {state.accept(root, span)}: let in at the watcher's next wake-up")
        return
    if span is not None:
        raise UserError("'mnist-ae spans' takes no number; 'mnist-ae spans accept N' does")
    manifests = spans.scan(root)
    rows = story.span_rows(manifests, state.read(root))
    missing = spans.missing(manifests)
    broken = [str(path) for path in spans.unpublished(root)]
    if as_json:
        print(json.dumps({"spans": rows, "gaps": missing, "unpublished": broken}))
        return
    if rows:
        _show_spans(rows)
    else:
        print(f"no spans in {root}; publish one with 'mnist-ae ingest IMAGES'")
    _say_gaps(missing)
    for path in broken:
        print(f"ignored {path}: no {spans.MANIFEST}")


def _show_spans(rows: list[dict[str, Any]]) -> None:
    from pipeline import console

    headings = "span version when images labels digest from drift status window why".split()
    table = console.table(*headings, right=("span", "version", "images", "drift"))
    for row in rows:
        table.add_row(
            str(row["span"]),
            str(row["version"]),
            row["time"][:16].replace("T", " "),
            f"{row['count']:,}",
            "yes" if row["labelled"] else "no",
            row["digest"][:12],
            row["source"].get("kind", "-"),
            "-" if row["drift"] is None else f"{row['drift']:.3f}",
            row["status"],
            "yes" if row["in_window"] else "",
            row["reason"],
        )
    console.make_console(sys.stdout).print(table)


# The function gets ``how``, a WatchOptions.
_watching = options.gathered(
    "how",
    WatchOptions,
    option(
        "--interval S",
        "seconds between looks where the file system gives no events",
        type=POSITIVE,
        default=60.0,
    ),
    flag("--cold", "train afresh instead of from the serving model"),
    flag(
        "--auto-promote",
        "make what was pushed the canary of a live server, compare, promote or roll back",
    ),
    option(
        "--submit ARGUMENTS",
        "run each span on Kubeflow: more arguments of 'mnist-ae kubeflow submit' in one word, "
        "such as '--host http://localhost:8888'",
        type=_words,
    ),
    option("--target HOST:PORT", "the live server's gRPC port"),
    option("--base-path PATH", "the model's folder as that server sees it"),
    option(
        "--served-metrics URL",
        "its metrics, such as http://localhost:8501/monitoring/prometheus/metrics: served "
        "errors decide on a canary, and rising ones start a run on sampled requests",
        to="metrics_url",
    ),
    option("--metrics-port PORT", "serve Prometheus metrics of the watcher", type=PORT),
)


@command()
@click.argument("action", type=click.Choice(["run", "status"]), default="run")
@options.configuration()
@flag("--once", "do what is due now, then end; for cron")
@_watching
@options.as_json("events, or the status, as JSON")
def watch(
    action: str, source: options.ConfigSource, once: bool, how: WatchOptions, as_json: bool
) -> int:
    """Look for new spans, train on them, push what is better.

    Runs until SIGTERM or Ctrl-C; 'watch status' shows what it is doing.
    """
    if action == "status":
        _show_status(source.root or locate.DEFAULT_ROOT, as_json)
        return 0
    from pipeline.continuous import events, watcher

    config = source.load()
    if how.auto_promote and not how.target:
        raise UserError("--auto-promote moves the labels of a live server: name it with --target")
    how = dataclasses.replace(
        how,
        config_path=os.path.abspath(source.config) if source.config else None,
        # The runs work in this root, whatever folder they are started in.
        assignments=[*source.assignments, f"root={json.dumps(os.path.abspath(config.root))}"],
    )

    def say(record: dict[str, Any]) -> None:
        print(json.dumps(record) if as_json else events.as_text(record), flush=True)

    with watcher.watching(config.root) as alone:
        if not alone:
            message = f"{config.root}: another watcher is at work there"
            if once:
                print(f"{message}; nothing to do", file=sys.stderr)
                return 0
            raise UserError(f"{message} (process {watcher.owner(config.root)})")
        told = watcher.make_events(config, say)
        watching = watcher.Watcher(config, how, told)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: watching.stop())
        try:
            if once:
                return watching.once()
            watching.watch()
            return 0
        finally:
            told.close()


def _show_status(root: str, as_json: bool) -> None:
    from pipeline.continuous import watcher

    values = watcher.status(os.path.abspath(root))
    if as_json:
        print(json.dumps(values))
        return
    process = values["process"]
    print(f"watcher   {f'process {process}' if process else 'not running'} ({values['root']})")
    print(f"waiting   {', '.join(values['waiting']) or 'no span'}")
    for key, reason in values["set_aside"].items():
        print(f"set aside {key}: {reason}")
    print(f"window    {', '.join(values['window']) or '-'}")
    print(f"serving   {values['serving'] or '-'}")
    if rollout := values["rollout"]:
        print(f"canary    {rollout['version']}, {len(rollout['checks'])} comparisons")
    if last := values["last"]:
        print(f"last      span {last['span']}: {last['status']}: {last['reason']}")


@command()
@options.as_json("a JSON object")
@option("--html FILE", "write a page with the curves")
@option("--model NAME", "the servable", show_default="the latest pushed")
@options.root
def history(as_json: bool, html: str | None, model: str | None, root: str) -> None:
    """Tell the story of the spans: drift, run, losses before and after, verdict."""
    from pipeline.continuous import story

    found = story.tell(os.path.abspath(root), model)
    if html:
        story.write_page(found, html)
        print(f"wrote {html}")
    elif as_json:
        print(json.dumps(found))
    elif found["spans"]:
        story.show(found)
    else:
        print(f"no spans in {found['root']}; publish one with 'mnist-ae ingest IMAGES'")
