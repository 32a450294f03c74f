"""Matplotlib as this project uses it: one style, no global state, and figures that a page can recolour."""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any, ParamSpec

from vitrail.errors import UserError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Drawn = ParamSpec("Drawn")

INK, SOFT, GRID, PAPER = "#1c2130", "#575d6e", "#e6e2d9", "#fffffe"
BLUE, RUBY, AMBER, GREEN = "#1d5a9e", "#b02a30", "#a96a06", "#2c7350"
CYCLE = (BLUE, AMBER, GREEN, RUBY, "#6d4a93", "#2f7fb8")
HEAT, SIGNED = "magma", "RdBu_r"
"""Colour maps: of amounts, and of numbers around zero."""

_PROPERTIES = {INK: "--ink", SOFT: "--soft", GRID: "--grid", PAPER: "--paper", BLUE: "--blue"}
_PROPERTIES |= {RUBY: "--ruby", AMBER: "--amber", GREEN: "--green"}
_STYLE: dict[str, Any] = {
    "font.family": "sans-serif",
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.edgecolor": SOFT,
    "axes.labelcolor": SOFT,
    "axes.titlecolor": INK,
    "axes.facecolor": "none",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "text.color": INK,
    "xtick.color": SOFT,
    "ytick.color": SOFT,
    "legend.frameon": False,
    "figure.facecolor": PAPER,
    "svg.fonttype": "none",
    "image.cmap": HEAT,
    "image.interpolation": "nearest",
}


def _matplotlib() -> Any:
    try:
        import matplotlib
        import matplotlib.figure
    except ImportError:
        raise UserError("Figures need matplotlib: pip install 'vitrail[inspect]'.") from None
    return matplotlib


def require() -> None:
    """Raise UserError where matplotlib is not installed, before work is done for a figure."""
    _matplotlib()


def require() -> None:
    """Raise UserError where matplotlib is not installed, before work is done for a figure."""
    _matplotlib()


def styled(draw: Callable[Drawn, Figure]) -> Callable[Drawn, Figure]:
    """Have ``draw`` run in the style: matplotlib asks for much of it only when a title or a legend is made.

    What it gives raises UserError where matplotlib is not installed.
    """

    @wraps(draw)
    def drawn(*given: Drawn.args, **named: Drawn.kwargs) -> Figure:
        matplotlib = _matplotlib()
        with matplotlib.rc_context({**_STYLE, "axes.prop_cycle": matplotlib.cycler(color=CYCLE)}):
            return draw(*given, **named)

    return drawn


def figure(
    rows: int = 1, columns: int = 1, size: tuple[float, float] = (5.2, 3.4), **options: Any
) -> tuple[Figure, list[Axes]]:
    """A figure of ``size`` inches and its rows * columns axes in raster order; ``options`` as ``subplots`` takes.

    For use in what is ``styled``.
    """
    made = _matplotlib().figure.Figure(figsize=size, layout="constrained")
    axes = made.subplots(rows, columns, squeeze=False, **options)
    return made, list(axes.ravel())


def picture_only(axes: Axes) -> None:
    """Axes for an image: no ticks, no grid, no frame."""
    axes.set_xticks([])
    axes.set_yticks([])
    axes.grid(False)
    for spine in axes.spines.values():
        spine.set_visible(False)


def save(drawn: Figure, path: Path) -> None:
    """Write a figure as its ending says, .png (200 dots an inch) or .svg; the same figure, the same bytes."""
    with _matplotlib().rc_context({**_STYLE, "svg.hashsalt": path.stem}):
        drawn.savefig(path, dpi=200, metadata={"Date": None} if path.suffix == ".svg" else {"Software": None})


def inline_svg(drawn: Figure, name: str) -> str:
    """The figure as an SVG element for a page: text stays text, and colours are the page's custom properties."""
    held = io.StringIO()
    with _matplotlib().rc_context({**_STYLE, "svg.hashsalt": name}):
        drawn.savefig(held, format="svg", dpi=150, metadata={"Date": None}, transparent=True)
    text = held.getvalue()
    text = text[text.index("<svg") :]
    for colour, variable in _PROPERTIES.items():
        text = re.sub(re.escape(colour), f"var({variable})", text, flags=re.IGNORECASE)
    # Ids must not meet those of another figure on the same page.
    text = re.sub(r'(?<=\bid=")(?=[^"])', f"{name}-", text)
    text = re.sub(r'(?<=\bhref="#)', f"{name}-", text)
    return re.sub(r"(?<=url\(#)", f"{name}-", text)
