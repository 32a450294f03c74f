"""Moments against numpy and scipy, whatever the batching."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.stats
import torch
from hypothesis import given
from hypothesis import strategies as st

from vitrail.analyze.moments import Moments
from vitrail.errors import UserError


def gathered(values: np.ndarray, cuts: list[int]) -> Moments:
    moments = Moments(values.shape[1:])
    for part in np.split(values, sorted(cuts)):
        moments.add(torch.from_numpy(part))
    return moments


@given(
    images=st.integers(2, 30),
    shape=st.sampled_from([(), (3,), (2, 4)]),
    offset=st.sampled_from([0.0, -5.0, 1e6]),
    level=st.sampled_from([0.5, 0.95, 0.99]),
    seed=st.integers(0, 9),
    data=st.data(),
)
def test_any_batching_is_numpy_and_scipy(
    images: int, shape: tuple[int, ...], offset: float, level: float, seed: int, data: st.DataObject
) -> None:
    values = offset + np.random.default_rng(seed).standard_normal((images, *shape))
    moments = gathered(values, data.draw(st.lists(st.integers(0, images), max_size=6)))  # equal cuts: empty batches
    assert moments.count == images
    np.testing.assert_allclose(moments.mean, values.mean(axis=0), rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(moments.variance, values.var(axis=0, ddof=1), rtol=1e-9, atol=1e-12)
    expected = scipy.stats.t.interval(level, images - 1, values.mean(axis=0), scipy.stats.sem(values, axis=0))
    for found, bound in zip(moments.interval(level), expected, strict=True):
        np.testing.assert_allclose(found, bound, rtol=1e-9, atol=1e-12)


def test_interval_covers_the_truth_as_often_as_it_says() -> None:
    values = np.random.default_rng(0).exponential(size=(20, 4000))
    low, high = gathered(values - 1, [7]).interval(0.8)
    assert np.mean((low < 0) & (high > 0)) == pytest.approx(0.8, abs=0.04)


def test_the_ends() -> None:
    constant = gathered(np.full((9, 2), 0.1), [1, 5])
    assert all(np.allclose(bound, 0.1, rtol=1e-15) for bound in constant.interval())
    one = gathered(np.ones((1, 2)), [])
    assert one.mean.tolist() == [1, 1]
    assert np.isnan(one.interval()).all()
    with pytest.raises(UserError, match="no image"):
        _ = Moments((2,)).mean
    with pytest.raises(UserError, match="no image"):
        Moments().interval()
    with pytest.raises(ValueError, match=r"shape \(3,\)"):
        Moments((2,)).add(torch.ones(1, 3))


def test_half_precision_is_summed_in_double() -> None:
    values = torch.full((4096,), 0.1, dtype=torch.bfloat16)
    moments = Moments()
    moments.add(values)
    assert moments.mean == values[0].double().item()


def test_arrays_are_taken_as_tensors_are() -> None:
    values = np.arange(12, dtype=np.float32).reshape(4, 3) / 7
    arrays = Moments((3,))
    arrays.add(values)
    assert np.array_equal(arrays.interval(), gathered(values, []).interval())
