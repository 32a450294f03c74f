"""Taking a table of positions to another grid, against whoever does it that way."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Any, get_args

import numpy as np
import pytest
import scipy.ndimage
import timm.layers
import torch
import torchvision.models.vision_transformer as torchvision_vit
import transformers
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from vitrail.config import EncoderConfig, PositionConfig, PositionKind, Resampling, Size, ViTConfig
from vitrail.model.build import build, to_grid
from vitrail.model.position import paired, resample_grid

WIDTH = 8
TO = [(5, 5), (24, 24), (16, 16), (10, 21), (1, 3), (14, 13)]

INTERPOLATED = tuple(how for how in get_args(Resampling) if not how.startswith("zeros"))


def _table(grid: Size, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*grid, WIDTH, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(dtype)


@pytest.mark.parametrize("old", [(14, 14), (7, 12)])
@pytest.mark.parametrize("new", [new for new in TO if 1 not in new])  # of a single row zoom has another notion
def test_bilinear_corner_is_scipys_zoom(old: Size, new: Size) -> None:
    """Google's: ``scipy.ndimage.zoom`` with order 1."""
    table = _table(old)
    zoomed = scipy.ndimage.zoom(table.numpy(), (new[0] / old[0], new[1] / old[1], 1), order=1)
    np.testing.assert_allclose(resample_grid(table, new, "bilinear-corner").numpy(), zoomed, rtol=0, atol=1e-12)


@pytest.mark.parametrize("old", [(14, 14), (7, 12)])
@pytest.mark.parametrize("new", TO)
def test_bicubic_antialias_is_timms(old: Size, new: Size) -> None:
    table = _table(old, torch.float32)
    theirs = timm.layers.resample_abs_pos_embed(
        table.reshape(1, -1, WIDTH), new_size=list(new), old_size=list(old), num_prefix_tokens=0
    )
    ours = resample_grid(table, new, "bicubic-antialias")
    torch.testing.assert_close(ours.reshape(1, -1, WIDTH), theirs, rtol=0, atol=0)


def test_bilinear_is_timms_from_npz() -> None:
    table = _table((14, 14), torch.float32)
    theirs = timm.layers.resample_abs_pos_embed(
        table.reshape(1, -1, WIDTH), new_size=[24, 20], num_prefix_tokens=0, interpolation="bilinear", antialias=False
    )
    torch.testing.assert_close(resample_grid(table, (24, 20), "bilinear").reshape(1, -1, WIDTH), theirs)


@pytest.mark.parametrize("kind", ["ViT", "Dinov2"])
@pytest.mark.parametrize("new", TO)
def test_bicubic_is_transformers(kind: str, new: Size) -> None:
    config = getattr(transformers, f"{kind}Config")(
        hidden_size=WIDTH, num_hidden_layers=1, num_attention_heads=1, image_size=28, patch_size=2
    )
    embeddings = getattr(transformers, f"{kind}Model")(config).embeddings.double()
    table = _table((14, 14))
    row = torch.randn(1, 1, WIDTH, dtype=torch.float64)
    embeddings.position_embeddings.data = torch.cat([row, table.reshape(1, -1, WIDTH)], dim=1)
    tokens = torch.zeros(1, 1 + new[0] * new[1], WIDTH)
    theirs = embeddings.interpolate_pos_encoding(tokens, 2 * new[0], 2 * new[1])
    ours = torch.cat([row, resample_grid(table, new, "bicubic").reshape(1, -1, WIDTH)], dim=1)
    # Dinov2 interpolates in float32 whatever the table's type is.
    torch.testing.assert_close(ours, theirs.detach(), rtol=0, atol=1e-5 if kind == "Dinov2" else 1e-12)


@pytest.mark.parametrize("side", [5, 24, 16, 13])
def test_bicubic_corner_is_torchvisions(side: int) -> None:
    table = _table((14, 14), torch.float32)
    state = OrderedDict({"encoder.pos_embedding": torch.cat([torch.ones(1, WIDTH), table.reshape(-1, WIDTH)])[None]})
    theirs = torchvision_vit.interpolate_embeddings(side * 16, 16, state)["encoder.pos_embedding"][:, 1:]
    ours = resample_grid(table, (side, side), "bicubic-corner").reshape(1, -1, WIDTH)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=0)


