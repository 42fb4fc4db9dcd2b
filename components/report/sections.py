"""What a report shows, section by section: pictures, charts, tables and words."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from components import features
from components.image_index import anomalies, neighbours
from components.report import figures, pictures
from serving import contract

Columns = dict[str, np.ndarray]

_TEN = 10
_MAX_POINTS = 2_000
_TSNE_DIMENSIONS = 50
# Half of scikit-learn's: the groups are where they stay by then.
_TSNE_ITERATIONS = 500
_MANIFOLD_SIDE = 15
_SAMPLES = 40
_TINY = 1e-6
_STYLES = 6
# Written in the manifold of a model whose decoder is told the digit.
_MANIFOLD_DIGIT = 2


class Model:
    """The exported model's signatures on arrays."""

    def __init__(self, path: str):
        """Takes the SavedModel at ``path``."""
        # TFX and Beam, which pages that are only rendered can do without.
        from components import inference

        self._signatures = inference.load_model(path).signatures

    def can(self, signature: str) -> bool:
        """Whether it has a signature."""
        return signature in self._signatures

    @property
    def decodes_labels(self) -> bool:
        """Whether the decoder is told the digit."""
        arguments = self._signatures[contract.DECODE].structured_input_signature[1]
        return contract.LABEL in arguments

    def reconstruct(self, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Images uint8 [n, 28, 28] to reconstructions of the same kind, and errors [n]."""
        import tensorflow as tf

        answer = self._signatures[contract.RECONSTRUCT](images=tf.constant(images))
        shown = pictures.to_bytes(answer[contract.RECONSTRUCTION].numpy())
        return shown, answer[contract.RECONSTRUCTION_ERROR].numpy()

    def encode(self, images: np.ndarray) -> np.ndarray:
        """Images uint8 [n, 28, 28] to codes [n, d]."""
        import tensorflow as tf

        return self._signatures[contract.ENCODE](images=tf.constant(images))[contract.CODE].numpy()

    def decode(self, codes: np.ndarray, digits: np.ndarray | None = None) -> np.ndarray:
        """Codes [n, d], and digits [n] where it needs them, to images uint8 [n, 28, 28]."""
        import tensorflow as tf

        arguments = {contract.CODE: tf.constant(codes, tf.float32)}
        if self.decodes_labels:
            arguments[contract.LABEL] = tf.constant(digits, tf.int64)
        answer = self._signatures[contract.DECODE](**arguments)
        return pictures.to_bytes(answer[contract.RECONSTRUCTION].numpy())

    def generate(self, seeds: np.ndarray) -> np.ndarray:
        """Seeds int64 [n] to images uint8 [n, 28, 28]."""
        import tensorflow as tf

        answer = self._signatures[contract.GENERATE](seed=tf.constant(seeds, tf.int64))
        return pictures.to_bytes(answer[contract.IMAGES].numpy())


@dataclasses.dataclass(frozen=True)
class Material:
    """What the sections are made of.

    Attributes:
      summary: As ``summary.json`` has it; every figure shown is one of its.
      metadata: What the model says of itself.
      training: The Trainer's ``training.json``.
      model: The exported model.
      evaluation: Columns of the index's eval split.
      train: Columns of its train split.
      held_out: Columns of its held-out split, {} without one.
    """

    summary: dict[str, Any]
    metadata: dict[str, Any]
    training: dict[str, Any]
    model: Model
    evaluation: Columns
    train: Columns
    held_out: Columns

    @property
    def images(self) -> np.ndarray:
        """Of the eval split."""
        return self.evaluation[features.IMAGE]

    @property
    def labels(self) -> np.ndarray:
        """Of the eval split, -1 where unknown."""
        return self.evaluation[features.LABEL]

    @property
    def errors(self) -> np.ndarray:
        """Of the eval split."""
        return self.evaluation[contract.RECONSTRUCTION_ERROR]

    @property
    def codes(self) -> np.ndarray:
        """Of the eval split."""
        return self.evaluation[contract.CODE]

    @property
    def digits(self) -> list[int]:
        """That occur in the eval split, ascending; empty without labels."""
        return [int(digit) for digit in np.unique(self.labels) if digit >= 0]

    def sample(self, seed: int = 0) -> np.ndarray:
        """Rows of ten eval images: one of every digit where there are labels."""
        rng = np.random.default_rng(seed)
        if not self.digits:
            return rng.choice(len(self.images), min(_TEN, len(self.images)), replace=False)
        rows = [rng.choice(np.flatnonzero(self.labels == digit)) for digit in self.digits]
        more = rng.permutation(len(self.images))
        rows += [row for row in more if row not in rows][: _TEN - len(rows)]
        return np.array(rows)


@dataclasses.dataclass(frozen=True)
class Strips:
    """Rows of images under each other.

    Attributes:
      name: Of the PNG.
      columns: Images a line.
      strips: What each row is, and its images uint8 [n, h, w] or [n, h, w, 3].
      caption: What is to be seen.
      header: A word above each column.
      kind: A CSS class.
    """

    name: str
    columns: int
    strips: list[tuple[str, np.ndarray]]
    caption: str
    header: list[str] = dataclasses.field(default_factory=list)
    header_span: int = 1
    kind: str = "strips"


@dataclasses.dataclass(frozen=True)
class Figure:
    """A chart.

    Attributes:
      name: Of the PNG.
      chart: It.
      caption: What is to be seen.
      small: Whether a third of the page's width is enough.
    """

    name: str
    chart: figures.Chart
    caption: str
    small: bool = False
    kind: str = "figure"


@dataclasses.dataclass(frozen=True)
class Table:
    """A table; the first column is its rows' heads.

    Attributes:
      header: Of the columns.
      rows: Cells; numbers are set to the right.
      caption: What it says.
      shade: Whether cells are shaded by their share of their row.
    """

    header: list[str]
    rows: list[list[Any]]
    caption: str = ""
    shade: bool = False
    kind: str = "table"


@dataclasses.dataclass(frozen=True)
class Words:
    """A paragraph."""

    text: str
    kind: str = "words"


Block = Strips | Figure | Table | Words


@dataclasses.dataclass(frozen=True)
class Section:
    """A part of the page.

    Attributes:
      id: Its anchor.
      title: Its heading.
      lead: What it is about, in a sentence.
      blocks: What it shows.
    """

    id: str
    title: str
    lead: str
    blocks: Sequence[Block]


def build(material: Material) -> list[Section]:
    """All sections that apply to the model and its data."""
    makers: list[Callable[[Material], Section | None]] = [
        reconstructions, denoising, losses, training, errors, anomaly_detection, code_space,
        search, classification, generation, styles,
    ]  # fmt: skip
    return [section for maker in makers if (section := maker(material)) is not None]


def _number(value: float, digits: int = 5) -> str:
    return f"{value:.{digits}f}"


def _digit_names(material: Material, rows: np.ndarray) -> list[str]:
    return [str(d) if d >= 0 else "" for d in material.labels[rows]] if material.digits else []


def reconstructions(material: Material) -> Section:
    """Originals above reconstructions: random, best and worst."""
    rows = material.sample()
    shown, _ = material.model.reconstruct(material.images[rows])
    random = Strips(
        "reconstructions", _TEN,
        [("original", material.images[rows]), ("reconstruction", shown)],
        "Images of the eval split, drawn at random.", _digit_names(material, rows),
    )  # fmt: skip
    if len(material.digits) > _TEN // 2:
        groups = [np.flatnonzero(material.labels == digit) for digit in material.digits]
        best = np.array([group[np.argmin(material.errors[group])] for group in groups])
        worst = np.array([group[np.argmax(material.errors[group])] for group in groups])
        what = "of each digit"
    else:
        order = np.argsort(material.errors)
        best, worst = order[:_TEN], order[::-1][:_TEN]
        what = "of all" if material.digits else "of all; the images have no labels"
    blocks: list[Block] = [random]
    for name, chosen in (("best", best), ("worst", worst)):
        shown, _ = material.model.reconstruct(material.images[chosen])
        spread = f"{material.errors[chosen].min():.4f} to {material.errors[chosen].max():.4f}"
        blocks.append(
            Strips(
                f"{name}_reconstructions",
                _TEN,
                [("original", material.images[chosen]), ("reconstruction", shown)],
                f"The {name} {what}: mean squared errors of {spread}.",
                _digit_names(material, chosen),
            )  # fmt: skip
        )
    return Section(
        "reconstructions", "Reconstructions",
        "What comes back when an image goes through the code.", blocks,
    )  # fmt: skip


def corrupt_as_trained(
    images: np.ndarray, hyperparameters: dict[str, Any], seed: int = 0
) -> tuple[np.ndarray, str]:
    """Images uint8 [n, 28, 28] as the training corrupted them, and how that was."""
    rng = np.random.default_rng(seed)
    if "masking" in hyperparameters:
        share = hyperparameters["masking"]
        kept = rng.random(images.shape) >= share
        return images * kept.astype(np.uint8), f"{share:.0%} of the pixels blackened"
    stddev = hyperparameters.get("noise", 0.5)
    noisy = images + rng.normal(0, 255 * stddev, images.shape)
    return np.clip(np.rint(noisy), 0, 255).astype(np.uint8), f"normal noise of {stddev}, clipped"


def denoising(material: Material) -> Section | None:
    """Noisy, denoised and clean, for models that learnt it."""
    if "denoise" not in material.metadata["abilities"]:
        return None
    rows = material.sample(seed=1)
    clean = material.images[rows]
    noisy, how = corrupt_as_trained(clean, material.metadata["hyperparameters"])
    denoised, _ = material.model.reconstruct(noisy)

    def mse(images: np.ndarray) -> float:
        return float(np.mean(np.square((images.astype(float) - clean) / 255)))

    return Section(
        "denoising", "Denoising",
        "What the model was trained for: the clean image out of a corrupted one.",
        [
            Strips(
                "denoising", _TEN,
                [("noisy input", noisy), ("denoised", denoised), ("clean original", clean)],
                f"Corrupted as in training: {how}. The mean squared error to the clean image falls "
                f"from {mse(noisy):.4f} to {mse(denoised):.4f} on these ten.",
                _digit_names(material, rows),
            )
        ],
    )  # fmt: skip


def _mses(by_label: dict[str, dict[str, float]]) -> dict[str, float]:
    return {digit: found["mse"] for digit, found in by_label.items()}


def losses(material: Material) -> Section:
    """The losses by digit, beside PCA's and the baseline's."""
    metrics = material.summary["metrics"]
    name = material.summary["model"]
    code_size = material.summary["code_size"]
    head = ["", "MSE", "BCE", "images"]
    overall = metrics["overall"]
    rows: list[list[Any]] = [
        [name, _number(overall["mse"]), _number(overall["bce"], 4),
         f"{overall['example_count']:,.0f}"],
        [f"PCA, {min(code_size, features.IMAGE_BYTES)} components", _number(metrics["pca_mse"]),
         "", ""],
    ]  # fmt: skip
    if metrics["baseline"]:
        baseline = metrics["baseline"]
        rows.append(
            ["last blessed model", _number(baseline["mse"]), _number(baseline["bce"], 4), ""]
        )
    by_label = metrics["by_label"]
    rows += [
        [f"digit {digit}", _number(figures_["mse"]), _number(figures_["bce"], 4),
         f"{figures_['example_count']:,.0f}"]
        for digit, figures_ in by_label.items()
    ]  # fmt: skip
    table = Table(head, rows, "Losses on the eval split, averaged over pixels and images.")
    blocks: list[Block] = []
    if by_label:
        series = {
            name: {d: f["mse"] for d, f in by_label.items()},
            "PCA": metrics["pca_mse_by_label"],
        }
        if metrics.get("baseline_by_label"):
            series["last blessed"] = {d: f["mse"] for d, f in metrics["baseline_by_label"].items()}
        blocks.append(
            Figure(
                "losses_by_digit",
                figures.by_digit(series, "mean squared error"),
                f"Disc: {name}. Diamond: PCA with as many components as the code has floats, the "
                "best that a linear model can do."
                + (" Bar: the last blessed model of this name." if len(series) > 2 else ""),
            )
        )
    else:
        blocks.append(Words("The images have no labels, so there are no losses by digit."))
    return Section(
        "losses", "Losses by digit", "How far the reconstructions are from the originals.",
        [*blocks, table],
    )  # fmt: skip


def training(material: Material) -> Section:
    """The training's curves."""
    history = material.training["history"]
    blocks: list[Block] = []

    def curve(key: str) -> list[float]:
        return [epoch[key] for epoch in history if key in epoch]

    def curves(*names: str) -> dict[str, list[float]]:
        found = {
            label: curve(key)
            for name in names
            for label, key in (
                (f"{name}, training", name),
                (f"{name}, validation", f"val_{name}"),
            )  # fmt: skip
        }
        return {label: values for label, values in found.items() if values}

    for name, title in (("loss", "loss"), ("mse", "mean squared error")):
        if found := curves(name):
            shorter = {key.split(", ")[1]: values for key, values in found.items()}
            blocks.append(
                Figure(
                    f"training_{name}",
                    figures.loss_curves(shorter, title),
                    "What the training minimises."
                    if name == "loss"
                    else "The reconstruction error of the uncorrupted validation images.",
                )  # fmt: skip
            )
    others = {
        key
        for epoch in history
        for key in epoch
        if not key.startswith("val_") and key not in ("loss", "mse")
    }
    for key in sorted(others):
        title = key.replace("_", " ")
        chart = figures.loss_curves(
            {label.split(", ")[1]: values for label, values in curves(key).items()},
            title, log=False,
        )  # fmt: skip
        blocks.append(Figure(f"training_{key}", chart, f"{title}, by epoch.", small=True))
    seconds = material.training["seconds"]
    return Section(
        "training", "Training",
        f"{len(history)} epochs in {seconds:,.1f} seconds on "
        f"{material.training['training_images']:,} images; "
        f"{material.training['validation_images']:,} more were set aside for validation.",
        blocks,
    )  # fmt: skip


def _strange_errors(material: Material) -> tuple[np.ndarray | None, str]:
    if material.held_out:
        return material.held_out[contract.RECONSTRUCTION_ERROR], "digits never seen"
    return None, ""


def errors(material: Material) -> Section:
    """The histogram of errors, with the threshold."""
    threshold = material.summary["anomaly_threshold"]
    above = float(np.mean(material.errors > threshold))
    strange, name = _strange_errors(material)
    found = ""
    if strange is not None:
        found = (
            f" Of the digits that it never saw, {np.mean(strange > threshold):.1%} are above it."
        )
    quantile = material.training.get("training", {}).get("anomaly_quantile")
    how = f" It is the {quantile:.0%} quantile of the validation errors." if quantile else ""
    return Section(
        "errors", "Reconstruction errors",
        f"An image whose error is above {threshold:.5f} counts as an anomaly.{how}",
        [
            Figure(
                "errors",
                figures.error_histogram(material.errors, threshold, strange, name),
                f"{above:.1%} of the eval images are above the threshold.{found}",
            )
        ],
    )  # fmt: skip


def anomaly_detection(material: Material) -> Section:
    """AUROC and AUPR, with examples."""
    found = material.summary["metrics"]["anomaly"]
    of_digits = found["against"] == anomalies.HELD_OUT
    rows: list[list[Any]] = [
        [f"digit {kind}" if of_digits else f"{kind}: {anomalies.EXPLANATIONS[kind]}",
         _number(figures_["auroc"], 4), _number(figures_["aupr"], 4)]
        for kind, figures_ in found["by_kind"].items()
    ]  # fmt: skip
    name = "all digits never seen" if of_digits else "mean"
    rows.append([name, _number(found["auroc"], 4), _number(found["aupr"], 4)])
    against = "digits that the model never saw" if of_digits else "corrupted images"
    table = Table(
        ["anomalies", "AUROC", "AUPR"], rows,
        f"{found['normal']:,} normal images against {against}. Guessing gives an AUROC of 0.5 and "
        f"an AUPR of {found['base_rate']:.2f}"
        + (" over all." if of_digits else " for each kind."),
    )  # fmt: skip
    return Section(
        "anomalies", "Anomaly detection",
        "How well the reconstruction error tells strange images from normal ones.",
        [_strange_examples(material), table],
    )  # fmt: skip


def _strange_examples(material: Material) -> Strips:
    if material.held_out:
        rng = np.random.default_rng(0)
        count = len(material.held_out[features.LABEL])
        rows = np.sort(rng.choice(count, min(_TEN, count), replace=False))
        strange = material.held_out[features.IMAGE][rows]
        header, span = [str(digit) for digit in material.held_out[features.LABEL][rows]], 1
        caption = "Images of digits that the model never saw, and what it makes of them."
    else:
        normal = material.images[material.sample(seed=2)[:2]]
        strange = np.concatenate([anomalies.corrupt(normal, kind) for kind in anomalies.KINDS])
        header, span = list(anomalies.KINDS), 2
        caption = "Corrupted images, two of each kind, and what the model makes of them."
    shown, scores = material.model.reconstruct(strange)
    caption += f" Errors of {scores.min():.3f} to {scores.max():.3f}."
    return Strips(
        "anomalies", _TEN, [("anomaly", strange), ("reconstruction", shown)], caption, header, span
    )


def code_space(material: Material) -> Section:
    """Where the codes lie, and what they look like."""
    rng = np.random.default_rng(0)
    rows = np.sort(
        rng.choice(len(material.codes), min(_MAX_POINTS, len(material.codes)), replace=False)
    )
    codes, labels = material.codes[rows], material.labels[rows]
    code_size = codes.shape[1]
    blocks: list[Block] = []
    if np.ptp(codes, axis=0).max() < _TINY:
        blocks.append(Words("All codes are the same: the model tells no image from another."))
    elif code_size == 2:
        chart = figures.scatter(codes, labels, "first float", "second float")
        blocks.append(
            Figure("codes", chart, f"The codes of {len(rows):,} eval images, as they are.")
        )
    elif code_size > 2 and len(rows) >= 5:
        blocks += _projections(codes, labels)
    chosen = material.sample()
    low, high = np.quantile(material.codes, [0.01, 0.99], axis=0)
    height, width = pictures.code_shape(code_size)
    blocks.append(
        Strips(
            "codes_as_images",
            _TEN,
            [
                ("original", material.images[chosen]),
                ("code", pictures.code_pictures(material.codes[chosen], low, high)),
            ],
            f"Codes as pictures of {height} by {width} cells: dark is a unit's lowest value, "
            "bright its highest.",
            _digit_names(material, chosen),
        )  # fmt: skip
    )
    if not material.digits:
        blocks.append(Words("The images have no labels, so codes are drawn as dots."))
    spread = material.summary["metrics"]["code"]
    blocks.append(
        Table(
            ["", "value"],
            [
                ["floats in a code", f"{code_size:,}"],
                ["of which vary", f"{spread['active_units']:,}"],
                ["mean", _number(spread["mean"], 3)],
                ["standard deviation", _number(spread["stddev"], 3)],
            ],
            "The codes of the eval split.",
        )
    )
    return Section(
        "codes", "The code space",
        "Images that look alike should have codes that lie together.", blocks,
    )  # fmt: skip


def _projections(codes: np.ndarray, labels: np.ndarray) -> list[Block]:
    from sklearn.decomposition import PCA
    from sklearn.manifold import TSNE

    size = min(_TSNE_DIMENSIONS, *codes.shape)
    pca = PCA(size, random_state=0)
    projected = pca.fit_transform(codes)
    share = pca.explained_variance_ratio_[:2].sum()
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
            figures.scatter(projected[:, :2], labels, "first component", "second component"),
            f"PCA of the codes of {len(codes):,} eval images: the plane of most variance, "
            f"{share:.0%} of it.",
        ),
        Figure(
            "codes_tsne", figures.scatter(embedded, labels, "", ""),
            "t-SNE of the same codes: neighbours stay together, distances between groups mean "
            "nothing.",
        ),
    ]  # fmt: skip


