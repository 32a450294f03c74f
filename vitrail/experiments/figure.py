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


Curve = tuple[Sequence[float], Sequence[Sequence[float]]]
"""Places, and the accuracies of each, a seed after the other."""


@canvas.styled
def curves(panels: Mapping[str, tuple[str, Mapping[str, Curve]]]) -> Any:
    """Accuracy, mean and 95 % t interval over seeds, along logarithmic axes: by title what runs along, and curves.

    A curve of one name has one colour in all panels, and the first panel has all of them.
    """
    drawn, axes = canvas.figure(1, len(panels), size=(0.6 + 4.9 * len(panels), 3.6), sharey=True)
    labels = list(next(iter(panels.values()))[1])
    for axis, (title, (along, series)) in zip(axes, panels.items(), strict=True):
        for label, (places, groups) in series.items():
            found = [over_seeds(values) for values in groups]
            means = [100 * one.mean for one in found]
            reach = [100 * (one.high - one.mean) if math.isfinite(one.high) else 0.0 for one in found]
            colour = f"C{labels.index(label)}"
            axis.errorbar(places, means, reach, color=colour, marker="o", ms=4, capsize=2, label=label)
        marks = next(iter(series.values()))[0]
        axis.set_xscale("log")
        axis.set_xticks(marks, [f"{place:,.0f}" if place >= 1000 else f"{place:.3g}" for place in marks])
        axis.minorticks_off()
        axis.set(title=title, xlabel=along)
    if len(panels) > 1:
        canvas.legend(drawn, axes[0])
    elif len(labels) > 1:
        axes[0].legend(frameon=False)
    axes[0].set_ylabel("test accuracy, %")
    return drawn
