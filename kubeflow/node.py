"""Runs nodes of the pipeline in a container: ``python -m kubeflow.node``.

The graph is made from the configuration, as everywhere, and TFX's own launcher
runs one node after the other against the shared ML Metadata store. KFP may kill
them and start them again at any time: a node that ended well is not repeated,
what an attempt left unfinished is cleared away first. By hand, upstream nodes before it:

    python -m kubeflow.node --node MnistExampleGen,StatisticsGen --run-id mine --data-dir DIR \
        --metadata-url sqlite:///tmp/mine.sqlite --pipeline-root /tmp/mine --push-dir /tmp/models

Exit codes: 0 done, 1 the component failed, 2 bad configuration or data, 3 the
metadata store does not answer, 124 out of time, 143 cancelled. The last line on
stderr says why.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import re
import sys
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from kubeflow.interruption import EXIT_CANCELLED, Interrupted, Watch, watched
from pipeline.config import METADATA_PASSWORD, PipelineConfig, assign, parse
from pipeline.errors import RunError, UserError
from serving import quiet
from serving.errors import Error

if TYPE_CHECKING:
    from ml_metadata.metadata_store import MetadataStore

_logger = logging.getLogger("kubeflow.node")

_SPAN_FOLDER = re.compile(r"span-\d+")
_VERSION_FOLDER = re.compile(r"version-\d+")
_LAUNCH_TRIES = 5
_EXAMPLE_GEN = "MnistExampleGen"
_SERVING_VALIDATOR = "ServingValidator"
# A verdict of another run is read by that run's Pusher within this many seconds.
_READ_WITHIN = 3_600.0


class _JsonFormatter(logging.Formatter):
    """A line of JSON a record, as log collectors want it."""

    def __init__(self, args: argparse.Namespace):
        super().__init__()
        self._args = args

    def format(self, record: logging.LogRecord) -> str:
        line = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
            + f".{int(record.msecs):03d}Z",
            "severity": record.levelname,
            "node": self._args.node,
            "run": self._args.run_id,
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line)


def make_parser() -> argparse.ArgumentParser:
    """The parser of the node's arguments, which the compiled pipeline holds."""
    parser = argparse.ArgumentParser(
        prog="python -m kubeflow.node", description="Run nodes of the pipeline, in turn."
    )
    add = parser.add_argument
    add("--node", required=True, help="TFX's identifiers of the nodes, with commas")
    add("--config", default="{}", help="the configuration, as JSON")
    add("--run-id", required=True, help="of the run, from KFP")
    add("--metadata-url", required=True, help="ML Metadata store")
    add("--model", help="which autoencoder")
    add("--epochs", type=int, default=0, help="0 is the model's own default")
    add("--data-dir", default="", help="folder of IDX files, or of spans of them")
    add("--span", default="latest", help="'latest' or a number")
    add("--pipeline-root", required=True, help="folder of the artifacts")
    add("--push-dir", required=True, help="folder above the servables")
    add("--verdict-file", default="", help="where DriftMonitor's verdict goes, for KFP")
    add("--reason-file", default="", help="where the reason for it goes")
    add("--timeout", type=int, default=0, help="seconds; 0 never gives up")
    add(
        "--metadata-patience",
        type=float,
        default=60.0,
        help="seconds to wait for a metadata store that is not up",
    )
    return parser


def node_config(args: argparse.Namespace) -> PipelineConfig:
    """The configuration with the run parameters in it.

    Raises:
      UserError: It does not parse, or a parameter does not fit.
    """
    if "{{" in args.run_id:
        # The same text in every run: the second would find its work done already.
        raise UserError(
            f"--run-id {args.run_id}: the backend left the placeholder as text; it takes Kubeflow "
            "Pipelines 2.5 or newer"
        )
    try:
        values = json.loads(args.config)
    except ValueError as e:
        raise UserError(f"--config: not JSON ({e})") from None
    if not isinstance(values, dict):
        raise UserError("--config: expected a JSON object")
    assignments = [f"pusher.dir={json.dumps(args.push_dir)}", 'root="/nowhere"']
    if args.model:
        assignments.append(f"model={json.dumps(args.model)}")
    if args.epochs:
        assignments.append(f"trainer.epochs={args.epochs}")
    for assignment in assignments:
        assign(values, assignment)
    return parse(values, where=f"node {args.node}")


def data_source(args: argparse.Namespace, dataset: str) -> dict[str, Any]:
    """Where ``create_pipeline`` finds the images: folder, pattern and span.

    Raises:
      UserError: The span is no number, or there are no spans.
      DataError: The files are missing or damaged.
    """
    from components.mnist_example_gen import datasets

    span = None
    if args.span != "latest":
        if not args.span.isdigit():
            raise UserError(f"--span {args.span!r}: expected 'latest' or a number")
        span = int(args.span)
    names = os.listdir(args.data_dir) if os.path.isdir(args.data_dir) else []
    spans = [name for name in names if _SPAN_FOLDER.fullmatch(name)]
    if spans:
        inner = os.listdir(os.path.join(args.data_dir, spans[0]))
        versioned = any(_VERSION_FOLDER.fullmatch(name) for name in inner)
        pattern = "span-{SPAN}" + ("/version-{VERSION}" if versioned else "")
        if span is not None and f"span-{span}" not in spans:
            known = ", ".join(sorted((s[5:] for s in spans), key=int))
            raise UserError(f"{args.data_dir}: no span {span}; there are {known}")
        return {"data_folder": args.data_dir, "data_pattern": pattern, "data_span": span}
    if span is not None:
        raise UserError(f"{args.data_dir}: no folders span-N, so there is no span {span}")
    found = datasets.find(dataset, args.data_dir or None, allow_download=False)
    return {"data_folder": found.folder}


