"""Relative positions against Shaw's formula with every vector of every pair, N x N x D/K."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from vitrail.config import (
    EncoderConfig,
    HeadConfig,
    PositionConfig,
    PositionKind,
    Size,
    Token,
    ViTConfig,
)
from vitrail.model import attention
from vitrail.model.build import build
from vitrail.model.vision import VisionTransformer

GRIDS = [(3, 3), (2, 5)]


def _config(grid: Size, tokens: tuple[Token, ...] = ("class", "distillation", "register"), **fields: Any) -> ViTConfig:
    return ViTConfig(
        EncoderConfig(layers=2, width=24, heads=3, mlp_width=16),
        patch=(4, 2),
        image_size=(4 * grid[0], 2 * grid[1]),
        tokens=tokens,
        position=PositionConfig(**fields),
        head=HeadConfig(("mean",)),
    )


def _trained(config: ViTConfig, seed: int = 0) -> VisionTransformer:
    """A model all whose numbers are random, tables large enough to count."""
    model = build(config, seed).double()
    generator = torch.Generator().manual_seed(seed)
    for name, tensor in model.named_parameters():
        noise = torch.randn(tensor.shape, generator=generator, dtype=tensor.dtype)
        tensor.data = noise * (1.0 if name.startswith("position") else 0.3)
    return model


def _naive(model: VisionTransformer, layer: int) -> Tensor:
    """a_ij for all pairs, N x N x D/K, by loops over rows and columns."""
    config = model.config
    (h, w), clip, T, N = config.grid, config.position.clip, config.positioned, config.sequence
    first = len(config.tokens)
    table = model.position.get_parameter(f"layers.{layer}.offsets")
    special = model.position.get_parameter(f"layers.{layer}.special")
    rows = []
    for i in range(N):
        for j in range(N):
            if i >= first and j >= first:
                (y, x), (v, u) = divmod(i - first, w), divmod(j - first, w)
                if config.position.kind == "relative-1d":
                    k = h * w - 1 if clip is None else clip[0]
                    rows.append(table[max(-k, min(k, j - i)) + k])
                else:
                    ky, kx = (h - 1, w - 1) if clip is None else clip
                    rows.append(table[max(-ky, min(ky, v - y)) + ky, max(-kx, min(kx, u - x)) + kx])
            elif i < T and j < T:
                rows.append(special[0])
            elif i < T and j >= first:
                rows.append(special[1])
            elif i >= first and j < T:
                rows.append(special[2])
            else:
                rows.append(torch.zeros_like(table.flatten(0, -2)[0]))
    return torch.stack(rows).reshape(N, N, -1)


def _shaws(model: VisionTransformer, layer: int, x: Tensor) -> Tensor:
    """softmax(x W_Q (x W_K + a)^T / sqrt(d)) x W_V with every a_ij (1803.02155, equations 3 and 4)."""
    block, K = model.encoder.blocks[layer].attention, model.config.encoder.heads
    B, N, D = x.shape
    q, k, v = block.qkv(x).reshape(B, N, 3, K, D // K).permute(2, 0, 3, 1, 4)
    keys = k[:, :, None] + _naive(model, layer)  # (B, K, N, N, D/K)
    weights = torch.softmax((q[:, :, :, None] * keys).sum(-1) / (D / K) ** 0.5, dim=-1)
    mixed: Tensor = block.out((weights @ v).transpose(1, 2).reshape(B, N, D))
    return mixed


RELATIVES = [
    ("relative-1d", None),
    ("relative-1d", (2,)),
    ("relative-1d", (0,)),
    ("relative-1d", (50,)),
    ("relative-2d", None),
    ("relative-2d", (1, 2)),
    ("relative-2d", (0, 9)),
]


@pytest.mark.parametrize("block", [2**18, 40, 1])
@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize(("kind", "clip"), RELATIVES)
def test_relative_is_the_naive_formula(
    kind: PositionKind, clip: Any, grid: Size, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fused and traced, in one block or many, and so are the gradients."""
    monkeypatch.setattr(attention, "BLOCK", block)
    model = _trained(_config(grid, kind=kind, clip=clip))
    x = torch.randn(2, model.config.sequence, 24, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    x.requires_grad_()
    of_layer = [model.encoder.blocks[1].attention.qkv.weight, *model.position.layers[1].parameters(), x]
    outputs, gradients = [], []
    for run in (
        lambda: _shaws(model, 1, x),
        lambda: model.encoder.blocks[1].attention(x, model.position.relation(1)),
        lambda: model.encoder.blocks[1].attention(x, model.position.relation(1), lambda weights: None),
    ):
        outputs.append(run())
        gradients.append(torch.autograd.grad(outputs[-1].square().sum(), of_layer))
    with torch.no_grad():
        outputs.append(model.encoder.blocks[1].attention(x, model.position.relation(1)))
    for output in outputs[1:]:
        torch.testing.assert_close(output, outputs[0], rtol=0, atol=1e-11)
    for gradient in gradients[1:]:
        for one, expected in zip(gradient, gradients[0], strict=True):
            torch.testing.assert_close(one, expected, rtol=1e-9, atol=1e-9)
            assert one.any()


@pytest.mark.parametrize("special", [True, False])
@pytest.mark.parametrize("tokens", [(), ("class",), ("class", "register", "register"), ("register",)])
@pytest.mark.parametrize("kind", ["relative-1d", "relative-2d"])
def test_relative_with_any_special_tokens(kind: PositionKind, tokens: tuple[Token, ...], special: bool) -> None:
    model = _trained(_config((2, 3), tokens, kind=kind, special=special))
    x = torch.randn(1, model.config.sequence, 24, dtype=torch.float64)
    ours = model.encoder.blocks[0].attention(x, model.position.relation(0))
    torch.testing.assert_close(ours, _shaws(model, 0, x), rtol=0, atol=1e-11)


def test_beyond_k_all_offsets_are_one() -> None:
    """Clipped at k, the bias on every offset beyond k equals that on k itself, and those within differ."""
    for kind, clip, lengths in (("relative-1d", (2,), (1, 9)), ("relative-2d", (1, 2), (5, 6))):
        model = _trained(_config(lengths, ("class",), kind=kind, clip=clip))  # type: ignore[arg-type]
        relation = model.position.relation(0)
        assert relation is not None
        q = torch.randn(1, 3, 1, 8, dtype=torch.float64).expand(-1, -1, model.config.sequence, -1)
        bias = relation.bias(q, slice(0, model.config.sequence))
        assert bias is not None
        bias = bias[0, 0, 1:, 1:].unflatten(0, lengths).unflatten(2, lengths)  # of patch (y, x) on (v, u)
        k = clip[-1]
        for x in range(lengths[1]):
            far = bias[0, x, 0, min(x + k, lengths[1] - 1) :]
            assert (far == far[0]).all()
            near = bias[0, x, 0, max(x - k, 0) : x + k + 1]
            assert len(near.unique()) == len(near)
        if kind == "relative-2d":
            assert torch.equal(bias[0, 0, 1], bias[0, 0, 4])
            assert not torch.equal(bias[0, 0, 0], bias[0, 0, 1])
