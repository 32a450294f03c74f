"""On a par with transformers' masked autoencoder; what is seen, what is drawn, what counts."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from vitrail.config import EncoderConfig, HeadConfig, PositionConfig, Preprocessing, ResNetConfig, ViTConfig
from vitrail.errors import UserError
from vitrail.model.build import build
from vitrail.objectives import mae as module
from vitrail.objectives.mae import MAE, targets
from vitrail.objectives.masking import shuffled
from vitrail.weights.load import load_weights

HOW = Preprocessing((12, 32))


@pytest.mark.parametrize("normalised", [True, False])
def test_parity_with_transformers(normalised: bool, tmp_path: Path, chances: Any, randomised: Any) -> None:
    config = transformers.ViTMAEConfig(
        hidden_size=24,
        num_hidden_layers=2,
        num_attention_heads=3,
        intermediate_size=40,
        image_size=20,
        patch_size=4,
        decoder_hidden_size=16,
        decoder_num_hidden_layers=2,
        decoder_num_attention_heads=2,
        decoder_intermediate_size=64,
        norm_pix_loss=normalised,
        layer_norm_eps=1e-5,
    )
    reference = transformers.ViTMAEForPreTraining(config).eval()
    randomised(reference)
    reference.decoder.initialize_weights(25)  # its sin-cos table, which a fresh one of transformers 5 lacks
    reference.save_pretrained(tmp_path)
    loaded = load_weights(tmp_path)
    model = build(loaded.card.architecture)
    model.load_state_dict(loaded.tensors)
    objective = MAE(model.config, loaded.card.preprocessing, layers=2, width=16, heads=2, normalised=normalised, seed=1)
    objective.decoder.load_state_dict(_decoder(reference.decoder.state_dict()))
    images = torch.randn(5, 3, 20, 20, generator=torch.Generator().manual_seed(2))
    noise = torch.from_numpy(np.stack([chance.random(25) for chance in chances(range(5))]))
    expected = reference(images, noise=noise)
    loss, metrics = objective.loss(model, images, torch.zeros(5), chances(range(5)))
    assert expected.mask.sum(dim=1).tolist() == [19.0] * 5
    assert float(loss.detach()) == pytest.approx(float(expected.loss.detach()), rel=1e-5)
    assert metrics == {}
    expected.loss.backward()
    loss.backward()
    torch.testing.assert_close(
        model.patches.projection.weight.grad, reference.vit.embeddings.patch_embeddings.projection.weight.grad
    )
    torch.testing.assert_close(objective.decoder.mask.grad, reference.decoder.mask_token.grad[0, 0])


def _decoder(theirs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """transformers' decoder in our names."""
    names = {"decoder_embed": "embed", "decoder_norm": "norm", "decoder_pred": "pixels"}
    ours = {f"{new}.{kind}": theirs[f"{old}.{kind}"] for old, new in names.items() for kind in ("weight", "bias")}
    ours["mask"] = theirs["mask_token"][0, 0]
    parts = {
        "norm1": "layernorm_before",
        "norm2": "layernorm_after",
        "attention.out": "attention.o_proj",
        "mlp.fc1": "mlp.fc1",
        "mlp.fc2": "mlp.fc2",
    }
    for layer in range(2):
        for kind in ("weight", "bias"):
            here, there = f"encoder.blocks.{layer}", f"decoder_layers.{layer}"
            ours |= {f"{here}.{new}.{kind}": theirs[f"{there}.{old}.{kind}"] for new, old in parts.items()}
            qkv = [theirs[f"{there}.attention.{part}_proj.{kind}"] for part in "qkv"]
            ours[f"{here}.attention.qkv.{kind}"] = torch.cat(qkv)
    return ours


def test_targets_are_pixels_of_each_patch_with_its_own_mean_and_deviation(toy: ViTConfig) -> None:
    images = torch.rand(2, 3, 12, 32, generator=torch.Generator().manual_seed(0))
    plain, normalised = targets(images, toy, False), targets(images, toy, True)
    for patch in range(12):
        row, column = divmod(patch, 4)
        cell = images[:, :, row * 4 : row * 4 + 4, column * 8 : column * 8 + 8]  # (B, C, P, P)
        pixels = cell.permute(0, 2, 3, 1).flatten(1).numpy()
        assert np.array_equal(plain[:, patch].numpy(), pixels)
        expected = (pixels - pixels.mean(1, keepdims=True)) / np.sqrt(pixels.var(1, ddof=1, keepdims=True) + 1e-6)
        np.testing.assert_allclose(normalised[:, patch].numpy(), expected, atol=1e-5)
    assert not targets(torch.ones(1, 3, 12, 32), toy, True).any()  # a flat patch has nothing to draw


