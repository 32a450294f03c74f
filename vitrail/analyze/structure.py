"""What of a number between every two patches is rows, columns and distance."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.linalg

from vitrail.config import Size

Array = np.ndarray[Any, Any]

CONSTANT = 1e-12
"""Numbers that spread by less than a millionth of their size do not vary: it is rounding."""


@dataclass(frozen=True)
class Structure:
    """Shares of variance and means over the ordered pairs of different patches, i != j, of a grid.

    A share is R^2 = 1 - (squares left over) / (squares about the mean), of an ordinary least squares
    fit with a constant. It is None where it means nothing: the numbers are all the same, or what is to
    explain them is (in a single row every patch shares it). A mean is None where no pair is of its kind.
    """

    row: float | None
    """R^2 of being in the same row or not."""
    column: float | None
    """R^2 of being in the same column or not."""
    distance: float | None
    """R^2 of the Euclidean distance in patches, as a straight line."""
    together: float | None
    """R^2 of these three at once."""
    row_adds: float | None
    """By how much R^2 of all three is above that of column and distance."""
    column_adds: float | None
    distance_adds: float | None
    any_distance: float | None
    """R^2 of the mean at each distinct distance: of distance in whatever shape."""
    any_offset: float | None
    """R^2 of a number for each |rows apart| plus one for each |columns apart|, whatever these are."""
    mean_row: float | None
    """Mean between different patches of a row."""
    mean_column: float | None
    mean_elsewhere: float | None
    """Mean between patches that share neither row nor column."""
    mean_neighbours: float | None
    """Mean between a patch and those above, below, left and right of it."""


def structure(values: Array, grid: Size) -> Structure:
    """How ``values`` (h w, h w), from each patch (row) to each (column), depend on where patches stand.

    The diagonal is left out. All explanations are functions of how many rows and columns two patches
    are apart, so the fits are made on the means of these h w - 1 cases, weighted by how often each
    occurs; what varies within a case none of them can explain. The result is that of all pairs.
    """
    cells = _Cells(values, grid)
    row, column, distance = cells.down == 0, cells.across == 0, cells.distance
    steps = [cells.down == step for step in range(1, grid[0])] + [cells.across == step for step in range(1, grid[1])]
    together = cells.explained(row, column, distance)

    def adds(own: Array, *rest: Array) -> float | None:
        if together is None or not _varies(own):
            return None
        return max(0.0, together - (cells.explained(*rest) or 0.0))

    return Structure(
        row=cells.explained(row),
        column=cells.explained(column),
        distance=cells.explained(distance),
        together=together,
        row_adds=adds(row, column, distance),
        column_adds=adds(column, row, distance),
        distance_adds=adds(distance, row, column),
        any_distance=cells.share(cells.levelled()) if _varies(distance) else None,
        any_offset=cells.explained(*steps),
        mean_row=cells.average(row),
        mean_column=cells.average(column),
        mean_elsewhere=cells.average(~row & ~column),
        mean_neighbours=cells.average(cells.down + cells.across == 1),
    )


@dataclass(frozen=True)
class Profile:
    """The numbers of one kind of pairs against their distance."""

    distance: Array
    """Whole patches, (n,), ascending; distances in between are rounded."""
    mean: Array
    deviation: Array
    """Standard deviation over the pairs."""


def profiles(values: Array, grid: Size) -> dict[str, Profile]:
    """``values`` (h w, h w) by distance, for ``same row``, ``same column`` and ``elsewhere``, where there are any."""
    cells = _Cells(values, grid)
    kinds = {
        "same row": cells.down == 0,
        "same column": cells.across == 0,
        "elsewhere": (cells.down > 0) & (cells.across > 0),
    }
    rounded = np.rint(cells.distance).astype(int)
    found = {}
    for name, members in kinds.items():
        if members.any():
            distances = np.unique(rounded[members])
            spreads = [cells.spread(members & (rounded == distance)) for distance in distances]
            means, deviations = np.array(spreads).T
            found[name] = Profile(distances, means, deviations)
    return found


class _Cells:
    """Pairs of patches gathered by how many rows and columns they are apart, those at (0, 0) left out."""

    def __init__(self, values: Array, grid: Size) -> None:
        h, w = grid
        rows, columns = np.divmod(np.arange(h * w), w)
        cell = abs(rows[:, None] - rows) * w + abs(columns[:, None] - columns)  # (h w, h w)
        counts = np.bincount(cell.ravel())
        numbers = np.asarray(values, np.float64)
        means = np.bincount(cell.ravel(), numbers.ravel()) / counts
        squares = np.bincount(cell.ravel(), np.square(numbers - means[cell]).ravel())
        self.down, self.across = (part[1:] for part in np.divmod(np.arange(h * w), w))
        self.distance = np.hypot(self.down, self.across)
        self.count, self.mean, self.within = counts[1:], means[1:], squares[1:]  # (h w - 1,) each
        middle = self.average(self.count > 0) or 0.0
        self.all = float((self.within + self.count * np.square(self.mean - middle)).sum())
        self.constant = self.all <= CONSTANT * float((self.within + self.count * np.square(self.mean)).sum())

    def average(self, chosen: Array) -> float | None:
        """Mean over the pairs in the ``chosen`` cells."""
        return float(np.average(self.mean[chosen], weights=self.count[chosen])) if chosen.any() else None

    def spread(self, chosen: Array) -> tuple[float, float]:
        """Mean and standard deviation over the pairs in the ``chosen`` cells."""
        mean, count = self.average(chosen) or 0.0, self.count[chosen]
        squares = self.within[chosen] + count * np.square(self.mean[chosen] - mean)
        return mean, float(np.sqrt(squares.sum() / count.sum()))

    def explained(self, *columns: Array) -> float | None:
        """R^2 of a constant and these ``columns`` (h w - 1,) by weighted least squares; None if none varies."""
        varying = [column for column in columns if _varies(column)]
        if not varying:
            return None
        design = np.stack([np.ones(len(self.count)), *varying], axis=1)  # (h w - 1, 1 + columns)
        weight = np.sqrt(self.count)
        fitted = design @ scipy.linalg.lstsq(design * weight[:, None], self.mean * weight)[0]
        return self.share(fitted)

    def levelled(self) -> Array:
        """The mean of all pairs at each cell's distance: (h w - 1,)."""
        _, level = np.unique(self.down**2 + self.across**2, return_inverse=True)
        means: Array = np.bincount(level, self.count * self.mean) / np.bincount(level, self.count)
        return means[level]

    def share(self, fitted: Array) -> float | None:
        """R^2 of the cells' numbers being ``fitted``."""
        if self.constant:
            return None
        left = (self.within + self.count * np.square(self.mean - fitted)).sum()
        return float(np.clip(1.0 - left / self.all, 0.0, 1.0))


def _varies(column: Array) -> bool:
    return len(column) > 0 and bool(column.min() != column.max())
