"""What a VisionTransformer computes: equations, invariants, where randomness enters."""

from __future__ import annotations

import sys
import weakref
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from vitrail.config import EncoderConfig, HeadConfig, ViTConfig
from vitrail.errors import UserError
from vitrail.model.build import build
from vitrail.model.encoder import DropPath, Encoder, Trace
from vitrail.model.patches import PatchEmbedding
from vitrail.model.vision import VisionTransformer

TOY = ViTConfig(
    encoder=EncoderConfig(layers=3, width=24, heads=3, mlp_width=32),
    patch=(4, 8),
    image_size=(12, 32),
    head=HeadConfig(classes=5),
)


def trained(config: ViTConfig, seed: int = 0) -> VisionTransformer:
    """A model whose every number is random, as after training: fresh biases and classifiers are zero."""
    model = build(config, seed).double()
    generator = torch.Generator().manual_seed(seed)
    for tensor in model.parameters():
        noise = torch.randn(tensor.shape, generator=generator, dtype=tensor.dtype)
        tensor.data = noise * (0.2 if tensor.dim() > 1 else 0.5) + (1.0 if tensor.dim() == 1 else 0.0)
    return model


def images_of(config: ViTConfig, batch: int = 2) -> Tensor:
    generator = torch.Generator().manual_seed(9)
    return torch.randn(batch, config.channels, *config.image_size, generator=generator, dtype=torch.float64)


