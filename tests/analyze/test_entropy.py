"""Attention entropy and sinks: against scipy in a loop, and where a closed form says what they must be."""

from __future__ import annotations

import json
import math
from collections.abc import Callable

import numpy as np
import pytest
import scipy.stats
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import vitrail.analyze.entropy
from vitrail.analyze.attention import attention_weights
from vitrail.analyze.canvas import inline_svg
from vitrail.analyze.entropy import AttentionEntropy, MeanEntropy, entropy
from vitrail.analyze.stream import observe
from vitrail.config import ViTConfig
from vitrail.errors import UserError
from vitrail.model.vision import VisionTransformer

Images = Callable[[VisionTransformer, int], Tensor]


def by_loop(weights: np.ndarray, config: ViTConfig) -> dict[str, float]:
    """One image's, one head's (N, N) weights -> every quantity, one query at a time."""
    kinds, special = config.tokens, len(config.tokens)
    patches = range(special, config.sequence)
    found = {"entropy": float(np.mean([scipy.stats.entropy(weights[i]) for i in patches]))}
    if special:
        found["to_special"] = float(np.mean([weights[i, :special].sum() for i in patches]))
    if len(set(kinds)) > 1:
        for kind in set(kinds):
            taken = [token for token in range(special) if kinds[token] == kind]
            found[f"to_{kind}"] = float(np.mean([weights[i, taken].sum() for i in patches]))
    if "class" in kinds:
        own = kinds.index("class")
        found |= {"class_entropy": scipy.stats.entropy(weights[own]), "class_to_itself": weights[own, own]}
    return found


def test_the_stream_is_the_loop_whatever_the_batches(images: Images, model: VisionTransformer) -> None:
    batch, found, outputs = images(model, 5), MeanEntropy(model.config), []

    def forward(x: Tensor, trace: object) -> None:
        outputs.append(model.encode(x, 1, trace)[0].detach())

    assert observe(forward, batch.split(2), [found]) == 5
    # Untraced, attention is fused.
    torch.testing.assert_close(torch.cat(outputs), model.encode(batch)[0], rtol=1e-4, atol=1e-4)
    result = found.finding()
    layers = [layer.detach().numpy() for layer in attention_weights(model, batch)]  # (B, K, N, N) each
    loops = [[[by_loop(head, model.config) for head in heads] for heads in layer] for layer in layers]
    assert set(result.quantities) == set(loops[0][0][0])
    for name, estimate in result.quantities.items():
        values = np.array([[[head[name] for head in heads] for heads in layer] for layer in loops])  # (L, B, K)
        margin = scipy.stats.t.ppf(0.975, 4) * scipy.stats.sem(values, axis=1)
        np.testing.assert_allclose(estimate.mean, values.mean(axis=1), rtol=1e-5, atol=1e-7)
        np.testing.assert_allclose(estimate.high - estimate.mean, margin, rtol=2e-3, atol=1e-6)
        np.testing.assert_allclose(estimate.mean - estimate.low, margin, rtol=2e-3, atol=1e-6)
    assert (result.images, result.tokens) == (5, model.config.sequence)


def streamed(weights: Tensor, config: ViTConfig, images: int = 2) -> AttentionEntropy:
    """The finding for the same weights (N, N) in every layer and head."""
    found = MeanEntropy(config)
    for layer in range(config.encoder.layers):
        found.receive("attention", layer, weights.expand(images, config.encoder.heads, -1, -1))
    found.close()
    return found.finding()


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16, torch.float64])
def test_closed_forms(outline: ViTConfig, precision: torch.dtype) -> None:
    N, special = outline.sequence, len(outline.tokens)
    uniform = streamed(torch.full((N, N), 1 / N, dtype=precision), outline)
    assert np.allclose(uniform.quantities["entropy"].mean, math.log(N), rtol=1e-6)
    assert np.allclose(uniform.normalised, 1, rtol=1e-6)
    own = streamed(torch.eye(N, dtype=precision), outline)
    assert np.allclose(own.quantities["entropy"].mean, 0, atol=1e-7)
    if special:
        assert np.allclose(uniform.quantities["to_special"].mean, special / N, rtol=4e-3)
        assert not own.quantities["to_special"].mean.any()
    if "class" in outline.tokens:
        assert np.allclose(uniform.quantities["class_entropy"].mean, math.log(N), rtol=1e-6)
        assert np.allclose(uniform.quantities["class_to_itself"].mean, 1 / N, rtol=4e-3)
        assert (own.quantities["class_to_itself"].mean == 1).all()
    if special > 1:  # everything goes to the last register
        sink = torch.zeros(N, N, dtype=precision)
        sink[:, special - 1] = 1
        found = streamed(sink, outline).quantities
        assert (found["to_register"].mean == 1).all()
        assert (found["to_special"].mean == 1).all()
        assert not found["to_class"].mean.any()


@given(
    shape=st.lists(st.integers(1, 4), max_size=3),
    tokens=st.integers(1, 9),
    precision=st.sampled_from([torch.bfloat16, torch.float16, torch.float32, torch.float64]),
    sharpness=st.sampled_from([0.0, 1.0, 30.0, 1000.0]),  # the last gives weights that are 0
    block=st.sampled_from([1, 7, 2**18]),
    seed=st.integers(0, 5),
)
def test_entropy_is_scipys(
    shape: list[int], tokens: int, precision: torch.dtype, sharpness: float, block: int, seed: int
) -> None:
    logits = sharpness * torch.randn(*shape, tokens, generator=torch.Generator().manual_seed(seed))
    weights = logits.softmax(dim=-1).to(precision)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(vitrail.analyze.entropy, "BLOCK", block)
        found = entropy(weights)
    expected = scipy.stats.entropy(weights.double().numpy(), axis=-1)
    assert found.dtype == (torch.float64 if precision == torch.float64 else torch.float32)
    assert found.shape == tuple(shape)
    np.testing.assert_allclose(found.numpy(), expected, rtol=2e-6, atol=2e-6)


def test_entropy_leaves_the_weights_alone() -> None:
    weights = torch.rand(2, 3, 4).softmax(dim=-1).requires_grad_()
    before = weights.detach().clone()
    assert not entropy(weights).requires_grad
    assert torch.equal(weights, before)


def test_what_is_quoted(images: Images, model: VisionTransformer) -> None:
    found = MeanEntropy(model.config)
    observe(lambda x, trace: model.encode(x, 1, trace), [images(model, 3)], [found])
    result = found.finding()
    table = result.table()
    assert {len(column) for column in table.values()} == {9}  # 3 layers of 3 heads
    assert (table["layer"][3], table["head"][3]) == (2, 1)
    assert table["entropy"][3] == result.quantities["entropy"].mean[1, 0]
    assert np.allclose(table["entropy_of_uniform"], table["entropy"] / math.log(model.config.sequence))
    summary = result.summary()
    assert json.loads(json.dumps(summary)) == summary
    sharpest = summary["sharpest_head"]
    assert result.quantities["entropy"].mean[sharpest["layer"] - 1, sharpest["head"] - 1] == table["entropy"].min()
    assert len(result.plot().axes) == (2 if model.config.tokens else 1)
    assert inline_svg(result.plot(), "entropy").startswith("<svg")  # nothing in it warns when it is drawn


def test_no_image_and_one(outline: ViTConfig) -> None:
    with pytest.raises(UserError, match="no image"):
        MeanEntropy(outline).finding()
    one = streamed(torch.eye(outline.sequence), outline, images=1)
    assert np.isnan(one.quantities["entropy"].low).all()
    assert one.plot().axes
