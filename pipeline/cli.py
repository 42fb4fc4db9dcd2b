"""The ``mnist-ae`` command.

Only the standard library is imported here: help, the list of models and
mistakes in a configuration are answered at once; what takes seconds to import
is imported by the command that needs it.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import shlex
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NoReturn

from kubeflow import cli as kubeflow_cli
from pipeline.continuous import cli as continuous_cli
from pipeline.uses import cli as uses_cli
from serving import cli as serving_cli

if TYPE_CHECKING:
    from components.mnist_example_gen.datasets import Dataset
    from pipeline.config import PipelineConfig

PROG = "mnist-ae"
ALL_MODELS = "all"


class _Parser(argparse.ArgumentParser):
    """Answers a mistake in one line."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{PROG}: error: {message}; see '{self.prog} --help'\n")


def make_parser() -> argparse.ArgumentParser:
    """The parser of all commands."""
    parser = _Parser(prog=PROG, description="Train, evaluate and serve autoencoders on MNIST.")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)

    run = commands.add_parser("run", help="run the pipeline: digits in, a served model out")
    _add_config_arguments(run, models="NAME[,NAME...]")
    run.add_argument("--tune", action="store_true", help="search for better values first")
    run.add_argument("--no-cache", action="store_true", help="compute everything anew")
    run.add_argument(
        "--json", action="store_true", help="print the result as one JSON object, a line a model"
    )
    run.add_argument("-v", "--verbose", action="store_true", help="TFX's own log on the terminal")
    run.set_defaults(run=_run)

    models = commands.add_parser("models", help="list the autoencoders")
    models.add_argument("--json", action="store_true", help="print a JSON list")
    models.set_defaults(run=_models)

    data = commands.add_parser("data", help="show which digits would be used, and from where")
    _add_data_arguments(data)
    data.add_argument("--json", action="store_true", help="print a JSON object")
    data.set_defaults(run=_data)

    runs = commands.add_parser("runs", help="list past runs")
    _add_root_argument(runs)
    runs.add_argument("--json", action="store_true", help="print a JSON list")
    runs.set_defaults(run=_runs)

    continuous_cli.register(commands, _add_config_arguments, config_source)
    uses_cli.register(commands, _add_root_argument)
    serving_cli.register(commands)
    kubeflow_cli.register(commands, _add_config_arguments, config_source)
    return parser


def _add_root_argument(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--root",
        default=None,
        metavar="DIR",
        help="folder of runs and models (MNIST_AE_ROOT, else ./runs)",
    )


def _add_data_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--dataset",
        default=None,
        metavar="NAME",
        help="auto (default), mnist (all 70,000 or an error) or mnist-5k (embedded)",
    )
    parser.add_argument(
        "--data-dir", metavar="DIR", help="folder with the four IDX files (MNIST_DATA_DIR)"
    )


def _add_config_arguments(parser: argparse.ArgumentParser, models: str = "NAME") -> None:
    parser.add_argument("--config", metavar="FILE", help="YAML file with a configuration")
    several = "; 'all' for all" if models != "NAME" else ""
    parser.add_argument(
        "--model", metavar=models, help=f"which autoencoder{several}; see 'mnist-ae models'"
    )
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="a value of the configuration, such as trainer.epochs=10 (repeatable)",
    )
    parser.add_argument(
        "--beam",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="a Beam option, such as runner=FlinkRunner (repeatable)",
    )
    _add_data_arguments(parser)
    _add_root_argument(parser)


def load_config(args: argparse.Namespace) -> PipelineConfig:
    """The configuration that the arguments describe."""
    from pipeline import config

    return config.load(*config_source(args))


def config_source(args: argparse.Namespace) -> tuple[str | None, list[str]]:
    """The file and the assignments that the arguments describe, for ``config.load``."""
    assignments = []
    for key in ("model", "dataset", "data_dir"):
        value = getattr(args, key, None)
        if value is not None:
            path = {"model": "model.name", "dataset": "data.dataset", "data_dir": "data.dir"}[key]
            assignments.append(f"{path}={json.dumps(value)}")
    if args.root or os.environ.get("MNIST_AE_ROOT"):
        root = args.root or os.environ["MNIST_AE_ROOT"]
        assignments.append(f"root={json.dumps(root)}")
    if getattr(args, "no_cache", False):
        assignments.append("cache=false")
    if getattr(args, "tune", False):
        assignments.append("tuner.enabled=true")
    assignments += getattr(args, "set", [])
    assignments += [f"beam.{option.lstrip('-')}" for option in getattr(args, "beam", [])]
    return getattr(args, "config", None), assignments