def search(material: Material) -> Section:
    """Precision of image search, with examples."""
    rows = material.sample(seed=3)
    index = neighbours.Index(material.train[contract.CODE])
    found = index.query(material.codes[rows])
    known = bool(material.digits)
    strips = []
    for row, hits in zip(rows, found.rows):
        shown = np.concatenate(
            [material.images[row][np.newaxis], material.train[features.IMAGE][hits]]
        )
        digits = " ".join(str(d) for d in material.train[features.LABEL][hits])
        strips.append((f"{material.labels[row]} found {digits}" if known else "", shown))
    figures_ = material.summary["metrics"]["search"]
    blocks: list[Block] = [
        Strips(
            "search", neighbours.K + 1, strips,
            f"Eval images and the {neighbours.K} training images with the nearest codes.",
            ["query", *(str(i + 1) for i in range(neighbours.K))],
        )
    ]  # fmt: skip
    if figures_ is None:
        why = "all show the same digit" if known else "have no labels"
        blocks.append(Words(f"The images {why}, so precision cannot be told."))
    else:
        pca = figures_["pca"]
        blocks.append(
            Table(
                ["codes of", "precision@10", "10-NN accuracy"],
                [
                    [name, _number(of["precision_at_10"], 4), _number(of["knn_accuracy"], 4)]
                    for name, of in (
                        (material.summary["model"], figures_),
                        (f"PCA, {pca['components']} components", pca),
                    )
                ],
                f"{figures_['queries']:,} eval images asked, {figures_['indexed']:,} training "
                "images searched. Precision: share of the ten with the digit of the query. "
                "Accuracy: how often most of the ten have it.",
            )
        )
    return Section(
        "search", "Image search", "What an image's neighbours in the code space are.", blocks
    )