def _dinos(table: Tensor, new: Size) -> Tensor:
    """DINO's and DINOv2's formula, with its 0.1 'to avoid floating point error'."""
    scale = ((new[0] + 0.1) / table.shape[0], (new[1] + 0.1) / table.shape[1])
    image = F.interpolate(table.permute(2, 0, 1)[None], scale_factor=scale, mode="bicubic")
    return image[0].permute(1, 2, 0)


@pytest.mark.parametrize("new", TO)
def test_bicubic_offset_is_dinos(new: Size) -> None:
    table = _table((37, 37))
    ours = resample_grid(table, new, "bicubic-offset")
    torch.testing.assert_close(ours, _dinos(table, new), rtol=0, atol=0)
    assert (ours - resample_grid(table, new, "bicubic")).norm() / ours.norm() > 1e-4  # so the offset is there


@given(
    old=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    new=st.tuples(st.integers(1, 80), st.integers(1, 80)),
    how=st.sampled_from(INTERPOLATED),
)
def test_the_grid_asked_for_is_the_grid_that_comes(old: Size, new: Size, how: Resampling) -> None:
    resampled = resample_grid(torch.ones(*old, 2), new, how)
    assert resampled.shape == (*new, 2)
    torch.testing.assert_close(resampled, torch.ones(*new, 2), rtol=0, atol=1e-5)  # a constant stays one


@pytest.mark.parametrize("old", [(16, 37), (37, 16), (14, 14)])
@pytest.mark.parametrize("new", [(5, 7), (16, 24), (70, 33)])
def test_corners_stay_on_corners(old: Size, new: Size) -> None:
    """The article's way (5.1): the four corner vectors are the old ones."""
    table = _table(old)
    resampled = resample_grid(table, new, "bicubic-corner")
    for row in (0, -1):
        for column in (0, -1):
            torch.testing.assert_close(resampled[row, column], table[row, column], rtol=0, atol=1e-9)


@pytest.mark.parametrize("how", get_args(Resampling))
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_types(how: Resampling, dtype: torch.dtype) -> None:
    table = _table((6, 5), dtype)
    assert resample_grid(table, (6, 5), how) is table
    resampled = resample_grid(table, (9, 4), how)
    assert resampled.dtype == dtype
    precise = resample_grid(table.double(), (9, 4), how)
    error = (resampled.double() - precise).abs().max() / precise.abs().max()
    assert error <= torch.finfo(dtype).eps * (1 if dtype.itemsize < 4 else 8)


def test_the_ways_differ() -> None:
    """FACTS of the field: 7 to 33 % on white noise from 14 to 24, so the way must travel with the weights."""
    table = torch.randn(14, 14, 64, generator=torch.Generator().manual_seed(0))
    results = {how: resample_grid(table, (24, 24), how) for how in get_args(Resampling)}
    one: Callable[[str], Tensor] = results.__getitem__
    for first in results:
        for second in results:
            difference = float((one(first) - one(second)).norm() / one(first).norm())
            assert (difference == 0) if first == second else difference > 1e-3, (first, second)
    assert float((one("bicubic") - one("bicubic-corner")).norm() / one("bicubic").norm()) > 0.07


@pytest.mark.parametrize("how", INTERPOLATED)
@pytest.mark.parametrize("new", [(10, 1), (4, 1), (1, 1), (1, 10)])
def test_one_column_is_as_good_as_one_row(how: Resampling, new: Size) -> None:
    """PyTorch's antialiased interpolation is wrong where the result is one column wide."""
    table = _table((6, 9))
    sideways = resample_grid(table.transpose(0, 1).contiguous(), (new[1], new[0]), how).transpose(0, 1)
    torch.testing.assert_close(resample_grid(table, new, how), sideways, rtol=0, atol=1e-10)


