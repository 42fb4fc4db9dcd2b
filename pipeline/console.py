"""What a person sees: progress while it runs, a short table at its end.

All of it goes to standard error; standard output is for results.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import time
import warnings
from collections.abc import Collection, Iterator
from typing import IO, Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table

from serving import quiet

# As trainer.monitoring names it; importing that would import TensorFlow.
PROGRESS_LOGGER = "mnist_ae.progress"
_PLAIN_PROGRESS_SECONDS = 10.0


@contextlib.contextmanager
def quiet_streams(log_path: str, verbose: bool) -> Iterator[tuple[IO[str], IO[str]]]:
    """Sends what libraries print to a log file, below Python too.

    Args:
      log_path: The log file; it is made.
      verbose: Leave the terminal as it is instead; only logging is copied.

    Yields:
      The real standard output and standard error.
    """
    os.makedirs(os.path.dirname(log_path), exist_ok=True)
    root = logging.getLogger()
    with open(log_path, "a", buffering=1, encoding="utf-8") as log:
        handlers = [logging.StreamHandler(stream) for stream in [log] + [sys.stderr] * verbose]
        for handler in handlers:
            handler.setFormatter(
                logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s")
            )
        before = root.level, list(root.handlers)
        root.handlers = list(handlers)
        root.setLevel(logging.INFO)
        try:
            if verbose:
                yield sys.stdout, sys.stderr
                return
            with _redirected(log) as streams:
                yield streams
        finally:
            root.setLevel(before[0])
            root.handlers = before[1]


@contextlib.contextmanager
def _redirected(log: IO[str]) -> Iterator[tuple[IO[str], IO[str]]]:
    sys.stdout.flush()
    sys.stderr.flush()
    saved = os.dup(1), os.dup(2)
    out = os.fdopen(os.dup(1), "w", encoding="utf-8")
    err = os.fdopen(os.dup(2), "w", encoding="utf-8", buffering=1)
    os.dup2(log.fileno(), 1)
    os.dup2(log.fileno(), 2)
    try:
        yield out, err
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        out.flush()
        err.flush()
        os.dup2(saved[0], 1)
        os.dup2(saved[1], 2)
        for descriptor in saved:
            os.close(descriptor)


def make_console(stream: IO[str]) -> Console:
    """A console that neither cuts nor folds what goes to a file or pipe."""
    console = Console(file=stream, highlight=False, soft_wrap=True)
    return console if console.is_terminal else Console(file=stream, highlight=False, width=500)


def table(*headings: str, right: Collection[str] = (), gap: int = 2) -> Table:
    """A table without rules.

    Args:
      right: Those whose columns are flush right.
      gap: Spaces between columns.
    """
    made = Table(box=None, pad_edge=False, padding=(0, gap, 0, 0))
    for heading in headings:
        made.add_column(heading, justify="right" if heading in right else "left")
    return made


def quieten() -> None:
    """Keeps the chatter of libraries away from what people read."""
    quiet.settle_environment(3)
    warnings.simplefilter("ignore", FutureWarning)
    for noisy in ("tensorflow", "absl", "apache_beam"):
        logging.getLogger(noisy).setLevel(logging.ERROR)


class RunDisplay(logging.Handler):
    """One line a node, live where there is a terminal.

    The runner tells it of nodes (``local_runner.NodeListener``), the training
    and downloads of their progress, by log records.
    """

    def __init__(self, stream: IO[str]):
        """Makes the display on ``stream``, the real standard error."""
        super().__init__()
        self._console = make_console(stream)
        self._live: Progress | None = None
        self._task: TaskID | None = None
        self._node = ""
        self._next_plain = 0.0

    def __enter__(self) -> RunDisplay:
        logger = logging.getLogger(PROGRESS_LOGGER)
        logger.addHandler(self)
        logger.setLevel(logging.INFO)
        if self._console.is_terminal:
            self._live = Progress(
                TextColumn("  {task.fields[node]:<18}"),
                TimeElapsedColumn(),
                BarColumn(bar_width=20),
                TextColumn("{task.description}"),
                console=self._console,
                transient=True,
            )
            self._live.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        logging.getLogger(PROGRESS_LOGGER).removeHandler(self)
        if self._live is not None:
            self._live.stop()
            self._live = None

    def line(self, text: str) -> None:
        """Prints a line above the live one."""
        self._console.print(text, markup=False)

    def activity(self, name: str) -> None:
        """Shows that something is under way that is no node."""
        self.started(name)

    def started(self, node_id: str) -> None:
        """Shows that a node is under way."""
        self._node = node_id
        self._next_plain = time.monotonic() + _PLAIN_PROGRESS_SECONDS
        if self._live is not None:
            self._clear()
            self._task = self._live.add_task("", node=node_id, total=None)

    def finished(self, node_id: str, seconds: float, cached: bool) -> None:
        """Prints how long a node took, in seconds, or that its result was there."""
        self._clear()
        self.line(f"  {node_id:<18}{'cached' if cached else f'{seconds:.1f} s':>8}")

    def emit(self, record: logging.LogRecord) -> None:
        """Shows how far a training or download is."""
        done, total = getattr(record, "done", None), getattr(record, "total", None)
        if self._live is not None and self._task is not None:
            self._live.update(
                self._task, description=record.getMessage(), completed=done, total=total
            )
        elif self._live is None and time.monotonic() >= self._next_plain:
            self._next_plain = time.monotonic() + _PLAIN_PROGRESS_SECONDS
            self.line(f"  {self._node:<18}{record.getMessage()}")

    def _clear(self) -> None:
        if self._live is not None and self._task is not None:
            self._live.remove_task(self._task)
            self._task = None


def progress_to_log(name: str, done: int, total: int) -> None:
    """Reports a download through the progress logger."""
    size = f"{done / 1e6:.1f} of {total / 1e6:.1f} MB" if total else f"{done / 1e6:.1f} MB"
    logging.getLogger(PROGRESS_LOGGER).info(
        "%s  %s", name, size, extra={"done": done, "total": total or None}
    )


def describe_dataset(dataset: Any) -> str:
    """A line on a data set: name, counts, labels, origin."""
    train, evaluation = dataset.splits["train"], dataset.splits["eval"]
    labels = "" if train.labelled and evaluation.labelled else ", no labels"
    return (
        f"{dataset.name}: {train.count:,} train and {evaluation.count:,} eval images"
        f"{labels} ({dataset.origin})"
    )


def show_summary(stream: IO[str], result: dict[str, Any], log_path: str, command: str) -> None:
    """Prints the end of a run: losses beside PCA's, verdict, place, what to do next."""
    console = make_console(stream)
    metrics = result["metrics"]
    overall = metrics["overall"]
    losses = table("", "MSE", "BCE", right=("MSE", "BCE"), gap=3)
    losses.add_row(result["model"], f"{overall['mse']:.5f}", f"{overall['bce']:.4f}")
    if metrics["baseline"]:
        baseline = metrics["baseline"]
        losses.add_row("baseline", f"{baseline['mse']:.5f}", f"{baseline['bce']:.4f}")
    losses.add_row(f"PCA, {result['code_size']} components", f"{metrics['pca_mse']:.5f}", "")
    if metrics["by_label"]:
        digit, worst = max(metrics["by_label"].items(), key=lambda item: item[1]["mse"])
        losses.add_row(f"worst digit: {digit}", f"{worst['mse']:.5f}", f"{worst['bce']:.4f}")
    dataset = result["dataset"]
    console.print()
    console.print(
        f"{dataset['name']} ({dataset['digest'][:12]}), {dataset['train']:,} train and "
        f"{dataset['eval']:,} eval images; losses on the eval split",
        markup=False,
    )
    console.print(losses)
    console.print()
    times = table("component", "seconds", "", right=("seconds",), gap=3)
    for part in result["components"]:
        times.add_row(part["id"], f"{part['seconds']:.1f}", "cached" if part["cached"] else "")
    times.add_row("together", f"{sum(part['seconds'] for part in result['components']):.1f}", "")
    console.print(times)
    console.print()
    if result["blessed"]:
        console.print(f"blessed, pushed as version {result['pushed_version']}", markup=False)
        console.print(f"model  {result['pushed_path']}", markup=False)
    else:
        for reason in result["refusals"]:
            console.print(f"not blessed, not pushed: {reason}", markup=False)
        command = "train longer (--set trainer.epochs=N) or allow more (evaluator.* in docs)"
        if "evaluator" not in result["refused_by"]:
            command = "see the log, or allow more (--set validator.latency_budget_ms=N)"
    console.print(f"report {result['report']}", markup=False)
    console.print(f"log    {log_path}", markup=False)
    console.print(f"next   {command}", markup=False)


def show_runs(stream: IO[str], records: list[Any]) -> None:
    """Prints the history of runs, newest last."""
    console = make_console(stream)
    headings = ("run", "when", "model", "data", "MSE", "PCA", "blessed", "version", "time")
    shown = table(*headings, right=("MSE", "PCA", "time"))
    for record in records:
        properties = record.properties
        shown.add_row(
            record.run_id,
            f"{record.started:%Y-%m-%d %H:%M}",
            properties.get("model", "-"),
            properties.get("dataset", "-"),
            f"{properties['mse']:.5f}" if "mse" in properties else record.state,
            f"{properties['pca_mse']:.5f}" if "pca_mse" in properties else "-",
            {1: "yes", 0: "no"}.get(properties.get("blessed", -1), "-"),
            record.pushed_version or "-",
            f"{sum(c.seconds for c in record.components):.0f} s",
        )
    console.print(shown)
