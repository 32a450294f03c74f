"""Intervals by hand, and words that follow from them."""

from __future__ import annotations

import math
from functools import partial

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vitrail.experiments.verdict import Estimate, above, difference, over_seeds, together, within


def test_three_seeds_by_hand() -> None:
    """Mean 2, deviation 1, t = 4.3027 for two degrees of freedom."""
    found = over_seeds([1.0, 2.0, 3.0])
    assert found.mean == 2.0
    assert found.high - found.mean == pytest.approx(4.302652729911275 / math.sqrt(3))
    assert found.low == pytest.approx(2 * found.mean - found.high)


def test_one_seed_decides_nothing() -> None:
    assert above(over_seeds([0.9])) == "undecided"
    assert within(over_seeds([0.0]), 1.0) == "undecided"


@given(st.lists(st.floats(-1, 1), min_size=2, max_size=5), st.floats(-1, 1))
def test_a_difference_is_of_pairs(values: list[float], shift: float) -> None:
    """A constant shift is found exactly, however the seeds spread."""
    found = difference([value + shift for value in values], values)
    assert found.mean == pytest.approx(shift, abs=1e-9)
    assert found.high - found.low == pytest.approx(0.0, abs=1e-6)


@pytest.mark.parametrize(
    ("low", "high", "more", "tie"),
    [
        (0.02, 0.04, "holds", "does not hold"),
        (-0.005, 0.005, "does not hold", "holds"),
        (0.0, 0.02, "undecided", "undecided"),
        (-0.04, -0.02, "does not hold", "does not hold"),
        (-math.inf, math.inf, "undecided", "undecided"),
    ],
)
def test_words(low: float, high: float, more: str, tie: str) -> None:
    found = Estimate((low + high) / 2 if math.isfinite(low) else 0.0, low, high)
    assert above(found, 0.01) == more
    assert within(found, 0.01) == tie


def test_all_must_hold() -> None:
    more, less, open_ = (over_seeds([at - 0.01, at, at + 0.01]) for at in (0.5, -0.5, 0.0))
    assert together(above, [more, more]) == "holds"
    assert together(above, [more, open_]) == "undecided"
    assert together(above, [more, open_, less]) == "does not hold"
    assert together(partial(above, margin=0.6), [more]) == "does not hold"


def test_one_of_many_that_fails_by_little_may_do_so_by_chance() -> None:
    """For three seeds t is 4.303 at 95 %, and 7.649 where one of three may be wrong at all."""
    close = over_seeds([-0.03, -0.02, -0.01])
    assert (close.high - close.mean) / (close.of_several(3).high - close.mean) == pytest.approx(
        4.3027 / 7.6488, abs=1e-4
    )
    near = over_seeds([-0.06, -0.04, -0.02])
    wide = over_seeds([-0.055, -0.04, -0.025])
    assert above(wide) == "does not hold"
    assert near.high > 0 > wide.high
    assert together(above, [wide]) == "does not hold"
    assert together(above, [wide, over_seeds([0.4, 0.5, 0.6])]) == "undecided"
