"""The code as a codec beside JPEG and PNG: bytes, and how much is lost."""

from __future__ import annotations

import dataclasses
import io
from typing import Any

import numpy as np

from serving import images as images_lib

COMPARED = 5_000
_JPEG_MIN, _JPEG_MAX = 1, 95
_PNG_BITS = (1, 2, 4)


@dataclasses.dataclass(frozen=True)
class Figures:
    """How well and how small a codec stores images.

    Attributes:
      codec: What it is.
      bytes: In all.
      bits_per_pixel: The same for a pixel.
      ratio: Raw bytes, one a pixel, to its.
      psnr: Peak signal to noise ratio of all pixels, in dB; None where nothing is lost.
      ssim: Mean structural similarity of the images.
    """

    codec: str
    bytes: int
    bits_per_pixel: float
    ratio: float
    psnr: float | None
    ssim: float


def figures(codec: str, size: int, images: np.ndarray, shown: np.ndarray) -> Figures:
    """Compares images uint8 [n, 28, 28] with what came back."""
    mse = float(np.mean(np.square((images.astype(np.float64) - shown) / 255)))
    return Figures(
        codec=codec,
        bytes=size,
        bits_per_pixel=8 * size / images.size,
        ratio=images.size / size,
        psnr=-10 * float(np.log10(mse)) if mse else None,
        ssim=_ssim(images, shown),
    )


def _ssim(images: np.ndarray, shown: np.ndarray) -> float:
    """Wang et al. 2004, with their Gaussian window, averaged over the images."""
    import tensorflow as tf

    values = [
        tf.image.ssim(
            images[i : i + 1_000, ..., np.newaxis], shown[i : i + 1_000, ..., np.newaxis], 255
        ).numpy()
        for i in range(0, len(images), 1_000)
    ]
    return float(np.mean(np.concatenate(values)))


def beside_others(compressed: Figures, images: np.ndarray, shown: np.ndarray) -> list[Figures]:
    """The codec's figures, and JPEG's and PNG's at the nearest size.

    JPEG and PNG store all images as one sheet: 28 x 28 pixels alone would be
    less than a JPEG's header. More than 5,000 images are compared by the first
    5,000, their fraction of the file counted.
    """
    sample = images[:COMPARED]
    target = round(compressed.bytes * len(sample) / len(images))
    found = [figures(compressed.codec, target, sample, shown[:COMPARED])]
    sheet, cut = _sheet(sample)
    jpeg = {}
    low, high = _JPEG_MIN, _JPEG_MAX
    # The size grows with the quality.
    while low <= high:
        quality = (low + high) // 2
        jpeg[quality] = data = _encoded(sheet, "JPEG", quality=quality)
        if len(data) < target:
            low = quality + 1
        else:
            high = quality - 1
    quality = min(jpeg, key=lambda q: abs(len(jpeg[q]) - target))
    found.append(_sheet_figures(f"JPEG, quality {quality}", jpeg[quality], sample, cut))
    png = {bits: _png(sheet, bits) for bits in _PNG_BITS}
    bits = min(png, key=lambda b: abs(len(png[b]) - target))
    found.append(_sheet_figures(f"PNG, {2**bits} grey levels", png[bits], sample, cut))
    lossless = _encoded(sheet, "PNG", optimize=True)
    found.append(_sheet_figures("PNG, lossless", lossless, sample, cut))
    return found


def of_pictures(images: np.ndarray, form: str, quality: int) -> Figures:
    """Figures of images uint8 [n, 28, 28], stored as one sheet in a lossy picture format.

    Args:
      form: Pillow's name of it, such as "JPEG" or "WEBP".
      quality: 1 to 100, the format's own scale.
    """
    sheet, cut = _sheet(images)
    data = _encoded(sheet, form, quality=quality)
    return _sheet_figures(f"{form}, quality {quality}", data, images, cut)


def _sheet(images: np.ndarray) -> tuple[np.ndarray, Any]:
    """All images in one picture, and the function that cuts it up again."""
    count, height, width = images.shape
    columns = int(np.ceil(np.sqrt(count)))

    def cut(sheet: np.ndarray) -> np.ndarray:
        back = sheet.reshape(-1, height, columns, width).swapaxes(1, 2)
        return back.reshape(-1, height, width)[:count]

    return images_lib.sheet(images, columns, gap=0, ground=0), cut


def _encoded(sheet: np.ndarray, form: str, palette: list[int] | None = None, **how: Any) -> bytes:
    from PIL import Image

    picture = Image.fromarray(sheet)
    if palette is not None:
        picture.putpalette([grey for grey in palette for _ in range(3)])
    buffer = io.BytesIO()
    picture.save(buffer, format=form, **how)
    return buffer.getvalue()


def _png(sheet: np.ndarray, bits: int) -> bytes:
    """A PNG of ``2**bits`` evenly spaced grey levels."""
    top = 2**bits - 1
    levels = np.rint(sheet.astype(np.float32) * (top / 255)).astype(np.uint8)
    greys = [round(i * 255 / top) for i in range(top + 1)]
    return _encoded(levels, "PNG", greys, bits=bits, optimize=True)


def _sheet_figures(codec: str, data: bytes, images: np.ndarray, cut: Any) -> Figures:
    from PIL import Image

    with Image.open(io.BytesIO(data)) as picture:
        shown = cut(np.asarray(picture.convert("L")))
    return figures(codec, len(data), images, shown)