def find_dataset(name: str, data_dir: str | None, **options: Any) -> Dataset:
    """The data set of a configuration, with ``MNIST_DATA_DIR`` as its default folder."""
    from components.mnist_example_gen import datasets

    return datasets.find(name, data_dir or os.environ.get("MNIST_DATA_DIR") or None, **options)


def _run(args: argparse.Namespace) -> int:
    names = _chosen_models(args.model)
    configs = [load_config(argparse.Namespace(**{**vars(args), "model": name})) for name in names]
    config = configs[0]
    from pipeline import console
    from pipeline.config import check_labels
    from pipeline.errors import UserError
    from pipeline.locking import locked

    if len(configs) > 1 and config.pusher.name is not None:
        raise UserError("pusher.name: is the name of one model, and several are to be run")
    # Before anything slow or written: the data, then the folder.
    with console.RunDisplay(sys.stderr) as display:
        display.activity("data")
        dataset = find_dataset(
            config.data.dataset, config.data.dir, progress=console.progress_to_log
        )
        if dataset.notice:
            display.line(dataset.notice)
        chosen = []
        for config in configs:
            try:
                check_labels(config, _labels_for_training(config, dataset))
                chosen.append(config)
            except UserError as e:
                if args.model != ALL_MODELS:
                    raise
                display.line(f"left out: {e}")
    with locked(config.root):
        if len(chosen) == 1:
            return _run_locked(args, chosen[0], dataset)
        return _run_several(args, chosen, dataset)


def _chosen_models(given: str | None) -> list[str | None]:
    """The models that ``--model`` names: one, several or all; None is the default's."""
    if given is None:
        return [None]
    if given == ALL_MODELS:
        from trainer.models.catalogue import CATALOGUE

        return list(CATALOGUE)
    return list(dict.fromkeys(name.strip() for name in given.split(",")))


def _run_several(
    args: argparse.Namespace, configs: Sequence[PipelineConfig], dataset: Dataset
) -> int:
    """Runs one model after the other; one that fails does not stop the others.

    Returns:
      The highest exit code.
    """
    from pipeline.uses import compare, runs

    codes: list[int] = [0]
    run_ids: list[str] = []
    for number, config in enumerate(configs, 1):
        print(f"model {number} of {len(configs)}: {config.model.name}", file=sys.stderr)
        try:
            _run_locked(args, config, dataset, run_ids.append)
        except Exception as e:
            code = getattr(e, "exit_code", None)
            if code is None:
                raise
            codes.append(code)
            print(
                f"{PROG}: error: {config.model.name}: {' '.join(str(e).split())}", file=sys.stderr
            )
        print(file=sys.stderr)
    finished = [r for r in runs.complete_runs(configs[0].root) if r.run_id in run_ids]
    compare.show(sys.stderr, compare.leaderboard(finished, "mse"))
    if failed := len(codes) - 1:
        print(f"{PROG}: {failed} of {len(configs)} models failed", file=sys.stderr)
    return max(codes)


def _labels_for_training(config: PipelineConfig, dataset: Dataset) -> int:
    """How many labelled images are left for training, validation set aside."""
    counts = dataset.splits["train"].label_counts
    kept = config.data.kept()
    known = sum(n for digit, n in enumerate(counts) if kept is None or digit in kept)
    return known - round(known * config.trainer.validation_fraction)


