"""What a model with a prior can draw: images that no image had for a code."""

from __future__ import annotations

import numpy as np
from scipy import stats

from components import features
from components.report.blocks import Section, Strips
from components.report.material import TEN, Material
from serving import contract
from serving.images import to_bytes
from serving.uses.compress import needs_digit

_MANIFOLD_SIDE = 15
# Written in the manifold of a model whose decoder is told the digit.
_MANIFOLD_DIGIT = 2
_SAMPLES = 40
_STYLES = 6


def generation(material: Material) -> Section | None:
    """The manifold and random samples, for models with a prior."""
    if not material.can(contract.GENERATE):
        return None
    stddev = material.metadata["prior"]["stddev"]
    return Section(
        "generation",
        "Generation",
        f"Images of codes that no image had, from the prior: normal with deviation {stddev:g}.",
        [
            _manifold(material, stddev),
            Strips(
                "samples",
                TEN,
                [("random samples", to_bytes(material.model.generate(_SAMPLES)))],
                "Codes drawn from the prior, not chosen by hand.",
            ),
        ],
    )


def _manifold(material: Material, stddev: float) -> Strips:
    """A plane of codes, decoded: the two floats that vary most across and down."""
    size = _style_size(material)
    axes = np.sort(np.argsort(material.codes[:, :size].std(axis=0))[::-1][:2])
    quantiles = stats.norm.ppf(np.linspace(0.02, 0.98, _MANIFOLD_SIDE)) * stddev
    across, down = np.meshgrid(quantiles, quantiles[::-1])
    points = np.zeros((_MANIFOLD_SIDE**2, size), np.float32)
    points[:, axes[0]] = across.ravel()
    if size > 1:
        points[:, axes[1]] = down.ravel()
    caption = "The plane of codes at the 2 % to 98 % quantiles of the prior."
    if size != 2:
        caption += f" Floats {axes[0] + 1} and {axes[-1] + 1}, which vary most; the others are 0."
    if _separates_style(material):
        manifold = _write_styles(material, points, np.full(len(points), _MANIFOLD_DIGIT))
        caption += f" All written as a {_MANIFOLD_DIGIT}."
    else:
        manifold = to_bytes(material.model.decode(points))
    return Strips("manifold", _MANIFOLD_SIDE, [("the manifold", manifold)], caption)


def styles(material: Material) -> Section | None:
    """One style written as ten digits, where style and digit are apart."""
    if not material.can(contract.GENERATE) or not _separates_style(material):
        return None
    digits = np.arange(features.NUM_CLASSES)
    strips = []
    for row in material.sample(seed=4)[:_STYLES]:
        style = material.codes[row][np.newaxis, : _style_size(material)].repeat(len(digits), axis=0)
        written = _write_styles(material, style, digits)
        strips.append(("", np.concatenate([material.images[row][np.newaxis], written])))
    block = Strips(
        "styles",
        len(digits) + 1,
        strips,
        "Each row has the style of its first image.",
        ["style", *map(str, digits)],
    )
    return Section(
        "styles",
        "One style, ten digits",
        "The code holds how a digit is written, not which: the style of the first image, in all "
        "ten digits.",
        [block],
    )


def _style_size(material: Material) -> int:
    prior = material.metadata["prior"] or {}
    return prior.get("style_size", material.summary["code_size"])


def _separates_style(material: Material) -> bool:
    prior = material.metadata["prior"] or {}
    return needs_digit(material.model) or "style_size" in prior


def _write_styles(material: Material, styles: np.ndarray, digits: np.ndarray) -> np.ndarray:
    """Styles [n, s] written as digits [n], for decoders that separate the two."""
    if needs_digit(material.model):
        return to_bytes(material.model.decode(styles, digits))
    one_hot = np.eye(features.NUM_CLASSES, dtype=np.float32)[digits]
    return to_bytes(material.model.decode(np.concatenate([styles, one_hot], axis=1)))
