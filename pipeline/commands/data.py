"""``mnist-ae data``, and how a command finds the digits."""

from __future__ import annotations

import dataclasses
import json
import os
import sys
from typing import TYPE_CHECKING

from pipeline.commands import options
from pipeline.commands.group import command

if TYPE_CHECKING:
    from components.mnist_example_gen.datasets import Dataset
    from pipeline.console import RunDisplay


@command()
@options.dataset
@options.data_dir
@options.as_json("a JSON object")
def data(dataset: str | None, data_dir: str | None, as_json: bool) -> None:
    """Show which digits would be used, and from where."""
    from components.mnist_example_gen import datasets
    from pipeline import console

    with console.RunDisplay(sys.stderr) as display:
        found = find_dataset(dataset or datasets.AUTO, data_dir, display)
    if as_json:
        print(json.dumps(dataclasses.asdict(found)))
        return
    print(console.describe_dataset(found))
    print(f"folder  {found.folder}")
    print(f"digest  {found.digest}")
    for name, split in found.splits.items():
        counts = "  ".join(f"{d}: {n:,}" for d, n in enumerate(split.label_counts)) or "no labels"
        print(f"{name:<7} {split.count:,} images  {counts}")


def find_dataset(name: str, data_dir: str | None, display: RunDisplay) -> Dataset:
    """The data set of a configuration, with ``MNIST_DATA_DIR`` as its default folder."""
    from components.mnist_example_gen import datasets
    from pipeline import console

    display.activity("data")
    folder = data_dir or os.environ.get("MNIST_DATA_DIR") or None
    dataset = datasets.find(name, folder, progress=console.progress_to_log)
    if dataset.notice:
        display.line(dataset.notice)
    return dataset
