"""``mnist-ae run``."""

from __future__ import annotations

import dataclasses
import json
import os
import shlex
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from pipeline.commands import options
from pipeline.commands.group import command
from pipeline.commands.options import flag
from pipeline.errors import UserError
from pipeline.locking import locked, new_run_id
from serving import quiet
from serving.errors import Error

if TYPE_CHECKING:
    from components.mnist_example_gen.datasets import Dataset
    from pipeline.config import PipelineConfig

_ALL_MODELS = "all"


@command()
@options.configuration("NAME[,NAME...]", "which autoencoder; 'all' for all")
@flag("--tune", "search for better hyper-parameters first")
@flag("--no-cache", "compute everything anew")
@options.as_json("the result as one JSON object, a line a model")
@flag("-v --verbose", "TFX's own log on the terminal")
def run(
    source: options.ConfigSource, tune: bool, no_cache: bool, as_json: bool, verbose: bool
) -> int:
    """Run the pipeline: digits in, a served model out."""
    source = source.below(*["cache=false"] * no_cache, *["tuner.enabled=true"] * tune)
    names = _chosen_models(source.model)
    configs = [dataclasses.replace(source, model=name).load() for name in names]
    from pipeline.beam_options import check_engine

    if len(configs) > 1 and configs[0].pusher.name is not None:
        raise UserError("pusher.name: is the name of one model, and several are to be run")
    # Before anything slow or written: the data, then the folder.
    check_engine(configs[0])
    configs, dataset = _with_data(configs, leave_out=source.model == _ALL_MODELS)
    with locked(configs[0].root):
        if len(configs) == 1:
            _run_locked(configs[0], dataset, new_run_id(), as_json, verbose)
            return 0
        return _run_several(configs, dataset, as_json, verbose)


def _chosen_models(given: str | None) -> list[str | None]:
    """The models that ``--model`` names: one, several or all; None is the default's."""
    if given is None:
        return [None]
    if given == _ALL_MODELS:
        from trainer.models.catalogue import CATALOGUE

        return list(CATALOGUE)
    return list(dict.fromkeys(name.strip() for name in given.split(",")))


def _with_data(
    configs: Sequence[PipelineConfig], leave_out: bool
) -> tuple[list[PipelineConfig], Dataset]:
    """The data set, and the configurations that it has enough labels for.

    Args:
      leave_out: Tells of the others and goes on, instead of stopping at one.
    """
    from pipeline import console
    from pipeline.commands.data import find_dataset
    from pipeline.config import check_labels

    with console.RunDisplay(sys.stderr) as display:
        data = configs[0].data
        dataset = find_dataset(data.dataset, data.dir, display)
        chosen = []
        for config in configs:
            try:
                check_labels(config, _labels_for_training(config, dataset))
                chosen.append(config)
            except UserError as e:
                if not leave_out:
                    raise
                display.line(f"left out: {e}")
    return chosen, dataset


def _labels_for_training(config: PipelineConfig, dataset: Dataset) -> int:
    """How many labelled images are left for training, validation set aside."""
    counts = dataset.splits["train"].label_counts
    kept = config.data.kept()
    known = sum(n for digit, n in enumerate(counts) if kept is None or digit in kept)
    return known - round(known * config.trainer.validation_fraction)


def _run_several(
    configs: Sequence[PipelineConfig], dataset: Dataset, as_json: bool, verbose: bool
) -> int:
    """Runs one model after the other, whichever fails; the highest exit code."""
    from pipeline import leaderboard, runs

    codes: list[int] = [0]
    run_ids: list[str] = []
    for number, config in enumerate(configs, 1):
        print(f"model {number} of {len(configs)}: {config.model.name}", file=sys.stderr)
        run_ids.append(new_run_id())
        try:
            _run_locked(config, dataset, run_ids[-1], as_json, verbose)
        except Error as e:
            codes.append(e.exit_code)
            reason = " ".join(str(e).split())
            print(f"mnist-ae: error: {config.model.name}: {reason}", file=sys.stderr)
        print(file=sys.stderr)
    finished = [r for r in runs.complete_runs(configs[0].root) if r.run_id in run_ids]
    leaderboard.show(sys.stderr, leaderboard.leaderboard(finished, "mse"))
    if failed := len(codes) - 1:
        print(f"mnist-ae: {failed} of {len(configs)} models failed", file=sys.stderr)
    return max(codes)


def _run_locked(
    config: PipelineConfig, dataset: Dataset, run_id: str, as_json: bool, verbose: bool
) -> None:
    from pipeline import console
    from pipeline.config import DEFAULT_ROOT

    # TFX's Beam executors read the command line as absl flags: -v would be theirs.
    del sys.argv[1:]
    log_path = os.path.join(os.path.abspath(config.root), "logs", f"{run_id}.log")
    quiet.settle_environment()
    with console.quiet_streams(log_path, verbose) as (out, err):
        with console.RunDisplay(err) as display:
            display.line(f"{config.model.name} on {console.describe_dataset(dataset)}")
            display.line(f"run {run_id}, log {log_path}")
            display.activity("starting")
            from pipeline import local_runner

            try:
                result = local_runner.run(config, dataset, run_id=run_id, listener=display)
            except Error as e:
                e.args = (f"{e} (log: {log_path})",)
                raise
        if as_json:
            print(json.dumps(result), file=out)
        root = "" if config.root == DEFAULT_ROOT else f" --root {shlex.quote(config.root)}"
        console.show_summary(err, result, log_path, f"mnist-ae serve {config.servable}{root}")
