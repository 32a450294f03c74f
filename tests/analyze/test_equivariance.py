"""Equivariance: exact where it must be, a loop over cells elsewhere, and unrelated where nothing moves along."""

from __future__ import annotations

import json
import math
from fractions import Fraction
from itertools import pairwise, product

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from torch import Tensor, nn

from vitrail.analyze import canvas
from vitrail.analyze.equivariance import Mode, compare, equivariance
from vitrail.analyze.maps import Maps, feature_maps, stride
from vitrail.config import EncoderConfig, HeadConfig, PositionConfig, PositionKind, ResNetConfig, Size, ViTConfig
from vitrail.errors import UserError
from vitrail.model.build import build
from vitrail.model.resnet import ResNet


def noise(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def convolution(size: int = 3, pixels: int = 1, padding: int = 0, mode: str = "zeros") -> nn.Module:
    torch.manual_seed(0)
    return nn.Conv2d(3, 4, size, pixels, padding, padding_mode=mode, dtype=torch.float64)


def vit(kind: PositionKind) -> nn.Module:
    config = ViTConfig(
        EncoderConfig(layers=3, width=16, heads=2, mlp_width=32),
        patch=(4, 4),
        image_size=(16, 24),
        position=PositionConfig(kind),
        head=HeadConfig(("mean",)),
    )
    model = build(config).double()
    for parameter in model.parameters():
        parameter.data.copy_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(2)) * 0.3)
    return model


def by_loop(maps: Maps, images: Tensor, shift: int, size: Size, pixels: int, mode: Mode, margin: int) -> list[float]:
    """Error of each image, a cell at a time; every pair of different cells for the scale."""
    H, W = size
    base = maps(images[:, :, :H, :W])[0][1].detach().numpy()
    B, _, h, w = base.shape
    inside = {(y, x) for y in range(margin, h - margin) for x in range(margin, w - margin)}
    cells = [base[b, :, y, x] for b in range(B) for y, x in sorted(inside)]
    pairs = [np.square(a - b).sum() for i, a in enumerate(cells) for b in cells[i + 1 :]]
    wraps, step = mode == "roll" and margin == 0, Fraction(shift, pixels)
    errors = []
    for b in range(B):
        both = []
        for down, across in ((1, 0), (0, 1)):
            if mode == "roll":
                picture = torch.roll(images[b], (-shift * down, -shift * across), (1, 2))
            else:
                picture = images[b, :, shift * down : shift * down + H, shift * across : shift * across + W]
            moved = maps(picture[None])[0][1].detach().numpy()[0]
            found = []
            for y, x in product(range(h), range(w)):
                ends = [
                    (y + down * k, x + across * k) for k in dict.fromkeys((math.floor(step), math.ceil(step)))
                ]  # one cell, or two with the place between them
                if wraps:
                    ends = [(p % h, q % w) for p, q in ends]
                if (y, x) in inside and inside.issuperset(ends):
                    far = float(step % 1)
                    (p, q), (r, s) = ends[0], ends[-1]
                    expected = (1 - far) * base[b, :, p, q] + far * base[b, :, r, s]
                    found.append(np.square(moved[:, y, x] - expected).sum())
            both.append(np.mean(found) if found else math.nan)
        errors.append(np.mean(both) / np.mean(pairs))
    return errors


@settings(max_examples=40)
@given(
    st.sampled_from(["crop", "roll"]),
    st.sampled_from([1, 2, 3]),
    st.tuples(st.integers(3, 6), st.integers(3, 6)),
    st.integers(0, 14),
    st.integers(0, 1),
)
def test_it_is_the_loop_over_cells(mode: Mode, pixels: int, grid: Size, shift: int, margin: int) -> None:
    size = (grid[0] * pixels, grid[1] * pixels)
    extra = 0 if mode == "roll" else shift + 1
    images = noise(2, 3, size[0] + extra, size[1] + extra)
    maps = feature_maps(convolution(3, pixels, 1))
    found = equivariance(maps, images, [shift], size, mode, margin, batch_size=1)
    assert found.strides == ((pixels, pixels),)
    assert np.allclose(
        found.errors[0, 0], by_loop(maps, images, shift, size, pixels, mode, margin), atol=1e-12, equal_nan=True
    )


