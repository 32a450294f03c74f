"""What runs say of a claim: holds, does not, or undecided; margins are written down before the runs."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import scipy.stats

from vitrail.evaluate.metrics import paired_bootstrap, t_interval
from vitrail.experiments.run import Result

Word = Literal["holds", "does not hold", "undecided"]


@dataclass(frozen=True)
class Estimate:
    """A mean and its 95 % interval, Student's where the mean is over seeds."""

    mean: float
    low: float
    high: float
    seeds: int = 0
    """Zero: not over seeds."""

    def of_several(self, count: int) -> Estimate:
        """The same with an interval wide enough for all of ``count`` to be right together at 95 % (Bonferroni)."""
        if self.seeds < 2:
            return self
        usual, wide = (scipy.stats.t.ppf(1 - 0.025 / times, self.seeds - 1) for times in (1, count))
        return Estimate(
            self.mean,
            self.mean - (self.mean - self.low) * wide / usual,
            self.mean + (self.high - self.mean) * wide / usual,
            self.seeds,
        )

    def points(self) -> str:
        """``+1.2 (+0.3 to +2.1)``, in percentage points."""
        return f"{100 * self.mean:+.1f} ({100 * self.low:+.1f} to {100 * self.high:+.1f})"

    def percent(self) -> str:
        """``71.2 ± 0.4``."""
        return f"{100 * self.mean:.1f} ± {100 * (self.high - self.mean):.1f}"


def over_seeds(values: Sequence[float]) -> Estimate:
    """Mean over seeds with Student's t interval; one seed says nothing of its spread."""
    return Estimate(statistics.mean(values), *t_interval(values), seeds=len(values))


def difference(ours: Sequence[float], theirs: Sequence[float]) -> Estimate:
    """Of runs that share their seeds, pair by pair."""
    return over_seeds([one - other for one, other in zip(ours, theirs, strict=True)])


def over_pictures(ours: Sequence[Result], theirs: Sequence[Result]) -> Estimate:
    """Difference in accuracy of runs that share their seeds, and a paired bootstrap over the pictures they judge.

    Each picture counts with the mean over seeds: the interval says whether other pictures would come out alike, and
    nothing of other seeds.
    """
    return Estimate(*paired_bootstrap(_right(ours), _right(theirs)))


def _right(results: Sequence[Result]) -> np.ndarray:
    """(S, n) for S seeds and n pictures."""
    return np.stack([result.right for result in results])


def above(estimate: Estimate, margin: float = 0.0) -> Word:
    """The claim that a quantity is more than ``margin``."""
    if estimate.low > margin:
        return "holds"
    return "does not hold" if estimate.high < margin else "undecided"


def within(estimate: Estimate, margin: float) -> Word:
    """The claim that a quantity is nearer to zero than ``margin``."""
    if -margin < estimate.low and estimate.high < margin:
        return "holds"
    return "does not hold" if estimate.low > margin or estimate.high < -margin else "undecided"


def together(claim: Callable[[Estimate], Word], estimates: Iterable[Estimate]) -> Word:
    """The claim that ``claim`` is true of all.

    It holds where it does of each. That one of several fails by chance is likelier than that a certain one does: it
    does not hold where that is so of one by ``of_several``.
    """
    found = list(estimates)
    if all(claim(one) == "holds" for one in found):
        return "holds"
    failing = any(claim(one.of_several(len(found))) == "does not hold" for one in found)
    return "does not hold" if failing else "undecided"