def classification(material: Material) -> Section | None:
    """The confusion matrix, for models with a classifier."""
    found = material.summary["metrics"]["classification"]
    if not material.model.can(contract.CLASSIFY):
        return None
    lead = "Which digit the model says an image shows."
    if found is None:
        words = Words("The images have no labels, so accuracy cannot be told.")
        return Section("classification", "Classification", lead, [words])
    digits = [str(digit) for digit in range(features.NUM_CLASSES)]
    rows = [[digit, *counts] for digit, counts in zip(digits, found["confusion"])]
    table = Table(
        ["", *digits], rows,
        f"Rows: the digit. Columns: what the model says. Accuracy {found['accuracy']:.4f} on the "
        "eval split.", shade=True,
    )  # fmt: skip
    return Section("classification", "Classification", lead, [table])


def _style_size(material: Material) -> int:
    prior = material.metadata["prior"] or {}
    return prior.get("style_size", material.summary["code_size"])


def _write_styles(material: Material, styles: np.ndarray, digits: np.ndarray) -> np.ndarray:
    """Styles [n, s] written as digits [n], for decoders that separate the two."""
    if material.model.decodes_labels:
        return material.model.decode(styles, digits)
    one_hot = np.eye(features.NUM_CLASSES, dtype=np.float32)[digits]
    return material.model.decode(np.concatenate([styles, one_hot], axis=1))


