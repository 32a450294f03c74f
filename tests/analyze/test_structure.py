"""Rows, columns and distance: against scikit-learn's regression on every pair, planted structure, degenerate grids."""

from __future__ import annotations

from dataclasses import asdict

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.linear_model import LinearRegression

from vitrail.analyze.structure import Array, profiles, structure
from vitrail.config import Size

SIZES = st.tuples(st.integers(2, 4), st.integers(2, 5)).filter(lambda size: size != (2, 2))


def _pairs(values: Array, grid: Size) -> tuple[list[tuple[int, int]], Array]:
    """(rows apart, columns apart) of every ordered pair of different patches, and its number, by a loop."""
    places = [(row, column) for row in range(grid[0]) for column in range(grid[1])]
    apart, numbers = [], []
    for i, (row, column) in enumerate(places):
        for j, (other_row, other_column) in enumerate(places):
            if i != j:
                apart.append((abs(row - other_row), abs(column - other_column)))
                numbers.append(values[i, j])
    return apart, np.array(numbers)


def _score(features: list[list[float]], numbers: Array) -> float:
    return float(LinearRegression().fit(features, numbers).score(features, numbers))


@given(SIZES, st.integers(0, 9), st.sampled_from([1e-3, 1.0, 50.0]))
def test_shares_are_those_of_a_regression_on_every_pair(grid: Size, seed: int, scale: float) -> None:
    values = np.random.default_rng(seed).normal(3.0, scale, (grid[0] * grid[1],) * 2)
    apart, numbers = _pairs(values, grid)
    row, column = [float(down == 0) for down, _ in apart], [float(across == 0) for _, across in apart]
    distance = [float(np.hypot(*pair)) for pair in apart]

    def of(*features: list[float]) -> float:
        return _score(np.transpose(features).tolist(), numbers)

    levels = sorted({down**2 + across**2 for down, across in apart})
    level = [[float(down**2 + across**2 == one) for one in levels] for down, across in apart]
    steps = [[float(d == n) for n in range(grid[0])] + [float(a == n) for n in range(grid[1])] for d, a in apart]
    together = of(row, column, distance)
    expected = {
        "row": of(row),
        "column": of(column),
        "distance": of(distance),
        "together": together,
        "row_adds": together - of(column, distance),
        "column_adds": together - of(row, distance),
        "distance_adds": together - of(row, column),
        "any_distance": _score(level, numbers),
        "any_offset": _score(steps, numbers),
        "mean_row": numbers[np.array(row) == 1].mean(),
        "mean_column": numbers[np.array(column) == 1].mean(),
        "mean_elsewhere": numbers[(np.array(row) == 0) & (np.array(column) == 0)].mean(),
        "mean_neighbours": numbers[np.array(distance) == 1].mean(),
    }
    assert asdict(structure(values, grid)) == pytest.approx(expected, abs=1e-9)


def test_what_is_planted_is_found() -> None:
    grid = (4, 6)
    rows, columns = np.divmod(np.arange(24), 6)
    same_row = (rows[:, None] == rows).astype(float)
    found = structure(same_row, grid)
    assert (found.row, found.together, found.any_offset) == pytest.approx((1, 1, 1))
    assert found.row_adds is not None
    assert found.row_adds > 0.5
    assert (found.column_adds, found.distance_adds) == pytest.approx((0, 0))
    assert (found.mean_row, found.mean_column, found.mean_elsewhere) == (1, 0, 0)
    distance = np.hypot(rows[:, None] - rows, columns[:, None] - columns)
    found = structure(7 - 2 * distance, grid)
    assert (found.distance, found.any_distance) == pytest.approx((1, 1))
    assert (found.row_adds, found.column_adds) == pytest.approx((0, 0))
    found = structure(np.cos(3 * distance), grid)  # of distance alone, but no line
    assert found.any_distance == pytest.approx(1)
    assert found.distance is not None
    assert found.distance < 0.5
    found = structure(np.sqrt(abs(rows[:, None] - rows)) - abs(columns[:, None] - columns) ** 2.0, grid)
    assert found.any_offset == pytest.approx(1)
    assert found.any_distance is not None
    assert found.any_distance < 0.9


def test_the_diagonal_does_not_count_and_pairs_do_in_both_directions() -> None:
    values = np.random.default_rng(0).normal(size=(12, 12))
    other = values + np.diag(np.full(12, 1e6))
    assert structure(values, (3, 4)) == structure(other, (3, 4))
    assert asdict(structure(values, (3, 4))) == pytest.approx(asdict(structure(values.T, (3, 4))))


@pytest.mark.parametrize("grid", [(1, 1), (1, 2), (2, 1), (1, 5), (5, 1), (2, 2)])
def test_grids_too_small_for_a_question_answer_none(grid: Size) -> None:
    found = structure(np.random.default_rng(0).normal(size=(grid[0] * grid[1],) * 2), grid)
    flat, pair = min(grid) == 1, grid[0] * grid[1] < 3
    assert (found.row is None, found.row_adds is None) == (flat, flat)
    assert (found.column is None, found.column_adds is None) == (flat, flat)
    assert (found.distance is None, found.any_distance is None) == (pair, pair)
    assert (found.together is None, found.any_offset is None) == (pair, pair)
    assert (found.mean_row is None) == (grid[1] == 1)
    assert (found.mean_column is None) == (grid[0] == 1)
    assert (found.mean_elsewhere is None) == flat
    assert all(number is None or np.isfinite(number) for number in asdict(found).values())
    if flat and not pair:
        assert found.together == pytest.approx(found.distance)
        assert found.distance_adds == pytest.approx(found.distance)
        assert found.any_offset == pytest.approx(found.any_distance)


@pytest.mark.parametrize("value", [0.0, 1.0, -3e8])
def test_what_does_not_vary_is_not_explained(value: float) -> None:
    noise = 1 + 1e-8 * np.random.default_rng(0).normal(size=(9, 9))  # of rounding
    found = asdict(structure(value * noise, (3, 3)))
    means = {name: number for name, number in found.items() if name.startswith("mean")}
    assert list(means.values()) == pytest.approx([value] * 4)
    assert {number for name, number in found.items() if name not in means} == {None}


@pytest.mark.parametrize("grid", [(4, 5), (1, 5), (3, 1), (1, 1)])
def test_profiles_are_means_and_deviations_over_pairs(grid: Size) -> None:
    values = np.random.default_rng(1).normal(size=(grid[0] * grid[1],) * 2)
    apart, numbers = _pairs(values, grid)
    found = profiles(values, grid)
    seen = 0
    for name, profile in found.items():
        for distance, mean, deviation in zip(profile.distance, profile.mean, profile.deviation, strict=True):
            kinds = ["same row" if d == 0 else "same column" if a == 0 else "elsewhere" for d, a in apart]
            chosen = [
                number
                for (down, across), kind, number in zip(apart, kinds, numbers, strict=True)
                if kind == name and round(np.hypot(down, across)) == distance
            ]
            assert (mean, deviation) == pytest.approx((np.mean(chosen), np.std(chosen)))
            seen += len(chosen)
    assert seen == len(numbers)