@pytest.mark.parametrize("new", [(9, 4), (3, 8), (8, 11), (2, 2)])
def test_zeros_are_filled_in(new: Size) -> None:
    """What article 5.1 advises against: vectors where they were, in raster order or in rows and columns; else zeros."""
    table = _table((4, 7))
    raster, corner = (resample_grid(table, new, how) for how in ("zeros-raster", "zeros-corner"))
    for place in range(new[0] * new[1]):
        row, column = divmod(place, new[1])
        expected = table[divmod(place, 7)] if place < 28 else torch.zeros(table.shape[-1])
        assert (raster[row, column] == expected).all()
        expected = table[row, column] if row < 4 and column < 7 else torch.zeros(table.shape[-1])
        assert (corner[row, column] == expected).all()


# --- each scheme in its own way ---


def _scheme(grid: Size, **fields: Any) -> tuple[ViTConfig, dict[str, Tensor]]:
    config = ViTConfig(EncoderConfig(2, 8, 2, 8), (1, 1), grid, position=PositionConfig(**fields))
    state = build(config).double().state_dict()
    return config, {name: torch.randn_like(tensor) for name, tensor in state.items()}


@pytest.mark.parametrize("how", INTERPOLATED)
def test_two_tables_resampled_are_their_pairs_resampled(how: Resampling) -> None:
    """Every way is separable, so rows and columns apart give what the whole grid of their pairs would."""
    old, tensors = _scheme((6, 9), kind="learned-2d", resampling=how)
    changed, note = to_grid(tensors, old, old.at((10, 4)))
    assert note == f"6x9 -> 10x4 ({how})"
    pairs = paired(tensors["position.down"], tensors["position.across"]).reshape(6, 9, -1)
    ours = paired(changed["position.down"], changed["position.across"]).reshape(10, 4, -1)
    torch.testing.assert_close(ours, resample_grid(pairs, (10, 4), how), rtol=0, atol=1e-10)


def test_every_layer_takes_its_own_table_along() -> None:
    old, tensors = _scheme((6, 9), kind="learned-1d", place="every-layer")
    changed, _ = to_grid(tensors, old, old.at((3, 12)))
    assert set(changed) == {"position.layers.0.grid", "position.layers.1.grid"}
    for name, tensor in changed.items():
        assert torch.equal(tensor, resample_grid(tensors[name], (3, 12), "bicubic-corner"))


@pytest.mark.parametrize(("kind", "shape"), [("relative-1d", (107,)), ("relative-2d", (11, 17))])
def test_offset_zero_stays_in_the_middle(kind: PositionKind, shape: tuple[int, ...]) -> None:
    old, tensors = _scheme((6, 9), kind=kind)
    name = "position.layers.1.offsets"
    assert tensors[name].shape[:-1] == shape
    new = old.at((8, 5))
    changed, _ = to_grid(tensors, old, new)
    middle, before = changed[name].flatten(0, -2), tensors[name].flatten(0, -2)
    assert changed[name].shape == build(new).state_dict()[name].shape
    torch.testing.assert_close(middle[len(middle) // 2], before[len(before) // 2], rtol=0, atol=1e-10)
    torch.testing.assert_close(middle[[0, -1]], before[[0, -1]], rtol=0, atol=1e-10)
    assert not torch.allclose(middle[1], before[1])


@pytest.mark.parametrize("fields", [{"kind": "relative-1d", "clip": (4,)}, {"kind": "relative-2d", "clip": (2, 3)}])
def test_clipped_offsets_count_patches(fields: dict[str, Any]) -> None:
    old, tensors = _scheme((6, 9), **fields)
    changed, note = to_grid(tensors, old, old.at((8, 5)))
    assert not changed
    assert note.startswith("6x9 -> 8x5 (kept, offsets count patches")
    assert ("lead elsewhere" in note) == (fields["kind"] == "relative-1d")
    assert "elsewhere" not in to_grid(tensors, old, old.at((8, 9)))[1]  # rows as long as before


def test_the_same_grid_is_nothing_to_do() -> None:
    for kind in get_args(PositionKind):
        old, tensors = _scheme((6, 9), kind=kind)
        assert to_grid(tensors, old, old) == ({}, "")
