"""The papers' own checkpoints, made here in their names: what they lack is known, or asked for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from timm.models.vision_transformer import checkpoint_filter_fn

from vitrail.config import SIZES
from vitrail.errors import UserError
from vitrail.weights.load import load_weights


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """The presets' sizes at a tenth of their widths: names and tables are what is tested."""
    for name, (_, width, _, heads) in list(SIZES.items()):
        mlp_width = 64 if name == "g" else width // 2
        monkeypatch.setitem(SIZES, name, (2, width // 8 * 2 if name == "g" else width // 4, mlp_width, heads))


def _like(size: str, patch: int, side: int, randomised: Any, **settings: Any) -> Any:
    layers, width, mlp_width, heads = SIZES[size]
    arguments = {"embed_dim": width, "depth": layers, "num_heads": heads, "mlp_ratio": mlp_width / width}
    arguments |= {"patch_size": patch, "img_size": side, "num_classes": 0, **settings}
    return randomised(timm.create_model("vit_base_patch16_224", **arguments))


def _same(loaded: Any, reference: Any, ours: Any, apart: Any, size: tuple[int, int] = (224, 224)) -> None:
    images = torch.randn(1, 3, *size, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        tokens = reference.forward_features(images)
        model = ours(loaded)
        assert apart(model.features(images), tokens[:, 0]) <= 1e-5
        patches = model.feature_map(images).flatten(2).mT
        assert apart(patches, tokens[:, -patches.shape[1] :]) <= 1e-5


def test_dino(tmp_path: Path, randomised: Any, ours: Any, apart: Any) -> None:
    reference = _like("S", 16, 224, randomised)
    state = reference.state_dict()
    torch.save(state, tmp_path / "backbone.pth")
    wrapped = {f"module.backbone.{name}": tensor for name, tensor in state.items()}
    head = {"module.head.mlp.0.weight": torch.ones(3, 3)}
    torch.save({"teacher": {**wrapped, **head}, "epoch": 1}, tmp_path / "full.pth")
    for path in tmp_path.iterdir():
        loaded = load_weights(path, architecture="dino_vits16")
        _same(loaded, reference, ours, apart)
        assert loaded.card.architecture.position.resampling == "bicubic-offset"
        with pytest.raises(UserError, match="pass the architecture"):
            load_weights(state)


@pytest.mark.parametrize("registers", [0, 4])
@pytest.mark.parametrize("size", ["S", "g"])
def test_dinov2(registers: int, size: str, randomised: Any, ours: Any, apart: Any) -> None:
    """Through timm's own converter of the original names."""
    swiglu = {"mlp_ratio": 2 * SIZES["g"][2] / SIZES["g"][1]} if size == "g" else {}
    settings = {"reg_tokens": registers, "no_embed_class": registers > 0, "init_values": 1e-5}
    layers, width, mlp_width, heads = SIZES[size]
    name = "vit_giant_patch14_dinov2" if size == "g" else "vit_small_patch14_dinov2"
    arguments = {"embed_dim": width, "depth": layers, "num_heads": heads, "mlp_ratio": mlp_width / width}
    reference = randomised(timm.create_model(name, img_size=518, **{**arguments, **settings, **swiglu}))
    original = dict(reference.state_dict())
    original["mask_token"] = torch.zeros(1, width)
    table, token = original["pos_embed"], original["cls_token"]
    if registers:  # timm adds the class token's position to the token itself
        original["register_tokens"] = original.pop("reg_token")
        original["pos_embed"] = torch.cat([torch.full((1, 1, width), 0.25), table], dim=1)
        original["cls_token"] = token - 0.25
    for name in list(original):
        if size == "g" and ".mlp." in name:
            original[name.replace("fc1", "w12").replace("fc2", "w3")] = original.pop(name)
    converted = checkpoint_filter_fn(dict(original), reference)
    reference.load_state_dict(converted)
    loaded = load_weights(
        original, architecture=f"dinov2_vit{size.lower()}14{'_reg' if registers else ''}", image_size=(518, 518)
    )
    assert loaded.card.architecture.registers == registers
    _same(loaded, reference, ours, apart, (518, 518))


def test_mae(tmp_path: Path, randomised: Any, ours: Any, apart: Any) -> None:
    reference = _like("B", 16, 224, randomised)
    state = {**reference.state_dict(), "decoder_embed.weight": torch.ones(2, 2)}
    _same(load_weights(state, architecture="mae_vit_base_patch16"), reference, ours, apart)
    state["decoder_pos_embed"] = torch.ones(1, 197, 2)  # the whole of it gives itself away
    torch.save({"model": state}, tmp_path / "mae.pth")
    loaded = load_weights(tmp_path / "mae.pth")
    _same(loaded, reference, ours, apart)
    assert loaded.card.provenance["architecture"] == "mae_vit_base_patch16"


def test_moco_v3_has_twelve_heads_where_timm_has_six(tmp_path: Path, randomised: Any, ours: Any, apart: Any) -> None:
    reference = _like("S", 16, 224, randomised, num_heads=12)
    wrapped = {}
    for wrapper in ("base_encoder", "momentum_encoder"):
        factor = 1 if wrapper == "base_encoder" else 2
        wrapped |= {f"module.{wrapper}.{name}": factor * part for name, part in reference.state_dict().items()}
    wrapped["module.base_encoder.head.0.weight"] = wrapped["module.predictor.0.weight"] = torch.ones(2, 2)
    torch.save({"epoch": 300, "arch": "vit_small", "state_dict": wrapped}, tmp_path / "moco.pth.tar")
    loaded = load_weights(tmp_path / "moco.pth.tar")
    assert loaded.card.architecture.encoder.heads == 12
    _same(loaded, reference, ours, apart)
    six = load_weights(dict(reference.state_dict()), architecture="vit_small_patch16_224")
    with pytest.raises(AssertionError):
        _same(six, reference, ours, apart)  # it loads, and is wrong: which is why the architecture is asked for
    with pytest.raises(UserError, match=r"MoCo v3's S has 12, timm's 6"):
        load_weights(dict(reference.state_dict()))
