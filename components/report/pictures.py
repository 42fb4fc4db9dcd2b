"""Images and codes as PNG strips and sheets."""

from __future__ import annotations

import io
from collections.abc import Sequence

import numpy as np

_GAP = 2
_GROUND = 96


def to_bytes(images: np.ndarray) -> np.ndarray:
    """Grey levels in [0, 1] as uint8."""
    return np.clip(np.rint(np.nan_to_num(images) * 255), 0, 255).astype(np.uint8)


def sheet(images: np.ndarray, columns: int, *, scale: int = 2, gap: int = _GAP) -> bytes:
    """A PNG with images side by side, row by row.

    Args:
      images: uint8 [n, h, w] or [n, h, w, 3].
      columns: Images a row; a last row may be shorter.
      scale: Times that each pixel is repeated.
      gap: Pixels between images, unscaled.
    """
    from PIL import Image

    count, height, width = images.shape[:3]
    rows = -(-count // columns)
    shape = (rows * (height + gap) - gap, columns * (width + gap) - gap, *images.shape[3:])
    canvas = np.full(shape, _GROUND, np.uint8)
    for i, image in enumerate(images):
        top, left = (i // columns) * (height + gap), (i % columns) * (width + gap)
        canvas[top : top + height, left : left + width] = image
    canvas = canvas.repeat(scale, axis=0).repeat(scale, axis=1)
    buffer = io.BytesIO()
    Image.fromarray(canvas).save(buffer, format="PNG", optimize=True)
    return buffer.getvalue()


def stack(strips: Sequence[np.ndarray]) -> np.ndarray:
    """Strips of as many images each, one after the other: uint8 [s * n, 28, 28]."""
    return np.concatenate([np.asarray(strip, np.uint8) for strip in strips])


def code_shape(size: int) -> tuple[int, int]:
    """The most nearly square grid of ``size`` cells, not higher than wide."""
    height = max(h for h in range(1, int(size**0.5) + 1) if size % h == 0)
    return height, size // height


def code_pictures(codes: np.ndarray, low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """Codes as pictures, dark for a unit's lowest value and bright for its highest.

    Args:
      codes: float [n, d].
      low: Of each unit, float [d].
      high: Of each unit, float [d].

    Returns:
      uint8 [n, h, w, 3], each cell several pixels.
    """
    import matplotlib

    height, width = code_shape(codes.shape[1])
    level = (codes - low) / np.maximum(high - low, 1e-9)
    colours = matplotlib.colormaps["viridis"](np.clip(level, 0, 1))[..., :3]
    pictures = (colours * 255).astype(np.uint8).reshape(len(codes), height, width, 3)
    cell = max(1, 56 // width)
    return pictures.repeat(cell, axis=1).repeat(cell, axis=2)
