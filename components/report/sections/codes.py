"""Where the codes lie, and what they are good for."""

from __future__ import annotations

import matplotlib
import numpy as np
from sklearn.decomposition import PCA
from sklearn.manifold import TSNE

from components import features
from components.report import charts
from components.report.blocks import Block, Figure, Section, Strips, Table, Words, number
from components.report.material import TEN, Material
from serving import contract
from serving.uses import neighbours

_MAX_POINTS = 2_000
_TSNE_DIMENSIONS = 50
# Half of scikit-learn's: the groups are where they stay by then.
_TSNE_ITERATIONS = 500
_TINY = 1e-6
# Pixels that a code's picture is wide, about.
_CODE_WIDTH = 56


def code_space(material: Material) -> Section:
    """Where the codes lie, and what they look like."""
    blocks = _map(material)
    blocks.append(_as_images(material))
    if not material.digits:
        blocks.append(Words("The images have no labels, so codes are drawn as dots."))
    spread = material.metrics["code"]
    rows = [
        ["floats in a code", f"{material.codes.shape[1]:,}"],
        ["of which vary", f"{spread['active_units']:,}"],
        ["mean", number(spread["mean"], 3)],
        ["standard deviation", number(spread["stddev"], 3)],
    ]
    blocks.append(Table(["", "value"], rows, "The codes of the eval split."))
    lead = "Images that look alike should have codes that lie together."
    return Section("codes", "The code space", lead, blocks)


def _map(material: Material) -> list[Block]:
    """The codes as points in a plane, where they make one."""
    rng = np.random.default_rng(0)
    count, size = material.codes.shape
    rows = np.sort(rng.choice(count, min(_MAX_POINTS, count), replace=False))
    codes, labels = material.codes[rows], material.labels[rows]
    if np.ptp(codes, axis=0).max() < _TINY:
        return [Words("All codes are the same: the model tells no image from another.")]
    if size == 2:
        chart = charts.scatter(codes, labels, "first float", "second float")
        return [Figure("codes", chart, f"The codes of {len(rows):,} eval images, as they are.")]
    if size > 2 and len(rows) >= 5:
        return _projections(codes, labels)
    return []


def _projections(codes: np.ndarray, labels: np.ndarray) -> list[Block]:
    pca = PCA(min(_TSNE_DIMENSIONS, *codes.shape), random_state=0)
    projected = pca.fit_transform(codes)
    explained = pca.explained_variance_ratio_[:2].sum()
    tsne = TSNE(
        2,
        init="pca",
        perplexity=min(30.0, (len(codes) - 1) / 3),
        max_iter=_TSNE_ITERATIONS,
        random_state=0,
        n_jobs=-1,
    )
    embedded = tsne.fit_transform(projected)
    return [
        Figure(
            "codes_pca",
            charts.scatter(projected[:, :2], labels, "first component", "second component"),
            f"PCA of the codes of {len(codes):,} eval images: the plane of most variance, "
            f"{explained:.0%} of it.",
        ),
        Figure(
            "codes_tsne",
            charts.scatter(embedded, labels, "", ""),
            "t-SNE of the same codes: neighbours stay together, distances between groups mean "
            "nothing.",
        ),
    ]


def _as_images(material: Material) -> Strips:
    rows = material.sample()
    low, high = np.quantile(material.codes, [0.01, 0.99], axis=0)
    height, width = code_shape(material.codes.shape[1])
    shown = code_pictures(material.codes[rows], low, high)
    return Strips(
        "codes_as_images",
        TEN,
        [("original", material.images[rows]), ("code", shown)],
        f"Codes as pictures of {height} by {width} cells: dark is a unit's lowest value, "
        "bright its highest.",
        material.digit_names(rows),
    )


def code_shape(size: int) -> tuple[int, int]:
    """The most nearly square grid of ``size`` cells, not higher than wide."""
    height = max(h for h in range(1, int(size**0.5) + 1) if size % h == 0)
    return height, size // height


def code_pictures(codes: np.ndarray, low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """Codes as pictures, dark for a unit's lowest value and bright for its highest.

    Args:
      codes: float [n, d].
      low: Lowest value of each unit, float [d].
      high: Highest value of each unit, float [d].

    Returns:
      uint8 [n, h, w, 3], each cell several pixels.
    """
    height, width = code_shape(codes.shape[1])
    level = (codes - low) / np.maximum(high - low, 1e-9)
    colours = matplotlib.colormaps["viridis"](np.clip(level, 0, 1))[..., :3]
    pictures = (colours * 255).astype(np.uint8).reshape(len(codes), height, width, 3)
    cell = max(1, _CODE_WIDTH // width)
    return pictures.repeat(cell, axis=1).repeat(cell, axis=2)


def search(material: Material) -> Section:
    """Precision of image search, with examples."""
    rows = material.sample(seed=3)
    whiten = neighbours.HalfWhitening([material.train[contract.CODE]])
    found, _ = neighbours.nearest(
        whiten(material.train[contract.CODE]), whiten(material.codes[rows])
    )
    known = bool(material.digits)
    strips = []
    for row, hits in zip(rows, found):
        images = [material.images[row][np.newaxis], material.train[features.IMAGE][hits]]
        digits = " ".join(str(digit) for digit in material.train[features.LABEL][hits])
        name = f"{material.labels[row]} found {digits}" if known else ""
        strips.append((name, np.concatenate(images)))
    examples = Strips(
        "search",
        neighbours.K + 1,
        strips,
        f"Eval images and the {neighbours.K} training images with the nearest codes.",
        ["query", *(str(i + 1) for i in range(neighbours.K))],
    )
    lead = "What an image's neighbours in the code space are."
    return Section("search", "Image search", lead, [examples, _precision(material)])


def _precision(material: Material) -> Block:
    of_model = material.metrics["search"]
    if of_model is None:
        why = "all show the same digit" if material.digits else "have no labels"
        return Words(f"The images {why}, so precision cannot be told.")
    of_pca = of_model["pca"]
    names = {material.summary["model"]: of_model, f"PCA, {of_pca['components']} components": of_pca}
    return Table(
        ["codes of", "precision@10", "10-NN accuracy"],
        [
            [name, number(of["precision_at_10"], 4), number(of["knn_accuracy"], 4)]
            for name, of in names.items()
        ],
        f"{of_model['queries']:,} eval images asked, {of_model['indexed']:,} training "
        "images searched. Precision: share of the ten with the digit of the query. "
        "Accuracy: how often most of the ten have it.",
    )


def classification(material: Material) -> Section | None:
    """The confusion matrix, for models with a classifier."""
    if not material.can(contract.CLASSIFY):
        return None
    found = material.metrics["classification"]
    block: Block = Words("The images have no labels, so accuracy cannot be told.")
    if found is not None:
        digits = [str(digit) for digit in range(features.NUM_CLASSES)]
        block = Table(
            ["", *digits],
            [[digit, *counts] for digit, counts in zip(digits, found["confusion"])],
            f"Rows: the digit. Columns: what the model says. Accuracy {found['accuracy']:.4f} "
            "on the eval split.",
            shade=True,
        )
    lead = "Which digit the model says an image shows."
    return Section("classification", "Classification", lead, [block])
