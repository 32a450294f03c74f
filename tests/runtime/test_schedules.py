"""Schedules of merging: valid by construction, and the search against trying all of them."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vitrail.config import EncoderConfig, ViTConfig, variant
from vitrail.cost import merged_flops, merged_tokens
from vitrail.errors import UserError
from vitrail.runtime.schedules import KINDS, LEVELS, Kind, schedule, search

TINY = variant("ViT-Ti/16")
SHARES = st.floats(0, 1)


def _config(layers: int, rows: int, columns: int) -> ViTConfig:
    return ViTConfig(EncoderConfig(layers, 8, 2, 8), (4, 4), (4 * rows, 4 * columns))


CONFIGS = st.builds(_config, st.integers(1, 14), st.integers(1, 8), st.integers(1, 8))


@given(
    config=CONFIGS,
    shares=st.tuples(SHARES, SHARES).map(sorted),
    kind=st.sampled_from(KINDS),
    every=st.integers(1, 5),
)
def test_any_schedule_fits_and_a_larger_share_leaves_no_layer_more(
    config: ViTConfig, shares: list[float], kind: Kind, every: int
) -> None:
    less, more = (merged_tokens(config, schedule(config, share, kind, every)) for share in shares)
    assert all(few <= many for few, many in zip(more, less, strict=True))
    assert config.sequence - more[-1] <= round(shares[1] * config.grid[0] * config.grid[1])


@given(share=st.floats(0, 0.5), layers=st.integers(6, 24))
def test_the_families(share: float, layers: int) -> None:
    config = _config(layers, 30, 30)
    constant, decreasing, late = (schedule(config, share, kind) for kind in KINDS)
    assert sum(constant) == sum(decreasing) == sum(late) == round(900 * share)
    assert max(constant) - min(constant) <= 1
    assert all(after <= before + 1 for before, after in itertools.pairwise(decreasing))
    # l, ..., 2, 1 of l (l + 1) / 2 parts
    assert decreasing[0] == pytest.approx(2 * sum(decreasing) / (layers + 1), abs=1)
    assert decreasing[-1] <= 2 * sum(decreasing) / (layers + 1) / layers + 1
    assert set(late[: layers // 3]) == {0}
    assert max(late[layers // 3 :]) - min(late[layers // 3 :]) <= 1


def test_schedules_of_tiny_16() -> None:
    assert schedule(TINY, 0.0) == (0,) * 12
    assert schedule(TINY, 12 * 13 / 196) == (13,) * 12
    assert schedule(TINY, 78 / 196, "decreasing") == tuple(range(12, 0, -1))
    assert schedule(TINY, 80 / 196, "late") == (0,) * 4 + (10,) * 8
    assert schedule(TINY, 12 * 13 / 196, every=3) == (39, 0, 0) * 4
    assert schedule(TINY, 78 / 196, "decreasing", 3) == (33, 0, 0, 24, 0, 0, 15, 0, 0, 6, 0, 0)
    assert schedule(TINY, 80 / 196, "late", 3) == (0, 0, 0, 20, 0, 0, 30, 0, 0, 30, 0, 0)


def test_what_a_layer_cannot_merge_the_next_ones_do() -> None:
    """All of 16 patches, in two layers of eight each: there are only halves, 16, 8, 4, 2, 1."""
    assert schedule(_config(2, 4, 4), 1.0) == (8, 4)
    assert schedule(_config(6, 4, 4), 1.0, "late") == (0, 0, 4, 4, 4, 2)
    assert schedule(_config(6, 4, 4), 1.0, "decreasing") == (5, 3, 3, 2, 1, 1)


@pytest.mark.parametrize("share", [-0.1, 1.1])
def test_a_share_is_a_share(share: float) -> None:
    with pytest.raises(UserError, match=f"must lie between 0 and 1, not {share}"):
        schedule(TINY, share)


# --- search ---


class Losses:
    """Points lost by a model whose layers each mind, by a weight, how many tokens are gone by then."""

    def __init__(self, weights: list[float]) -> None:
        self.weights = weights
        self.asked: list[tuple[int, ...]] = []

    def __call__(self, merging: tuple[int, ...]) -> float:
        self.asked.append(merging)
        return self.of(merging)

    def of(self, merging: tuple[int, ...]) -> float:
        gone = [sum(merging[: layer + 1]) / 196 for layer in range(12)]
        return sum(weight * part**2 for weight, part in zip(self.weights, gone, strict=True))


FAMILIES = [schedule(TINY, level / LEVELS, kind) for kind in KINDS for level in range(LEVELS + 1)]
WEIGHTS = st.lists(st.floats(0, 3), min_size=12, max_size=12)


@given(weights=WEIGHTS, allowed=st.floats(0.01, 3))
def test_search_finds_the_cheapest_of_all_families(weights: list[float], allowed: float) -> None:
    losses = Losses(weights)
    found = search(TINY, losses, allowed)
    fine = [merging for merging in FAMILIES if losses.of(merging) <= allowed]
    assert found.best.flops == min(merged_flops(TINY, merging) for merging in fine)
    assert found.best.flops == merged_flops(TINY, found.best.merging)
    assert found.best.loss == losses.of(found.best.merging) <= allowed
    assert [trial.merging for trial in found.tried] == losses.asked
    assert len(losses.asked) <= 6 * len(KINDS)
    assert search(TINY, losses, allowed) == found


@given(weights=WEIGHTS, pair=st.tuples(st.floats(0, 3), st.floats(0, 3)).map(sorted))
def test_who_allows_more_gets_no_dearer_schedule(weights: list[float], pair: list[float]) -> None:
    less, more = (search(TINY, Losses(weights), allowed).best for allowed in pair)
    assert more.flops <= less.flops


def test_a_family_that_cannot_win_is_asked_once() -> None:
    early = Losses([9.0] * 4 + [0.0] * 8)  # whoever starts late loses next to nothing
    found = search(TINY, early, 0.5, ("late", "constant", "decreasing"))
    assert found.best.merging == schedule(TINY, 1.0, "late")
    assert len(found.tried) == 5 + 1 + 1


@given(seed=st.integers(0, 99))
def test_noise_never_gets_more_than_is_allowed(seed: int) -> None:
    found = search(TINY, lambda merging: hash((seed, merging)) % 100 / 50, 0.9)
    assert found.best.loss <= 0.9
    assert found.best.flops == min([merged_flops(TINY, ()), *(t.flops for t in found.tried if t.loss <= 0.9)])


def test_without_a_schedule_that_will_do_nothing_is_merged() -> None:
    found = search(TINY, lambda merging: 5.0, 1.0)
    assert found.best.merging == (0,) * 12
    assert (found.best.loss, found.best.flops) == (0.0, merged_flops(TINY, ()))
    assert {trial.loss for trial in found.tried} == {5.0}
