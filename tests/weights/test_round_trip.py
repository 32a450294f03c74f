"""Every two-way dialect says a model and understands it again, bit for bit, and refuses what it has no words for."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torchvision
import transformers
from safetensors.torch import load_file

from vitrail.config import (
    EncoderConfig,
    HeadConfig,
    ModelCard,
    PositionConfig,
    Preprocessing,
    ResNetConfig,
    ViTConfig,
)
from vitrail.errors import UserError
from vitrail.model.build import build
from vitrail.weights.dialects import written
from vitrail.weights.load import load_weights

GELU = EncoderConfig(layers=3, width=24, heads=3, mlp_width=40)
TANH = replace(GELU, mlp="gelu-tanh")
DINOV2 = replace(GELU, mlp_width=48, layer_scale=1e-5)
PLAIN = ViTConfig(GELU, patch=(8, 8), image_size=(32, 32), head=HeadConfig(classes=3))
WIDE = replace(PLAIN, image_size=(24, 48))
MEAN = replace(PLAIN, head=HeadConfig(("mean",), classes=3))
HEADLESS = replace(PLAIN, head=HeadConfig())
REGISTERS = replace(PLAIN, encoder=DINOV2, tokens=("class", "register", "register"))
BOTH = HeadConfig(("class", "mean"), classes=3)
SAYABLE: dict[str, dict[str, ViTConfig]] = {
    "google": {
        "plain": replace(PLAIN, encoder=TANH),
        "headless": replace(HEADLESS, encoder=TANH),
        "pre-logits": replace(PLAIN, encoder=TANH, head=HeadConfig(classes=3, prelogits=20)),
        "mean without class token": replace(MEAN, encoder=TANH, tokens=()),
        "non-square": replace(WIDE, encoder=TANH, tokens=(), head=HeadConfig(("mean",), classes=3)),
        "one channel": replace(PLAIN, encoder=TANH, channels=1),
        "hybrid": replace(PLAIN, encoder=TANH, patch=(1, 1), image_size=(64, 64), stem=ResNetConfig((1, 2), width=32)),
    },
    "timm": {
        "plain": PLAIN,
        "headless": HEADLESS,
        "tanh": replace(PLAIN, encoder=TANH),
        "mean": MEAN,
        "mean, then norm": replace(PLAIN, head=HeadConfig(("mean",), norm="pooled", classes=3)),
        "mean without class token": replace(MEAN, tokens=()),
        "non-square": replace(WIDE, patch=(4, 8)),
        "no qkv bias": replace(PLAIN, encoder=replace(GELU, qkv_bias=False)),
        "LayerScale": replace(PLAIN, encoder=DINOV2),
        "registers": replace(REGISTERS, position=PositionConfig(special=False)),
        "distillation token": replace(
            HEADLESS, tokens=("class", "distillation"), head=HeadConfig(("class", "distillation"))
        ),
    },
    "huggingface": {
        "vit": PLAIN,
        "headless": HEADLESS,
        "tanh": replace(PLAIN, encoder=TANH),
        "coarse epsilon": replace(PLAIN, encoder=replace(GELU, norm_eps=1e-3, qkv_bias=False)),
        "non-square": replace(WIDE, patch=(4, 8)),
        "deit": replace(PLAIN, tokens=("class", "distillation")),
        "dinov2": replace(PLAIN, encoder=DINOV2, head=BOTH),
        "dinov2, SwiGLU": replace(PLAIN, encoder=replace(DINOV2, mlp="swiglu"), head=BOTH),
        "registers": replace(REGISTERS, head=BOTH),
        "registers, headless": replace(REGISTERS, head=HeadConfig()),
    },
    "torchvision": {
        "plain": PLAIN,
        "pre-logits": replace(PLAIN, head=HeadConfig(classes=3, prelogits=20)),
    },
}
CASES = [(name, which) for name, configs in SAYABLE.items() for which in configs]


def _card(config: ViTConfig) -> ModelCard:
    how = Preprocessing(config.image_size, "squash", 1.0, "bilinear", (0.4,) * 3, (0.3,) * 3)
    return ModelCard(config, how, ("cat", "dog", "emu") if config.head.classes else ())


def _written(name: str, config: ViTConfig, folder: Path, randomised: Any) -> tuple[Path, dict[str, torch.Tensor]]:
    path = folder / ("model" + written(name).suffix)
    tensors = dict(randomised(build(config)).state_dict())
    written(name).write(_card(config), tensors, path)
    return path, tensors


def _equal(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(found[name], tensor), name


@pytest.mark.parametrize(("name", "which"), CASES)
def test_round_trip(name: str, which: str, tmp_path: Path, randomised: Any) -> None:
    config = SAYABLE[name][which]
    path, tensors = _written(name, config, tmp_path, randomised)
    loaded = load_weights(path, image_size=config.image_size, heads=3 if name == "torchvision" else None)
    _equal(loaded.tensors, tensors)
    resampling = loaded.card.architecture.position.resampling
    scale = loaded.card.architecture.encoder.layer_scale  # only where training starts from
    expected = replace(
        config,
        position=replace(config.position, resampling=resampling),
        encoder=replace(config.encoder, layer_scale=scale),
    )
    assert loaded.card.architecture == expected
    if not written(name).suffix:
        assert loaded.card.preprocessing == _card(config).preprocessing
        assert loaded.card.class_names == _card(config).class_names


@pytest.mark.parametrize("which", SAYABLE["timm"])
def test_timm_loads_what_was_written_and_saves_it_again(
    which: str, tmp_path: Path, randomised: Any, apart: Any
) -> None:
    config = SAYABLE["timm"][which]
    path, tensors = _written("timm", config, tmp_path, randomised)
    theirs = timm.create_model(f"local-dir:{path}", pretrained=True).eval()
    images = torch.randn(2, 3, *config.image_size)
    ours = build(config)
    ours.load_state_dict(tensors)
    with torch.no_grad():
        if which != "distillation token":  # timm averages the two tokens' features where there is no classifier
            assert apart((ours if ours.classifier else ours.features)(images), theirs(images)) <= 1e-5
    timm.models.save_for_hf(theirs, str(tmp_path / "again"), model_args=theirs_arguments(path))
    _equal(load_weights(tmp_path / "again").tensors, tensors)


def theirs_arguments(path: Path) -> dict[str, Any]:
    import json

    arguments: dict[str, Any] = json.loads((path / "config.json").read_text())["model_args"]
    return arguments


@pytest.mark.parametrize("which", SAYABLE["huggingface"])
def test_transformers_loads_what_was_written_and_saves_it_again(
    which: str, tmp_path: Path, randomised: Any, apart: Any
) -> None:
    config = SAYABLE["huggingface"][which]
    path, tensors = _written("huggingface", config, tmp_path, randomised)
    ours = build(config)
    ours.load_state_dict(tensors)
    images = torch.randn(2, 3, *config.image_size)
    auto = transformers.AutoModelForImageClassification if config.head.classes else transformers.AutoModel
    theirs, about = auto.from_pretrained(path, output_loading_info=True)
    assert not about["missing_keys"] - {"pooler.dense.weight", "pooler.dense.bias"}
    assert not about["unexpected_keys"]
    theirs.eval()
    with torch.no_grad():
        if config.head.classes:
            assert apart(ours(images), theirs(images).logits) <= 1e-5
            assert theirs.config.id2label == {0: "cat", 1: "dog", 2: "emu"}
        else:
            assert apart(ours.features(images), theirs(images).last_hidden_state[:, 0]) <= 1e-5
    theirs.save_pretrained(tmp_path / "again")
    _equal(load_weights(tmp_path / "again").tensors, tensors)
    # Its names in memory are others than on disk, and stand in files that were saved as a bare state dict.
    from safetensors.torch import save_file

    save_file({k: v.contiguous() for k, v in theirs.state_dict().items()}, tmp_path / "again" / "model.safetensors")
    _equal(load_weights(tmp_path / "again").tensors, tensors)
    processor = transformers.AutoImageProcessor.from_pretrained(path)
    assert list(processor.image_mean) == [0.4] * 3


@pytest.mark.parametrize("which", SAYABLE["torchvision"])
def test_torchvision_loads_what_was_written(which: str, tmp_path: Path, randomised: Any, apart: Any) -> None:
    config = SAYABLE["torchvision"][which]
    path, tensors = _written("torchvision", config, tmp_path, randomised)
    theirs = torchvision.models.VisionTransformer(
        32, 8, 3, 3, 24, 40, num_classes=3, representation_size=config.head.prelogits
    ).eval()
    theirs.load_state_dict(load_file(path), strict=True)
    ours = build(config)
    ours.load_state_dict(tensors)
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        assert apart(ours(images), theirs(images)) <= 1e-5
    torch.save(theirs.state_dict(), tmp_path / "again.pth")
    _equal(load_weights(tmp_path / "again.pth", heads=3).tensors, tensors)


LAST_TWO = HeadConfig(layers=2, classes=3)
UNSAYABLE: list[tuple[str, ViTConfig, str]] = [
    ("torchvision", replace(PLAIN, encoder=TANH), "no words for an MLP of kind gelu-tanh, only for gelu"),
    ("torchvision", HEADLESS, "no words for a classifier: no, only for yes"),
    ("torchvision", MEAN, "no words for a head on mean, only for class"),
    ("google", PLAIN, "no words for an MLP of kind gelu, only for gelu-tanh"),
    ("timm", replace(PLAIN, head=HeadConfig(classes=3, prelogits=20)), "no words for pre-logits: yes, only for no"),
    ("timm", replace(PLAIN, encoder=replace(GELU, norm_eps=1e-5)), "no words for a LayerNorm epsilon of 1e-05"),
    ("timm", REGISTERS, "positions of the learned tokens: yes, only for no"),
    ("timm", replace(PLAIN, tokens=("class", "distillation")), "a head on class, only for class and distillation"),
    ("huggingface", replace(PLAIN, head=LAST_TWO), "no words for a head that sees layers from the last: 2, only for 1"),
    ("huggingface", MEAN, "no words for a head on mean"),
    ("huggingface", replace(PLAIN, position=PositionConfig("rope-2d")), "positions of kind rope-2d"),
    ("dino", PLAIN, "reads dino but does not write it: choose google, huggingface, torchvision, timm or vitrail"),
]


@pytest.mark.parametrize(("name", "config", "sentence"), UNSAYABLE)
def test_what_a_dialect_cannot_say_is_refused(name: str, config: ViTConfig, sentence: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=sentence):
        written(name).write(_card(config), dict(build(config).state_dict()), tmp_path / "model")
    assert not list(tmp_path.iterdir())


def test_two_heads_that_were_averaged_are_not_taken_apart(tmp_path: Path) -> None:
    config = replace(PLAIN, tokens=("class", "distillation"), head=HeadConfig(("class", "distillation"), classes=3))
    with pytest.raises(UserError, match="averaged into one"):
        written("timm").write(_card(config), dict(build(config).state_dict()), tmp_path / "model")
