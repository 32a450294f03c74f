"""Mean attention distance: against loops, and where a closed form says what it must be."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from torch import Tensor

from vitrail.analyze.attention import attention_weights
from vitrail.analyze.distance import AttentionDistance, MeanDistance, patch_distances
from vitrail.analyze.stream import observe
from vitrail.config import ViTConfig
from vitrail.model.vision import VisionTransformer

Images = Callable[[VisionTransformer, int], Tensor]


def by_loop(weights: np.ndarray, config: ViTConfig) -> float:
    """One image's, one head's (N, N) weights -> pixels, one pair at a time."""
    special, (h, w), (ch, cw) = len(config.tokens), config.grid, config.cell
    distances = []
    for i in range(h * w):
        far, mass = 0.0, 0.0
        for j in range(h * w):
            a = weights[special + i, special + j]
            far += a * math.hypot((i // w - j // w) * ch, (i % w - j % w) * cw)
            mass += a
        distances.append(far / mass)
    return float(np.mean(distances))


def test_the_stream_is_the_loop_over_pairs_whatever_the_batches(images: Images, model: VisionTransformer) -> None:
    batch = images(model, 5)
    found = MeanDistance(model.config)
    observe(lambda x, trace: model.encode(x, 1, trace), batch.split(2), [found])
    result = found.finding()
    per_image = np.array(
        [
            [[by_loop(head, model.config) for head in heads] for heads in layer.detach().numpy()]
            for layer in attention_weights(model, batch)
        ]
    )  # (L, B, K)
    assert np.allclose(result.mean, per_image.mean(axis=1), rtol=1e-5)
    margin = stats.t.ppf(0.975, 4) * per_image.std(axis=1, ddof=1) / math.sqrt(5)
    assert np.allclose(result.high - result.mean, margin, rtol=1e-3, atol=1e-6)
    assert np.allclose(result.mean - result.low, margin, rtol=1e-3, atol=1e-6)
    assert result.images == 5


def streamed(weights: Tensor, config: ViTConfig) -> AttentionDistance:
    """The finding for the same weights (N, N) in every layer and head."""
    found = MeanDistance(config)
    for layer in range(config.encoder.layers):
        found.receive("attention", layer, weights.expand(1, config.encoder.heads, -1, -1))
    found.close()
    return found.finding()


def test_closed_forms(outline: ViTConfig) -> None:
    config = outline
    N, special, (h, w), (ch, cw) = config.sequence, len(config.tokens), config.grid, config.cell
    assert np.allclose(streamed(torch.eye(N), config).mean, 0.0)

    uniform = streamed(torch.full((N, N), 1 / N), config)
    rows, columns = np.divmod(np.arange(h * w), w)
    expected = np.hypot((rows[:, None] - rows) * ch, (columns[:, None] - columns) * cw).mean()
    assert np.allclose(uniform.mean, expected)
    assert uniform.uniform == pytest.approx(expected)
    assert np.allclose(uniform.normalised, 1.0)

    right = torch.zeros(N, N)  # all to the right neighbour; the last column, which has none, to the left one
    for i in range(h * w):
        right[special + i, special + (i + 1 if i % w < w - 1 else i - 1)] = 1.0
    assert np.allclose(streamed(right, config).mean, cw)
    below = torch.zeros(N, N)
    for i in range(h * w):
        below[special + i, special + (i + w if i // w < h - 1 else i - w)] = 1.0
    assert np.allclose(streamed(below, config).mean, ch)
    if special:  # what goes to the special tokens changes nothing
        half = 0.5 * right
        half[:, 0] += 0.5
        assert np.allclose(streamed(half, config).mean, cw)


@given(h=st.integers(1, 6), w=st.integers(1, 6), ch=st.integers(1, 32), cw=st.integers(1, 32))
def test_distances_are_euclidean_in_pixels(h: int, w: int, ch: int, cw: int) -> None:
    found = patch_distances((h, w), (ch, cw))
    for i in range(h * w):
        for j in range(h * w):
            assert found[i, j] == pytest.approx(math.hypot((i // w - j // w) * ch, (i % w - j % w) * cw), rel=1e-6)


def finding(mean: np.ndarray) -> AttentionDistance:
    return AttentionDistance(mean, mean - 1, mean + 1, 100.0, 7)


def test_growing_with_depth_is_a_rank_correlation_of_one() -> None:
    rising = np.array([[1.0, 3.0], [2.0, 5.0], [9.0, 9.0], [8.0, 20.0]])
    assert finding(rising).summary()["rank_correlation_with_depth"] == pytest.approx(1.0)
    assert finding(rising[::-1]).summary()["rank_correlation_with_depth"] == pytest.approx(-1.0)
    assert finding(np.ones((4, 2))).summary()["rank_correlation_with_depth"] is None
    table = finding(rising).table()
    assert {len(column) for column in table.values()} == {8}
    assert table["pixels"][table["layer"] == 3].tolist() == [9.0, 9.0]
    assert table["of_uniform"][0] == pytest.approx(0.01)


def test_the_figure_has_a_dot_for_each_head() -> None:
    drawn = finding(np.arange(12.0).reshape(4, 3)).plot()
    dots = [collection for collection in drawn.axes[0].collections if collection.get_label() == "a head"]
    assert len(dots[0].get_offsets()) == 12
    assert AttentionDistance(np.ones((1, 1)), np.full((1, 1), np.nan), np.full((1, 1), np.nan), 1.0, 1).plot()


def test_a_single_patch_has_a_figure_without_a_warning() -> None:
    zero = np.zeros((2, 1))
    drawn = AttentionDistance(zero, zero, zero, 0.0, 3).plot()
    assert drawn.axes[0].get_ylim() == (0.0, 1.0)
