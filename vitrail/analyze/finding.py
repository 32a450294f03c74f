"""What every analysis gives: numbers as a tidy table and in brief, and a picture of them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Array = np.ndarray[Any, Any]


class Finding(ABC):
    """The numbers of one analysis."""

    name: ClassVar[str]
    """What its files are called, such as ``attention-distance``."""

    @abstractmethod
    def table(self) -> dict[str, Array]:
        """Tidy columns of equal length, a row for each number measured."""

    @abstractmethod
    def summary(self) -> dict[str, Any]:
        """The few numbers to quote, as plain JSON values."""

    @abstractmethod
    def plot(self) -> Figure:
        """The figure, fit for a paper.

        Raises:
            UserError: matplotlib is not installed.
        """