def test_a_circular_convolution_moves_along_at_every_shift() -> None:
    maps = feature_maps(nn.Sequential(convolution(5, 1, 2, "circular"), nn.GELU()))
    found = equivariance(maps, noise(3, 3, 9, 12), range(15), (9, 12), "roll", margin=0)
    assert found.errors.max() < 1e-12
    assert found.cosines.min() > 1 - 1e-12


def test_a_padded_convolution_moves_along_where_its_padding_is_not_felt() -> None:
    maps, images = feature_maps(nn.Sequential(convolution(5, 1, 2), nn.GELU())), noise(2, 3, 17, 17)
    assert equivariance(maps, images, range(5), (12, 12), margin=2).errors.max() < 1e-12
    assert equivariance(maps, images, [1], (12, 12), margin=1).errors.min() > 1e-3


def test_a_strided_convolution_moves_along_by_whole_strides() -> None:
    found = equivariance(feature_maps(convolution(5, 4, 2)), noise(2, 3, 40, 40), range(9), (32, 32), margin=1)
    whole = found.errors[:, ::4]
    assert whole.max() < 1e-12
    assert np.delete(found.errors, [0, 4, 8], axis=1).min() > 0.05


@pytest.mark.parametrize(("kind", "moves"), [("none", True), ("learned-1d", False), ("relative-2d", False)])
def test_a_vit_moves_along_by_whole_patches_if_it_has_no_positions(kind: PositionKind, moves: bool) -> None:
    found = equivariance(feature_maps(vit(kind)), noise(2, 3, 16, 24), [2, 4, 8, 12], (16, 24), "roll", margin=0)
    assert found.layers == ("block 1", "block 2", "block 3")
    assert (found.errors[:, 1:].max() < 1e-12) == moves
    assert found.errors[:, 0].min() > 1e-3


def test_unrelated_features_differ_by_one_and_between_cells_by_less() -> None:
    """Half way between two cells their mean varies half as much: (1 + 1/2) / 2."""
    generator = torch.Generator().manual_seed(0)
    maps: Maps = lambda x: [("noise", torch.randn(len(x), 64, 16, 16, generator=generator) + 5)]  # noqa: E731
    found = equivariance(maps, noise(4, 3, 40, 40), [1, 2, 3, 4], (32, 32), margin=1)
    assert found.errors.mean(axis=2)[0] == pytest.approx([0.75, 1, 0.75, 1], abs=0.03)


def test_layers_have_strides_and_margins_of_their_own_and_small_maps_no_number() -> None:
    model = ResNet(ResNetConfig((1, 1, 1), 32), 3).double()
    found = equivariance(feature_maps(model), noise(2, 3, 96, 96), [0, 4, 8, 16, 48], (48, 48), model="net")
    assert [pixels for pixels, _ in found.strides] == [4, 8, 16]
    assert found.margins == (0, 0, 0)  # the largest shift takes it all
    assert np.isnan(found.errors[:, 4]).all()
    assert not np.isnan(found.errors[:, :4]).any()
    rows = found.table()
    assert {len(column) for column in rows.values()} == {12}
    assert rows["cells"].tolist() == [0, 1, 2, 4, 0, 0.5, 1, 2, 0, 0.25, 0.5, 1]
    assert found.summary()["half_cell"]["shift"] == 8
    assert found.summary()["whole_cell_by_layer"]["stage 1"]["shift"] == 4
    json.dumps(found.summary(), allow_nan=False)


def test_the_margin_is_a_quarter_unless_two_cells_would_not_be_left() -> None:
    for shift, margin in ((0, 3), (4, 3), (6, 2), (8, 1), (12, 0)):
        found = equivariance(feature_maps(convolution(1)), noise(1, 3, 24, 24), [shift], (12, 12))
        assert found.margins == (margin,)
        assert np.isnan(found.errors).all() == (shift == 12)
    rolled = equivariance(feature_maps(convolution(1)), noise(1, 3, 12, 12), [12], (12, 12), "roll")
    assert np.isnan(rolled.errors).all()  # only a margin that is said to be 0 wraps


