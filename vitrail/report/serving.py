"""The page of a model that is served: a place for photos, and what the model says of each."""

from __future__ import annotations

from collections.abc import Sequence

from vitrail import __version__
from vitrail.report.inspection import Facts
from vitrail.report.templates import environment


def render(
    name: str, facts: Facts, classes: Sequence[str], unable: str, address: str, shown: int, most_bytes: int
) -> str:
    """The page, which asks ``predict`` beside it.

    Args:
        name: of the model.
        unable: why it names no class, as a sentence; empty: it does.
        address: where the page is, with a slash at the end.
        shown: classes of each photo.
        most_bytes: that a photo's file may have.
    """
    return (
        environment()
        .get_template("serving.html.j2")
        .render(
            name=name,
            facts=facts,
            classes=classes,
            unable=unable,
            address=address,
            shown=min(shown, len(classes)),
            most_bytes=most_bytes,
            version=__version__,
        )
    )
