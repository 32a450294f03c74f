"""Token merging against the paper's words written out as loops, and against what it must leave as it is."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from vitrail.config import ABSOLUTE, EncoderConfig, HeadConfig, PositionConfig, ResNetConfig, ViTConfig
from vitrail.errors import UserError
from vitrail.model.build import build
from vitrail.model.vision import VisionTransformer
from vitrail.runtime.merging import Merged, match

TOY = ViTConfig(EncoderConfig(4, 24, 3, 32, layer_scale=0.5), (4, 8), (20, 24))  # 5 x 3 patches
MERGING = (4, 0, 5, 2)
SCHEMES = [
    PositionConfig("none"),
    PositionConfig("learned-1d", special=False),
    *(PositionConfig(kind, place=place) for kind in ABSOLUTE for place in ("stem", "every-layer", "shared")),
]
HEADS = [
    HeadConfig(),
    HeadConfig(("class", "mean", "register"), layers=3),
    HeadConfig(("mean",), layers=2, norm="pooled"),
    HeadConfig(("map", "mean")),
]
SPECIAL: Any = ("class", "distillation", "register")
MODELS = {
    **{f"{one.kind} {one.place} {one.special}": replace(TOY, position=one, tokens=SPECIAL) for one in SCHEMES},
    **{" ".join(one.parts): replace(TOY, head=one, tokens=SPECIAL) for one in HEADS},
    "no special token": replace(TOY, tokens=(), head=HeadConfig(("mean", "map"))),
    "SwiGLU, no LayerScale": replace(TOY, encoder=replace(TOY.encoder, mlp="swiglu", layer_scale=None)),
    "hybrid": replace(TOY, stem=ResNetConfig((1, 1), width=32), patch=(1, 1), image_size=(40, 24)),
}


def _trained(config: ViTConfig) -> VisionTransformer:
    model = build(config)
    generator = torch.Generator().manual_seed(3)
    for tensor in model.parameters():
        tensor.data = 0.4 * torch.randn(tensor.shape, generator=generator)
    return model


def _images(config: ViTConfig, batch: int = 2) -> Tensor:
    return torch.randn(batch, config.channels, *config.image_size, generator=torch.Generator().manual_seed(4))


# --- the paper's words, as loops over the tokens of one image ---


def _pairs(keys: Tensor, special: int, merged: int) -> dict[int, int]:
    """Keys (K, N, D/K) -> which patch goes to which."""
    metric = keys.mean(0).tolist()
    edges = []
    for a in range(special, len(metric), 2):
        to: list[tuple[float, int]] = []
        for b in range(special + 1, len(metric), 2):
            to.append((float(F.cosine_similarity(torch.tensor(metric[a]), torch.tensor(metric[b]), dim=0)), -b))
        best = max(to)
        edges.append((best[0], a, -best[1]))
    edges.sort(key=lambda edge: -edge[0])
    return {a: b for _, a, b in edges[:merged]}


def _groups(keys: Tensor, special: int, merged: int) -> list[list[int]]:
    """Which of the N tokens each of the N - r is made of, in the order that ``match`` promises."""
    pairs = _pairs(keys, special, merged)
    N = keys.shape[1]
    order = [*range(special), *(i for i in range(special, N, 2) if i not in pairs), *range(special + 1, N, 2)]
    return [[i, *(a for a, b in pairs.items() if b == i)] for i in order]


def _reference(model: VisionTransformer, image: Tensor, merging: tuple[int, ...]) -> Tensor:
    """Features of one image (C, H, W); a token of size s is, wherever it is looked at, there s times."""
    config, D = model.config, model.config.encoder.width
    special, K = len(config.tokens), config.encoder.heads
    x = torch.cat([model.tokens, model.embed(image[None])[0]])
    whole = len(x)
    patches = [[i] for i in range(whole)]
    outputs = []
    for layer, (block, merged) in enumerate(zip(model.encoder.blocks, merging, strict=True)):
        table = model.position.add(torch.zeros(1, whole, D), layer)[0]
        x = x + torch.stack([table[own].mean(0) for own in patches])
        times = torch.tensor([len(own) for own in patches])
        qkv = block.attention.qkv(block.norm1(x))
        q, k, v = (part.view(len(x), K, D // K).transpose(0, 1) for part in qkv.chunk(3, dim=-1))
        often = (part.repeat_interleave(times, dim=1) for part in (k, v))
        mixed = F.scaled_dot_product_attention(q, *often)
        x = x + block.scale1(block.attention.out(mixed.transpose(0, 1).flatten(1)))
        groups = _groups(k, special, merged) if merged else [[i] for i in range(len(x))]
        x = torch.stack([torch.cat([x[i].expand(len(patches[i]), D) for i in group]).mean(0) for group in groups])
        patches = [[member for i in group for member in patches[i]] for group in groups]
        x = x + block.scale2(block.mlp(block.norm2(x)))
        times = torch.tensor([len(own) for own in patches])
        outputs.append(x.repeat_interleave(times, dim=0)[None])
    features: Tensor = model.pooling(outputs[-config.head.layers :], model.norm)
    return features[0]


# --- matching and merging alone ---


@settings(max_examples=40)
@given(special=st.integers(0, 3), patches=st.integers(2, 17), part=st.floats(0, 1), alike=st.booleans(), data=st.data())
def test_matching_is_the_papers(special: int, patches: int, part: float, alike: bool, data: Any) -> None:
    merged, N = round(part * (patches // 2)), special + patches
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 999)))
    keys, x = torch.randn(2, 3, N, 5, generator=generator), torch.randn(2, N, 4, generator=generator)
    if alike and special:
        keys[:, :, 0] = keys[:, :, -1]  # a special token just like a patch
    drawn = data.draw(st.lists(st.integers(1, 300), min_size=patches, max_size=patches))
    before = torch.tensor([1] * special + drawn).float().expand(2, -1).unsqueeze(-1)
    matching = match(keys, special, merged)
    after = matching.sums(before)
    means = matching.means(x, before, after)
    assert means.shape == (2, N - merged, 4)
    for image in range(2):
        for token, group in enumerate(_groups(keys[image], special, merged)):
            sizes = before[image, group]
            assert after[image, token] == sizes.sum()
            expected = (x[image, group] * sizes).sum(0) / sizes.sum()
            torch.testing.assert_close(means[image, token], expected, rtol=1e-5, atol=1e-5)
    assert torch.equal(means[:, :special], x[:, :special])
    assert torch.equal(after.sum(1), before.sum(1))
    torch.testing.assert_close((means * after).sum(1), (x * before).sum(1), rtol=1e-4, atol=1e-2)


def test_more_than_one_token_may_go_to_the_same() -> None:
    keys = F.one_hot(torch.tensor([2, 2, 2, 0, 2, 1])).float()[None, None] + 0.01  # (B, K, N, D/K)
    x = torch.tensor([1.0, 2, 4, 8, 16, 32]).view(1, 6, 1)
    matching = match(keys, 0, 3)
    assert matching.sums(x).flatten().tolist() == [1 + 2 + 4 + 16, 8, 32]


def test_autocast_does_not_blur_what_is_most_similar() -> None:
    """In bfloat16 0.9999 and 0.9985 are both 1."""
    angles = torch.tensor([0.055, 0.0, 0.014 + 2, 2.0])
    keys = torch.stack([angles.cos(), angles.sin()], dim=-1)[None, None]
    with torch.autocast("cpu", torch.bfloat16):
        assert match(keys, 0, 1).go.item() == 2


def test_sizes_are_counted_exactly_in_a_bfloat16_model() -> None:
    """In bfloat16 there is no 323."""
    encoder = EncoderConfig(layers=9, width=12, heads=3, mlp_width=4)
    model = build(ViTConfig(encoder, (1, 1), (17, 19), head=HeadConfig(("class", "mean")))).bfloat16()
    counts: list[Tensor] = []
    model.pooling.register_forward_pre_hook(lambda _, given: counts.extend(given[2]))
    merging = (161, 81, 40, 20, 10, 5, 3, 1, 1)
    assert Merged(model, merging)(_images(model.config).bfloat16()).dtype == torch.bfloat16
    assert counts[0].flatten(1).tolist() == [[1, 323]] * 2


# --- whole models ---


@pytest.mark.parametrize("config", MODELS.values(), ids=MODELS)
def test_merged_features(config: ViTConfig) -> None:
    model, images = _trained(config), _images(config)
    with torch.no_grad():
        features = Merged(model, MERGING)(images)
        expected = torch.stack([_reference(model, image, MERGING) for image in images])
    torch.testing.assert_close(features, expected, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(features, model.features(images), atol=1e-3)


@pytest.mark.parametrize("config", MODELS.values(), ids=MODELS)
@pytest.mark.parametrize("merging", [(), (0, 0, 0, 0)], ids=len)
def test_without_merging_it_is_the_model_bit_for_bit(config: ViTConfig, merging: tuple[int, ...]) -> None:
    model, images = _trained(config), _images(config)
    assert torch.equal(Merged(model, merging)(images), model.features(images))


@pytest.mark.parametrize("head", [*HEADS[:2], HeadConfig(("map",))], ids=lambda head: " ".join(head.parts))
def test_merging_equal_patches_changes_nothing(head: HeadConfig) -> None:
    """Without positions a picture is a bag of patches, and with sizes one patch of size s is s patches."""
    config = replace(TOY, position=PositionConfig("none"), head=head, tokens=SPECIAL, image_size=(24, 24))
    model = _trained(config)
    image = _images(config, 1)
    image[:, :, 4:, :16] = image[:, :, :4, :16].repeat(1, 1, 5, 1)  # two columns of six rows, each of one patch
    merging = (4, 3, 2, 0)  # of 18 patches 12 are two kinds, which have become 3 tokens at last
    with torch.no_grad():
        expected = model.features(image)
        torch.testing.assert_close(Merged(model, merging)(image), expected, rtol=1e-5, atol=1e-5)
        assert not torch.allclose(Merged(model, (9, 0, 0, 0))(image), expected, atol=0.01)


def test_special_tokens_stay_even_when_all_are_alike() -> None:
    """A picture of one colour, without positions: patches merge until one is left."""
    config = replace(TOY, position=PositionConfig("none"), tokens=SPECIAL, head=HeadConfig(SPECIAL))
    model = _trained(config)
    images = torch.full((1, 3, *config.image_size), 0.3)
    torch.testing.assert_close(Merged(model, (7, 4, 2, 1))(images), model.features(images), rtol=1e-5, atol=1e-5)


def test_it_learns_and_drops_like_the_model() -> None:
    config = replace(TOY, encoder=replace(TOY.encoder, dropout=0.1, drop_path=0.2))
    model, images = _trained(config).train(), _images(config)
    torch.manual_seed(0)
    expected = model.features(images)
    torch.manual_seed(0)
    assert torch.equal(Merged(model, ())(images), expected)
    Merged(model, MERGING)(images).sum().backward()
    assert all(p.grad is not None for name, p in model.named_parameters() if not name.startswith("classifier"))


@pytest.mark.parametrize("kind", ["rope-2d", "relative-1d", "relative-2d"])
def test_positions_inside_attention_are_refused(kind: Any) -> None:
    model = build(replace(TOY, position=PositionConfig(kind)))
    with pytest.raises(UserError, match=f"kind {kind}.*run it without merging"):
        Merged(model, MERGING)


def test_merging_that_does_not_fit_is_refused() -> None:
    with pytest.raises(UserError, match="Layer 1 cannot merge 5 of the 9 patches it has: choose 0 to 4"):
        Merged(build(TOY), (6, 5, 0, 0))


def test_export_with_any_batch() -> None:
    position = PositionConfig("learned-1d", place="shared")
    config = replace(TOY, position=position, head=HeadConfig(("class", "map", "mean")))
    model = Merged(_trained(replace(config, encoder=replace(TOY.encoder, layers=2))), (4, 3))
    images = _images(config, 5)
    batch = {"images": {0: torch.export.Dim("batch")}}
    with torch.no_grad():
        program: nn.Module = torch.export.export(model, (images[:2],), dynamic_shapes=batch).module()
        torch.testing.assert_close(program(images), model(images), rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(program(images[:1]), model(images[:1]), rtol=1e-5, atol=1e-5)
