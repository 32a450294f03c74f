"""Maps, rollout and relevance, against matrix products and derivatives worked out another way."""

from __future__ import annotations

from collections.abc import Callable
from functools import reduce

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from vitrail.analyze.attention import (
    Rollout,
    attention_weights,
    fuse,
    query_rows,
    relevance,
    rollout,
    to_patches,
    usual_query,
)
from vitrail.analyze.stream import observe
from vitrail.config import EncoderConfig, HeadConfig, Part, ViTConfig
from vitrail.errors import UserError
from vitrail.model.attention import Attention, explicit
from vitrail.model.build import build
from vitrail.model.encoder import Trace
from vitrail.model.position import Relation
from vitrail.model.vision import VisionTransformer

Images = Callable[[VisionTransformer, int], Tensor]


def weights_by_hand(model: VisionTransformer, images: Tensor) -> list[np.ndarray]:
    """softmax(q k^T / sqrt(D/K) + bias) in numpy, image by image and head by head."""
    inputs: list[Tensor] = []
    handles = [
        module.register_forward_hook(lambda _, given, __: inputs.append(given[0]))
        for module in model.modules()
        if isinstance(module, Attention)
    ]
    model.encode(images)
    for handle in handles:
        handle.remove()
    found = []
    for layer, (block, x) in enumerate(zip(model.encoder.blocks, inputs, strict=True)):
        attention, relation = block.attention, model.position.relation(layer) or Relation()
        B, N, D = x.shape
        heads = [part.reshape(B, N, attention.heads, -1).transpose(1, 2) for part in attention.qkv(x).chunk(3, -1)]
        q, k = relation.rotate(heads[0], heads[1])  # (B, K, N, D/K)
        bias = relation.bias(q, slice(0, N))
        weights = np.empty((B, attention.heads, N, N))
        for b, head in np.ndindex(B, attention.heads):
            logits = q[b, head].detach().double().numpy() @ k[b, head].detach().double().numpy().T
            logits = logits / (D / attention.heads) ** 0.5
            if bias is not None:
                logits += bias[b, head].detach().double().numpy()
            exponentials = np.exp(logits - logits.max(axis=1, keepdims=True))
            weights[b, head] = exponentials / exponentials.sum(axis=1, keepdims=True)
        found.append(weights)
    return found


def test_the_weights_are_the_softmax_although_the_model_runs_fused(images: Images, model: VisionTransformer) -> None:
    batch = images(model, 3)
    for ours, theirs in zip(attention_weights(model, batch), weights_by_hand(model, batch), strict=True):
        assert np.abs(ours.detach().numpy() - theirs).max() < 1e-5


def test_rollout_is_the_product_of_half_attention_half_identity(images: Images, model: VisionTransformer) -> None:
    weights = [w.detach().double() for w in attention_weights(model, images(model, 2))]
    rolled = rollout(weights).double()
    for b in range(2):
        factors = [0.5 * w[b].mean(dim=0) + 0.5 * torch.eye(w.shape[-1]) for w in weights]
        assert torch.allclose(rolled[b], reduce(lambda product, step: step @ product, factors), atol=1e-6)


@given(
    fusion=st.sampled_from(["mean", "max", "min"]),
    discard=st.floats(0, 0.99),
    seed=st.integers(0, 1000),
    batch=st.integers(1, 3),
)
def test_rows_of_a_rollout_sum_to_one_whatever_the_fusion(fusion: str, discard: float, seed: int, batch: int) -> None:
    chance = torch.Generator().manual_seed(seed)
    weights = [torch.softmax(4 * torch.randn(batch, 2, 7, 7, generator=chance), dim=-1) for _ in range(4)]
    rolled = rollout(weights, fusion, discard)  # type: ignore[arg-type]
    assert torch.allclose(rolled.sum(dim=-1), torch.ones(batch, 7), atol=1e-5)
    assert bool((rolled >= 0).all())
    alone = rollout([w[:1] for w in weights], fusion, discard)  # type: ignore[arg-type]
    assert torch.allclose(rolled[:1], alone, atol=1e-6)


def test_what_is_discarded_is_the_smallest_share_of_each_image() -> None:
    weights = torch.softmax(torch.randn(2, 3, 5, 5, generator=torch.Generator().manual_seed(0)), dim=-1)
    for b in range(2):
        fused = weights[b].mean(dim=0)
        kept = torch.where(fused >= fused.flatten().sort().values[10], fused, 0.0) + torch.eye(5)
        expected = kept / kept.sum(dim=1, keepdim=True)
        assert torch.allclose(fuse(weights, discard=0.4)[b], expected, atol=1e-6)


def test_uniform_and_own_attention_roll_out_to_what_they_must() -> None:
    own = [torch.eye(4).expand(1, 2, 4, 4)] * 3
    assert torch.equal(rollout(own)[0], torch.eye(4))
    # Uniform: what stays of the identity after L layers is 2^-L, the rest is uniform.
    uniform = [torch.full((1, 2, 4, 4), 0.25)] * 3
    expected = 0.125 * torch.eye(4) + 0.875 * torch.full((4, 4), 0.25)
    assert torch.allclose(rollout(uniform)[0], expected, atol=1e-6)


