"""Where attention lands: closed forms, and an interval held against scipy's."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from vitrail.analyze.landing import central, landing
from vitrail.errors import UserError

CHANCE = np.random.default_rng(0)
INSIDE = (CHANCE.random((40, 3, 5)) < 0.3).astype(float)
INSIDE[:, 1, 2], INSIDE[:, 0, 0] = 1.0, 0.0  # never all of a picture, nor none


def test_a_map_that_knows_nothing_has_the_area_and_one_that_knows_all_has_one() -> None:
    found = landing({"uniform": np.ones_like(INSIDE), "mask": INSIDE + 1e-12, "off": 1 - INSIDE + 1e-12}, INSIDE)
    assert np.allclose(found.mass["uniform"], found.area)
    assert np.allclose(found.mass["mask"], 1.0)
    assert np.allclose(found.mass["off"], 0.0)
    assert found.excess("uniform") == (pytest.approx(0), pytest.approx(0), pytest.approx(0))
    assert found.summary()["maps"]["mask"]["images_above_area"] == 1.0


def test_how_strong_a_map_is_does_not_matter_only_where() -> None:
    maps = CHANCE.random(INSIDE.shape)
    strength = np.arange(1, len(INSIDE) + 1)[:, None, None]
    assert np.allclose(landing({"m": maps}, INSIDE).mass["m"], landing({"m": maps * strength}, INSIDE).mass["m"])


def test_the_interval_is_the_bootstraps() -> None:
    found = landing({"m": CHANCE.random(INSIDE.shape) + INSIDE, "n": CHANCE.random(INSIDE.shape)}, INSIDE)
    difference = found.mass["m"] - found.mass["n"]
    theirs = stats.bootstrap((difference,), np.mean, method="percentile", rng=np.random.default_rng(1))
    mean, low, high = found.excess("m", "n")
    assert mean == pytest.approx(difference.mean())
    assert (low, high) == pytest.approx(tuple(theirs.confidence_interval), abs=2e-3)


def test_the_centre_is_symmetric_and_highest_in_the_middle() -> None:
    found = central((4, 7))
    assert np.allclose(found, found[::-1])
    assert np.allclose(found, found[:, ::-1])
    assert found.argmax() % 7 == 3
    assert central((1, 1)).tolist() == [[1.0]]


def test_misfits_are_named() -> None:
    with pytest.raises(UserError, match=r"'m' is of shape \(40, 3, 4\)"):
        landing({"m": np.ones((40, 3, 4))}, INSIDE)
    with pytest.raises(UserError, match="'m' has no mass in image 0"):
        landing({"m": np.zeros_like(INSIDE)}, INSIDE)
    with pytest.raises(UserError, match="There is no image"):
        landing({}, INSIDE[:0])


def test_the_figure_names_every_map() -> None:
    drawn = landing({"rollout": INSIDE + 0.1, "centre": np.ones_like(INSIDE)}, INSIDE).plot()
    assert [label.get_text() for label in drawn.axes[0].get_yticklabels()] == ["rollout", "centre"]
