"""Receptive fields against Jacobians written out, closed forms of radii, and a model that is left as it was."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from vitrail.analyze import canvas
from vitrail.analyze.maps import feature_maps
from vitrail.analyze.receptive import ReceptiveField, compare, receptive_field
from vitrail.config import EncoderConfig, ViTConfig
from vitrail.errors import UserError
from vitrail.model.build import build
from vitrail.model.vision import VisionTransformer

VIT = ViTConfig(EncoderConfig(layers=2, width=12, heads=2, mlp_width=24), patch=(4, 4), image_size=(12, 16))


def noise(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def vit() -> VisionTransformer:
    model = build(VIT).double()
    for parameter in model.parameters():
        parameter.data.copy_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(2)) * 0.3)
    return model


def by_jacobian(model: nn.Module, images: Tensor, layer: int) -> np.ndarray:
    """|J|^2 of the centre cell by each pixel, (H, W), summing to 1."""

    def centre(x: Tensor) -> Tensor:
        features = feature_maps(model)(x)[layer][1]
        return features[0, :, features.shape[2] // 2, features.shape[3] // 2]  # (D,)

    total = sum(torch.autograd.functional.jacobian(centre, x[None]).square().sum(dim=(0, 1, 2)).numpy() for x in images)
    return np.asarray(total / total.sum())


@pytest.mark.parametrize("batch_size", [1, 4])
def test_over_a_basis_it_is_the_jacobian_written_out(batch_size: int) -> None:
    images, model = noise(3, 3, 12, 16), vit()
    found = receptive_field(feature_maps(model), images, (12, 16), directions=torch.eye, batch_size=batch_size)
    assert found.layers == ("block 1", "block 2")
    for layer in range(2):
        assert np.allclose(found.energy[layer], by_jacobian(model, images, layer), rtol=1e-9)


def test_random_projections_are_unbiased() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(2, 5, 3, padding=1, dtype=torch.float64), nn.Tanh())
    images = noise(2, 2, 5, 5)
    found = receptive_field(feature_maps(model), images, (5, 5), projections=4000)
    assert np.allclose(found.energy[0], by_jacobian(model, images, 0), rtol=0.1, atol=1e-12)


@pytest.mark.parametrize("k", [1, 3, 5])
def test_one_convolution_sees_its_kernel_and_nothing_else(k: int) -> None:
    model = nn.Conv2d(3, 4, k, padding=k // 2)
    found = receptive_field(feature_maps(model), torch.zeros(1, 3, 9, 12), (9, 12))
    support = np.zeros((9, 12), bool)
    support[4 - k // 2 : 5 + k // 2, 6 - k // 2 : 7 + k // 2] = True
    assert ((found.energy[0] > 0) == support).all()
    assert found.radius(1.0)[0] == pytest.approx(math.hypot(k // 2, k // 2))
    assert found.energy[0].sum() == pytest.approx(1)
    # Without padding the map is smaller, and its middle is still that of the picture.
    bare = receptive_field(feature_maps(nn.Conv2d(3, 4, k)), torch.zeros(1, 3, 9, 9), (9, 9))
    assert bare.centres.tolist() == [[4.5, 4.5]]
    assert bare.radius(1.0)[0] == pytest.approx(math.hypot(k // 2, k // 2))


def test_patches_keep_to_themselves() -> None:
    model = nn.Conv2d(3, 8, 4, stride=4)
    found = receptive_field(feature_maps(model), torch.zeros(1, 3, 16, 24), (16, 24))
    assert found.own_share() == pytest.approx([1.0])
    assert found.cells.tolist() == [[4, 4]]
    assert found.centres.tolist() == [[10, 14]]
    assert receptive_field(feature_maps(vit()), noise(1, 3, 12, 16), (12, 16)).own_share().max() < 0.9999


def test_projections_depend_on_seed_image_and_layer_alone() -> None:
    maps, images = feature_maps(vit()), noise(3, 3, 12, 16)
    state = torch.get_rng_state()
    found, again, split, other = (
        receptive_field(maps, images, (12, 16), 2, seed, batch_size=size).energy
        for seed, size in ((0, 4), (0, 4), (0, 2), (1, 4))
    )
    assert (found == again).all()
    assert np.allclose(found, split, rtol=1e-9)
    assert not np.allclose(found, other, rtol=1e-2)
    assert (torch.get_rng_state() == state).all()


def test_the_model_and_the_images_are_left_as_they_were() -> None:
    model, images = vit().train(), noise(2, 3, 12, 16)
    next(model.parameters()).requires_grad_(False)
    before = [(parameter.requires_grad, parameter.clone()) for parameter in model.parameters()]
    with torch.no_grad():  # its own business
        receptive_field(feature_maps(model), images, (12, 16))
    assert all(module.training for module in model.modules())
    assert images.grad is None
    assert not images.requires_grad
    for parameter, (needed, value) in zip(model.parameters(), before, strict=True):
        assert parameter.grad is None
        assert parameter.requires_grad == needed
        assert (parameter == value).all()


def test_radii_of_known_energies() -> None:
    even = np.full((101, 101), 1 / 101**2)
    point = np.zeros((101, 101))
    point[50, 50] = 0.6
    point[50, 80] = 0.4
    found = ReceptiveField(
        "", 1, ("even", "point"), np.stack([even, point]), np.full((2, 2), 50.5), np.full((2, 2), 1.0)
    )
    assert found.radius(0.5)[0] == found.uniform_radius(0.5)[0] == pytest.approx(101 * math.sqrt(0.5 / math.pi), abs=1)
    assert found.radius(0.5)[1] == 0
    assert found.radius(0.9)[1] == 30
    assert found.own_share() == pytest.approx([1 / 101**2, 0.6])
    assert found.spread()[1] == pytest.approx(30 * math.sqrt(0.4))
    assert found.spread_beyond()[1] == pytest.approx(30)
    assert found.spread()[0] == pytest.approx(found.uniform_spread()[0])
    assert found.uniform_spread()[1] == pytest.approx(math.sqrt((101**2 - 1) / 6))  # of 101 steps, twice


def test_the_middle_of_larger_images_is_looked_at() -> None:
    maps, images = feature_maps(vit()), noise(1, 3, 20, 20)
    middle = images[:, :, 4:16, 2:18]
    assert (receptive_field(maps, images, (12, 16)).energy == receptive_field(maps, middle, (12, 16)).energy).all()


def test_misfits_get_a_sentence() -> None:
    maps = feature_maps(nn.Conv2d(3, 2, 1))
    with pytest.raises(UserError, match="at least 9x9 pixels"):
        receptive_field(maps, torch.zeros(1, 3, 8, 8), (9, 9))
    with pytest.raises(UserError, match="At least one projection"):
        receptive_field(maps, torch.zeros(1, 3, 8, 8), (8, 8), projections=0)
    with pytest.raises(UserError, match="carry no gradient"):
        receptive_field(lambda x: [("dead", x.detach())], torch.zeros(1, 3, 8, 8), (8, 8))
    with pytest.raises(UserError, match="depends on no pixel"):
        receptive_field(lambda x: [("zero", 0 * x)], torch.zeros(1, 3, 8, 8), (8, 8))


def test_tables_and_figures_show_every_model() -> None:
    images = noise(1, 3, 12, 16)
    one = receptive_field(feature_maps(vit()), images, (12, 16), model="ViT")
    rows = one.table()
    assert {len(column) for column in rows.values()} == {2}
    assert one.summary()["last"]["radius_50"] == rows["radius_50"][1]
    json.dumps(one.summary(), allow_nan=False)
    assert len(one.plot().axes) == 4  # two maps, their scale, the curves
    other = receptive_field(feature_maps(nn.Conv2d(3, 4, 3, padding=1).double()), images, (12, 16))
    drawn = compare({"A": one, "B": other})
    assert [text.get_text() for text in drawn.legends[0].get_texts()] == ["A", "B"]
    text = canvas.inline_svg(drawn, "both")
    assert all(name in text for name in ("block 1", "block 2", "output", "all pixels alike, 90 %"))