class Seen:
    """Everything a trace was handed."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, int]] = []
        self.values: dict[tuple[str, int], Tensor] = {}

    def __call__(self, kind: str, layer: int, value: Tensor) -> None:
        self.calls.append((kind, layer))
        self.values[kind, layer] = value.detach()


# --- the equations ---


def test_forward_is_equations_1_to_4() -> None:
    """Written out once more, with explicit patches, heads and sums."""
    config = TOY
    model = trained(config)
    images = images_of(config)
    (P, Q), D, K = config.patch, config.encoder.width, config.encoder.heads
    E = model.patches.projection.weight.flatten(1)  # (D, C P Q)
    rows = []
    for top in range(0, config.image_size[0], P):
        for left in range(0, config.image_size[1], Q):
            patch = images[:, :, top : top + P, left : left + Q].flatten(1)
            rows.append(patch @ E.T + model.patches.projection.bias)
    z = torch.stack([model.tokens[0].expand(len(images), D), *rows], dim=1)
    z = z + torch.cat([model.position.tokens, model.position.grid.reshape(-1, D)])
    for block in model.encoder.blocks:
        y = F.layer_norm(z, (D,), block.norm1.weight, block.norm1.bias, 1e-6)
        q, k, v = F.linear(y, block.attention.qkv.weight, block.attention.qkv.bias).split(D, dim=-1)
        heads = []
        for head in range(K):
            part = slice(head * D // K, (head + 1) * D // K)
            A = torch.softmax(q[..., part] @ k[..., part].mT / (D / K) ** 0.5, dim=-1)
            heads.append(A @ v[..., part])
        z = z + F.linear(torch.cat(heads, dim=-1), block.attention.out.weight, block.attention.out.bias)
        y = F.layer_norm(z, (D,), block.norm2.weight, block.norm2.bias, 1e-6)
        z = z + F.linear(F.gelu(F.linear(y, block.mlp.fc1.weight, block.mlp.fc1.bias)), *block.mlp.fc2.parameters())
    y = F.layer_norm(z, (D,), model.norm.weight, model.norm.bias, 1e-6)
    torch.testing.assert_close(model.features(images), y[:, 0], rtol=0, atol=1e-11)
    torch.testing.assert_close(model(images), F.linear(y[:, 0], *model.classifier.parameters()), rtol=0, atol=1e-11)
    feature_map = model.feature_map(images)
    assert feature_map.shape == (2, D, *config.grid)
    torch.testing.assert_close(feature_map.flatten(2).mT, y[:, 1:], rtol=0, atol=1e-11)


def test_swiglu_and_layer_scale() -> None:
    encoder = replace(TOY.encoder, mlp="swiglu", layer_scale=0.3, layers=1)
    block = trained(replace(TOY, encoder=encoder)).encoder.blocks[0]
    x = torch.randn(2, 5, 24, dtype=torch.float64)
    z = x + block.scale1.scale * block.attention(block.norm1(x))
    first, second = F.linear(block.norm2(z), block.mlp.fc1.weight, block.mlp.fc1.bias).split(32, dim=-1)
    z = z + block.scale2.scale * F.linear(first * torch.sigmoid(first) * second, *block.mlp.fc2.parameters())
    torch.testing.assert_close(block(x), z, rtol=0, atol=1e-11)


@pytest.mark.parametrize("norm", ["tokens", "pooled"])
def test_pooling(norm: Any) -> None:
    head = HeadConfig(("mean", "distillation", "class"), layers=2, norm=norm)
    model = trained(replace(TOY, tokens=("class", "distillation"), head=head))
    images = images_of(TOY)
    outputs = model.encode(images, last=2)
    if norm == "tokens":
        outputs = tuple(model.norm(z) for z in outputs)
    parts = [part for z in outputs for part in (z[:, 2:].mean(1), z[:, 1], z[:, 0])]
    expected = torch.cat(parts if norm == "tokens" else [model.norm(part) for part in parts], dim=1)
    torch.testing.assert_close(model.features(images), expected, rtol=0, atol=1e-12)
    assert model.features(images).shape == (2, model.config.feature_width)


@settings(max_examples=10)
@given(
    patch=st.tuples(st.integers(1, 5), st.integers(1, 5)),
    grid=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    channels=st.integers(1, 4),
)
def test_any_size(patch: tuple[int, int], grid: tuple[int, int], channels: int) -> None:
    size = (patch[0] * grid[0], patch[1] * grid[1])
    config = replace(TOY, patch=patch, image_size=size, channels=channels)
    model = trained(config)
    images = images_of(config)
    assert model(images).shape == (2, 5)
    assert model.feature_map(images).shape == (2, 24, *grid)


def test_convolution_is_a_linear_map_of_flattened_patches() -> None:
    """FACTS of the article, 2.1: the two are the same map."""
    patches = PatchEmbedding(3, 6, (4, 8)).double()
    images = images_of(TOY)
    flat = F.unfold(images, kernel_size=(4, 8), stride=(4, 8)).mT  # (B, N, C P P)
    expected = flat @ patches.projection.weight.flatten(1).T + patches.projection.bias
    torch.testing.assert_close(patches(images), expected, rtol=0, atol=1e-12)


# --- positions ---


def test_swapping_two_positions_changes_the_output() -> None:
    model = trained(TOY)
    images = images_of(TOY)
    before = model(images)
    with torch.no_grad():
        model.position.grid[[0, 2], [1, 3]] = model.position.grid[[2, 0], [3, 1]]
    assert (model(images) - before).norm() / before.norm() > 1e-3


def test_patches_permuted_with_their_positions_permute_the_feature_map() -> None:
    model = trained(TOY)
    images = images_of(TOY)
    (P, Q), (h, w), D = TOY.patch, TOY.grid, TOY.encoder.width
    order = torch.randperm(h * w, generator=torch.Generator().manual_seed(0))
    before, logits = model.feature_map(images), model(images)
    cells = images.unflatten(2, (h, P)).unflatten(4, (w, Q)).permute(2, 4, 0, 1, 3, 5).flatten(0, 1)[order]
    shuffled = cells.unflatten(0, (h, w)).permute(2, 3, 0, 4, 1, 5).flatten(4, 5).flatten(2, 3)
    with torch.no_grad():
        model.position.grid.copy_(model.position.grid.reshape(-1, D)[order].reshape(h, w, D))
    after = model.feature_map(shuffled)
    torch.testing.assert_close(after.flatten(2), before.flatten(2)[..., order], rtol=0, atol=1e-10)
    torch.testing.assert_close(model(shuffled), logits, rtol=0, atol=1e-10)


# --- looking inside ---


@pytest.mark.parametrize("layers", [[0], [2], [0, 1, 2]])
def test_traced_attention_is_the_fused_one(layers: list[int]) -> None:
    model = trained(TOY)
    images = images_of(TOY)
    seen = Seen()
    traced = model(images, Trace(seen, attention=layers, blocks=[1, 2]))
    torch.testing.assert_close(traced, model(images), rtol=0, atol=1e-12)
    expected = [(kind, at) for at in range(3) for kind in ("attention", "block")]
    assert seen.calls == [
        (kind, at) for kind, at in expected if at in layers or kind == "block" if kind != "block" or at > 0
    ]
    for layer in layers:
        weights = seen.values["attention", layer]
        assert weights.shape == (2, 3, TOY.sequence, TOY.sequence)
        torch.testing.assert_close(weights.sum(-1), torch.ones(2, 3, TOY.sequence, dtype=torch.float64))
        assert (weights >= 0).all()
    torch.testing.assert_close(seen.values["block", 2], model.encode(images)[0], rtol=0, atol=1e-12)


def test_layers_nobody_asked_for_stay_fused(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    fused = F.scaled_dot_product_attention

    def counted(*arguments: Any, **options: Any) -> Tensor:
        calls.append(arguments)
        return fused(*arguments, **options)

    monkeypatch.setattr(F, "scaled_dot_product_attention", counted)
    model = trained(TOY)
    model(images_of(TOY), Trace(Seen(), attention=[1]))
    assert len(calls) == 2
    model(images_of(TOY), Trace(Seen(), blocks=[0, 1, 2]))
    assert len(calls) == 5


def test_traced_gradients_are_the_fused_ones() -> None:
    model = trained(TOY)
    gradients = []
    for trace in (None, Trace(Seen(), attention=[0, 1, 2])):
        model.zero_grad()
        model(images_of(TOY), trace).square().sum().backward()
        gradients.append(model.patches.projection.weight.grad.clone())
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("fields", [{"attention": [3]}, {"blocks": [-1]}, {"attention": [0], "blocks": [7]}])
def test_a_layer_that_does_not_exist(fields: dict[str, list[int]]) -> None:
    seen = Seen()
    with pytest.raises(UserError, match=r"There is no layer -?\d: the model has layers 0 to 2\.$"):
        trained(TOY)(images_of(TOY), Trace(seen, **fields))
    assert not seen.calls


def test_nothing_is_kept() -> None:
    """After the pass neither the model nor the trace holds an attention matrix, and autograd's graph none of it."""
    model = trained(TOY)
    before = {name: set(vars(module)) for name, module in model.named_modules()}
    alive = []

    def receive(kind: str, layer: int, value: Tensor) -> None:
        alive.append(weakref.ref(value))

    with torch.no_grad():
        model(images_of(TOY), Trace(receive, attention=[0, 1, 2], blocks=[0, 1, 2]))
    assert len(alive) == 6
    assert not any(reference() is not None for reference in alive)
    assert before == {name: set(vars(module)) for name, module in model.named_modules()}


