"""What a report shows, section by section: pictures, charts, tables and words."""

from __future__ import annotations

from collections.abc import Callable

from components.report.blocks import Section
from components.report.material import Material
from components.report.sections.anomalies import anomaly_detection, errors
from components.report.sections.codes import classification, code_space, search
from components.report.sections.generation import generation, styles
from components.report.sections.quality import denoising, losses, reconstructions, training

# In the order of the page; one gives None where it does not apply.
MAKERS: tuple[Callable[[Material], Section | None], ...] = (
    reconstructions,
    denoising,
    losses,
    training,
    errors,
    anomaly_detection,
    code_space,
    search,
    classification,
    generation,
    styles,
)


def build(material: Material) -> list[Section]:
    """All sections that apply to the model and its data."""
    return [section for maker in MAKERS if (section := maker(material)) is not None]