def _run_locked(
    args: argparse.Namespace,
    config: PipelineConfig,
    dataset: Dataset,
    started: Callable[[str], None] = lambda run_id: None,
) -> int:
    from pipeline import console
    from pipeline.config import DEFAULT_ROOT
    from pipeline.locking import new_run_id

    # TFX's Beam executors read the command line as absl flags: -v would be theirs.
    del sys.argv[1:]
    run_id = new_run_id()
    started(run_id)
    log_path = os.path.join(os.path.abspath(config.root), "logs", f"{run_id}.log")
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "1")
    with console.quiet_streams(log_path, args.verbose) as (out, err):
        with console.RunDisplay(err) as display:
            display.line(f"{config.model.name} on {console.describe_dataset(dataset)}")
            display.line(f"run {run_id}, log {log_path}")
            display.activity("starting")
            from pipeline import local_runner

            try:
                result = local_runner.run(config, dataset, run_id=run_id, listener=display)
            except Exception as e:
                if not hasattr(e, "exit_code"):
                    raise
                e.args = (f"{e} (log: {log_path})",)
                raise
        if args.json:
            print(json.dumps(result), file=out)
        root = "" if config.root == DEFAULT_ROOT else f" --root {shlex.quote(config.root)}"
        console.show_summary(err, result, log_path, f"{PROG} serve {config.servable}{root}")
    return 0


def _models(args: argparse.Namespace) -> int:
    from trainer.models.catalogue import CATALOGUE

    entries: list[dict[str, Any]] = [
        {
            "name": spec.name,
            "code_size": spec.code_size,
            "abilities": [ability.value for ability in spec.abilities],
            "parameters": spec.parameters,
            "source": spec.source,
            "summary": spec.summary,
            "paper": spec.paper,
            "hyperparameters": dataclasses.asdict(spec.hyperparameters()),
            "training": dataclasses.asdict(spec.training),
        }
        for spec in CATALOGUE.values()
    ]
    if args.json:
        print(json.dumps(entries))
        return 0
    from rich.table import Table

    from pipeline.console import make_console

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for heading in ("model", "code", "parameters", "can", "form"):
        right = heading in ("code", "parameters")
        table.add_column(heading, justify="right" if right else "left", no_wrap=heading != "form")
    for entry in entries:
        table.add_row(
            entry["name"],
            str(entry["code_size"]),
            f"{entry['parameters']:,}",
            " ".join(entry["abilities"]),
            entry["summary"],
        )
    make_console(sys.stdout).print(table)
    return 0


def _data(args: argparse.Namespace) -> int:
    from components.mnist_example_gen import datasets
    from pipeline import console

    with console.RunDisplay(sys.stderr) as display:
        display.activity("data")
        dataset = find_dataset(
            args.dataset or datasets.AUTO, args.data_dir, progress=console.progress_to_log
        )
        if dataset.notice:
            display.line(dataset.notice)
    if args.json:
        print(json.dumps(dataclasses.asdict(dataset)))
        return 0
    print(console.describe_dataset(dataset))
    print(f"folder  {dataset.folder}")
    print(f"digest  {dataset.digest}")
    for name, split in dataset.splits.items():
        counts = "  ".join(f"{d}: {n:,}" for d, n in enumerate(split.label_counts)) or "no labels"
        print(f"{name:<7} {split.count:,} images  {counts}")
    return 0


def _runs(args: argparse.Namespace) -> int:
    config = load_config(args)
    path = os.path.join(os.path.abspath(config.root), "metadata.sqlite")
    records: list[Any] = []
    if os.path.exists(path):
        from pipeline import history

        records = history.runs(history.open_store(path))
    if args.json:
        print(json.dumps([dataclasses.asdict(r) for r in records], default=str))
        return 0
    if not records:
        print(f"no runs in {os.path.abspath(config.root)}; start one with '{PROG} run'")
        return 0
    from pipeline import console

    console.show_runs(sys.stdout, records)
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line.

    Returns:
      0, or the ``exit_code`` of the error that was shown: 2 for what the user
      can put right, 1 for a failed run, 3 for a server.
    """
    args = make_parser().parse_args(argv)
    try:
        return args.run(args) or 0
    except KeyboardInterrupt:
        print(f"\n{PROG}: interrupted; the same command goes on from here", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # The reader of a pipe, such as head, has had enough.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as e:
        code = getattr(e, "exit_code", None)
        if code is None:
            raise
        print(f"{PROG}: error: {' '.join(str(e).split())}", file=sys.stderr)
        return code


if __name__ == "__main__":
    sys.exit(main())
