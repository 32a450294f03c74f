"""Numbers -> inline SVG. Each figure is a pure function; its colours are the page's custom properties."""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from markupsafe import Markup

from vitrail.evaluate.metrics import wilson

Array = np.ndarray[Any, Any]

CELL, NAMES = 26, 118
"""Of a heat map: the side of a cell, and the room for a class's name, in SVG units."""
RAMP = ((24, 20, 48), (92, 38, 108), (184, 64, 84), (240, 138, 58), (255, 232, 160))
"""Colours of attention, none to most, evenly spaced; their lightness rises throughout."""


@dataclass(frozen=True)
class Line:
    """A named curve; points that are not finite are left out."""

    name: str
    points: tuple[tuple[float, float], ...]


def whisker(value: float, low: float, high: float, floor: float = 0.0) -> Markup:
    """A proportion and its interval on a scale from ``floor`` to 1, as wide as whatever holds it."""
    dot, left, right = (f"{100 * (min(max(x, floor), 1.0) - floor) / (1 - floor):.2f}%" for x in (value, low, high))
    return Markup(
        '<svg class="whisker" aria-hidden="true" width="100%" height="18">'
        '<line x1="{}" x2="{}" y1="9" y2="9"/><circle cx="{}" cy="9" r="4.5"/></svg>'
    ).format(left, right, dot)


def scale(lowest: float) -> tuple[float, list[float]]:
    """Where a scale of proportions that shows ``lowest`` starts, and its five evenly spaced ticks up to 1."""
    floor = next(start for start in (0.8, 0.6, 0.2, 0.0) if start <= max(lowest, 0.0))
    return floor, [floor + (1 - floor) * step / 4 for step in range(5)]


