"""Matplotlib as this project uses it: one style, no global state, and figures that a page can recolour."""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any, ParamSpec

import numpy as np

from vitrail.atomic import new_file, refuse_unwritable
from vitrail.errors import UserError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Drawn = ParamSpec("Drawn")

INK, SOFT, GRID, PAPER = "#1c2130", "#575d6e", "#e6e2d9", "#fffffe"
BLUE, RUBY, AMBER, GREEN = "#1d5a9e", "#b02a30", "#a96a06", "#2c7350"
CYCLE = (BLUE, AMBER, GREEN, RUBY, "#6d4a93", "#2f7fb8")
ENDINGS = (".png", ".svg")
"""Of files that a figure is written to."""
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


def legend(drawn: Figure, axes: Axes) -> None:
    """The labels of one panel under all of them, where no data can be hidden."""
    drawn.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=4, fontsize=8)


def percent(share: float, _: object = None) -> str:
    """A share in [0, 1] as text, for labels and as the format of an axis."""
    return f"{100 * share:.3g} %"


def layer_ticks(axes: Axes, layers: int) -> None:
    """Layers, counted from 1, along the x axis."""
    axes.set_xticks(range(1, layers + 1, 1 if layers <= 16 else -(-layers // 12)))
    axes.set_xlabel("layer")


def heads(
    axes: Axes,
    mean: Any,
    low: Any,
    high: Any,
    colour: str,
    label: str = "",
    within: tuple[float, float] = (-0.28, 0.28),
) -> None:
    """A dot for each head at its layer, counted from 1, with its interval unless some are nan: arrays (L, K).

    The heads of a layer stand side by side ``within`` its mark, the least first, so that the intervals can be seen.
    """
    layers, count = mean.shape
    depth = np.arange(1, layers + 1)
    order = np.argsort(mean, axis=1)
    dots, low, high = (np.take_along_axis(values, order, axis=1) for values in (mean, low, high))
    across = depth[:, None] + (np.linspace(*within, count) if count > 1 else np.full(1, sum(within) / 2))
    if np.isfinite(low).all():
        spread = np.stack([(dots - low).ravel(), (high - dots).ravel()])
        axes.errorbar(across.ravel(), dots.ravel(), spread, fmt="none", ecolor=colour, lw=1, alpha=0.6)
    axes.scatter(across, dots, s=12 if mean.size <= 144 else 6, color=colour, label=label or None, zorder=3)
    layer_ticks(axes, layers)


def picture_only(axes: Axes) -> None:
    """Axes for an image: no ticks, no grid, no frame."""
    axes.set_xticks([])
    axes.set_yticks([])
    axes.grid(False)
    for spine in axes.spines.values():
        spine.set_visible(False)


def refuse(path: Path) -> None:
    """Raise UserError when ``save`` could not write ``path``, so that long work is not done for nothing."""
    if path.suffix.lower() not in ENDINGS:
        raise UserError(f"{path} is no name for a figure: let it end in {' or '.join(ENDINGS)}.")
    if path.is_dir():
        raise UserError(f"{path} is a folder: name a file to write.")
    refuse_unwritable(path)


def save(drawn: Figure, path: Path) -> None:
    """Write a figure as its ending says, one of ``ENDINGS``, with 200 dots an inch; the same figure, the same bytes.

    Raises:
        UserError: it cannot be written.
    """
    ending = path.suffix.lower()
    metadata = {"Date": None} if ending == ".svg" else {"Software": None}
    with new_file(path) as beside, _matplotlib().rc_context({**_STYLE, "svg.hashsalt": path.stem}):
        drawn.savefig(beside, dpi=200, format=ending[1:], metadata=metadata)


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
