"""Position schemes: each against its formula written out patch by patch, and what a swap of two would change."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import combinations
from typing import Any, get_args

import pytest
import torch
import transformers
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from transformers.models.dinov3_vit import modeling_dinov3_vit as dinov3
from transformers.models.vit_mae import modeling_vit_mae as vit_mae

from vitrail.config import (
    ABSOLUTE,
    EncoderConfig,
    HeadConfig,
    Place,
    PositionConfig,
    PositionKind,
    Size,
    Token,
    ViTConfig,
)
from vitrail.errors import UserError
from vitrail.model import attention
from vitrail.model.build import build
from vitrail.model.encoder import Trace
from vitrail.model.position import Absolute
from vitrail.model.vision import VisionTransformer

GRIDS = [(3, 3), (2, 5)]
KINDS = get_args(PositionKind)
SCHEMES = [(kind, place) for kind in KINDS for place in get_args(Place) if kind in ABSOLUTE or place == "stem"]


def _config(grid: Size, tokens: tuple[Token, ...] = ("class", "distillation", "register"), **fields: Any) -> ViTConfig:
    return ViTConfig(
        EncoderConfig(layers=2, width=24, heads=3, mlp_width=16),
        patch=(4, 2),
        image_size=(4 * grid[0], 2 * grid[1]),
        tokens=tokens,
        position=PositionConfig(**fields),
        head=HeadConfig(("mean",)),
    )


def _trained(config: ViTConfig, seed: int = 0) -> VisionTransformer:
    """A model all whose numbers are random, tables large enough to count."""
    model = build(config, seed).double()
    generator = torch.Generator().manual_seed(seed)
    for name, tensor in model.named_parameters():
        noise = torch.randn(tensor.shape, generator=generator, dtype=tensor.dtype)
        tensor.data = noise * (1.0 if name.startswith("position") else 0.3)
    return model


def _images(config: ViTConfig) -> Tensor:
    generator = torch.Generator().manual_seed(9)
    return torch.randn(2, config.channels, *config.image_size, generator=generator, dtype=torch.float64)


# --- added vectors, one by one ---


def _added(model: VisionTransformer, layer: int = 0) -> Tensor:
    """What the scheme adds to each token: (N, D)."""
    N, D = model.config.sequence, model.config.encoder.width
    return model.position.add(torch.zeros(1, N, D, dtype=torch.float64), layer)[0].detach()


def _vector(model: VisionTransformer, table: Absolute, row: int, column: int) -> Tensor:
    """The vector of one patch by the scheme's formula, from numbers alone."""
    (_, w), D, positioned = model.config.grid, model.config.encoder.width, model.config.positioned
    kind = model.config.position.kind
    if kind == "learned-1d":
        return table.get_parameter("grid")[row, column]
    if kind == "learned-2d":
        return torch.cat([table.get_parameter("down")[row], table.get_parameter("across")[column]])
    if kind == "sinusoidal-1d":
        return _sinusoid(positioned + row * w + column, D)
    numbers = []
    for place in (column, row):
        for function in (math.sin, math.cos):
            numbers += [function(place / 10_000 ** (i / (D / 4))) for i in range(D // 4)]
    return torch.tensor(numbers, dtype=torch.float64)


def _sinusoid(place: int, D: int) -> Tensor:
    """Vaswani et al., section 3.5."""
    pairs = [(math.sin(place / 10_000 ** (2 * i / D)), math.cos(place / 10_000 ** (2 * i / D))) for i in range(D // 2)]
    return torch.tensor(pairs, dtype=torch.float64).flatten()


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("kind", ABSOLUTE)
@pytest.mark.parametrize("special", [True, False])
def test_what_is_added_to_each_token(kind: PositionKind, grid: Size, special: bool) -> None:
    model = _trained(_config(grid, kind=kind, special=special))
    added, D = _added(model), model.config.encoder.width
    table = model.position
    assert isinstance(table, Absolute)
    assert not added[2].any()  # the register
    if not special or kind == "sincos-2d":
        assert not added[:3].any()
    elif kind == "sinusoidal-1d":
        torch.testing.assert_close(added[:2], torch.stack([_sinusoid(0, D), _sinusoid(1, D)]), rtol=0, atol=1e-7)
    else:
        assert torch.equal(added[:2], table.get_parameter("tokens"))
    expected = [_vector(model, table, row, column) for row in range(grid[0]) for column in range(grid[1])]
    torch.testing.assert_close(added[3:], torch.stack(expected), rtol=0, atol=1e-7)
    assert all(not torch.equal(one, other) for one, other in combinations(added[3:], 2))


@pytest.mark.parametrize("kind", ABSOLUTE)
def test_places(kind: PositionKind) -> None:
    """Once, the same again, or a table of its own before every block (ViT table 8)."""
    stem, every, shared = (
        _trained(_config((2, 5), kind=kind, place=place)) for place in ("stem", "every-layer", "shared")
    )
    assert _added(stem, 0).any()
    assert not _added(stem, 1).any()
    assert torch.equal(_added(shared, 0), _added(shared, 1))
    assert torch.equal(_added(shared, 0), _added(stem, 0))
    formula = kind in ("sinusoidal-1d", "sincos-2d")
    assert torch.equal(_added(every, 0), _added(every, 1)) == formula
    seen: dict[int, Tensor] = {}
    for model in (stem, shared, every):
        z = torch.zeros(1, model.config.sequence, 24, dtype=torch.float64)
        for layer, block in enumerate(model.encoder.blocks):
            z = block(z + _added(model, layer))
        start = torch.zeros(1, model.config.sequence, 24, dtype=torch.float64)
        torch.testing.assert_close(model.encoder(start, model.position)[0], z, rtol=0, atol=1e-12)
        seen[len(seen)] = z
    assert not torch.allclose(seen[0], seen[1])


@pytest.mark.parametrize("side", [7, 14])
def test_sincos_is_maes(side: int) -> None:
    width = 24
    embeddings = vit_mae.ViTMAEEmbeddings(
        transformers.ViTMAEConfig(hidden_size=width, image_size=side * 2, patch_size=2)
    )
    embeddings.initialize_weights()  # the whole model forgets to, and has zeros until a checkpoint is loaded
    theirs = embeddings.position_embeddings[0]
    config = ViTConfig(
        EncoderConfig(1, width, 1, 8), (2, 2), (side * 2, side * 2), position=PositionConfig("sincos-2d")
    )
    ours = build(config).position.add(torch.zeros(1, config.sequence, width), 0)[0]
    torch.testing.assert_close(ours, theirs.detach(), rtol=0, atol=1e-6)


# --- rotation ---


@pytest.mark.parametrize("grid", [(3, 3), (2, 5), (14, 9)])
@pytest.mark.parametrize("base", [100.0, 10.0])
def test_rope_is_dinov3s(grid: Size, base: float) -> None:
    config = _config(grid, kind="rope-2d", rope_base=base)
    theirs = dinov3.DINOv3ViTRopePositionEmbedding(
        transformers.DINOv3ViTConfig(
            hidden_size=24,
            num_attention_heads=3,
            image_size=config.image_size,
            patch_size=config.patch,
            rope_parameters={"rope_type": "default", "rope_theta": base},
            rope_theta=base,
        )
    ).eval()
    assert theirs.base == base
    generator = torch.Generator().manual_seed(0)
    q, k = torch.randn(2, 2, 3, config.sequence, 8, generator=generator)
    expected = dinov3.apply_rotary_pos_emb(q, k, *theirs(torch.zeros(1, 3, *config.image_size)))
    relation = build(config).position.relation(1)
    assert relation is not None
    for ours, their in zip(relation.rotate(q, k), expected, strict=True):
        torch.testing.assert_close(ours, their, rtol=0, atol=2e-6)
        assert torch.equal(ours[:, :, :3], their[:, :, :3])


def test_rotated_products_depend_on_the_displacement_alone() -> None:
    model = build(_config((4, 4), kind="rope-2d")).double()
    relation = model.position.relation(0)
    assert relation is not None
    one, other = torch.randn(2, 1, 3, 1, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    q, k = relation.rotate(one.expand(-1, -1, 19, -1), other.expand(-1, -1, 19, -1))
    products = (q @ k.mT)[0, :, 3:, 3:].reshape(3, 4, 4, 4, 4)  # (K, row, column, row, column)
    torch.testing.assert_close(products[:, 0, 0, 1, 2], products[:, 2, 1, 3, 3], rtol=0, atol=1e-6)
    assert not torch.allclose(products[:, 0, 0, 1, 2], products[:, 0, 0, 2, 1], atol=1e-3)


# --- what is held ---


class Largest(TorchDispatchMode):
    """The largest tensor any operation gives."""

    numbers = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        for one in result if isinstance(result, (tuple, list)) else [result]:
            if isinstance(one, Tensor):
                self.numbers = max(self.numbers, one.untyped_storage().nbytes() // one.element_size())
        return result


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize(("kind", "place"), SCHEMES)
def test_nothing_grows_with_the_square_of_the_patches(
    kind: PositionKind, place: Place, training: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a block's share of logits fixed, four times the patches need about four times the largest tensor."""
    monkeypatch.setattr(attention, "BLOCK", 2**12)
    largest = []
    for grid in ((16, 24), (32, 48)):
        config = replace(_config(grid, ("class",), kind=kind, place=place), encoder=EncoderConfig(2, 8, 2, 8))
        model = build(config)
        with torch.set_grad_enabled(training), Largest() as seen:
            features = model.features(torch.zeros(1, 3, *config.image_size))
            if training:
                features.sum().backward()
        largest.append(seen.numbers)
    assert largest[1] < 6 * largest[0]
    assert largest[1] < config.sequence**2 / 8


# --- the model as a whole ---


def _swapped(images: Tensor, config: ViTConfig, one: int, other: int) -> Tensor:
    """The images with two patches exchanged."""
    (P, Q), w = config.patch, config.grid[1]
    result = images.clone()
    for to, of in ((one, other), (other, one)):
        (y, x), (v, u) = divmod(to, w), divmod(of, w)
        result[..., y * P : (y + 1) * P, x * Q : (x + 1) * Q] = images[..., v * P : (v + 1) * P, u * Q : (u + 1) * Q]
    return result


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize(("kind", "place"), SCHEMES)
def test_two_patches_that_change_places(kind: PositionKind, place: Place, grid: Size) -> None:
    """Without positions the mean feature is blind to it; with any scheme, none of the pairs goes unnoticed."""
    model = _trained(_config(grid, kind=kind, place=place))
    images = _images(model.config)
    features = model.features(images)
    for one, other in combinations(range(grid[0] * grid[1]), 2):
        difference = float((model.features(_swapped(images, model.config, one, other)) - features).detach().norm())
        assert (difference < 1e-10) if kind == "none" else difference > 1e-4, (one, other)


@pytest.mark.parametrize("mode", ["training", "autocast", "inference mode", "half", "plain"])
@pytest.mark.parametrize(("kind", "place"), SCHEMES)
def test_traced_is_fused_in_every_mode(kind: PositionKind, place: Place, mode: str) -> None:
    config = _config((3, 5), kind=kind, place=place)
    model = _trained(config).float().train(mode == "training")
    images = _images(config).float()
    if mode == "half":
        model, images = model.bfloat16(), images.bfloat16()
    seen: dict[tuple[str, int], Tensor] = {}
    trace = Trace(lambda what, layer, value: seen.update({(what, layer): value}), attention=(0, 1), blocks=(1,))
    with torch.inference_mode(mode == "inference mode"), torch.autocast("cpu", torch.bfloat16, mode == "autocast"):
        fused, traced = model.features(images), model.features(images, trace)
    loose = mode in ("autocast", "half")
    torch.testing.assert_close(traced, fused, rtol=0.1 if loose else 1e-4, atol=0.1 if loose else 1e-4)
    assert set(seen) == {("attention", 0), ("attention", 1), ("block", 1)}
    for layer in (0, 1):
        assert seen["attention", layer].shape == (2, 3, config.sequence, config.sequence)
        sums = seen["attention", layer].float().sum(-1)
        torch.testing.assert_close(sums, torch.ones_like(sums), rtol=0, atol=0.05 if loose else 1e-5)
    if mode != "inference mode":
        for gradient in torch.autograd.grad(fused.float().sum() + traced.float().sum(), list(model.parameters())[:3]):
            assert torch.isfinite(gradient).all()


@pytest.mark.parametrize(("kind", "place"), SCHEMES)
def test_depth_and_decay(kind: PositionKind, place: Place) -> None:
    """Tables of the stem lie before the encoder, those of a layer with it; weight decay is for none."""
    model = build(_config((2, 3), kind=kind, place=place))
    for name, parameter in model.position.named_parameters(prefix="position"):
        layered = place == "every-layer" or kind.startswith("relative")
        assert model.depth(name) == (int(name.split(".")[2]) + 1 if layered else 0)
        assert not name.endswith("weight")
        assert parameter.requires_grad


# --- refusals ---


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"kind": "none", "place": "shared"}, r"not added to tokens, so there is no place 'shared' for them: .*\.$"),
        ({"kind": "relative-1d", "place": "every-layer"}, r"kind relative-1d are not added .*\.$"),
        ({"kind": "relative-1d", "clip": (1, 2)}, r"A clip of \[1, 2\] does not fit positions of kind relative-1d: "),
        ({"kind": "relative-2d", "clip": (-1, 2)}, r"A clip of \[-1, 2\] does not fit .*\.$"),
        ({"kind": "learned-1d", "clip": (1,)}, r"A clip of \[1\] does not fit positions of kind learned-1d: "),
        ({"kind": "rope-2d", "rope_base": 0.0}, r"rope_base must be above 0, not 0\.0\.$"),
    ],
)
def test_settings_that_do_not_go_together(fields: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        PositionConfig(**fields)


@pytest.mark.parametrize(
    ("kind", "encoder", "sentence"),
    [
        ("sinusoidal-1d", (25, 5), r"kind sinusoidal-1d need a width divisible by 2, not 25: .*\.$"),
        ("learned-2d", (25, 5), r"need a width divisible by 2, not 25"),
        ("sincos-2d", (26, 2), r"need a width divisible by 4, not 26"),
        ("rope-2d", (24, 4), r"need a width of a head divisible by 4, not 6"),
    ],
)
def test_widths_that_do_not_divide(kind: PositionKind, encoder: tuple[int, int], sentence: str) -> None:
    width, heads = encoder
    with pytest.raises(UserError, match=sentence):
        ViTConfig(EncoderConfig(1, width, heads, 8), position=PositionConfig(kind))


def test_registers_come_last() -> None:
    with pytest.raises(
        UserError, match=r"Register tokens stand after the others, not as in \['register', 'class'\]\.$"
    ):
        _config((2, 2), ("register", "class"))


def test_registers_start_apart() -> None:
    """They have no position, so equal ones would have equal gradients for ever; class tokens start at zero."""
    tokens = build(_config((2, 2), ("class", "register", "register"))).tokens
    assert not tokens[0].any()
    assert tokens[1:].any()
    assert not torch.equal(tokens[1], tokens[2])