def _separates_style(material: Material) -> bool:
    prior = material.metadata["prior"] or {}
    return material.model.decodes_labels or "style_size" in prior


def generation(material: Material) -> Section | None:
    """The manifold and random samples, for models with a prior."""
    if not material.model.can(contract.GENERATE):
        return None
    from scipy import stats

    stddev = material.metadata["prior"]["stddev"]
    size = _style_size(material)
    axes = np.sort(np.argsort(material.codes[:, :size].std(axis=0))[::-1][:2])
    quantiles = stats.norm.ppf(np.linspace(0.02, 0.98, _MANIFOLD_SIDE)) * stddev
    points = np.zeros((_MANIFOLD_SIDE**2, size), np.float32)
    across, down = np.meshgrid(quantiles, quantiles[::-1])
    points[:, axes[0]] = across.ravel()
    if size > 1:
        points[:, axes[1]] = down.ravel()
    where = "" if size == 2 else (
        f" Floats {axes[0] + 1} and {axes[-1] + 1}, which vary most; the others are 0."
    )  # fmt: skip
    if _separates_style(material):
        manifold = _write_styles(material, points, np.full(len(points), _MANIFOLD_DIGIT))
        where += f" All written as a {_MANIFOLD_DIGIT}."
    else:
        manifold = material.model.decode(points)
    return Section(
        "generation", "Generation",
        f"Images of codes that no image had, from the prior: normal with deviation {stddev:g}.",
        [
            Strips(
                "manifold", _MANIFOLD_SIDE, [("the manifold", manifold)],
                "The plane of codes at the 2 % to 98 % quantiles of the prior." + where,
            ),
            Strips(
                "samples", _TEN,
                [("random samples", material.model.generate(np.arange(_SAMPLES)))],
                "Codes drawn from the prior, not chosen by hand.",
            ),
        ],
    )  # fmt: skip


def styles(material: Material) -> Section | None:
    """One style written as ten digits, where style and digit are apart."""
    if not material.model.can(contract.GENERATE) or not _separates_style(material):
        return None
    rows = material.sample(seed=4)[:_STYLES]
    digits = np.arange(features.NUM_CLASSES)
    strips = []
    for row in rows:
        style = material.codes[row][np.newaxis, : _style_size(material)].repeat(len(digits), axis=0)
        written = _write_styles(material, style, digits)
        strips.append(("", np.concatenate([material.images[row][np.newaxis], written])))
    return Section(
        "styles", "One style, ten digits",
        "The code holds how a digit is written, not which: the style of the first image, in all "
        "ten digits.",
        [
            Strips(
                "styles", len(digits) + 1, strips, "Each row has the style of its first image.",
                ["style", *map(str, digits)],
            )
        ],
    )  # fmt: skip
