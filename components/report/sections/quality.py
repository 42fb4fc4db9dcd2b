"""How good the reconstructions are, and how the training came to them."""

from __future__ import annotations

from typing import Any

import numpy as np

from components import features
from components.report import charts
from components.report.blocks import Block, Figure, Section, Strips, Table, Words, number
from components.report.material import TEN, Material


def reconstructions(material: Material) -> Section:
    """Originals above reconstructions: random, best and worst."""
    order = np.argsort(material.errors)
    best, worst = order[:TEN], order[::-1][:TEN]
    what = "of all" if material.digits else "of all; the images have no labels"
    if len(material.digits) > TEN // 2:
        groups = [np.flatnonzero(material.labels == digit) for digit in material.digits]
        best = np.array([group[np.argmin(material.errors[group])] for group in groups])
        worst = np.array([group[np.argmax(material.errors[group])] for group in groups])
        what = "of each digit"
    captions = {
        name: f"The {name} {what}: mean squared errors of "
        f"{material.errors[rows].min():.4f} to {material.errors[rows].max():.4f}."
        for name, rows in (("best", best), ("worst", worst))
    }
    return Section(
        "reconstructions",
        "Reconstructions",
        f"What comes back when an image goes through the code.{material.sampled}",
        [
            _side_by_side(
                material,
                "reconstructions",
                material.sample(),
                "Images of the eval split, drawn at random.",
            ),
            _side_by_side(material, "best_reconstructions", best, captions["best"]),
            _side_by_side(material, "worst_reconstructions", worst, captions["worst"]),
        ],
    )


def _side_by_side(material: Material, name: str, rows: np.ndarray, caption: str) -> Strips:
    originals = material.images[rows]
    shown, _ = material.reconstruct(originals)
    strips = [("original", originals), ("reconstruction", shown)]
    return Strips(name, TEN, strips, caption, material.digit_names(rows))


def corrupt_as_trained(
    images: np.ndarray, hyperparameters: dict[str, Any]
) -> tuple[np.ndarray, str]:
    """Images uint8 [n, 28, 28] as the training corrupted them, and how that was."""
    rng = np.random.default_rng(0)
    if "masking" in hyperparameters:
        fraction = hyperparameters["masking"]
        kept = rng.random(images.shape) >= fraction
        return images * kept.astype(np.uint8), f"{fraction:.0%} of the pixels blackened"
    stddev = hyperparameters["noise"]
    noisy = images + rng.normal(0, 255 * stddev, images.shape)
    return np.clip(np.rint(noisy), 0, 255).astype(np.uint8), f"normal noise of {stddev}, clipped"


def denoising(material: Material) -> Section | None:
    """Noisy, denoised and clean, for models that learnt it."""
    if not material.can("denoise"):
        return None
    rows = material.sample(seed=1)
    clean = material.images[rows]
    noisy, how = corrupt_as_trained(clean, material.metadata["hyperparameters"])
    denoised, _ = material.reconstruct(noisy)

    def mse(images: np.ndarray) -> float:
        return float(np.mean(np.square((images.astype(float) - clean) / 255)))

    strips = Strips(
        "denoising",
        TEN,
        [("noisy input", noisy), ("denoised", denoised), ("clean original", clean)],
        f"Corrupted as in training: {how}. The mean squared error to the clean image falls "
        f"from {mse(noisy):.4f} to {mse(denoised):.4f} on these ten.",
        material.digit_names(rows),
    )
    lead = "What the model was trained for: the clean image out of a corrupted one."
    return Section("denoising", "Denoising", lead, [strips])


def losses(material: Material) -> Section:
    """The losses by digit, beside PCA's and the baseline's."""
    metrics = material.metrics
    name = material.summary["model"]
    components = min(material.summary["code_size"], features.IMAGE_BYTES)

    def row(head: str, of: dict[str, float], *, count: bool = True) -> list[Any]:
        images = f"{of['example_count']:,.0f}" if count else ""
        return [head, number(of["mse"]), number(of["bce"], 4), images]

    rows = [
        row(name, metrics["overall"]),
        [f"PCA, {components} components", number(metrics["pca_mse"]), "", ""],
    ]
    if metrics["baseline"]:
        rows.append(row("last blessed model", metrics["baseline"], count=False))
    rows += [row(f"digit {digit}", of) for digit, of in metrics["by_label"].items()]
    caption = "Losses on the eval split, averaged over pixels and images."
    return Section(
        "losses",
        "Losses by digit",
        "How far the reconstructions are from the originals.",
        [_losses_by_digit(material), Table(["", "MSE", "BCE", "images"], rows, caption)],
    )


def _losses_by_digit(material: Material) -> Block:
    metrics = material.metrics
    name = material.summary["model"]
    if not metrics["by_label"]:
        return Words("The images have no labels, so there are no losses by digit.")

    def mses(by_label: dict[str, dict[str, float]]) -> dict[str, float]:
        return {digit: of["mse"] for digit, of in by_label.items()}

    series = {name: mses(metrics["by_label"]), "PCA": metrics["pca_mse_by_label"]}
    caption = (
        f"Disc: {name}. Diamond: PCA with as many components as the code has floats, the "
        "best that a linear model can do."
    )
    if metrics.get("baseline_by_label"):
        series["last blessed"] = mses(metrics["baseline_by_label"])
        caption += " Bar: the last blessed model of this name."
    return Figure("losses_by_digit", charts.by_digit(series, "mean squared error"), caption)


def training(material: Material) -> Section:
    """The training's curves."""
    history = material.training["history"]

    def curves(key: str) -> dict[str, list[float]]:
        both = {
            part: [epoch[name] for epoch in history if name in epoch]
            for part, name in (("training", key), ("validation", f"val_{key}"))
        }
        return {part: values for part, values in both.items() if values}

    blocks: list[Block] = []
    for key, title, caption in (
        ("loss", "loss", "What the training minimises."),
        (
            "mse",
            "mean squared error",
            "The reconstruction error of the uncorrupted validation images.",
        ),
    ):
        if found := curves(key):
            blocks.append(Figure(f"training_{key}", charts.loss_curves(found, title), caption))
    others = {key for epoch in history for key in epoch if not key.startswith("val_")}
    for key in sorted(others - {"loss", "mse"}):
        title = key.replace("_", " ")
        chart = charts.loss_curves(curves(key), title, log=False)
        blocks.append(Figure(f"training_{key}", chart, f"{title}, by epoch.", small=True))
    return Section(
        "training",
        "Training",
        f"{len(history)} epochs in {material.training['seconds']:,.1f} seconds on "
        f"{material.training['training_images']:,} images; "
        f"{material.training['validation_images']:,} more were set aside for validation.",
        blocks,
    )
