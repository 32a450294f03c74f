"""Position similarity: the cosine is scikit-learn's, an implied bias what attention does, and figures show them."""

from __future__ import annotations

import cmath
import io
import math
from typing import Any, get_args

import numpy as np
import pytest
import torch
from sklearn.metrics.pairwise import cosine_similarity
from torch import Tensor

from vitrail.analyze.positions import PositionSimilarity, position_similarity
from vitrail.config import ABSOLUTE, EncoderConfig, HeadConfig, PositionConfig, PositionKind, Size, Token, ViTConfig
from vitrail.errors import UserError
from vitrail.model.attention import explicit
from vitrail.model.build import build, to_grid
from vitrail.model.position import Position, Relation, resample_grid
from vitrail.model.vision import VisionTransformer

GRIDS: list[Size] = [(3, 3), (2, 5)]
TOKENS: list[tuple[Token, ...]] = [(), ("class",), ("class", "distillation", "register", "register"), ("register",)]
KINDS = [kind for kind in get_args(PositionKind) if kind != "none"]
ACTING = [kind for kind in KINDS if kind not in ABSOLUTE]


def _config(grid: Size, tokens: tuple[Token, ...] = ("class",), **position: Any) -> ViTConfig:
    return ViTConfig(
        EncoderConfig(layers=2, width=24, heads=3, mlp_width=16),
        patch=(4, 2),
        image_size=(4 * grid[0], 2 * grid[1]),
        tokens=tokens,
        position=PositionConfig(**position),
        head=HeadConfig(("mean",)),
    )


def _model(grid: Size, tokens: tuple[Token, ...] = ("class",), **position: Any) -> VisionTransformer:
    """All numbers random, tables large enough to count."""
    model, generator = build(_config(grid, tokens, **position)), torch.Generator().manual_seed(0)
    for name, tensor in model.named_parameters():
        tensor.data = torch.randn(tensor.shape, generator=generator) * (1.0 if name.startswith("position") else 0.3)
    return model


