"""The rate as a function of the step."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vitrail.settings import ScheduleKind, TrainSettings
from vitrail.train.schedule import rate_share

KINDS: tuple[ScheduleKind, ...] = ("cosine", "linear", "rsqrt", "constant")


@given(steps=st.integers(1, 300), warmup=st.floats(0.0, 0.9) | st.integers(1, 400), kind=st.sampled_from(KINDS))
def test_the_rate_rises_then_falls_within_bounds(steps: int, warmup: float, kind: ScheduleKind) -> None:
    rates = [rate_share(step, TrainSettings(steps, warmup=warmup, schedule=kind)) for step in range(steps)]
    assert all(0.0 <= rate <= 1.0 + 1e-9 for rate in rates)
    top = rates.index(max(rates))
    assert rates[: top + 1] == sorted(rates[: top + 1])
    assert rates[top:] == sorted(rates[top:], reverse=True)


@pytest.mark.parametrize(
    ("kind", "step", "warmup", "share"),
    [
        ("cosine", 50, 0.0, 0.5),
        ("cosine", 0, 0.1, 1 / 11),
        ("cosine", 9, 10, 10 / 11),
        ("cosine", 10, 10, 1.0),
        ("linear", 55, 10, 0.5),
        ("linear", 25, 0.0, 0.75),
        ("rsqrt", 10, 10, 1.0),
        ("rsqrt", 40, 10, 0.5),
        ("rsqrt", 40, 0.1, 0.5),
        ("rsqrt", 64, 0.0, 1 / 8),
        ("constant", 99, 0.1, 1.0),
    ],
)
def test_closed_forms(kind: ScheduleKind, step: int, warmup: float, share: float) -> None:
    assert rate_share(step, TrainSettings(100, warmup=warmup, schedule=kind)) == pytest.approx(share)
