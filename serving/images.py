"""Pictures in files to what the models take, and back to pictures.

Pillow is imported when first used.
"""

from __future__ import annotations

import dataclasses
import gzip
import math
import pathlib
import struct
import zlib
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

from serving.contract import IMAGE_HEIGHT, IMAGE_WIDTH
from serving.errors import InputError

if TYPE_CHECKING:
    from PIL import Image

Array = npt.NDArray[Any]
Invert = Literal["auto", "yes", "no"]

# IDX: two zero bytes, 0x08 for unsigned bytes, the number of dimensions.
_IDX_MAGIC = b"\x00\x00\x08\x03"
_GZIP_MAGIC = b"\x1f\x8b"
_MAX_IDX_BYTES = 2**30
# The grey between and behind images; pixels between them, and times that each is repeated then.
GROUND, _GAP, _SCALE = 96, 2, 4


@dataclasses.dataclass(frozen=True)
class Loaded:
    """The images of one file.

    Attributes:
      images: uint8 [n, 28, 28], bright ink on dark ground.
      inverted: Whether light and dark were swapped.
    """

    path: pathlib.Path
    images: Array
    inverted: bool

    @property
    def names(self) -> list[str]:
        """A name for each image: the file's, numbered if it holds several."""
        count = len(self.images)
        if count == 1:
            return [str(self.path)]
        return [f"{self.path}[{index}]" for index in range(count)]


def load(path: str | pathlib.Path, invert: Invert = "auto") -> Loaded:
    """Reads a PNG, JPEG or other picture, or all images of an IDX file.

    A picture of another size is fitted into 28x28, sides kept in proportion,
    the rest filled with its ground. Colour becomes grey.

    Args:
      path: The file; IDX may be gzipped.
      invert: ``auto`` swaps light and dark when the border is light, as in ink
        on paper; ``yes`` always, ``no`` never.

    Raises:
      InputError: Missing, empty, or neither a picture nor IDX images.
    """
    path = pathlib.Path(path)
    try:
        with path.open("rb") as file:
            start = file.read(4)
    except IsADirectoryError:
        raise InputError(f"{path} is a folder; give image files") from None
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from None
    if not start:
        raise InputError(f"{path} is empty (0 bytes); give a PNG, JPEG or IDX file")
    if start == _IDX_MAGIC or start[:2] == _GZIP_MAGIC:
        images = _load_idx(path, start[:2] == _GZIP_MAGIC)
        inverted = invert == "yes"
    else:
        grey = _load_picture(path)
        inverted = invert == "yes" or (invert == "auto" and _ground(grey) > 127)
        images = grey[None]
    if inverted:
        images = 255 - images
    if len(images) and images.shape[1:] != (IMAGE_HEIGHT, IMAGE_WIDTH):
        images = np.stack([_fit(image) for image in images])
    return Loaded(path, images, inverted)


def _load_idx(path: pathlib.Path, zipped: bool) -> Array:
    try:
        with gzip.open(path) if zipped else path.open("rb") as file:  # type: ignore[attr-defined]
            data = file.read(_MAX_IDX_BYTES + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"cannot unpack {path}: {error}") from None
    if len(data) > _MAX_IDX_BYTES:
        raise InputError(f"{path} holds more than {_MAX_IDX_BYTES >> 20} MiB of images")
    if data[:4] != _IDX_MAGIC or len(data) < 16:
        raise InputError(f"{path} is not an IDX file of images (a labels file, perhaps?)")
    count, height, width = struct.unpack(">III", data[4:16])
    if not height or not width or len(data) - 16 != count * height * width:
        raise InputError(
            f"{path} announces {count} images of {height}x{width} and holds "
            f"{len(data) - 16} bytes; it is damaged"
        )
    return np.frombuffer(data, np.uint8, offset=16).reshape(count, height, width)


def _load_picture(path: pathlib.Path) -> Array:
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(path) as picture:
            picture.load()
            return _to_grey(picture)
    except UnidentifiedImageError:
        raise InputError(
            f"{path} is not a picture that can be read; give a PNG, JPEG or IDX file"
        ) from None
    except Image.DecompressionBombError:
        raise InputError(f"{path} has too many pixels; make it smaller") from None
    except (OSError, ValueError, SyntaxError, EOFError, struct.error) as error:
        raise InputError(f"{path} is damaged: {' '.join(str(error).split())}") from None


def _to_grey(picture: Image.Image) -> Array:
    from PIL import Image

    if picture.mode in ("I", "F", "I;16", "I;16B", "I;16L", "I;16N"):
        values = np.asarray(picture, np.float64)
        top = 65535.0 if picture.mode != "F" else max(1.0, float(values.max(initial=1.0)))
        return np.clip(np.nan_to_num(values) * (255.0 / top), 0, 255).astype(np.uint8)
    if picture.mode in ("LA", "RGBA", "PA") or "transparency" in picture.info:
        colour = picture.convert("RGBA")
        alpha = np.asarray(colour.getchannel("A"))
        ink = np.asarray(colour.convert("L"))[alpha > 127]
        ground = 0 if ink.size and ink.mean() > 127 else 255
        paper = Image.new("RGBA", colour.size, (ground, ground, ground, 255))
        picture = Image.alpha_composite(paper, colour)
    return np.array(picture.convert("L"))


def _ground(grey: Array) -> float:
    """The grey level of an image's border."""
    return float(np.median(np.concatenate([grey[0], grey[-1], grey[:, 0], grey[:, -1]])))


def _fit(image: Array) -> Array:
    from PIL import Image

    height, width = image.shape
    scale = min(IMAGE_HEIGHT / height, IMAGE_WIDTH / width)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    picture = Image.fromarray(image).resize(size, Image.Resampling.LANCZOS)
    canvas = Image.new("L", (IMAGE_WIDTH, IMAGE_HEIGHT), int(_ground(image)))
    canvas.paste(picture, ((IMAGE_WIDTH - size[0]) // 2, (IMAGE_HEIGHT - size[1]) // 2))
    return np.array(canvas)


def to_bytes(images: Array) -> Array:
    """Grey levels in [0, 1] as uint8 0 to 255."""
    return np.clip(np.rint(np.nan_to_num(images) * 255.0), 0, 255).astype(np.uint8)


def sheet(images: Array, columns: int, *, gap: int = _GAP, ground: int = GROUND) -> Array:
    """Images [n, h, w] or [n, h, w, 3] side by side, row by row; the last may be shorter."""
    count, height, width = images.shape[:3]
    across, down = width + gap, height + gap
    rows = max(1, -(-count // columns))
    shape = (rows * down - gap, columns * across - gap, *images.shape[3:])
    canvas = np.full(shape, ground, np.uint8)
    for i, image in enumerate(images):
        top, left = (i // columns) * down, (i % columns) * across
        canvas[top : top + height, left : left + width] = image
    return canvas


def write_sheet(path: pathlib.Path, images: Array, columns: int) -> None:
    """Writes images uint8 [..., 28, 28] as a grid, magnified, as PNG.

    Raises:
      InputError: The file cannot be written.
    """
    from PIL import Image

    images = images.reshape(-1, *images.shape[-2:])
    canvas = np.pad(sheet(images, columns), _GAP, constant_values=GROUND)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.kron(canvas, np.ones((_SCALE, _SCALE), np.uint8))).save(path)
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror or error}") from None


def write_grid(path: pathlib.Path, images: Array) -> None:
    """Writes images as a grid about as wide as it is high; see :func:`write_sheet`."""
    write_sheet(path, images, max(1, math.ceil(math.sqrt(len(images)))))
