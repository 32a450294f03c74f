"""The linear map from pixels to tokens in its two forms, and at other patch sizes."""

from __future__ import annotations

from itertools import permutations
from typing import get_args

import pytest
import timm.layers
import torch
from torch.nn import functional as F

from vitrail.config import Size
from vitrail.model.patches import Order, PatchEmbedding, flatten, resize_patches, to_convolution, to_linear

PATCH = (3, 4)
WIDTH = 7


def _convolution() -> PatchEmbedding:
    torch.manual_seed(0)
    convolution = PatchEmbedding(2, WIDTH, PATCH).double()
    torch.nn.init.normal_(convolution.projection.bias)
    return convolution


def _images() -> torch.Tensor:
    return torch.randn(2, 2, 9, 20, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("order", get_args(Order))
def test_the_two_forms_are_one_map(order: Order) -> None:
    convolution = _convolution()
    linear = to_linear(convolution, order)
    torch.testing.assert_close(linear(_images()), convolution(_images()), rtol=0, atol=1e-13)
    back = to_convolution(linear)
    assert torch.equal(back.projection.weight, convolution.projection.weight)
    assert torch.equal(back.projection.bias, convolution.projection.bias)


@pytest.mark.parametrize("order", get_args(Order))
def test_flattened_in_the_order_said(order: Order) -> None:
    """Number by number: the last letter runs fastest (article 2.1)."""
    images = _images()
    flat = flatten(images, PATCH, order)
    lengths = {"c": 2, "h": 3, "w": 4}
    for patch in range(15):
        top, left = 3 * (patch // 5), 4 * (patch % 5)
        numbers = []
        for i in range(lengths[order[0]]):
            for j in range(lengths[order[1]]):
                for k in range(lengths[order[2]]):
                    at = dict(zip(order, (i, j, k), strict=True))
                    numbers.append(images[1, at["c"], top + at["h"], left + at["w"]])
        assert torch.equal(flat[1, patch], torch.stack(numbers))


def test_orders_are_row_permutations_of_e() -> None:
    """Article 2.1: whichever order patches are flattened in, E is the same but for the order of its rows."""
    assert set(get_args(Order)) == {"".join(axes) for axes in permutations("chw")}
    convolution = _convolution()
    places = torch.arange(24, dtype=torch.float64).reshape(1, 2, 3, 4)
    reference = to_linear(convolution, "chw").projection.weight.T  # E, (P P C, D)
    seen = set()
    for order in get_args(Order):
        rows = flatten(places, PATCH, order)[0, 0].long()
        assert sorted(rows.tolist()) == list(range(24))
        assert torch.equal(to_linear(convolution, order).projection.weight.T, reference[rows])
        seen.add(tuple(rows.tolist()))
    assert len(seen) == 6


@pytest.mark.parametrize("old", [(16, 16), (14, 14), (8, 12)])
@pytest.mark.parametrize("new", [(16, 16), (8, 8), (24, 20), (7, 13)])
def test_resized_kernels_are_timms(old: Size, new: Size) -> None:
    kernel = torch.randn(5, 3, *old, generator=torch.Generator().manual_seed(0))
    theirs = timm.layers.resample_patch_embed(kernel, list(new), interpolation="bicubic", antialias=True)
    torch.testing.assert_close(resize_patches(kernel, new), theirs, rtol=1e-5, atol=1e-5)


def test_an_enlarged_patch_gives_the_token_it_gave() -> None:
    """FlexiViT's equation 3: x.w = (B x).w' for every x; resizing the kernel as a picture would not."""
    kernel = torch.randn(5, 3, 8, 6, dtype=torch.float64)
    x = torch.randn(4, 3, 8, 6, dtype=torch.float64)
    larger = F.interpolate(x, (12, 12), mode="bicubic", antialias=True)
    before = torch.einsum("bchw,dchw->bd", x, kernel)
    after = torch.einsum("bchw,dchw->bd", larger, resize_patches(kernel, (12, 12)))
    torch.testing.assert_close(after, before, rtol=0, atol=1e-10)
    as_picture = torch.einsum("bchw,dchw->bd", larger, F.interpolate(kernel, (12, 12), mode="bicubic", antialias=True))
    assert not torch.allclose(as_picture, before, rtol=0.1)
    assert resize_patches(kernel, (8, 6)) is kernel
