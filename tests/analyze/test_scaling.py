"""Costs against closed forms, fits of planted numbers, and a stopwatch that is turned by hand."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from vitrail import cost
from vitrail.analyze import canvas
from vitrail.analyze.scaling import LEAST, MOST, fit, scaling, timed
from vitrail.config import EncoderConfig, HeadConfig, PositionConfig, ViTConfig
from vitrail.errors import UserError

TOY = ViTConfig(
    EncoderConfig(layers=2, width=24, heads=3, mlp_width=40),
    patch=(4, 4),
    image_size=(16, 16),
    tokens=("class", "register"),
    head=HeadConfig(classes=5),
)
SIDES = (8, 16, 24, 48, 96)


def test_operations_are_the_article_s_polynomial() -> None:
    """Article 2.2, every multiply-add two: N^2 in attention alone, N in all the rest but special tokens and head."""
    L, D, M, T = 2, 24, 40, 2
    found = scaling(TOY, SIDES, measure=False).growth("flops")
    assert found is not None
    assert found.worst < 1e-12
    dense = 2 * L * (4 * D * D + 2 * D * M)
    assert found.quadratic == pytest.approx(4 * L * D)
    assert found.linear == pytest.approx(dense + 8 * L * D * T + 2 * 4 * 4 * 3 * D)
    assert found.constant == pytest.approx(dense * T + 4 * L * D * T * T + 2 * D * 5)
    assert found.crossover == pytest.approx(found.linear / found.quadratic)


def test_smaller_patches_of_one_resolution_follow_it_too() -> None:
    found = scaling(TOY, ["48"], [(16, 16), 12, 8, 4, 2], measure=False)
    growth = found.growth("flops")
    assert growth is not None
    assert growth.worst < 1e-12
    assert growth.quadratic == pytest.approx(4 * 2 * 24)
    assert [case.patches for case in found.cases] == [9, 16, 36, 144, 576]
    assert [case.patch for case in found.cases] == [(16, 16), (12, 12), (8, 8), (4, 4), (2, 2)]


def test_cases_say_what_cost_says() -> None:
    found = scaling(TOY, [(8, 16), 32], [4, 8], measure=False)
    rows = found.table()
    assert {len(column) for column in rows.values()} == {4}
    assert rows["patches"].tolist() == [2, 8, 16, 64]
    for number in range(4):
        config = replace(
            TOY,
            image_size=(int(rows["height"][number]), int(rows["width"][number])),
            patch=(int(rows["patch_height"][number]), int(rows["patch_width"][number])),
        )
        assert rows["tokens"][number] == config.sequence == rows["patches"][number] + 2
        for name in ("flops", "parameters", "inference_bytes", "training_bytes"):
            assert rows[name][number] == getattr(cost, name)(config)
        assert rows["attention_share"][number] == 4 * 2 * 24 * config.sequence**2 / cost.flops(config)
    assert np.isnan(rows["seconds"]).all()
    assert found.left_out == ()


def test_relative_positions_count_as_attention() -> None:
    config = replace(TOY, position=PositionConfig("relative-1d"))
    assert cost.flops(config) - cost.attention_flops(config) == cost.flops(TOY) - cost.attention_flops(TOY)
    assert cost.attention_flops(config) > cost.attention_flops(TOY)


COEFFICIENT = st.one_of(st.just(0.0), st.floats(1e-3, 1e3))


@given(COEFFICIENT, COEFFICIENT, COEFFICIENT)
def test_the_fit_finds_what_was_planted(constant: float, linear: float, quadratic: float) -> None:
    N = np.array([4.0, 16, 49, 196, 1024])
    values = constant + linear * N / 100 + quadratic * N**2 / 1e4
    if not values.all():
        return
    found = fit(N, values)
    assert found.worst < 1e-8
    assert np.allclose(found(N), values)
    assert found.constant == pytest.approx(constant, abs=1e-6 * values.min())
    assert found.quadratic * N[-1] ** 2 == pytest.approx(quadratic * N[-1] ** 2 / 1e4, abs=1e-6 * values[-1])
    for exponent, at in ((found.first, N[0]), (found.last, N[-1])):
        beyond = (math.log(found(at * 1.0001)) - math.log(found(at))) / math.log(1.0001)
        assert exponent == pytest.approx(beyond, abs=1e-3)


@pytest.mark.parametrize("power", [0, 1, 2])
def test_a_pure_power_has_its_exponent_everywhere(power: int) -> None:
    N = np.array([4.0, 16, 49, 196])
    found = fit(N, 3 * N**power)
    assert (found.slope, found.first, found.last) == pytest.approx((power, power, power), abs=1e-6)


def test_a_fit_has_no_negative_part() -> None:
    N = np.array([1.0, 2, 3, 4])
    found = fit(N, np.array([1.0, 1.9, 2.5, 2.9]))  # bends down
    assert found.quadratic == 0
    assert found.crossover == math.inf
    assert found.worst > 0.01


class Stopwatch:
    """Time that passes only while something runs."""

    def __init__(self, *lasting: float) -> None:
        self.now, self.order = 0.0, list[int]()
        self.passes = [
            lambda number=number, spent=spent: self.run(number, spent) for number, spent in enumerate(lasting)
        ]

    def run(self, number: int, spent: float) -> None:
        self.now += spent
        self.order.append(number)

    def clock(self) -> float:
        return self.now


def test_cases_take_turns() -> None:
    watch = Stopwatch(3.0, 1.0, 2.0)
    seconds = timed(watch.passes, [30, 10, 20], budget=1e9, clock=watch.clock)
    assert watch.order[:6] == [1, 1, 2, 2, 0, 0]  # the smallest first, each warmed up
    assert watch.order[6:] == [1, 2, 0] * MOST
    assert seconds == [[3.0] * MOST, [1.0] * MOST, [2.0] * MOST]


@pytest.mark.parametrize("budget", [0.0, 5.0, 60.0, 100.0, 1_000.0, 10_000.0])
def test_a_case_that_would_burst_the_budget_is_left_out(budget: float) -> None:
    watch = Stopwatch(1.0, 4.0, 30.0, 400.0)
    seconds = timed(watch.passes, [1, 4, 30, 400], budget, watch.clock)
    kept = [bool(found) for found in seconds]
    assert kept == sorted(kept, reverse=True)  # a larger one is never taken for a smaller
    assert kept == [sum((1.0, 4.0, 30.0, 400.0)[: n + 1]) * (2 + LEAST) <= budget for n in range(4)]
    assert watch.now <= max(budget, 2.0)  # the first has to be run before anything is known
    assert all(len(found) >= LEAST for found in seconds if found)


def test_a_case_that_turns_out_longer_than_expected_is_left_out_too() -> None:
    watch = Stopwatch(1.0, 50.0)
    assert [len(found) for found in timed(watch.passes, [1, 2], 60.0, watch.clock)] == [8, 0]
    assert watch.order == [0, 0, 1, *[0] * 8]


def test_passes_are_timed_and_what_was_left_out_is_said() -> None:
    state = torch.get_rng_state()
    found = scaling(TOY, [8, 16, 32], budget_seconds=0.5)
    assert (torch.get_rng_state() == state).all()
    for case in found.cases:
        assert 0 < case.low <= case.seconds <= case.high
    json.dumps(found.summary(), allow_nan=False)
    assert found.summary()["seconds"]["worst"] >= 0
    none = scaling(TOY, [8, 16, 32], budget_seconds=0)
    assert len(none.left_out) == 3
    assert none.left_out[0] == "8x8 in patches of 4x4 would take longer than the 0 seconds set."
    assert none.growth("seconds") is None
    assert none.summary()["seconds"] is None


def test_misfits_get_a_sentence() -> None:
    with pytest.raises(UserError, match="not a whole number of patches"):
        scaling(TOY, [18], measure=False)
    with pytest.raises(UserError, match="nothing to compare"):
        scaling(TOY, [], measure=False)


def test_figures_have_a_panel_for_what_was_measured() -> None:
    alone = scaling(TOY, SIDES, [4, 8], measure=False).plot()
    assert [axes.get_ylabel() for axes in alone.axes] == ["GFLOP"]
    names = [text.get_text() for text in alone.legends[0].get_texts()]
    assert names == ["a + bN + cN²", "bN (slope 1)", "cN² (slope 2)", "patches of 8x8", "patches of 4x4"]
    both = scaling(TOY, [8, 16], budget_seconds=0.2).plot()  # too few for a fit
    assert [axes.get_ylabel() for axes in both.axes] == ["milliseconds", "GFLOP"]
    ticks = both.axes[0].get_xticks().tolist()
    assert all(a < b for a, b in pairwise(ticks))
    assert "patches N" in canvas.inline_svg(both, "both")
