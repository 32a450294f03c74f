"""The two pictures that experiments draw: rows of seeds, and curves with intervals."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from vitrail.analyze import canvas
from vitrail.experiments.verdict import over_seeds


@canvas.styled
def rows_of_seeds(
    title: str, found: Mapping[str, Sequence[float]], label: str = "test accuracy, %", times: float = 100
) -> Any:
    """A row for each name: every seed, and the mean."""
    drawn, axes = canvas.figure(1, 1, size=(5.5, 0.9 + 0.34 * len(found)))
    for row, values in enumerate(found.values()):
        axes[0].plot([times * value for value in values], [row] * len(values), "o", color=canvas.BLUE, ms=5, alpha=0.6)
        axes[0].plot([times * sum(values) / len(values)], [row], "|", color=canvas.BLUE, ms=16)
    axes[0].set_yticks(range(len(found)), list(found))
    axes[0].invert_yaxis()
    axes[0].set(title=title, xlabel=label)
    return drawn


@canvas.styled
def curves(
    title: str,
    x: str,
    places: Sequence[float],
    series: Mapping[str, Sequence[Sequence[float]]],
    logarithmic: bool = True,
) -> Any:
    """Accuracy over ``places``: for each label a list of seeds a place; mean and 95 % t interval."""
    drawn, axes = canvas.figure(1, 1, size=(5.5, 3.4))
    for number, (label, groups) in enumerate(series.items()):
        found = [over_seeds(values) for values in groups]
        means = [100 * one.mean for one in found]
        reach = [100 * (one.high - one.mean) if math.isfinite(one.high) else 0.0 for one in found]
        axes[0].errorbar(places, means, reach, color=f"C{number}", marker="o", ms=4, capsize=2, label=label)
    if logarithmic:
        axes[0].set_xscale("log")
        axes[0].set_xticks(places, [f"{place:,.0f}" if place >= 1000 else f"{place:.3g}" for place in places])
        axes[0].minorticks_off()
    axes[0].set(title=title, xlabel=x, ylabel="test accuracy, %")
    if len(series) > 1:
        axes[0].legend(frameon=False)
    return drawn
