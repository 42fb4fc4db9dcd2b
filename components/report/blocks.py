"""What a page is made of: sections of strips, figures, tables and words."""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image

from serving.images import GROUND, sheet

_GAP = 8
# Times that each pixel of an image is repeated.
_SCALE = 2


@dataclasses.dataclass(frozen=True)
class Chart:
    """A figure, drawn.

    Attributes:
      svg: For a page, with CSS variables for colours.
      png: For everything else, on white.
    """

    svg: str
    png: bytes


@dataclasses.dataclass(frozen=True)
class Strips:
    """Rows of images under each other.

    Attributes:
      strips: What each row is, and its images uint8 [n, h, w] or [n, h, w, 3].
      header: A word above each column.
      header_span: Columns below each word.
    """

    name: str
    columns: int
    strips: list[tuple[str, np.ndarray]]
    caption: str
    header: list[str] = dataclasses.field(default_factory=list)
    header_span: int = 1
    kind: str = "strips"

    @property
    def png(self) -> bytes:
        """All rows in one picture."""
        sheets = [_enlarged(images, self.columns).convert("RGB") for _, images in self.strips]
        # Strips of images of different sizes are brought to one width.
        width = max(strip.width for strip in sheets)
        sheets = [_widened(strip, width) for strip in sheets]
        height = sum(strip.height + _GAP for strip in sheets) - _GAP
        canvas = Image.new("RGB", (width, height), (GROUND,) * 3)
        top = 0
        for strip in sheets:
            canvas.paste(strip, (0, top))
            top += strip.height + _GAP
        return _to_png(canvas)


def strip_png(images: np.ndarray, columns: int) -> bytes:
    """A PNG of :func:`serving.images.sheet`."""
    return _to_png(_enlarged(images, columns))


def _enlarged(images: np.ndarray, columns: int) -> Image.Image:
    canvas = sheet(images, columns)
    return Image.fromarray(canvas.repeat(_SCALE, axis=0).repeat(_SCALE, axis=1))


def _to_png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", optimize=True)
    return buffer.getvalue()


def _widened(sheet: Image.Image, width: int) -> Image.Image:
    if sheet.width == width:
        return sheet
    height = round(sheet.height * width / sheet.width)
    return sheet.resize((width, height), Image.Resampling.NEAREST)


@dataclasses.dataclass(frozen=True)
class Figure:
    """A chart and what it says.

    Attributes:
      small: Whether a third of the page's width is enough.
    """

    name: str
    chart: Chart
    caption: str
    small: bool = False
    kind: str = "figure"

    @property
    def png(self) -> bytes:
        """The chart on white."""
        return self.chart.png


@dataclasses.dataclass(frozen=True)
class Table:
    """A table; the first column is its rows' heads.

    Attributes:
      rows: Cells; numbers are set to the right.
      shade: Whether cells are shaded by their fraction of their row.
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
      lead: What it is about, in a sentence.
    """

    id: str
    title: str
    lead: str
    blocks: Sequence[Block]


def number(value: float, digits: int = 5) -> str:
    """A figure as tables show it."""
    return f"{value:.{digits}f}"