def run_node(args: argparse.Namespace, watch: Watch) -> None:
    """Runs the node, once more or for the first time.

    Args:
      watch: Over this process; settled when the outcome is.

    Raises:
      UserError: Bad configuration.
      StoreUnreachableError: No metadata store.
      RunError: The component failed.
      Interrupted: Cancelled, or out of time.
    """
    config = node_config(args)
    # What takes seconds to import comes after what is likely to be wrong.
    from ml_metadata.proto.metadata_store_pb2 import Execution

    from kubeflow import store as stores
    from kubeflow import workers
    from pipeline import history, local_runner

    password = os.environ.get(METADATA_PASSWORD)
    connection = stores.connection(args.metadata_url, password)
    store = stores.open_store(connection, args.metadata_url, args.metadata_patience)
    where = store, args.run_id, args.node
    if stores.is_finished(*where):
        watch.settle()
        _logger.info("%s is done already, by an earlier attempt", args.node)
        _tell_verdict(store, args)
        return
    if stores.clear_attempts(*where, args.pipeline_root):
        _logger.info("%s was interrupted before; it starts again", args.node)
    # A thread has a connection of its own; the node may end before it does.
    watch.on_cancel = lambda: stores.end_attempt(
        stores.open_store(connection, args.metadata_url, patience=0),
        *(args.run_id, args.node, Execution.CANCELED),
    )
    if args.node == _SERVING_VALIDATOR:
        history.forget_refusals(store, in_use_for=_READ_WITHIN)
    os.environ[workers.RUN_ID] = args.run_id
    ir = compile_graph(config, args, labelled=stores.labelled_examples(store, args.run_id))
    try:
        for attempt in range(1, _LAUNCH_TRIES + 1):
            try:
                local_runner.launch_node(ir, args.node, connection)
                break
            except Exception as e:
                if attempt == _LAUNCH_TRIES or watch.interrupted or not stores.is_transient(e):
                    raise
                # Other nodes write to the same store; the first wins, the others try again.
                _logger.warning("metadata store: %s; trying again", e)
                stores.clear_attempts(*where, args.pipeline_root)
                time.sleep(attempt)
        if not local_runner.is_resolver(ir, args.node) and not stores.is_finished(*where):
            raise RunError(f"{args.node} did not run: an input is missing")
        _tell_verdict(store, args)
        watch.settle()
    except BaseException:
        watch.settle()
        if watch.interrupted is None:
            raise
        watch.wait_told()
        if stores.is_finished(*where):
            # The store says done, and so does this attempt.
            _logger.info("%s: %s, too late", args.node, watch.interrupted)
            return
        cancelled = watch.interrupted.exit_code == EXIT_CANCELLED
        state = Execution.CANCELED if cancelled else Execution.FAILED
        stores.end_attempt(*where, state)
        stores.remove_outputs(*where, args.pipeline_root)
        raise watch.interrupted from None


def _tell_verdict(store: MetadataStore, args: argparse.Namespace) -> None:
    """Writes DriftMonitor's verdict and reason where KFP reads its output parameters."""
    from pipeline import history

    if not args.verdict_file:
        return
    found = history.values(history.run_outputs(store, args.run_id, "DriftReport")[-1])
    for path, text in ((args.verdict_file, found["verdict"]), (args.reason_file, found["reason"])):
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, "w", encoding="utf-8") as f:
            f.write(str(text))
    _logger.info("span %s: %s: %s", found["span"], found["verdict"], found["reason"])


def compile_graph(config: PipelineConfig, args: argparse.Namespace, *, labelled: bool) -> Any:
    """TFX's intermediate representation of the whole graph, for this run.

    Raises:
      UserError: It has no such node.
    """
    from kubeflow import compiler
    from pipeline import local_runner

    # Only one node reads the images; the others need not find them again.
    source: dict[str, Any] = {"data_folder": args.data_dir or "/nowhere"}
    if args.node == _EXAMPLE_GEN:
        source = data_source(args, config.data.dataset)
    ir = compiler.make_ir(config, pipeline_root=args.pipeline_root, labelled=labelled, **source)
    local_runner.begin(ir, args.run_id)
    known = [node.pipeline_node.node_info.id for node in ir.nodes]
    if args.node not in known:
        raise UserError(
            f"no node {args.node!r} in the graph of this image; compile the pipeline again with "
            f"the image's version (known: {', '.join(known)})"
        )
    return ir


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a node; see the module for the exit codes."""
    args = make_parser().parse_args(argv)
    # TFX's Beam executors read the command line as absl flags.
    del sys.argv[1:]
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_JsonFormatter(args))
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)
    for chatty in ("apache_beam.typehints", "absl"):
        logging.getLogger(chatty).setLevel(logging.WARNING)
    quiet.settle_environment()
    try:
        with watched(args.timeout) as watch:
            for node_id in args.node.split(","):
                args.node = node_id
                watch.resume()
                started = time.monotonic()
                run_node(args, watch)
                _logger.info("%s done in %.1f s", args.node, time.monotonic() - started)
    except Interrupted as e:
        return _fail(args.node, e, e.exit_code)
    except Error as e:
        return _fail(args.node, e, e.exit_code)
    except Exception as e:
        _logger.exception("%s failed", args.node)
        return _fail(args.node, e, 1)
    return 0


def _fail(node_id: str, error: BaseException, code: int) -> int:
    for handler in logging.getLogger().handlers:
        handler.flush()
    text = " ".join(str(error).split()) or type(error).__name__
    print(f"{node_id}: error: {text}", file=sys.stderr, flush=True)
    return code


if __name__ == "__main__":
    sys.exit(main())
