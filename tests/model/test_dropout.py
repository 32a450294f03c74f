"""Dropout: what is dropped, how much, and that the generator decides."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from vitrail.model import dropout
from vitrail.model.dropout import Dropout


def dropped(p: float, x: Tensor, seed: int = 0) -> Tensor:
    torch.manual_seed(seed)
    found: Tensor = Dropout(p).train()(x)
    return found


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
def test_so_much_is_dropped_and_the_rest_is_scaled_up(p: float, dtype: torch.dtype) -> None:
    found = dropped(p, torch.ones(1000, 1000, dtype=dtype))
    assert found.dtype == dtype
    kept = found != 0
    assert float(kept.double().mean()) == pytest.approx(1 - p, abs=5 * (p * (1 - p)) ** 0.5 / 1000)
    torch.testing.assert_close(
        found[kept].double(), torch.full_like(found[kept].double(), 1 / (1 - p)), rtol=4e-3, atol=0
    )


def test_neighbours_are_dropped_apart() -> None:
    """Four numbers share a draw of 64 bits: none tells of another, nor of those in the next draws."""
    kept = (dropped(0.5, torch.ones(2**20)) != 0).double()
    centred = kept - kept.mean()
    for lag in range(1, 9):
        correlation = float((centred[lag:] * centred[:-lag]).mean() / centred.square().mean())
        assert abs(correlation) < 5 / 2**10, lag
    for place in range(4):
        assert float(kept[place::4].mean()) == pytest.approx(0.5, abs=5 * 0.5 / 2**9)


@given(
    shape=st.lists(st.integers(0, 9), min_size=0, max_size=3),
    p=st.floats(0, 1),
    seed=st.integers(0, 9),
)
@settings(max_examples=50, deadline=None)
def test_any_shape_and_rate(shape: list[int], p: float, seed: int) -> None:
    x = torch.randn(shape).requires_grad_()
    found = dropped(p, x, seed)
    assert found.shape == x.shape
    assert torch.equal(found, dropped(p, x, seed))
    found.sum().backward()  # type: ignore[no-untyped-call]
    assert x.grad is not None
    torch.testing.assert_close(x.grad * x.detach(), found.detach())  # what was dropped learns nothing


def test_evaluation_and_a_rate_of_nothing_change_nothing() -> None:
    x = torch.randn(7)
    assert Dropout(0.5).eval()(x) is x
    assert torch.equal(dropped(0.0, x), x)
    assert torch.equal(dropped(1.0, x), torch.zeros(7))
    torch.testing.assert_close(dropped(0.1 / dropout.LEVELS, x), x)


def test_a_strided_input_is_dropped_by_place() -> None:
    x = torch.ones(6, 5)
    assert torch.equal(dropped(0.5, x.T.contiguous().T), dropped(0.5, x))
