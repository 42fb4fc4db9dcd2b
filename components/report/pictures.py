"""Images as PNG sheets."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image

# The grey between and behind images.
GROUND = 96
# Pixels between images, and times that each pixel is repeated then.
_GAP = 2
_SCALE = 2


def to_png(image: Image.Image) -> bytes:
    """A picture as a PNG file."""
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", optimize=True)
    return buffer.getvalue()


def sheet(images: np.ndarray, columns: int) -> bytes:
    """A PNG with images side by side, row by row.

    Args:
      images: uint8 [n, h, w] or [n, h, w, 3].
      columns: Images a row; a last row may be shorter.
    """
    count, height, width = images.shape[:3]
    rows = -(-count // columns)
    across, down = width + _GAP, height + _GAP
    shape = (rows * down - _GAP, columns * across - _GAP, *images.shape[3:])
    canvas = np.full(shape, GROUND, np.uint8)
    for i, image in enumerate(images):
        top, left = (i // columns) * down, (i % columns) * across
        canvas[top : top + height, left : left + width] = image
    return to_png(Image.fromarray(canvas.repeat(_SCALE, axis=0).repeat(_SCALE, axis=1)))