def _images(config: ViTConfig, count: int = 3) -> Tensor:
    return torch.randn(count, config.channels, *config.image_size, generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def _means(model: VisionTransformer, images: Tensor, layer: int) -> Tensor:
    """Mean query and key of the patches, block by block and head by head: (2, K, D/K)."""
    config = model.config
    x = torch.cat([model.tokens.expand(len(images), -1, -1), model.patches(images)], dim=1)
    for number, block in enumerate(model.encoder.blocks[: layer + 1]):
        x = model.position.add(x, number)
        if number == layer:
            qkv = block.attention.qkv(block.norm1(x))[:, len(config.tokens) :].double().mean((0, 1))  # (3 D,)
        x = block(x, model.position.relation(number))
    parts = qkv.split(config.encoder.width // config.encoder.heads)  # 3 K of (D/K,)
    K = config.encoder.heads
    return torch.stack([torch.stack(parts[:K]), torch.stack(parts[K : 2 * K])])


# --- vectors ---


@pytest.mark.parametrize("place", ["stem", "every-layer", "shared"])
@pytest.mark.parametrize("tokens", TOKENS)
@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("kind", ABSOLUTE)
def test_cosine_is_that_of_what_is_added(kind: PositionKind, grid: Size, tokens: tuple[Token, ...], place: str) -> None:
    model = _model(grid, tokens, kind=kind, place=place)
    for layer in (0, 1):
        found = position_similarity(model, layer=layer)
        there = layer if place == "every-layer" else 0
        added = model.position.add(torch.zeros(1, model.config.sequence, 24), there)[0, len(tokens) :]
        np.testing.assert_allclose(found.similarity, cosine_similarity(added.detach().double()), atol=1e-6)
        assert (found.kind, found.heads, found.grid, found.scheme) == ("cosine similarity", None, grid, kind)
    if place == "every-layer" and kind.startswith("learned"):
        assert np.abs(found.similarity - position_similarity(model).similarity).max() > 0.1


def test_a_table_without_length_is_like_nothing() -> None:
    model = _model((2, 3), kind="learned-1d")
    model.position.get_parameter("grid").data.zero_()
    found = position_similarity(model)
    assert not found.similarity.any()
    assert found.structure().together is None
    assert found.structure().mean_neighbours == 0


def test_planted_codes_of_rows_and_columns() -> None:
    model = _model((4, 5), kind="learned-1d")
    grid = model.position.get_parameter("grid")
    for axis, name in enumerate(("row", "column")):
        grid.data = torch.eye(24)[torch.arange(grid.shape[axis])].unsqueeze(1 - axis).expand_as(grid).contiguous()
        found = position_similarity(model).summary()
        assert found[name] == pytest.approx(1)
        assert found[f"mean_{name}"] == 1
        assert found["mean_elsewhere"] == 0
        other = ("column", "row")[axis]
        assert found[f"{other}_adds"] == pytest.approx(0)
        assert found[f"mean_{other}"] == 0


def test_a_resampled_model_is_seen_at_its_new_grid() -> None:
    small = _model((3, 3), kind="learned-1d")
    config = _config((5, 4), kind="learned-1d")
    large = build(config)
    tensors = small.state_dict()
    large.load_state_dict({**tensors, **to_grid(tensors, small.config, config)[0]})
    table = resample_grid(small.position.get_parameter("grid"), (5, 4), "bicubic-corner").flatten(0, 1)
    found = position_similarity(large)
    np.testing.assert_allclose(found.similarity, cosine_similarity(table.detach().double()), atol=1e-6)
    assert found.grid == (5, 4)


# --- implied bias ---


@pytest.mark.parametrize("tokens", TOKENS)
@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("kind", ACTING)
def test_implied_bias_is_what_the_relation_does_to_attention(
    kind: PositionKind, grid: Size, tokens: tuple[Token, ...]
) -> None:
    """exp(bias) is the ratio of attention weights with and without, but for what makes rows sum to 1."""
    model = _model(grid, tokens, kind=kind)
    images, N = _images(model.config), model.config.sequence
    for layer in (0, 1):
        found = position_similarity(model, images, layer)
        q, k = (mean[None, :, None].expand(-1, -1, N, -1) for mean in _means(model, images, layer))
        relation = model.position.relation(layer)
        assert relation is not None
        with torch.no_grad():
            ratio = (explicit(*relation.rotate(q, k), relation) / explicit(q, k, None)).log()[0]  # (K, N, N)
        expected = ratio[:, len(tokens) :, len(tokens) :]
        assert found.heads is not None
        assert found.heads.shape == (3, grid[0] * grid[1], grid[0] * grid[1])
        centred = found.heads - found.heads.mean(2, keepdims=True)
        np.testing.assert_allclose(centred, expected - expected.mean(2, keepdim=True), atol=2e-6)
        assert np.abs(centred).max() > 0.01
        np.testing.assert_allclose(found.similarity, found.heads.mean(0), atol=1e-6)
    assert found.kind == "implied bias"
    assert not any(module._forward_hooks for module in model.modules())


@pytest.mark.parametrize(("kind", "clip"), [("relative-1d", None), ("relative-1d", (2,)), ("relative-2d", (1, 2))])
def test_relative_bias_is_the_table_times_the_mean_query(kind: PositionKind, clip: Any) -> None:
    h, w = 3, 4
    model = _model((h, w), kind=kind, clip=clip)
    images = _images(model.config)
    heads = position_similarity(model, images, 1).heads
    assert heads is not None
    query, table = _means(model, images, 1)[0], model.position.get_parameter("layers.1.offsets").detach()
    for i in range(h * w):
        for j in range(h * w):
            if kind == "relative-1d":
                reach = 11 if clip is None else clip[0]
                vector = table[min(max(j - i, -reach), reach) + reach]
            else:
                down, across = j // w - i // w, j % w - i % w
                vector = table[min(max(down, -1), 1) + 1, min(max(across, -2), 2) + 2]
            np.testing.assert_allclose(heads[:, i, j], (query @ vector.double()) / math.sqrt(8), atol=1e-6)


@pytest.mark.parametrize("grid", GRIDS)
def test_rotary_bias_is_of_the_offset_alone_and_none_on_itself(grid: Size) -> None:
    h, w = grid
    model = _model(grid, kind="rope-2d", rope_base=50.0)
    images = _images(model.config)
    heads = position_similarity(model, images).heads
    assert heads is not None
    q, k = _means(model, images, 0)
    for i in range(h * w):
        for j in range(h * w):
            # By complex numbers: pairs (p, p + 4) of a head's 8, the first two turn with the row.
            turns = [2 * (j // w - i // w) / h] * 2 + [2 * (j % w - i % w) / w] * 2
            for head in range(3):
                bias = 0.0
                for p, turn in enumerate(turns):
                    query, key = complex(q[head, p], q[head, p + 4]), complex(k[head, p], k[head, p + 4])
                    angle = 2 * math.pi * turn * 50.0 ** (-(p % 2) / 2)
                    bias += (query.conjugate() * key * (cmath.exp(1j * angle) - 1)).real / math.sqrt(8)
                assert heads[head, i, j] == pytest.approx(bias, abs=2e-6)
    np.testing.assert_allclose(np.diagonal(heads, axis1=1, axis2=2), 0, atol=1e-6)
    # Not the same there and back: a head may look to the left.
    assert np.abs(heads - heads.transpose(0, 2, 1)).max() > 0.01


def test_means_are_over_all_images_in_batches_and_none_is_grey(monkeypatch: pytest.MonkeyPatch) -> None:
    model = _model((2, 3), kind="rope-2d")
    images = _images(model.config, 5)
    at_once = position_similarity(model, images, 1).similarity
    monkeypatch.setattr("vitrail.analyze.positions.BATCH", 2)
    np.testing.assert_allclose(position_similarity(model, images, 1).similarity, at_once, atol=1e-6)
    grey = position_similarity(model, torch.zeros(1, *images.shape[1:]), 1).similarity
    np.testing.assert_array_equal(position_similarity(model, layer=1).similarity, grey)
    assert np.abs(grey - at_once).max() > 1e-3


def test_half_precision_is_near() -> None:
    model = _model((2, 3), kind="relative-2d")
    images = _images(model.config)
    expected = position_similarity(model, images).similarity
    np.testing.assert_allclose(position_similarity(model.bfloat16(), images).similarity, expected, atol=0.05)


class _Idle(Position):
    """A scheme that has a part in attention and does nothing there."""

    def relation(self, layer: int) -> Relation:
        return Relation()


def test_a_relation_that_does_nothing_gives_zeros() -> None:
    model = _model((2, 3), kind="none")
    model.position = _Idle()
    found = position_similarity(model, _images(model.config))
    assert found.heads is not None
    assert not found.heads.any()
    assert found.structure().together is None
    _drawn(found)


# --- mistakes ---


def test_mistakes_are_sentences() -> None:
    with pytest.raises(UserError, match=r"no position information \(kind none\), so there is no similarity to show"):
        position_similarity(_model((2, 2), kind="none"))
    for kind in ("learned-1d", "rope-2d"):
        for layer in (-1, 2):
            with pytest.raises(UserError, match=rf"no layer {layer}: the model has layers 0 to 1\."):
                position_similarity(_model((2, 2), kind=kind), layer=layer)
    model = _model((2, 2), kind="rope-2d")
    with pytest.raises(UserError, match="no images"):
        position_similarity(model, torch.zeros(0, 3, 8, 4))
    with pytest.raises(UserError, match="channels of 8x4 pixels"):
        position_similarity(model, torch.zeros(1, 3, 9, 4))
    assert not any(module._forward_hooks for module in model.modules())
    with pytest.raises(UserError, match="not finite"):
        position_similarity(model, torch.full((1, 3, 8, 4), math.nan))


# --- as a finding ---


def _drawn(found: PositionSimilarity) -> tuple[Any, Any]:
    figures = found.plot(), found.plot_profile()
    for figure in figures:
        held = io.BytesIO()
        figure.savefig(held, format="png")
        assert len(held.getvalue()) > 1000
    return figures


@pytest.mark.parametrize("kind", ["learned-1d", "rope-2d"])
@pytest.mark.parametrize("grid", [(1, 1), (1, 5), (5, 1), (2, 3)])
def test_any_grid_is_drawn_and_summed_up(grid: Size, kind: PositionKind) -> None:
    model = _model(grid, kind=kind)
    found = position_similarity(model, _images(model.config))
    _drawn(found)
    assert all(value is None or value == value for value in found.summary().values())  # no nan


def test_table_is_tidy() -> None:
    found = position_similarity(_model((2, 3), kind="learned-2d"))
    table = found.table()
    assert list(table) == ["query_row", "query_column", "key_row", "key_column", "similarity"]
    assert {len(column) for column in table.values()} == {36}
    for qr, qc, kr, kc, number in zip(*table.values(), strict=True):
        assert number == found.similarity[(qr - 1) * 3 + qc - 1, (kr - 1) * 3 + kc - 1]


def test_panels_show_each_querys_map() -> None:
    found = position_similarity(_model((3, 4), kind="learned-1d"))
    figure, profile = _drawn(found)
    axes = figure.axes[0]
    image, (low, high) = axes.images[0].get_array(), axes.images[0].get_clim()
    assert (low, high) == (found.similarity.min(), 1)
    for row in range(3):
        for column in range(4):
            panel = image[4 * row : 4 * row + 3, 5 * column : 5 * column + 4]
            np.testing.assert_array_equal(panel.ravel(), found.similarity[row * 4 + column].astype(float))
    assert np.ma.getmaskarray(image)[3::4].all()
    assert [text.get_text() for text in axes.get_xticklabels()] == ["1", "2", "3", "4"]
    assert axes.get_title(loc="left") == "Position similarity: learned-1d, 3x4 patches"
    bias = position_similarity(_model((2, 2), kind="rope-2d"), layer=1)
    assert bias.plot().axes[0].get_title(loc="left") == "Position bias: rope-2d, 2x2 patches, layer 2"
    assert bias.summary()["layer"] == 2
    assert [line.get_label() for line in profile.axes[0].lines] == ["same row", "same column", "elsewhere"]


def test_large_grids_are_thinned_evenly_and_say_so() -> None:
    figure = position_similarity(_model((17, 37), kind="learned-2d")).plot()
    axes = figure.axes[0]
    assert [int(text.get_text()) for text in axes.get_yticklabels()] == list(range(1, 18, 2))
    assert [int(text.get_text()) for text in axes.get_xticklabels()] == list(range(1, 38, 4))
    assert axes.get_title(loc="left").endswith("every 2nd row and every 4th column shown")
