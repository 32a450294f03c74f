"""Patch filters: the components are scikit-learn's, the sign is no accident, pictures show the weights."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.decomposition import PCA
from torch import Tensor

from vitrail.analyze.filters import PatchFilters, patch_filters
from vitrail.config import EncoderConfig, ResNetConfig, Size, ViTConfig
from vitrail.errors import UserError
from vitrail.model.build import build
from vitrail.model.vision import VisionTransformer


def _model(width: int = 40, channels: int = 3, patch: Size = (4, 6), **fields: Any) -> VisionTransformer:
    """Filters whose weights have deviations far apart, so that components are well told from another."""
    size = (32, 32) if "stem" in fields else (patch[0] * 2, patch[1])
    encoder = EncoderConfig(layers=1, width=width, heads=1, mlp_width=4)
    model = build(ViTConfig(encoder, patch=patch, image_size=size, channels=channels, **fields))
    weight = (model.patches.projection if model.stem is None else model.stem.root).weight
    weight.data *= torch.linspace(0.2, 3.0, weight[0].numel()).reshape(weight.shape[1:]).square()
    return model


def _with(kernels: Tensor) -> VisionTransformer:
    """A model with these kernels (D, C, P, P)."""
    model = _model(len(kernels), kernels.shape[1], (kernels.shape[2], kernels.shape[3]))
    model.patches.projection.weight.data = kernels
    return model


def _check(found: PatchFilters, kernels: Tensor) -> None:
    """Against scikit-learn, up to sign."""
    n, flat = len(found.components), kernels.detach().double().flatten(1).numpy()
    reference = PCA(svd_solver="full").fit(flat)
    np.testing.assert_allclose(found.spectrum, reference.explained_variance_ratio_[: len(found.spectrum)], atol=1e-9)
    np.testing.assert_allclose(found.explained, found.spectrum[:n])
    assert found.spectrum.sum() == pytest.approx(1)
    components = found.components.reshape(n, -1)
    cosines = (components * reference.components_[:n]).sum(1)
    np.testing.assert_allclose(np.abs(cosines), 1, atol=1e-6)
    np.testing.assert_allclose(components @ components.T, np.eye(n), atol=1e-9)
    for percent in (50, 90, 95):
        fewest = PCA(percent / 100, svd_solver="full").fit(flat).n_components_
        assert found.summary()[f"components_for_{percent}"] == fewest


@pytest.mark.parametrize("channels", [1, 2, 3, 5])
@pytest.mark.parametrize("width", [8, 40])
def test_components_are_scikit_learns(width: int, channels: int) -> None:
    model = _model(width, channels)
    found = patch_filters(model, components=6)
    assert found.components.shape == (6, channels, 4, 6)
    assert (found.source, found.filters) == ("patch embedding", width)
    _check(found, model.patches.projection.weight)


def test_a_hybrid_shows_its_first_convolution_as_it_is_used() -> None:
    model = _model(patch=(1, 1), stem=ResNetConfig((1, 1), width=32))
    found = patch_filters(model)
    assert (found.source, found.filters, found.components.shape) == ("root convolution", 32, (28, 3, 7, 7))
    assert model.stem is not None
    _check(found, model.stem.root.standardised())
    assert found.summary()["source"] == "root convolution"


def test_more_components_than_there_are() -> None:
    assert len(patch_filters(_model(width=8), 28).components) == 7  # 8 filters about their mean
    assert len(patch_filters(_model(channels=1, patch=(2, 3)), 28).components) == 6
    patterns = torch.randn(2, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    mixed = torch.einsum("dn,nchw->dchw", torch.randn(9, 2, generator=torch.Generator().manual_seed(1)), patterns)
    found = patch_filters(_with(mixed.double()))
    assert len(found.components) == len(found.spectrum) == 2
    held = found.components.reshape(2, -1)
    planted = patterns.reshape(2, -1).double().numpy()
    np.testing.assert_allclose(planted @ held.T @ held, planted, atol=1e-6)


def test_the_sign_is_that_of_the_weights_and_not_of_rounding() -> None:
    model = _model()
    found = patch_filters(model).components
    model.patches.projection.weight.data.neg_()
    np.testing.assert_allclose(patch_filters(model).components, found, atol=1e-9)
    edge = torch.tensor([[-1.0, 0.2, 1.0]] * 2, dtype=torch.float64)[None, None]  # its two largest weights are alike
    for error in (1e-7, -1e-7):
        nearly = edge + error * torch.tensor([1.0, 0.0, 1.0])
        component = patch_filters(_with(torch.cat([nearly, -nearly, 0 * nearly]))).components[0, 0, 0]
        np.testing.assert_allclose(component, np.array([1, -0.2, -1]) / np.sqrt(2 * 2.04), atol=1e-6)


@pytest.mark.parametrize("size", [4, 7, 14, 16])
def test_smoothness(size: int) -> None:
    def of(pattern: Tensor) -> float:
        kernels = pattern.reshape(1, 1, *pattern.shape[-2:]) * torch.tensor([1.0, -1.0, 3.0]).reshape(3, 1, 1, 1)
        return float(patch_filters(_with(kernels)).smoothness()[0])

    places = torch.arange(size)
    assert of(torch.ones(size, size)) == pytest.approx(1)
    stripes = (-1.0) ** places
    if size % 2 == 0:
        assert of(stripes[:, None] * stripes) == pytest.approx(0, abs=1e-9)
        assert of(stripes.expand(size, -1)) == pytest.approx(0, abs=1e-9)
    wave = torch.cos(2 * torch.pi * places / size)
    assert of(wave.expand(size, -1)) == pytest.approx(0.5 if size == 4 else 1)  # of four, it is on the border
    noise = build(ViTConfig(EncoderConfig(1, 400, 1, 1), patch=(size, size), image_size=(size, size)))
    everything = patch_filters(noise, 10_000).smoothness()
    assert everything.mean() == pytest.approx(9 / 49 if size == 7 else 0.25, abs=0.03)
    assert patch_filters(_model(patch=(1, 1))).smoothness() == pytest.approx(1)


def test_table_and_summary() -> None:
    found = patch_filters(_model(), 3)
    table = found.table()
    assert list(table) == ["component", "channel", "row", "column", "value"]
    assert {len(column) for column in table.values()} == {3 * 3 * 4 * 6}
    for *place, value in zip(*table.values(), strict=True):
        assert found.components[tuple(number - 1 for number in place)] == value
    summary = found.summary()
    assert (summary["components"], summary["components_in_all"], summary["shape"]) == (3, 39, [3, 4, 6])
    assert summary["explained_together"] == pytest.approx(sum(summary["explained"]))


@pytest.mark.parametrize("channels", [1, 2, 3, 5])
@pytest.mark.parametrize("components", [1, 5, 28])
def test_pictures_are_the_weights_about_grey(channels: int, components: int) -> None:
    found = patch_filters(_model(channels=channels), components)
    figure = found.plot()
    count = len(found.components)
    shown = [axes for axes in figure.axes if axes.images]
    assert len(shown) == count
    held = io.BytesIO()
    figure.savefig(held, format="png")
    assert len(held.getvalue()) > 1000
    for number, axes in enumerate(shown):
        picture = np.asarray(axes.images[0].get_array())
        weights = np.atleast_3d(found.components[number][:3].transpose(1, 2, 0))
        drawn = np.atleast_3d(picture)[..., : weights.shape[2]]
        np.testing.assert_allclose((drawn - 0.5) * 2 * np.abs(weights).max(), weights, atol=1e-6)
        assert (drawn.min() == pytest.approx(0)) or (drawn.max() == pytest.approx(1))
        if channels == 2:
            assert (picture[..., 2] == 0.5).all()
        assert axes.get_title() == f"{100 * found.spectrum[number]:.1f} %"
    title = figure.get_suptitle()
    assert title.startswith("Principal components: 4x6 patch embedding")
    assert ("first 3 of 5 channels" in title) == (channels == 5)


def test_mistakes_are_sentences() -> None:
    with pytest.raises(UserError, match="At least 1 component"):
        patch_filters(_model(), 0)
    for kernels in (torch.zeros(5, 3, 4, 4), torch.rand(1, 3, 4, 4).expand(5, -1, -1, -1), torch.rand(1, 3, 4, 4)):
        with pytest.raises(UserError, match="all the same"):
            patch_filters(_with(kernels))
    with pytest.raises(UserError, match="not finite"):
        patch_filters(_with(torch.full((5, 3, 4, 4), torch.nan)))
