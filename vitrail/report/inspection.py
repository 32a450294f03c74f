"""What was found inside a model as one page of HTML that needs nothing but itself: figures, and an explorer."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from vitrail import __version__
from vitrail.report.explorer import BUDGET, Explorer, packed
from vitrail.report.templates import environment

Facts = Sequence[tuple[str, str]]
"""Terms and their values."""


@dataclass(frozen=True)
class Drawing:
    """A figure.

    Attributes:
        name: of its files, such as ``attention-distance``.
        svg: as ``analyze.canvas.inline_svg`` gives it.
        alt: what it shows, in words, for who does not see it.
    """

    name: str
    svg: str
    caption: str
    alt: str

    @property
    def width(self) -> float:
        """At which it was drawn, in pixels of a page."""
        found = re.search(r'viewBox="[\d.-]+ [\d.-]+ ([\d.]+) [\d.]+"', self.svg)
        return float(found[1]) * 4 / 3 if found else 480.0


@dataclass(frozen=True)
class Picture:
    """A picture, ``data:image/...;base64,...``, and what stands under it."""

    label: str
    uri: str


@dataclass(frozen=True)
class Section:
    """One analysis.

    Attributes:
        id: the address of the section within the page, such as ``distance``; ``explorer`` is taken.
        text: paragraphs: what is seen, how it was measured, and the paper's section.
        strips: rows of pictures.
        absent: why it could not be made, as a sentence; then there is nothing else.
    """

    id: str
    title: str
    text: Sequence[str] = ()
    figures: Sequence[Drawing] = ()
    facts: Facts = ()
    strips: Sequence[Sequence[Picture]] = ()
    absent: str = ""


@dataclass(frozen=True)
class Inspection:
    """All that the page shows.

    Attributes:
        model: its name.
        facts: about it.
        images: how many it was measured on.
        explorer: None: without it, and ``no_explorer`` says why as a sentence.
    """

    model: str
    facts: Facts
    images: int
    sections: Sequence[Section]
    explorer: Explorer | None = None
    no_explorer: str = ""


def render(inspection: Inspection, budget: int = BUDGET) -> str:
    """The page.

    Args:
        budget: characters for the explorer's data. Photos beyond it are left out; if not one fits, heads
            are merged to their mean. The page says so.
    """
    templates = environment()
    templates.filters["svg"] = Markup
    explorer, why_not = None, inspection.no_explorer or "There is no photo whose attention could be shown."
    if inspection.explorer is not None and inspection.explorer.photos:
        explorer, why_not = packed(inspection.explorer, budget), "One photo alone is more than this page should hold."
    return templates.get_template("inspection.html.j2").render(
        inspection=inspection,
        explorer=explorer if explorer is not None and explorer.photos else None,
        why_not=why_not,
        version=__version__,
    )
