"""Principal components of patches: against scikit-learn, and planted planes that must be seen."""

from __future__ import annotations

import json
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.decomposition import PCA
from torch import Tensor

from vitrail.analyze.canvas import inline_svg
from vitrail.analyze.components import PatchComponents, PatchCovariance, draw_colours
from vitrail.analyze.stream import observe
from vitrail.config import EncoderConfig, ViTConfig
from vitrail.errors import UserError
from vitrail.model.vision import VisionTransformer

Images = Callable[[VisionTransformer, int], Tensor]


@pytest.mark.parametrize("normalised", [False, True])
def test_the_stream_is_scikit_learns(images: Images, model: VisionTransformer, normalised: bool) -> None:
    batch = images(model, 7)
    found = PatchCovariance(model.config, norm=model.norm if normalised else None)
    observe(lambda x, trace: model.encode(x, 1, trace), batch.split(3), [found])
    result = found.finding()
    z = model.encode(batch)[0]
    z = (model.norm(z) if normalised else z)[:, len(model.config.tokens) :].detach()
    torch.testing.assert_close(found.features(model.encode(batch)[0]).detach(), z)
    flat = z.flatten(0, 1).double().numpy()
    expected = PCA().fit(flat)
    assert result.patches == len(flat)
    np.testing.assert_allclose(result.mean, expected.mean_, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(result.variances, expected.explained_variance_, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(result.explained, expected.explained_variance_ratio_, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(np.abs((result.components * expected.components_[:3]).sum(axis=1)), 1, rtol=1e-4)
    places = expected.transform(flat)[:, :3] * np.sign((result.components * expected.components_[:3]).sum(axis=1))
    low, high = np.percentile(places, [2, 98], axis=0)
    colours = ((places - low) / (high - low)).clip(0, 1).reshape(7, *model.config.grid, 3)
    np.testing.assert_allclose(result.colours(z.numpy()), colours, atol=1e-3)


def test_a_layer_of_choice(images: Images, model: VisionTransformer) -> None:
    batch = images(model, 4)
    first, last = PatchCovariance(model.config, layer=0), PatchCovariance(model.config)
    assert (first.blocks, last.blocks) == ((0,), (2,))
    observe(lambda x, trace: model.encode(x, 1, trace), [batch], [first, last])
    assert not np.allclose(first.finding().mean, last.finding().mean)


def config(width: int = 6, size: tuple[int, int] = (8, 12)) -> ViTConfig:
    return ViTConfig(EncoderConfig(1, width, 1, 8), patch=(4, 4), image_size=size)


def streamed(z: np.ndarray, cuts: list[int]) -> PatchComponents:
    """The finding for patches (n, 6, D), behind a class token that is far beyond them."""
    tokens = np.concatenate([np.full((len(z), 1, z.shape[2]), 1e5), z], axis=1)
    found = PatchCovariance(config(z.shape[2]))
    for part in np.split(tokens, sorted(cuts)):
        found.receive("block", 0, torch.from_numpy(part).float())
    return found.finding()


@given(st.integers(1, 12), st.lists(st.integers(0, 12), max_size=4), st.integers(0, 9))
def test_any_batching_gives_the_same(images: int, cuts: list[int], seed: int) -> None:
    z = np.random.default_rng(seed).standard_normal((images, 6, 6)) * [9, 6, 3, 1, 1, 1]
    whole, parts = streamed(z, []), streamed(z, [min(cut, images) for cut in cuts])
    assert whole.patches == parts.patches == 6 * images
    np.testing.assert_allclose(parts.mean, whole.mean, atol=1e-4)
    np.testing.assert_allclose(parts.variances, whole.variances, rtol=1e-3, atol=1e-4)


def test_a_large_mean_does_not_drown_small_variances() -> None:
    z = np.random.default_rng(0).standard_normal((50, 6, 6)) * 0.1
    near, far = streamed(z, [20]), streamed(z + 300, [20])
    np.testing.assert_allclose(far.variances, near.variances, rtol=2e-3)


def test_signs_are_no_accident() -> None:
    z = np.random.default_rng(3).standard_normal((20, 6, 6)) * [9, 5, 3, 1, 1, 1]
    found, mirrored = streamed(z, []), streamed(-z, [4])
    assert (np.take_along_axis(found.components, np.abs(found.components).argmax(1)[:, None], 1) > 0).all()
    np.testing.assert_allclose(mirrored.components, found.components, atol=1e-4)


def spectrum(variances: list[float]) -> PatchComponents:
    width = len(variances)
    return PatchComponents(np.zeros(width), np.array(variances), np.eye(width)[:3], (2, 3), 60)


def test_effective_rank_and_shares() -> None:
    assert spectrum([2.0] * 8).effective_rank == pytest.approx(8)
    assert spectrum([5.0, 0.0, 0.0, 0.0]).effective_rank == pytest.approx(1)
    uneven = spectrum([7.0, 2.0, 0.9, 0.1])
    assert uneven.explained.tolist() == pytest.approx([0.7, 0.2, 0.09, 0.01])
    assert [uneven.needed(share) for share in (0.5, 0.8, 0.95, 1.0)] == [1, 2, 3, 4]
    assert not spectrum([0.0, 0.0, 0.0]).explained.any()


def test_planted_halves_have_their_colours() -> None:
    """Patches of the left column differ from the others along one axis: red tells them apart, nothing else does."""
    z = np.random.default_rng(0).standard_normal((30, 2, 3, 6)) * 0.01
    z[:, :, 0, 4] += 7
    flat = z.reshape(30, 6, 6)
    colours = streamed(flat, []).colours(flat[:5])
    assert colours.shape == (5, 2, 3, 3)
    assert colours.min() >= 0
    assert colours.max() <= 1
    assert (colours[:, :, 0, 0] > 0.95).all()  # its largest entry, and so its sign, is positive
    assert (colours[:, :, 1:, 0] < 0.05).all()
    assert np.ptp(colours[:, :, 0, 1]) > 0.3  # noise


def test_narrow_and_constant_features() -> None:
    narrow = np.random.default_rng(0).standard_normal((4, 6, 2))
    found = streamed(narrow, [])
    assert not found.colours(narrow)[..., 2].any()
    constant = np.ones((4, 6, 6))
    assert not streamed(constant, []).colours(constant).any()
    assert found.plot().axes
    assert streamed(constant, []).plot().axes


def test_what_cannot_be_analysed() -> None:
    with pytest.raises(UserError, match="no patches"):
        PatchCovariance(config()).finding()
    with pytest.raises(UserError, match="not finite"):
        streamed(np.full((2, 6, 6), np.nan), [])
    with pytest.raises(UserError, match="no picture"):
        draw_colours(np.empty((0, 8, 12, 3)), np.empty((0, 2, 3, 3)))


def test_what_is_quoted() -> None:
    z = np.random.default_rng(0).standard_normal((9, 6, 6)) * [9, 5, 3, 1, 1, 1]
    result = streamed(z, [])
    table = result.table()
    assert {len(column) for column in table.values()} == {6}
    assert table["cumulative"][-1] == pytest.approx(1)
    summary = result.summary()
    assert json.loads(json.dumps(summary)) == summary
    assert summary["effective_rank"] == pytest.approx(result.effective_rank)
    assert len(result.plot().axes) == 2
    assert inline_svg(result.plot(), "components").startswith("<svg")  # nothing in it warns when it is drawn


@pytest.mark.parametrize("kind", [np.uint8, np.float32])
def test_pictures_stand_beside_their_colours(kind: type) -> None:
    pictures = np.zeros((5, 8, 12, 3), kind)
    drawn = draw_colours(pictures, np.random.default_rng(0).random((5, 2, 3, 3)), columns=3)
    shown = [axes.get_images()[0] for axes in drawn.axes if axes.get_images()]
    assert len(drawn.axes) == 12
    assert [image.get_array().shape[:2] for image in shown] == [(8, 12), (2, 3)] * 5
    assert {tuple(image.get_extent()) for image in shown} == {(0, 12, 8, 0)}
