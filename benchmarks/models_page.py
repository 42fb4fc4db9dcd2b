"""Writes docs/models.md from the catalogue and the measured figures."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from trainer.models.catalogue import CATALOGUE, ModelSpec

_HEAD = """\
# The autoencoders

<!-- Written by `python -m benchmarks.models --write-docs`; do not edit. -->

Every name below can be given to `mnist-ae run --model NAME`; `mnist-ae models`
lists them with what they can do. Defaults are the correct form of a tutorial's
model. Where a tutorial got something wrong the section says what, and which
hyper-parameter brings its own form back.

`make bench-models` measures this page: full MNIST, the Trainer's 57,000 training
images (3,000 are held out), errors on the 10,000 test images, mean over pixels,
grey levels in [0, 1]. For scale: the mean image has MSE 0.0675, a black one 0.114,
PCA to 32 numbers 0.0168.
"""


def read_measured(path: Path) -> dict[str, Any]:
    """The measured figures, {} when there are none yet."""
    return json.loads(path.read_text()) if path.exists() else {}


def render(measured: dict[str, Any]) -> str:
    """The page as Markdown."""
    models = measured.get("models", {})
    parts = [_HEAD, _environment(measured), _summary(models)]
    parts += [_section(spec, models) for spec in CATALOGUE.values()]
    parts += [
        _one_class(measured.get("one_class", {})),
        _trials(measured.get("best_trials", [])),
        _held_out_trials(measured.get("best_held_out", [])),
    ]
    return "\n".join(part for part in parts if part)


def write(page: Path, measured: Path) -> None:
    """Writes the page."""
    page.write_text(render(read_measured(measured)))


def check(page: Path, measured: Path) -> int:
    """Returns 1, and says so, when the page is not what the sources say."""
    if page.exists() and page.read_text() == render(read_measured(measured)):
        return 0
    print(f"{page} is stale: run `python -m benchmarks.models --write-docs`")
    return 1


def _environment(measured: dict[str, Any]) -> str:
    env = measured.get("environment")
    if not env:
        return ""
    return (
        f"Measured with TensorFlow {env['tensorflow']}, Python {env['python']}, on "
        f"{env['cpus']} shared cores: seconds are upper bounds, CPU-seconds the steadier figure.\n"
    )


def _table(head: list[str], rows: list[list[str]]) -> str:
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    lines += ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join(lines) + "\n"


def _summary(models: dict[str, Any]) -> str:
    rows = []
    for name, spec in CATALOGUE.items():
        entry = models.get(name, {})
        test = entry.get("test", {})
        rows.append(
            [
                f"[`{name}`](#{name})",
                str(spec.code_size),
                f"{spec.parameters:,}",
                str(entry.get("epochs", "")),
                _number(test.get("bce")),
                _number(test.get("mse")),
                _number(entry.get("seconds"), 0),
                _number(entry.get("cpu_seconds"), 0),
                _rate(entry),
                ", ".join(a.value for a in spec.abilities[2:]),
            ]
        )
    head = [
        "model",
        "code",
        "parameters",
        "epochs",
        "test BCE",
        "test MSE",
        "seconds",
        "CPU-s",
        "images/s (x plain fit)",
        "beside encode, decode",
    ]
    return _table(head, rows)


def _number(value: float | None, digits: int = 4) -> str:
    return "" if value is None else f"{value:,.{digits}f}"


def _rate(entry: dict[str, Any]) -> str:
    if "trainer_images_per_second" not in entry:
        return ""
    ours, plain = entry["trainer_images_per_second"], entry["numpy_images_per_second"]
    return f"{ours:,} ({ours / plain:.2f})"


def _section(spec: ModelSpec, models: dict[str, Any]) -> str:
    training = spec.training
    hyperparameters = ", ".join(f"`{key}={value}`" for key, value in spec.hyperparameters)
    lines = [
        f"## {spec.name}\n",
        f"{spec.summary}.\n",
        f"- Source: {spec.source}" + (f"; {spec.paper}" if spec.paper else ""),
        f"- Code: {spec.code_size} floats; {spec.parameters:,} trainable weights",
        f"- Abilities: {', '.join(ability.value for ability in spec.abilities)}",
        f"- Hyper-parameters: {hyperparameters}",
        f"- Training: {training.epochs} epochs, batch {training.batch_size}, "
        f"learning rate {training.learning_rate:g}, XLA {'on' if training.xla else 'off'}",
    ]
    if spec.correction:
        lines.append(f"- Corrected: {spec.correction}")
    for entry in (e for e in models.values() if e["model"] == spec.name):
        for bar in entry["bars"]:
            label = f" ({entry['label']})" if entry["label"] else ""
            lines.append(
                f"- Measured{label}: {bar['metric']} **{bar['value']:.4g}** after "
                f"{bar['epoch'] or entry['epochs']} epochs (bar {bar['relation']} {bar['bound']:g})"
            )
    return "\n".join(lines) + "\n"


def _one_class(results: dict[str, Any]) -> str:
    if not results:
        return ""
    rows = [
        [
            f"`{name}`",
            f"**{entry['mean_auroc']:.4f}**",
            f"{min(entry['auroc']):.4f} (digit {entry['auroc'].index(min(entry['auroc']))})",
            f"{entry['argmin_accuracy']:.4f}",
            str(entry["epochs"]),
        ]
        for name, entry in sorted(results.items(), key=lambda item: -item[1]["mean_auroc"])
    ]
    return (
        "## One-class training\n\n"
        "Trained on one digit (`--set data.keep_labels=[3]`), the reconstruction error tells the\n"
        "others: AUROC over the test split, mean and worst of ten digits, and how often the least\n"
        "error of the ten models names the digit.\n\n"
        + _table(["model", "mean AUROC", "worst", "argmin accuracy", "epochs"], rows)
    )


def _trials(trials: list[dict[str, Any]]) -> str:
    if not trials:
        return ""
    return (
        "## How the first `best` was found\n\n"
        "In the order of trying, in a bare training loop, one seed each; a batch of 512, BCE and\n"
        "a code of 32 unless said. `cosine`, `linear`: how the learning rate falls to 0.\n\n"
        + _table(["tried", "epochs", "CPU-s", "test MSE"], _trial_rows(trials))
    )


def _held_out_trials(trials: list[dict[str, Any]]) -> str:
    if not trials:
        return ""
    return (
        "## How the present `best` was found\n\n"
        f"{len(trials)} configurations in the order of trying, one seed each, by the error on the\n"
        "3,000 training images that are held out; the test split was not looked at. CPU-seconds\n"
        "are one thread's on a machine that six to eighteen others used, where the former `best`\n"
        "takes 19 to 21 an epoch (13 by itself, on another day). Muon .025, batch 512 unless\n"
        "said.\n\n" + _table(["tried", "epochs", "CPU-s", "held-out MSE"], _trial_rows(trials))
    )


def _trial_rows(trials: list[dict[str, Any]]) -> list[list[str]]:
    return [
        [trial["what"], str(trial["epochs"]), f"{trial['cpu_seconds']:.0f}", f"{trial['mse']:.5f}"]
        for trial in trials
    ]