@pytest.mark.parametrize("tokens", [(), ("class", "register")])
def test_hidden_pixels_are_not_seen_and_visible_ones_do_not_count(
    tokens: Any, toy: ViTConfig, chances: Any, randomised: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = build(replace(toy, tokens=tokens))
    objective = MAE(model.config, HOW, layers=1, width=16, heads=2)
    randomised(model, objective.modules)
    images = torch.rand(2, 3, 12, 32, generator=torch.Generator().manual_seed(0))
    kept = shuffled(chances(range(2)), 12)[:, :3]
    visible = torch.zeros(2, 12, dtype=torch.bool).scatter(1, kept, True)
    cells = visible.reshape(2, 1, 3, 4).repeat_interleave(4, 2).repeat_interleave(8, 3)  # (B, 1, H, W)
    truth = targets(images, toy, True)

    def loss(images: torch.Tensor, truth: torch.Tensor) -> torch.Tensor:
        monkeypatch.setattr(module, "targets", lambda *arguments: truth)
        with torch.no_grad():
            return objective.loss(model, images, torch.zeros(2), chances(range(2)))[0]

    right = loss(images, truth)
    noise = torch.rand_like(images)
    assert torch.equal(loss(torch.where(cells, images, noise), truth), right)
    assert not torch.equal(loss(torch.where(cells, noise, images), truth), right)
    assert torch.equal(loss(images, truth + visible[..., None]), right)
    assert not torch.equal(loss(images, truth + ~visible[..., None]), right)


@pytest.mark.parametrize(("hidden", "seen"), [(0.75, 3), (0.5, 6), (0.9, 1), (0.8, 2)])
def test_how_many_are_visible(hidden: float, seen: int, toy: ViTConfig) -> None:
    assert MAE(toy, HOW, hidden=hidden, layers=1, width=16, heads=2).visible == seen


@pytest.mark.parametrize("kind", ["none", "rope-2d", "learned-2d", "sinusoidal-1d"])
def test_any_positions_but_relative_ones(kind: Any, toy: ViTConfig, chances: Any) -> None:
    model = build(replace(toy, position=PositionConfig(kind)))
    objective = MAE(model.config, HOW, layers=1, width=16, heads=2)
    loss, _ = objective.loss(model, torch.rand(2, 3, 12, 32), torch.zeros(2), chances(range(2)))
    loss.backward()
    assert all(p.grad is not None for p in (*model.parameters(), *objective.modules.parameters()))


def test_the_papers_decoder() -> None:
    """8 blocks of width 512 with 16 heads, whose positions are not learned."""
    config = ViTConfig(EncoderConfig(1, 32, 4, 64, dropout=0.1, drop_path=0.1, layer_scale=1e-5))
    decoder = MAE(config, Preprocessing()).decoder
    assert [block.attention.heads for block in decoder.encoder.blocks] == [16] * 8
    assert {block.mlp.fc1.weight.shape for block in decoder.encoder.blocks} == {(2048, 512)}
    block = 4 * 512 * 512 + 4 * 512 + 2 * 512 * 2048 + 2048 + 512 + 4 * 512
    around = 32 * 512 + 512 + 512 + 2 * 512 + 512 * 768 + 768
    assert sum(p.numel() for p in decoder.parameters()) == 8 * block + around
    assert not any(p.numel() for p in decoder.position.parameters())
    assert decoder.encoder.dropout.p == 0.0


@pytest.mark.parametrize(
    ("change", "options", "sentence"),
    [
        (
            {"position": PositionConfig("relative-2d")},
            {},
            "MAE leaves patches out, which positions of kind relative-2d",
        ),
        ({"stem": ResNetConfig((1, 1), 32), "patch": (1, 1), "image_size": (32, 64)}, {}, "A hybrid's ResNet sees"),
        ({"image_size": (4, 8)}, {}, "There is one patch, so"),
        ({}, {"hidden": 0.95}, "Of 12 patches 0 would be visible with 0.95 of them hidden: choose"),
        ({}, {"hidden": 0.0}, "Of 12 patches 12 would be visible with 0 of them hidden: choose"),
        ({}, {"width": 30, "heads": 2}, "Positions of kind sincos-2d need a width divisible by 4, not 30"),
    ],
)
def test_what_it_refuses(change: dict[str, Any], options: dict[str, Any], sentence: str, toy: ViTConfig) -> None:
    with pytest.raises(UserError, match=f"^{sentence}"):
        MAE(replace(toy, head=HeadConfig(("mean",)), **change), HOW, **options)