@pytest.mark.skipif(sys.version_info < (3, 11), reason="before Python 3.11 whoever calls holds what he gave")
def test_embeddings_are_let_go_before_the_encoder_works() -> None:
    """Of the tokens before the encoder one copy is alive while it works, not that without the class token too."""
    model = trained(TOY).eval()
    embedded: list[weakref.ref[Tensor]] = []
    alive: list[bool] = []
    model.patches.register_forward_hook(lambda module, given, made: embedded.append(weakref.ref(made)))
    model.encoder.register_forward_pre_hook(lambda module, given: alive.append(embedded[0]() is not None))
    with torch.no_grad():
        model(images_of(TOY))
    assert alive == [False]


# --- dropout and stochastic depth ---


def test_dropout_follows_every_dense_layer_but_qkv_and_the_positions() -> None:
    """ViT appendix B.1. What is dropped is seen at the modules; the attention weights are whole in training too."""
    config = replace(TOY, encoder=replace(TOY.encoder, dropout=0.5))
    model = trained(config).train()
    dropped: dict[tuple[str, int], float] = {}

    def record(name: str, width: int, output: Tensor) -> None:
        dropped[name, width] = float((output == 0).double().mean())

    for name, module in model.named_modules():
        if isinstance(module, nn.Dropout):
            module.register_forward_hook(lambda _, args, output, name=name: record(name, args[0].shape[-1], output))
    seen = Seen()
    torch.manual_seed(0)
    model(images_of(config, batch=16), Trace(seen, attention=[0, 1, 2]))
    expected = {("encoder.dropout", 24)}
    for layer in range(3):
        expected |= {(f"encoder.blocks.{layer}.attention.dropout", 24)}
        expected |= {(f"encoder.blocks.{layer}.mlp.dropout", width) for width in (32, 24)}
    assert set(dropped) == expected
    assert all(0.4 < rate < 0.6 for rate in dropped.values())
    for layer in range(3):
        weights = seen.values["attention", layer]
        assert (weights > 0).all()
        torch.testing.assert_close(weights.sum(-1), torch.ones_like(weights[..., 0]))


