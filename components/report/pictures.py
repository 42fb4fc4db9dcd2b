"""Images as PNG sheets."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image

# The grey between and behind images.
GROUND = 96
_GAP = 2


def to_bytes(images: np.ndarray) -> np.ndarray:
    """Grey levels in [0, 1] as uint8."""
    return np.clip(np.rint(np.nan_to_num(images) * 255), 0, 255).astype(np.uint8)


def to_png(image: Image.Image) -> bytes:
    """A picture as a PNG file."""
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", optimize=True)
    return buffer.getvalue()


def sheet(images: np.ndarray, columns: int, *, scale: int = 2, gap: int = _GAP) -> bytes:
    """A PNG with images side by side, row by row.

    Args:
      images: uint8 [n, h, w] or [n, h, w, 3].
      columns: Images a row; a last row may be shorter.
      scale: Times that each pixel is repeated.
      gap: Pixels between images, unscaled.
    """
    count, height, width = images.shape[:3]
    rows = -(-count // columns)
    shape = (rows * (height + gap) - gap, columns * (width + gap) - gap, *images.shape[3:])
    canvas = np.full(shape, GROUND, np.uint8)
    for i, image in enumerate(images):
        top, left = (i // columns) * (height + gap), (i % columns) * (width + gap)
        canvas[top : top + height, left : left + width] = image
    return to_png(Image.fromarray(canvas.repeat(scale, axis=0).repeat(scale, axis=1)))
