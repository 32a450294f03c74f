"""The same analysis of several models, as one finding."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import numpy as np

from vitrail.analyze.finding import Array, Finding

if TYPE_CHECKING:
    from matplotlib.figure import Figure

One = TypeVar("One", bound=Finding)


@dataclass(frozen=True)
class Compared(Finding, Generic[One]):
    """Findings by the name of their model, the first being the one that is looked into."""

    of: Mapping[str, One]
    draw: Callable[[Mapping[str, One]], Figure]

    @property
    def name(self) -> str:  # type: ignore[override]
        """The analysis's own."""
        return next(iter(self.of.values())).name

    @property
    def model(self) -> One:
        """Of the model that is looked into."""
        return next(iter(self.of.values()))

    def table(self) -> dict[str, Array]:
        """The tables one below the other, with a column ``model``."""
        tables = {name: found.table() for name, found in self.of.items()}
        rows = {name: len(next(iter(table.values()))) for name, table in tables.items()}
        columns = {
            column: np.concatenate([table[column] for table in tables.values()])
            for column in next(iter(tables.values()))
        }
        return {**columns, "model": np.repeat(np.array(list(rows)), list(rows.values()))}

    def summary(self) -> dict[str, Any]:
        """The summaries by model."""
        return {name: found.summary() for name, found in self.of.items()}

    def plot(self) -> Figure:
        """All in one figure."""
        return self.draw(self.of)