def test_fused_attention_drops_nothing_in_training(monkeypatch: pytest.MonkeyPatch) -> None:
    options_seen = []
    fused = F.scaled_dot_product_attention

    def counted(*arguments: Any, **options: Any) -> Tensor:
        options_seen.append((len(arguments), options))
        return fused(*arguments, **options)

    monkeypatch.setattr(F, "scaled_dot_product_attention", counted)
    trained(replace(TOY, encoder=replace(TOY.encoder, dropout=0.5))).train()(images_of(TOY))
    assert options_seen == [(4, {})] * 3


def test_evaluation_mode_is_deterministic() -> None:
    config = replace(TOY, encoder=replace(TOY.encoder, dropout=0.5, drop_path=0.5))
    model = trained(config)
    assert torch.equal(model(images_of(config)), model(images_of(config)))
    plain = trained(TOY)
    assert torch.equal(model(images_of(config)), plain(images_of(config)))


@pytest.mark.parametrize("layers", [1, 2, 5])
def test_drop_path_rises_linearly(layers: int) -> None:
    config = replace(TOY.encoder, layers=layers, drop_path=0.4)
    rates = [block.drop_path.rate for block in Encoder(config).blocks]
    expected = [0.4 * layer / max(layers - 1, 1) for layer in range(layers)]
    assert rates == pytest.approx(expected, abs=1e-7)


def test_drop_path_drops_whole_samples_and_keeps_the_expectation() -> None:
    torch.manual_seed(0)
    drop = DropPath(0.3).train()
    x = torch.ones(20_000, 2, 3)
    out = drop(x)
    assert torch.equal(out, out[:, :1, :1].expand_as(out))
    assert sorted(out.unique().tolist()) == pytest.approx([0.0, 1 / 0.7])
    assert float(out.mean()) == pytest.approx(1.0, abs=0.02)
    assert torch.equal(drop.eval()(x), x)


def test_dropped_branches_leave_the_residual() -> None:
    """With both branches dropped a block is the identity."""
    block = Encoder(replace(TOY.encoder, drop_path=0.999, layers=2)).blocks[1].train()
    torch.manual_seed(0)
    x = torch.randn(4, 5, 24)
    assert torch.equal(block(x), x)


# --- building ---


@pytest.mark.parametrize("seed", [0, 7])
def test_build_is_a_function_of_config_and_seed(seed: int) -> None:
    torch.manual_seed(1)
    first = build(TOY, seed).state_dict()
    torch.manual_seed(2)
    state = torch.get_rng_state()
    second = build(TOY, seed).state_dict()
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(first[name], second[name]) for name in first)
    other = build(TOY, seed + 1).state_dict()
    assert not torch.equal(first["patches.projection.weight"], other["patches.projection.weight"])


def test_build_leaves_the_other_devices_generators_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    def reseeded(seed: int) -> None:
        pytest.fail("a device's generator was seeded")

    monkeypatch.setattr(torch.cuda, "manual_seed_all", reseeded)
    build(TOY)


def test_fresh_model() -> None:
    """In evaluation mode, classifier zero (ViT 3.2), dense layers Xavier-uniform as q, k, v apart."""
    config = replace(TOY, encoder=replace(TOY.encoder, width=96, heads=3))
    model = build(config)
    assert not any(module.training for module in model.modules())
    assert not model(images_of(config).float()).any()
    for matrix in model.encoder.blocks[0].attention.qkv.weight.chunk(3):
        limit = (6 / (96 + 96)) ** 0.5
        assert 0.95 * limit < float(matrix.detach().abs().max()) <= limit
    images = torch.randn(64, 3, *config.image_size, generator=torch.Generator().manual_seed(0))
    assert float(model.patches(images).detach().std()) == pytest.approx(1.0, abs=0.1)  # variance 1 / fan-in


def test_build_on_meta_makes_no_number() -> None:
    with torch.device("meta"):
        assert all(tensor.is_meta for tensor in build(TOY).parameters())


@pytest.mark.parametrize("shape", [(2, 3, 12, 31), (2, 1, 12, 32), (3, 12, 32), (2, 3, 32, 12)])
def test_images_of_another_size(shape: tuple[int, ...]) -> None:
    with pytest.raises(UserError, match=r"The model takes 3 channels of 12x32 pixels, .*image_size= .*\.$"):
        build(TOY)(torch.zeros(shape))


def test_no_classifier() -> None:
    with pytest.raises(UserError, match=r"no classifier: .*\.$"):
        build(TOY.with_head(HeadConfig()))(torch.zeros(2, 3, 12, 32))
