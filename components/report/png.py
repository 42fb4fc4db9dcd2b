"""Images as PNG sheets."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image

from serving import images as image_files

# Times that each pixel is repeated.
_SCALE = 2


def to_png(image: Image.Image) -> bytes:
    """A picture as a PNG file."""
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", optimize=True)
    return buffer.getvalue()


def sheet(images: np.ndarray, columns: int) -> bytes:
    """A PNG of :func:`serving.images.sheet`."""
    canvas = image_files.sheet(images, columns)
    return to_png(Image.fromarray(canvas.repeat(_SCALE, axis=0).repeat(_SCALE, axis=1)))
