"""How well the anomaly score tells strange images from normal ones.

A one-class model is asked for the digits that it never saw. For the others,
which saw all digits, images are corrupted as scanners and senders do it, or
show letters. No training sees any of these kinds.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from scipy import ndimage
from sklearn.metrics import average_precision_score, roc_auc_score

HELD_OUT = "held_out"
CORRUPTIONS = "corruptions"

_NOISE_STDDEV = 0.25
_BLUR_PIXELS = 1.5
_SHIFT = 6
_PATCH = 10
# Fonts that come with Matplotlib. Letters that look like a digit are left out.
_FONTS = (
    *("DejaVuSans", "DejaVuSans-Bold", "DejaVuSans-Oblique"),
    *("DejaVuSansMono", "DejaVuSerif", "DejaVuSerif-Italic"),
)
_LETTERS = tuple("ΓΔΘΛΞΠΣΦΨΩαβγδεζηθκλμξπρσφχψω")


def _invert(images: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return 255 - images


def _blur(images: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    blurred = ndimage.gaussian_filter(images.astype(np.float32), (0, _BLUR_PIXELS, _BLUR_PIXELS))
    return np.rint(blurred).astype(np.uint8)


def _noise(images: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    noise = rng.normal(0, 255 * _NOISE_STDDEV, images.shape)
    return np.clip(np.rint(images + noise), 0, 255).astype(np.uint8)


def _occlude(images: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    occluded = images.copy()
    # Over the middle, where there is ink to hide.
    for image, (y, x) in zip(occluded, rng.integers(5, 14, (len(images), 2))):
        image[y : y + _PATCH, x : x + _PATCH] = 0
    return occluded


def _shift(images: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    moved = np.zeros_like(images)
    size = images.shape[1]
    for target, image, right, down in zip(moved, images, *rng.integers(0, 2, (2, len(images)))):
        dy, dx = (_SHIFT if down else -_SHIFT), (_SHIFT if right else -_SHIFT)
        to_y, to_x = slice(max(dy, 0), size + min(dy, 0)), slice(max(dx, 0), size + min(dx, 0))
        from_y = slice(max(-dy, 0), size + min(-dy, 0))
        from_x = slice(max(-dx, 0), size + min(-dx, 0))
        target[to_y, to_x] = image[from_y, from_x]
    return moved


def _letters(images: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return np.stack([_letter(rng) for _ in images])


def _letter(rng: np.random.Generator) -> np.ndarray:
    """A printed letter, slightly turned, in 20 pixels centred by mass, as digits are."""
    font = ImageFont.truetype(_font_file(rng.choice(_FONTS)), 80)
    canvas = Image.new("L", (160, 160))
    ImageDraw.Draw(canvas).text((80, 80), rng.choice(_LETTERS), fill=255, font=font, anchor="mm")
    canvas = canvas.rotate(8 * rng.normal(), Image.Resampling.BILINEAR)
    canvas = canvas.crop(canvas.getbbox())
    canvas.thumbnail((20, 20), Image.Resampling.LANCZOS)
    letter = np.asarray(canvas)
    image = np.zeros((28, 28), np.uint8)
    middle = ndimage.center_of_mass(letter)
    y, x = (int(np.clip(round(13.5 - m), 0, 28 - side)) for m, side in zip(middle, letter.shape))
    image[y : y + letter.shape[0], x : x + letter.shape[1]] = letter
    return image


@functools.cache
def _font_file(name: str) -> str:
    import matplotlib

    return os.path.join(matplotlib.get_data_path(), "fonts", "ttf", f"{name}.ttf")


# What each makes of images uint8 [n, 28, 28].
KINDS: dict[str, Callable[[np.ndarray, np.random.Generator], np.ndarray]] = {
    "inversion": _invert,
    "blur": _blur,
    "noise": _noise,
    "occlusion": _occlude,
    "shift": _shift,
    "letters": _letters,
}

EXPLANATIONS = {
    "inversion": "light and dark swapped",
    "blur": f"a Gaussian of {_BLUR_PIXELS} pixels",
    "noise": f"normal noise of deviation {_NOISE_STDDEV}, clipped",
    "occlusion": f"a black square of {_PATCH} pixels in the middle",
    "shift": f"moved by {_SHIFT} pixels along both axes",
    "letters": "printed Greek letters in six fonts, none that is like a digit",
}


def corrupt(images: np.ndarray, kind: str) -> np.ndarray:
    """Images uint8 [n, 28, 28], corrupted; ``kind`` is a key of :data:`KINDS`."""
    return KINDS[kind](images, np.random.default_rng([0, list(KINDS).index(kind)]))


def separation(normal: np.ndarray, strange: np.ndarray) -> dict[str, float]:
    """Areas under the ROC and the precision-recall curve.

    Args:
      normal: Scores of normal images, float [n].
      strange: Scores of anomalies, the positives, float [m].

    Returns:
      ``auroc``, ``aupr`` and ``base_rate``, the AUPR of guessing.
    """
    truth = np.concatenate([np.zeros(len(normal)), np.ones(len(strange))])
    scores = np.concatenate([normal, strange])
    return {
        "auroc": float(roc_auc_score(truth, scores)),
        "aupr": float(average_precision_score(truth, scores)),
        "base_rate": len(strange) / len(scores),
    }


def on_held_out(
    normal: np.ndarray, strange: np.ndarray, strange_labels: np.ndarray
) -> dict[str, Any]:
    """The separation by a one-class model: of its own digits from those it never saw.

    Args:
      normal: Scores of its own digits' eval images, float [n].
      strange: Scores of the others', float [m].
      strange_labels: Their digits, int64 [m].

    Returns:
      ``auroc`` and ``aupr`` over all, and by digit in ``by_kind``.
    """
    by_kind = {
        str(digit): separation(normal, strange[strange_labels == digit])
        for digit in np.unique(strange_labels)
    }
    return {
        "against": HELD_OUT,
        **separation(normal, strange),
        "normal": len(normal),
        "anomalies": len(strange),
        "by_kind": by_kind,
    }


def on_corruptions(
    images: np.ndarray, normal: np.ndarray, score: Callable[[np.ndarray], np.ndarray]
) -> dict[str, Any]:
    """The separation by a model that knows all digits: of images from corrupted ones.

    Args:
      images: Normal ones, uint8 [n, 28, 28].
      normal: Their scores, float [n].
      score: Gives the scores of other images.

    Returns:
      ``auroc`` and ``aupr``, means over the kinds, which are in ``by_kind``.
    """
    by_kind = {kind: separation(normal, score(corrupt(images, kind))) for kind in KINDS}
    return {
        "against": CORRUPTIONS,
        **{
            key: float(np.mean([figures[key] for figures in by_kind.values()]))
            for key in ("auroc", "aupr", "base_rate")
        },
        "normal": len(normal),
        "anomalies": len(normal) * len(KINDS),
        "by_kind": by_kind,
    }