def test_the_interval_is_students_over_images_and_batches_do_not_matter() -> None:
    maps, images = feature_maps(convolution(3, 2, 1)), noise(5, 3, 20, 20)
    found = equivariance(maps, images, [1, 3], (16, 16))
    split = equivariance(maps, images, [3, 1, 1], (16, 16), batch_size=2)
    assert np.allclose(found.errors, split.errors, rtol=1e-12)
    mean, low, high = found.interval()
    theirs = stats.ttest_1samp(found.errors[0, 1], 0.0).confidence_interval(0.95)
    assert (low[0, 1], high[0, 1]) == pytest.approx((theirs.low, theirs.high))
    assert mean[0, 1] == pytest.approx(found.errors[0, 1].mean())
    one = equivariance(maps, images[:1], [1], (16, 16)).summary()
    assert one["smallest_shift"]["low"] is None
    assert one["whole_cell"] is None
    json.dumps(one, allow_nan=False)


def test_features_that_never_vary_give_no_number() -> None:
    maps: Maps = lambda x: [("flat", torch.ones(len(x), 2, 8, 8))]  # noqa: E731
    assert np.isnan(equivariance(maps, noise(1, 3, 8, 8), [1], (8, 8), "roll", margin=0).errors).all()


@pytest.mark.parametrize(
    ("size", "grid", "pixels"),
    [
        ((224, 224), (16, 16), (14, 14)),
        ((32, 48), (8, 6), (4, 8)),
        ((30, 30), (8, 7), (4, 4)),  # padded to whole strides, or the rest dropped
        ((32, 32), (28, 30), (1, 1)),  # borders lost
        ((16, 16), (32, 64), (Fraction(1, 2), Fraction(1, 4))),
    ],
)
def test_strides_are_whole_whatever_the_padding(size: Size, grid: Size, pixels: tuple[Fraction, Fraction]) -> None:
    assert stride(size, torch.zeros(1, 2, *grid)) == pixels


@pytest.mark.parametrize(
    ("shape", "shifts", "mode", "margin", "said"),
    [
        ((1, 3, 10, 10), [3], "crop", None, r"need images of 11x11 pixels for a model of 8x8, not 10x10"),
        ((1, 3, 9, 9), [1], "roll", None, "mode roll need images of 8x8"),
        ((1, 3, 8, 8), [], "crop", None, "at least one shift"),
        ((1, 3, 8, 8), [-1], "roll", None, "0 or more"),
        ((1, 3, 8, 8), [1], "roll", -1, "0 or more"),
        ((0, 3, 8, 8), [1], "roll", None, "There must be images"),
    ],
)
def test_misfits_get_a_sentence(
    shape: tuple[int, ...], shifts: list[int], mode: Mode, margin: int | None, said: str
) -> None:
    with pytest.raises(UserError, match=said):
        equivariance(feature_maps(convolution(1)), torch.zeros(shape), shifts, (8, 8), mode, margin)


def test_the_figures_have_ticks_at_whole_patches_and_a_curve_for_each_model() -> None:
    images = noise(3, 3, 24, 32)
    found = equivariance(feature_maps(vit("learned-1d")), images, range(0, 9, 2), (16, 24), model="ViT")
    axes = found.plot().axes[0]
    assert axes.get_xticks().tolist() == [0, 4, 8]
    assert len(axes.lines) == 4  # three layers and the line at 1
    other = equivariance(feature_maps(convolution(3, 2, 1)), images, range(0, 9), (16, 24))
    both = compare({"A": found, "B": other})
    assert [text.get_text() for text in both.legends[0].get_texts()] == ["A", "B"]
    colours = [line.get_color() for line in both.axes[0].lines[:2]]
    assert all(a != b for a, b in pairwise(colours))
    assert "unrelated cells" in canvas.inline_svg(both, "both")
