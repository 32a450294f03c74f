"""Does attention land on the object? (ViT figure 6; article 6.3) Measured where masks say where the object is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from vitrail.analyze import canvas
from vitrail.analyze.finding import Array, Finding
from vitrail.config import Size
from vitrail.errors import UserError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

RESAMPLES = 10_000


def central(grid: Size, deviation: float = 0.25) -> Array:
    """What a map that knows no picture may look like: a Gaussian about the centre, (h, w).

    Args:
        deviation: its standard deviation, as a share of the picture's height and width.
    """
    rows, columns = (((np.arange(length) + 0.5) / length - 0.5) / deviation for length in grid)
    found: Array = np.exp(-0.5 * (rows[:, None] ** 2 + columns[None] ** 2))
    return found


@dataclass(frozen=True)
class Landing(Finding):
    """The share of each map's mass inside the object, beside the share of the area that the object takes."""

    name: ClassVar[str] = "attention-landing"

    area: Array
    """(n,) of each image."""
    mass: dict[str, Array]
    """Name of a map -> (n,); equal to ``area`` on average for a map that knows nothing."""

    def table(self) -> dict[str, Array]:
        """A row for each image."""
        return {"image": np.arange(len(self.area)), "area": self.area, **self.mass}

    def excess(self, name: str, over: str | None = None, seed: int = 0) -> tuple[float, float, float]:
        """Mean over images of a map's mass less the area, or less another map's; 95 % paired bootstrap interval."""
        difference = self.mass[name] - (self.area if over is None else self.mass[over])
        chance, n = np.random.default_rng(seed), len(difference)
        means = [difference[chance.integers(n, size=n)].mean() for _ in range(RESAMPLES)]
        low, high = np.percentile(means, [2.5, 97.5])
        return float(difference.mean()), float(low), float(high)

    def summary(self) -> dict[str, Any]:
        """Means over images, with the interval of what is above the area."""
        maps = {}
        for name, mass in self.mass.items():
            excess, low, high = self.excess(name)
            maps[name] = {"mass": float(mass.mean()), "above_area": excess, "interval": [low, high]}
            maps[name]["images_above_area"] = float((mass > self.area).mean())
        return {"images": len(self.area), "area": float(self.area.mean()), "maps": maps}

    @canvas.styled
    def plot(self) -> Figure:
        """Means above the area, with intervals."""
        drawn, (axes,) = canvas.figure(size=(5.6, 0.9 + 0.36 * len(self.mass)))
        for row, name in enumerate(self.mass):
            excess, low, high = (100 * value for value in self.excess(name))
            axes.errorbar(excess, row, xerr=[[excess - low], [high - excess]], fmt="o", ms=5, color=canvas.BLUE)
        axes.axvline(0, color=canvas.SOFT, lw=1, ls=(0, (5, 4)))
        axes.set_yticks(range(len(self.mass)), list(self.mass))
        axes.invert_yaxis()
        axes.margins(y=0.12)
        axes.set(xlabel="points of mass inside the object, above its share of the area", title="Where attention lands")
        return drawn


def landing(maps: Mapping[str, Array], inside: Array) -> Landing:
    """Weigh maps with masks.

    Args:
        maps: name -> (n, h, w), not negative; each image's is taken to sum to 1.
        inside: (n, h, w), the share of each cell that the object covers.

    Raises:
        UserError: shapes differ, there is no image, or a map has no mass.
    """
    if not len(inside):
        raise UserError("There is no image to look at: name a folder that holds some.")
    mass = {}
    for name, values in maps.items():
        if values.shape != inside.shape:
            raise UserError(f"The map {name!r} is of shape {values.shape}, the masks are of {inside.shape}.")
        total = values.sum(axis=(1, 2))
        if not (total > 0).all():
            raise UserError(f"The map {name!r} has no mass in image {int(np.argmin(total))}.")
        mass[name] = (values * inside).sum(axis=(1, 2)) / total
    return Landing(inside.mean(axis=(1, 2)), mass)