def test_a_stream_gives_the_rollout_of_all_at_once(images: Images, model: VisionTransformer) -> None:
    batch = images(model, 2)
    found = Rollout(model.config.encoder.layers, "max", 0.3)
    assert observe(lambda x, trace: model.encode(x, 1, trace), [batch], [found]) == 2
    assert torch.allclose(found.product, rollout(attention_weights(model, batch), "max", 0.3), atol=1e-6)


def test_relevance_is_the_formula_with_derivatives_at_offsets(
    images: Images, model: VisionTransformer, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, batch, chosen = model.double(), images(model, 2).double(), [4, 1]
    found = relevance(model, batch, chosen)
    weights = [w.detach().numpy() for w in attention_weights(model, batch)]
    # The derivative with respect to attention is that with respect to zeros that are added to it.
    zeros = [torch.zeros(w.shape, dtype=torch.float64, requires_grad=True) for w in weights]
    left = iter(zeros)

    def moved(q: Tensor, k: Tensor, relation: Relation | None) -> Tensor:
        return explicit(q, k, relation) + next(left)

    monkeypatch.setattr("vitrail.model.attention.explicit", moved)
    logits = model(batch, Trace(lambda *_: None, attention=range(len(weights))))
    logits[range(2), chosen].sum().backward()
    for b in range(2):
        matrix = np.eye(model.config.sequence)
        for offset, values in zip(zeros, weights, strict=True):
            assert offset.grad is not None
            weighted = np.mean(
                [np.maximum(g * a, 0) for g, a in zip(offset.grad[b].numpy(), values[b], strict=True)], axis=0
            )
            matrix = matrix + weighted @ matrix
        assert np.abs(found.matrix[b].numpy() - matrix).max() < 1e-9 * np.abs(matrix).max()
    assert found.classes.tolist() == chosen


def test_relevance_leaves_no_gradient_behind(images: Images, model: VisionTransformer) -> None:
    relevance(model, images(model, 2))
    assert all(parameter.grad is None for parameter in model.parameters())


def test_frozen_parameters_and_inference_do_not_hinder_relevance(images: Images, model: VisionTransformer) -> None:
    batch = images(model, 2)
    free = relevance(model, batch)
    with torch.no_grad():
        frozen = relevance(model.requires_grad_(False), batch)
    assert torch.equal(free.matrix, frozen.matrix)
    assert torch.equal(free.classes, model(batch).argmax(dim=-1))


@pytest.mark.parametrize("parts", [("class",), ("mean",), ("map",), ("class", "mean")])
def test_relevance_is_asked_for_by_the_tokens_that_the_head_reads(parts: tuple[Part, ...]) -> None:
    torch.manual_seed(0)
    encoder = EncoderConfig(2, 24, 3, 48)
    config = ViTConfig(encoder, (8, 8), (16, 24), tokens=("class",), head=HeadConfig(parts, classes=5))
    model = build(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.3)
    found = relevance(model, torch.randn(2, 3, 16, 24))
    own = found.matrix - torch.eye(7)
    rows = {"class": own[:, :1], "mean": own[:, 1:], "map": own}
    read = rows["map"] if parts == ("class", "mean") else rows[parts[0]]
    maps = found.to_patches(config)
    assert torch.allclose(maps.flatten(1), read[:, :, 1:].sum(dim=1))
    assert (maps >= 0).all()
    # The class token's row alone holds next to nothing of a head that reads the mean.
    share = float(own[:, 0, 1:].sum() / maps.sum())
    assert share < 0.2 if parts == ("mean",) else share > 0.0


def test_queries_name_rows(model: VisionTransformer) -> None:
    config = model.config
    special, (h, w) = len(config.tokens), config.grid
    matrix = torch.arange(config.sequence**2, dtype=torch.float64).view(1, config.sequence, config.sequence)
    assert to_patches(matrix, config, (1, 2)).shape == (1, h, w)
    row = special + w + 2
    assert torch.equal(to_patches(matrix, config, (1, 2))[0].flatten(), matrix[0, row, special:])
    assert torch.equal(to_patches(matrix, config, "mean")[0].flatten(), matrix[0, special:, special:].mean(dim=0))
    if "class" in config.tokens:
        assert usual_query(config) == "class"
        assert torch.equal(to_patches(matrix, config, "class")[0].flatten(), matrix[0, 0, special:])
    else:
        assert usual_query(config) == "mean"
        with pytest.raises(UserError, match="no class token: ask for the attention of a patch"):
            query_rows(config, "class")
    with pytest.raises(UserError, match=f"no patch at row {h}, column 0: rows go from 0 to {h - 1}"):
        query_rows(config, (h, 0))


def test_what_cannot_be_asked_for_is_refused(images: Images, model: VisionTransformer) -> None:
    batch = images(model, 1)
    with pytest.raises(UserError, match="There is no layer 3: the model has layers 0 to 2"):
        attention_weights(model, batch, [3])
    with pytest.raises(UserError, match="There is no class 5: the model has classes 0 to 4"):
        relevance(model, batch, [5])
    with pytest.raises(UserError, match="There is no class -1: the model has classes 0 to 4"):
        relevance(model, images(model, 2), [4, -1])
    with pytest.raises(UserError, match=r"must lie in \[0, 1\), not 1.0"):
        Rollout(3, discard=1.0)
    model.classifier = None
    with pytest.raises(UserError, match="no classifier"):
        relevance(model, batch)
