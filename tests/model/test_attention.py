"""Attention in bfloat16 on a CPU: plain products up to a number of keys, float32 beyond; the same gradients."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from vitrail.model import attention


def _inputs(n: int, N: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(n * N)
    shapes = [(2, 3, n, 16), (2, 3, N, 16), (2, 3, N, 16), (2, 3, n, N)]
    return [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]


@pytest.mark.parametrize("kept", [0, 640])
@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize(("n", "N"), [(33, 33), (1, 50)])
def test_bf16_gradients_are_those_of_float64(
    n: int, N: int, with_bias: bool, kept: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attention, "KEPT", kept)
    q, k, v, bias = _inputs(n, N)
    found = []
    for dtype in (torch.bfloat16, torch.float64):
        own = [x.to(torch.bfloat16).to(dtype).requires_grad_() for x in (q, k, v)]
        mixed = attention.fused(*own, bias.to(torch.bfloat16).to(dtype) if with_bias else None)
        mixed.pow(2).sum().backward()
        found.append([mixed.detach(), *[x.grad for x in own]])
    for ours, exact in zip(*found, strict=True):
        assert ours is not None
        assert exact is not None
        assert ours.dtype == torch.bfloat16
        assert (ours.double() - exact).norm() < 0.02 * exact.norm()


@pytest.mark.parametrize(("N", "kept"), [(32, True), (33, False)])
def test_weights_are_kept_up_to_a_number_of_keys(N: int, kept: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention, "KEPT", 32)
    q, k, v = (x.bfloat16().requires_grad_() for x in _inputs(N, N)[:3])
    saved: list[int] = []

    def keep(tensor: Tensor) -> Tensor:
        saved.append(tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        attention.fused(q, k, v)
    assert (max(saved) >= 2 * 3 * N * N) == kept
