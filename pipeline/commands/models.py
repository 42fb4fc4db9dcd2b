"""``mnist-ae models``."""

from __future__ import annotations

import json
import sys
from typing import Any

from pipeline.commands import options
from pipeline.commands.group import command


@command()
@options.as_json("a JSON list")
def models(as_json: bool) -> None:
    """List the autoencoders: code size (floats), parameters, abilities."""
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
            "hyperparameters": spec.hyperparameters.model_dump(),
            "training": spec.training.model_dump(),
        }
        for spec in CATALOGUE.values()
    ]
    if as_json:
        print(json.dumps(entries))
        return
    from pipeline import console

    table = console.table(
        "model", "code", "parameters", "can", "form", right=("code", "parameters")
    )
    for column in table.columns[:-1]:
        column.no_wrap = True
    for entry in entries:
        table.add_row(
            entry["name"],
            str(entry["code_size"]),
            f"{entry['parameters']:,}",
            " ".join(entry["abilities"]),
            entry["summary"],
        )
    console.make_console(sys.stdout).print(table)