def lines(
    title: str,
    series: Sequence[Line],
    x_name: str,
    as_percent: bool = False,
    ringed: tuple[float, float] | None = None,
) -> Markup:
    """Curves over whole numbers such as epochs; ``ringed`` is the point that was chosen."""
    width, height, left, top, bottom = 360, 230, 46, 44, 36
    drawn = [Line(line.name, tuple(p for p in line.points if all(map(math.isfinite, p)))) for line in series]
    drawn = [line for line in drawn if line.points]
    xs = [x for line in drawn for x, _ in line.points] or [0.0]
    ys = [y for line in drawn for _, y in line.points] or [0.0]
    ticks = _ticks(min(ys), max(ys), 1.0 if as_percent else math.inf)
    first, last = min(xs), max(xs)

    def x_at(x: float) -> float:
        return left + 8 + (width - left - 24) * ((x - first) / (last - first) if last > first else 0.5)

    def y_at(y: float) -> float:
        return top + (height - top - bottom) * (ticks[-1] - y) / (ticks[-1] - ticks[0])

    body = [Markup('<text class="title" x="0" y="14">{}</text>').format(title)]
    factor = 100 if as_percent else 1
    step = factor * (ticks[1] - ticks[0])
    digits = next(digits for digits in range(20) if abs(round(step, digits) - step) < 1e-6 * step)
    for tick in ticks:
        text = f"{factor * tick:.{digits}f}{' %' if as_percent else ''}"
        body.append(
            Markup('<line class="grid" x1="{}" x2="{}" y1="{y}" y2="{y}"/><text class="end" x="{}" y="{}">{}</text>')
            .format(left, width, left - 6, _n(y_at(tick) + 4), text, y=_n(y_at(tick)))
        )  # fmt: skip
    for whole in _whole_ticks(first, last):
        body.append(
            Markup('<text class="middle" x="{}" y="{}">{}</text>').format(_n(x_at(whole)), height - bottom + 18, whole)
        )
    body.append(Markup('<text class="middle" x="{}" y="{}">{}</text>').format((left + width) // 2, height - 4, x_name))
    legend = 0
    for number, line in enumerate(drawn):
        path = " ".join(f"{_n(x_at(x))},{_n(y_at(y))}" for x, y in line.points)
        body.append(Markup('<polyline class="curve c{}" points="{}"/>').format(number % 3, path))
        if len(line.points) <= 12:
            body += [
                Markup('<circle class="dot c{}" cx="{}" cy="{}" r="3"/>').format(number % 3, _n(x_at(x)), _n(y_at(y)))
                for x, y in line.points
            ]
        body.append(
            Markup('<line class="curve c{}" x1="{}" x2="{}" y1="28" y2="28"/><text x="{}" y="32">{}</text>').format(
                number % 3, legend, legend + 22, legend + 28, line.name
            )
        )
        legend += 44 + 7 * len(line.name)
    if ringed is not None:
        body.append(
            Markup('<circle class="ring" cx="{}" cy="{}" r="7"/>').format(_n(x_at(ringed[0])), _n(y_at(ringed[1])))
        )
    said = "; ".join(
        f"{line.name} from {_said(line.points[0][1], as_percent)} at {line.points[0][0]:g} "
        f"to {_said(line.points[-1][1], as_percent)} at {line.points[-1][0]:g}"
        for line in drawn
    )
    return _svg("plot", width, height, f"{title} by {x_name}: {said or 'nothing to show'}.", body)


def heat_map(confusion: Sequence[Sequence[int]], names: Sequence[str]) -> Markup:
    """K x K counts, rows the true class: the share of its row as strength of colour, errors in another hue."""
    side = len(names) * CELL
    body = []
    for row, (name, counts) in enumerate(zip(names, confusion, strict=True)):
        y, total = NAMES + row * CELL, sum(counts)
        middle = y + CELL / 2
        body.append(
            Markup(
                '<text class="end" x="{}" y="{}">{short}<title>{name}</title></text>'
                '<text transform="translate({} {}) rotate(-90)">{short}<title>{name}</title></text>'
            ).format(NAMES - 6, middle + 4, middle + 4, NAMES - 6, short=shortened(name), name=name)
        )
        for column, count in enumerate(counts):
            right = row == column
            if not count and not right:
                continue
            share = count / total if total else 0.0
            # Errors are few: the square root lets one in a hundred be seen.
            strength = share if right else math.sqrt(share)
            text = "middle on" if strength > 0.75 else "middle mid" if strength > 0.58 else "middle"
            x = NAMES + column * CELL
            body.append(
                Markup(
                    '<g><title>{} taken for {}: {} of {}</title><rect class="{}" x="{}" y="{}" width="{side}" '
                    'height="{side}" rx="2" fill-opacity="{:.3f}"/><text class="{}" x="{}" y="{}">{}</text></g>'
                ).format(
                    name, names[column], count, total, "right" if right else "wrong", x + 1, y + 1, strength,
                    text, x + CELL / 2, middle + 4, _brief(count), side=CELL - 2,
                )
            )  # fmt: skip
    whole = NAMES + side
    body.insert(0, Markup('<rect class="field" x="{0}" y="{0}" width="{1}" height="{1}" rx="3"/>').format(NAMES, side))
    label = (
        f"Confusion matrix of {len(names)} classes, one row for each true class; the table gives the largest errors."
    )
    return _svg("heat", whole, whole, label, body, f"min-width:{0.8 * whole:.0f}px;max-width:{1.3 * whole:.0f}px")


def reliability(confidence: Array, correct: Array, title: str, bins: int = 15) -> Markup:
    """How often photos of each confidence are classified rightly, with 95 % Wilson intervals, and how many they are.

    Args:
        confidence: (n,) in [0, 1]; correct: (n,) booleans; bins: of equal width over [0, 1], as in
            ``calibration_error``.
    """
    width, height, left, top, side, strip = 340, 370, 46, 26, 270, 34
    which = np.minimum((confidence * bins).astype(np.int64), bins - 1)
    counts = np.bincount(which, minlength=bins)
    right = np.bincount(which, weights=correct, minlength=bins)
    most = max(int(counts.max()), 1)
    body = [Markup('<text class="title" x="0" y="14">{}</text>').format(title)]
    for tick in (0.0, 0.25, 0.5, 0.75, 1.0):
        x, y = left + side * tick, top + side * (1 - tick)
        body.append(
            Markup(
                '<line class="grid" x1="{}" x2="{}" y1="{}" y2="{}"/><text class="end" x="{}" y="{}">{text}</text>'
                '<text class="middle" x="{}" y="{}">{text}</text>'
            ).format(left, left + side, y, y, left - 6, y + 4, x, top + side + strip + 20, text=f"{100 * tick:.0f} %")
        )
    each = side / bins
    for number in np.flatnonzero(counts).tolist():
        share = float(right[number] / counts[number])
        low, high = wilson(int(right[number]), int(counts[number]))
        x, center = left + number * each, left + (number + 0.5) * each
        count = strip * counts[number] / most
        body.append(
            Markup(
                "<g><title>{} photos with confidence {:.0f} to {:.0f} %: {:.1f} % right</title>"
                '<rect class="bar" x="{}" y="{}" width="{wide}" height="{}"/>'
                '<line class="error" x1="{c}" x2="{c}" y1="{}" y2="{}"/>'
                '<rect class="count" x="{}" y="{}" width="{wide}" height="{}"/></g>'
            ).format(
                int(counts[number]), 100 * number / bins, 100 * (number + 1) / bins, 100 * share,
                _n(x + 1), _n(top + side * (1 - share)), _n(side * share), _n(top + side * (1 - low)),
                _n(top + side * (1 - high)), _n(x + 1), _n(top + side + 4 + strip - count), _n(count),
                wide=_n(each - 2), c=_n(center),
            )
        )  # fmt: skip
    body.append(
        Markup('<line class="ideal" x1="{}" x2="{}" y1="{}" y2="{}"/>').format(left, left + side, top + side, top)
    )
    body.append(Markup('<text class="middle" x="{}" y="{}">confidence</text>').format(left + side / 2, height - 2))
    label = f"Reliability diagram, {title}: share of photos classified rightly in {bins} bins of confidence."
    return _svg("plot", width, height, label, body)


def shortened(name: str, room: int = 16) -> str:
    """At most ``room`` letters' width of a name; letters of East Asia count twice."""
    width = 0
    for position, letter in enumerate(name):
        width += 2 if unicodedata.east_asian_width(letter) in "WF" else 1
        if width > room:
            return name[: max(position - 1, 1)] + "…"
    return name


def _svg(kind: str, width: float, height: float, label: str, body: Iterable[Markup], style: str = "") -> Markup:
    return Markup('<svg class="{}" viewBox="0 0 {} {}" style="{}" role="img" aria-label="{}">{}</svg>').format(
        kind, width, height, style, label, Markup("").join(body)
    )


def _ticks(low: float, high: float, ceiling: float) -> list[float]:
    """Three to six round numbers around [low, high], none above ``ceiling``."""
    spread = max(high - low, abs(high) * 1e-2, 1e-6)
    power = 10.0 ** math.floor(math.log10(spread / 4))
    step = next(power * factor for factor in (1, 2, 2.5, 5, 10) if spread / (power * factor) <= 4)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    if first == last:
        first -= 1
    return [step * number for number in range(first, last + 1) if step * number <= ceiling + 1e-9]


def _whole_ticks(first: float, last: float, most: int = 8) -> range:
    step = 1
    while (last - first) / step > most:
        step = {1: 2, 2: 5, 5: 10}.get(step, step * 2)
    return range(math.ceil(first / step) * step, math.floor(last) + 1, step)


def _brief(count: int) -> str:
    return str(count) if count < 10_000 else f"{count / 1000:.0f}k"


def _said(value: float, as_percent: bool) -> str:
    return f"{100 * value:.1f} %" if as_percent else f"{value:.3g}"


def _n(value: float) -> str:
    return f"{value:.1f}"
