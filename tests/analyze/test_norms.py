"""Norms of patches: against loops over tokens, with outliers planted where they must be found."""

from __future__ import annotations

import json
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from torch import Tensor

from vitrail.analyze.canvas import inline_svg
from vitrail.analyze.norms import EDGES, PatchNorms, TokenNorms
from vitrail.analyze.stream import observe
from vitrail.config import EncoderConfig, ViTConfig
from vitrail.errors import UserError
from vitrail.model.encoder import Trace
from vitrail.model.vision import VisionTransformer

Images = Callable[[VisionTransformer, int], Tensor]
CONFIG = ViTConfig(EncoderConfig(2, 8, 2, 8), patch=(4, 4), image_size=(12, 20))  # 3 x 5 patches


def test_the_stream_is_the_loop_whatever_the_batches(images: Images, model: VisionTransformer) -> None:
    batch, found = images(model, 5), PatchNorms(model.config, factor=1.2)
    observe(lambda x, trace: model.encode(x, 1, trace), batch.split(2), [found])
    result, (h, w) = found.finding(), model.config.grid
    seen: list[Tensor] = []
    model.encode(batch, 1, Trace(lambda kind, layer, z: seen.append(z.detach()), blocks=range(3)))
    for layer, z in enumerate(seen):
        shares, medians, largest, where, logs = [], [], 0.0, np.zeros((h, w)), []
        for image in z.double().numpy():
            norms = np.array([np.sqrt((token**2).sum()) for token in image[len(model.config.tokens) :]])
            medians.append(np.median(norms))
            shares.append(np.mean([norm > 1.2 * medians[-1] for norm in norms]))
            largest = max(largest, max(norms) / medians[-1])
            where += [[norms[row * w + column] > 1.2 * medians[-1] for column in range(w)] for row in range(h)]
            logs += [np.log10(norm) for norm in norms]
        assert result.share[layer] == pytest.approx(np.mean(shares))
        assert result.median[layer] == pytest.approx(np.mean(medians), rel=1e-6)
        assert result.largest[layer] == pytest.approx(largest, rel=1e-6)
        assert np.allclose(result.where[layer], where / 5)
        assert np.abs(result.histogram[layer] - np.histogram(logs, EDGES)[0]).sum() <= 2  # one on an edge
        margin = stats.t.ppf(0.975, 4) * stats.sem(shares)
        assert result.high[layer] == pytest.approx(np.mean(shares) + margin)
        assert result.low[layer] == pytest.approx(max(np.mean(shares) - margin, 0))
    assert result.share.any()


def streamed(norms: np.ndarray, sizes: list[int], factor: float = 4.0) -> TokenNorms:
    """The finding for patches of norms (n, 3, 5), in both layers, behind a class token that is far beyond them."""
    tokens = torch.zeros(len(norms), 16, 8)
    tokens[:, 0] = 1e4
    tokens[:, 1:, 2] = torch.from_numpy(-norms.reshape(len(norms), 15)).float()
    found = PatchNorms(CONFIG, factor)
    for batch in tokens.split(sizes):
        found.receive("block", 0, batch)
        found.receive("block", 1, batch / 10)
        found.close()
    return found.finding()


def test_a_planted_outlier_is_found_where_it_is() -> None:
    norms = np.random.default_rng(0).uniform(1, 2, (6, 3, 5))
    calm = streamed(norms, [4, 2])
    assert not calm.share.any()
    assert not calm.high.any()
    assert (calm.largest < 4).all()
    norms[3:, 1, 4] = 60
    planted = streamed(norms, [4, 2])
    expected = np.zeros((3, 5))
    expected[1, 4] = 0.5
    assert np.array_equal(planted.where, [expected, expected])
    assert np.allclose(planted.share, 0.5 / 15)
    ratio = 60 / np.median(norms[3:].reshape(3, 15), axis=1).min()
    assert np.allclose(planted.largest, ratio)
    assert not streamed(norms, [6], factor=ratio + 1).share.any()
    assert np.allclose(planted.median[0] / planted.median[1], 10)


@given(
    images=st.integers(1, 12),
    cut=st.integers(1, 12),
    spread=st.sampled_from([0.1, 1.0, 3.0]),
    seed=st.integers(0, 9),
)
def test_any_batching_gives_the_same(images: int, cut: int, spread: float, seed: int) -> None:
    norms = np.random.default_rng(seed).lognormal(0, spread, (images, 3, 5))
    whole, parts = (streamed(norms, sizes, 2.0) for sizes in ([images], [min(cut, images), max(images - cut, 0)]))
    for name in ("share", "low", "high", "median", "largest", "where", "histogram"):
        np.testing.assert_allclose(getattr(parts, name), getattr(whole, name), rtol=1e-12, atol=1e-12)
    assert (whole.histogram.sum(axis=1) == images * 15).all()
    assert np.allclose(whole.where.mean(axis=(1, 2)), whole.share)


def test_the_ends() -> None:
    extreme = np.full((2, 3, 5), 1e9)
    extreme[1] = 0
    found = streamed(extreme, [2])
    assert (found.histogram[:, [0, -1]] == 15).all()
    assert np.allclose(found.largest, 1)
    nothing = streamed(np.zeros((2, 3, 5)), [2])
    assert np.isnan(nothing.largest).all()
    assert nothing.summary()["largest_ratio"] == [None, None]
    for factor in (1.0, float("nan")):
        with pytest.raises(UserError, match="greater than 1"):
            PatchNorms(CONFIG, factor)
    with pytest.raises(UserError, match="no image"):
        PatchNorms(CONFIG).finding()
    with pytest.raises(UserError, match="not finite"):
        streamed(np.full((1, 3, 5), np.nan), [1])


@pytest.mark.parametrize(("planted", "panels"), [(0.5, 2), (90.0, 4)])
@pytest.mark.parametrize("images", [1, 4])
def test_what_is_quoted(planted: float, panels: int, images: int) -> None:
    norms = np.random.default_rng(1).uniform(1, 2, (images, 3, 5))
    norms[0, 2, 3] = planted
    result = streamed(norms, [images])
    table = result.table()
    assert {len(column) for column in table.values()} == {2}
    assert table["layer"].tolist() == [1, 2]
    summary = result.summary()
    assert json.loads(json.dumps(summary)) == summary
    assert summary["first_layer_with_outliers"] == (1 if planted > 4 else None)
    drawn = result.plot()
    assert inline_svg(drawn, "norms").startswith("<svg")  # nothing in it warns when it is drawn
    assert len([axes for axes in drawn.axes if axes.get_label() != "<colorbar>"]) == panels


def test_a_layer_that_is_not_finite_is_named_counting_from_one() -> None:
    found = PatchNorms(ViTConfig(EncoderConfig(3, 8, 2, 16), (8, 8), (16, 16)))
    with pytest.raises(UserError, match="output of layer 2 is not finite"):
        found.receive("block", 1, torch.full((1, 5, 8), torch.nan))
