"""Where pages come from: the templates beside this file, every value in them escaped, and none left out in silence."""

from __future__ import annotations

from pathlib import Path

import jinja2

from vitrail.report.figures import RAMP


def environment() -> jinja2.Environment:
    """With ``ramp``, the colours of heat maps for the style sheet."""
    made = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.globals["ramp"] = ", ".join(f"rgb({red} {green} {blue})" for red, green, blue in RAMP)
    return made
