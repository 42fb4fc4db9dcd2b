"""The commands of continuous retraining: ingest, spans, watch, history.

:func:`register` adds them to a parser; what takes time to import is imported
by the command that needs it.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pipeline.continuous.state import State

_PROG = "mnist-ae"
ConfigSource = Callable[[argparse.Namespace], tuple[str | None, list[str]]]


def register(
    commands: Any, add_config_arguments: Callable[..., None], source: ConfigSource
) -> None:
    """Adds the commands; each sets ``run``, called with the parsed arguments.

    Args:
      commands: The subparsers of the main parser.
      add_config_arguments: Adds what describes a configuration.
      source: Gives the file and the assignments of parsed arguments.
    """
    _register_ingest(commands)
    _register_spans(commands)
    _register_watch(commands, add_config_arguments, source)
    _register_history(commands)


def _add_root(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--root", default=None, metavar="DIR",
        help="folder of spans, runs and models (MNIST_AE_ROOT, else ./runs)",
    )  # fmt: skip


def _root(args: argparse.Namespace) -> str:
    from pipeline.config import DEFAULT_ROOT

    return os.path.abspath(args.root or os.environ.get("MNIST_AE_ROOT") or DEFAULT_ROOT)


def _register_ingest(commands: Any) -> None:
    parser = commands.add_parser(
        "ingest",
        help="publish new images as a span",
        description="Checks images and publishes them as a span, whole or not at all.",
    )
    parser.add_argument(
        "images", metavar="IMAGES",
        help="IDX file, .npy, .npz, or a folder of IDX files, of PNGs or of folders 0 to 9 of PNGs",
    )  # fmt: skip
    parser.add_argument("--labels", metavar="FILE", help="IDX file or .npy, a digit an image")
    parser.add_argument(
        "--span", type=_span, default=None, metavar="N|next",
        help="the span's number; where it is taken already: the next version of that span "
        "(default: next, one above the highest)",
    )  # fmt: skip
    parser.add_argument(
        "--golden", action="store_true",
        help="the fixed set that no new model may be worse on, instead of a span",
    )  # fmt: skip
    parser.add_argument(
        "--eval-fraction", type=_fraction, default=None, metavar="PART",
        help="part set aside for evaluation (0.1)",
    )  # fmt: skip
    parser.add_argument("--json", action="store_true", help="print a JSON object")
    _add_root(parser)
    parser.set_defaults(run=_ingest)


def _register_spans(commands: Any) -> None:
    parser = commands.add_parser(
        "spans",
        help="list the spans: what came, how it differs, how it is used",
        description="Lists the spans; 'spans accept N' lets a span in that was set aside.",
    )
    parser.add_argument(
        "action", nargs="?", choices=("list", "accept"), default="list", help="default: list"
    )
    parser.add_argument("span", nargs="?", type=int, metavar="N", help="the span to accept")
    parser.add_argument("--json", action="store_true", help="print JSON")
    _add_root(parser)
    parser.set_defaults(run=_spans)


def _register_watch(
    commands: Any, add_config_arguments: Callable[..., None], source: ConfigSource
) -> None:
    parser = commands.add_parser(
        "watch",
        help="retrain whenever a span comes in",
        description="Looks for new spans, trains on them, pushes what is better. Runs until "
        "SIGTERM or Ctrl-C; 'watch status' shows what it is doing.",
    )
    parser.add_argument(
        "action", nargs="?", choices=("run", "status"), default="run", help="default: run"
    )
    add_config_arguments(parser)
    parser.add_argument(
        "--interval", type=_positive, default=60.0, metavar="S",
        help="seconds between looks where the file system gives no events (%(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--once", action="store_true", help="do what is due now, then end; for cron"
    )
    parser.add_argument(
        "--cold", action="store_true", help="train afresh instead of from the serving model"
    )
    parser.add_argument(
        "--auto-promote", action="store_true",
        help="make what was pushed the canary of a live server, compare, promote or roll back",
    )  # fmt: skip
    parser.add_argument(
        "--submit", metavar="ARGUMENTS",
        help="run each span on Kubeflow: more arguments of 'mnist-ae kubeflow submit' in one "
        "word, such as '--host http://localhost:8888'",
    )  # fmt: skip
    parser.add_argument("--target", metavar="HOST:PORT", help="the live server's gRPC port")
    parser.add_argument(
        "--base-path", metavar="PATH", help="the model's folder as that server sees it"
    )
    parser.add_argument(
        "--served-metrics", metavar="URL",
        help="its metrics, such as http://localhost:8501/monitoring/prometheus/metrics: served "
        "errors decide on a canary, and rising ones start a run on sampled requests",
    )  # fmt: skip
    parser.add_argument(
        "--metrics-port", type=int, metavar="PORT", help="serve Prometheus metrics of the watcher"
    )
    parser.add_argument("--json", action="store_true", help="print events, or the status, as JSON")
    parser.set_defaults(run=lambda args: _watch(args, source))


def _register_history(commands: Any) -> None:
    parser = commands.add_parser(
        "history",
        help="what came, what was decided, what is serving, span by span",
        description="Tells the story of the spans: drift, run, losses before and after, verdict.",
    )
    parser.add_argument("--json", action="store_true", help="print a JSON object")
    parser.add_argument("--html", metavar="FILE", help="write a page with the curves")
    parser.add_argument("--model", metavar="NAME", help="the servable (default: the latest pushed)")
    _add_root(parser)
    parser.set_defaults(run=_history)


def _positive(text: str) -> float:
    value = float(text)
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is not a positive number")
    return value


def _span(text: str) -> int | None:
    if text == "next":
        return None
    if not text.isascii() or not text.isdigit():
        raise argparse.ArgumentTypeError(f"{text} is neither a number (0 or more) nor 'next'")
    return int(text)


def _fraction(text: str) -> float:
    value = float(text)
    if not 0 < value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not between 0 and 1")
    return value


def _ingest(args: argparse.Namespace) -> int:
    from pipeline.continuous import sources, spans
    from pipeline.errors import UserError

    if args.golden and args.span is not None:
        raise UserError("--golden and --span exclude each other")
    images, labels, kind = sources.read(args.images, args.labels)
    source = {"kind": kind, "images": os.path.abspath(args.images)}
    if args.labels:
        source["labels"] = os.path.abspath(args.labels)
    root = _root(args)
    if args.golden:
        done = spans.publish_golden(root, images, labels, source=source)
    else:
        done = spans.publish(
            root, images, labels, source=source, span=args.span,
            eval_fraction=args.eval_fraction or spans.DEFAULT_EVAL_FRACTION,
        )  # fmt: skip
    manifest = done.manifest
    if args.json:
        print(json.dumps({**dataclasses.asdict(manifest), "folder": str(done.folder),
                          "duplicate": done.duplicate}))  # fmt: skip
        return 0
    name = "golden set" if args.golden else f"span {manifest.span}"
    if done.duplicate:
        print(
            f"nothing new: these {manifest.count:,} images are {name}, version "
            f"{manifest.version}, already (digest {manifest.digest[:12]})"
        )
        return 0
    labelled = "labelled" if manifest.labelled else "no labels"
    print(
        f"{name}, version {manifest.version}: {manifest.count:,} images, {labelled}, "
        f"{manifest.train:,} to train on and {manifest.eval:,} for evaluation "
        f"(digest {manifest.digest[:12]})"
    )
    print(f"folder  {done.folder}")
    _say_gaps(spans.gaps(spans.scan(root)))
    return 0


def _say_gaps(missing: list[int]) -> None:
    if missing:
        shown = ", ".join(map(str, missing[:10])) + (" ..." if len(missing) > 10 else "")
        print(f"gap     no span {shown}")


def _spans(args: argparse.Namespace) -> int:
    from pipeline.continuous import spans, state
    from pipeline.errors import UserError

    root = _root(args)
    if args.action == "accept":
        if args.span is None:
            raise UserError("which span? 'mnist-ae spans accept N'")
        key = state.accept(root, args.span)
        print(f"span {key}: let in at the watcher's next wake-up")
        return 0
    if args.span is not None:
        raise UserError("'mnist-ae spans' takes no number; 'mnist-ae spans accept N' does")
    known = state.read(root)
    manifests = spans.scan(root)
    rows = [_span_row(manifest, known) for manifest in manifests]
    missing = spans.gaps(manifests)
    broken = [str(path) for path in spans.unpublished(root)]
    if args.json:
        print(json.dumps({"spans": rows, "gaps": missing, "unpublished": broken}))
        return 0
    if not rows:
        print(f"no spans in {root}; publish one with '{_PROG} ingest IMAGES'")
    else:
        _show_spans(rows)
    _say_gaps(missing)
    for path in broken:
        print(f"ignored {path}: no {spans.MANIFEST}")
    return 0


def _span_row(manifest: Any, known: State) -> dict[str, Any]:
    record = known.spans.get(manifest.key, {})
    return {
        **dataclasses.asdict(manifest),
        "status": record.get("status", "new"),
        "drift": (record.get("drift") or {}).get("distance"),
        "reason": record.get("reason", ""),
        "in_window": manifest.key in known.window,
    }


def _show_spans(rows: list[dict[str, Any]]) -> None:
    from rich.table import Table

    from pipeline.console import make_console

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for heading in ("span", "version", "when", "images", "labels", "digest", "from", "drift",
                    "status", "window", "why"):  # fmt: skip
        right = heading in ("span", "version", "images", "drift")
        table.add_column(heading, justify="right" if right else "left")
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
    make_console(sys.stdout).print(table)


def _watch(args: argparse.Namespace, source: ConfigSource) -> int:
    if args.action == "status":
        return _status(args)
    import shlex
    import signal

    from pipeline import config as config_lib
    from pipeline.continuous import events, watcher
    from pipeline.errors import UserError

    path, assignments = source(args)
    config = config_lib.load(path, assignments)
    if args.auto_promote and not args.target:
        raise UserError("--auto-promote moves the labels of a live server: name it with --target")
    options = watcher.Options(
        config_path=os.path.abspath(path) if path else None,
        # The runs work in this root, whatever folder they are started in.
        assignments=[*assignments, f"root={json.dumps(os.path.abspath(config.root))}"],
        interval=args.interval,
        cold=args.cold,
        auto_promote=args.auto_promote,
        target=args.target,
        base_path=args.base_path,
        metrics_url=args.served_metrics,
        metrics_port=args.metrics_port,
        submit=None if args.submit is None else shlex.split(args.submit),
    )

    def say(record: dict[str, Any]) -> None:
        print(json.dumps(record) if args.json else events.as_text(record), flush=True)

    with watcher.watching(config.root) as alone:
        if not alone:
            message = f"{config.root}: another watcher is at work there"
            if args.once:
                print(f"{message}; nothing to do", file=sys.stderr)
                return 0
            raise UserError(f"{message} (process {watcher.owner(config.root)})")
        told = watcher.make_events(config, say)
        watch = watcher.Watcher(config, options, told)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: watch.stop())
        try:
            if args.once:
                return watch.once()
            watch.watch()
            return 0
        finally:
            told.close()


def _status(args: argparse.Namespace) -> int:
    from pipeline.continuous import history, spans, state, watcher

    root = _root(args)
    known = state.read(root)
    process = watcher.owner(root)
    manifests = spans.newest_versions(spans.scan(root))
    waiting = [m.key for m in manifests if known.status(m.key) in state.OPEN]
    aside = [m.key for m in manifests if known.status(m.key) in (state.QUARANTINED, state.FAILED)]
    values = {
        "root": root,
        "process": process,
        "run_under_way": bool(process and known.gauges.get("run_under_way")),
        "waiting": waiting,
        "set_aside": {key: known.spans[key].get("reason", "") for key in aside},
        "window": known.window,
        "rollout": known.rollout,
        "serving": known.serving,
        "paused_until": known.paused_until or None,
        "last": history.last(known),
    }
    if args.json:
        print(json.dumps(values))
        return 0
    print(f"watcher   {'process ' + str(process) if process else 'not running'} ({root})")
    print(f"waiting   {', '.join(waiting) or 'no span'}")
    for key in aside:
        print(f"set aside {key}: {known.spans[key].get('reason', '')}")
    print(f"window    {', '.join(known.window) or '-'}")
    print(f"serving   {known.serving or '-'}")
    if known.rollout:
        print(f"canary    {known.rollout['version']}, {len(known.rollout['checks'])} comparisons")
    last = history.last(known)
    if last:
        print(f"last      span {last['span']}: {last['status']}: {last['reason']}")
    return 0


def _history(args: argparse.Namespace) -> int:
    from pipeline.continuous import history

    story = history.tell(_root(args), args.model)
    if args.html:
        history.write_page(story, args.html)
        print(f"wrote {args.html}")
        return 0
    if args.json:
        print(json.dumps(story))
        return 0
    if not story["spans"]:
        print(f"no spans in {story['root']}; publish one with '{_PROG} ingest IMAGES'")
        return 0
    history.show(story)
    return 0
