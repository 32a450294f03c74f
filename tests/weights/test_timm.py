"""On a par with timm: models of random weights, saved by it, loaded by us."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import timm
import timm.data
import torch
from safetensors.torch import save_file
from timm.models import save_for_hf

from vitrail.config import IMAGENET_MEAN, IMAGENET_STD, SIZES, Preprocessing
from vitrail.errors import UserError
from vitrail.weights.load import load_weights

MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "tiny": ("vit_tiny_patch16_224", {"img_size": 64, "num_classes": 5}),
    "tiny, no classifier": ("vit_tiny_patch16_224", {"img_size": 64, "num_classes": 0}),
    "tiny, mean": ("vit_tiny_patch16_224", {"img_size": 64, "num_classes": 5, "global_pool": "avg"}),
    "tiny, non-square": ("vit_tiny_patch16_224", {"img_size": (64, 32), "num_classes": 5}),
    "tiny, one channel": ("vit_tiny_patch16_224", {"img_size": 64, "num_classes": 5, "in_chans": 1}),
    "tiny, dynamic size, drop path": (
        "vit_tiny_patch16_224",
        {"img_size": 64, "num_classes": 5, "dynamic_img_size": True, "drop_path_rate": 0.1},
    ),
    "deit": ("deit_tiny_patch16_224", {"img_size": 64, "num_classes": 5}),
    "deit distilled": ("deit_tiny_distilled_patch16_224", {"img_size": 64, "num_classes": 5}),
    "dinov2": ("vit_small_patch14_dinov2", {"img_size": 56}),
    "dinov2 with registers": ("vit_small_patch14_reg4_dinov2", {"img_size": 56}),
}


def _answers(model: Any, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(logits or pooled features, feature map) of timm; with ``fc_norm``, that norm on every patch as ours."""
    with torch.no_grad():
        tokens = model.forward_features(images)[:, model.num_prefix_tokens :]
        h, w = (pixels // size for pixels, size in zip(images.shape[2:], model.patch_embed.patch_size, strict=True))
        return model(images), model.fc_norm(tokens).mT.unflatten(2, (h, w))


@pytest.mark.parametrize("which", MODELS)
def test_parity(which: str, tmp_path: Path, randomised: Any, ours: Any, apart: Any) -> None:
    name, settings = MODELS[which]
    reference = randomised(timm.create_model(name, **settings))
    save_for_hf(reference, str(tmp_path), safe_serialization=which != "tiny")
    assert (tmp_path / "pytorch_model.bin").exists() == (which == "tiny")
    patch = reference.patch_embed.patch_size[0]
    native = settings["img_size"]
    for size in ((native, native) if isinstance(native, int) else native, (5 * patch, 3 * patch)):
        loaded = load_weights(tmp_path, image_size=size)
        reference.float().set_input_size(size)
        images = torch.randn(2, loaded.card.architecture.channels, *size, generator=torch.Generator().manual_seed(1))
        # Averaging DeiT's two biases rounds once in the precision of the file.
        for dtype, bound in ((torch.float32, 1e-5), (torch.float64, 1e-7 if which == "deit distilled" else 1e-10)):
            model = ours(loaded, dtype)
            answer, feature_map = _answers(reference.to(dtype), images.to(dtype))
            with torch.no_grad():
                run = model if model.classifier is not None else model.features
                assert apart(run(images.to(dtype)), answer) <= bound
                assert apart(model.feature_map(images.to(dtype)), feature_map) <= bound


def test_every_tensor_has_one_fate(tmp_path: Path, randomised: Any) -> None:
    reference = randomised(timm.create_model("deit_tiny_distilled_patch16_224", img_size=64, num_classes=5))
    save_for_hf(reference, str(tmp_path), safe_serialization=True)
    loaded = load_weights(tmp_path, image_size=(80, 48))
    fates = loaded.report.fates
    used = [name for fate in fates for name in fate.note.removeprefix("from ").split(", ")]
    assert {fate.tensor for fate in fates} == set(loaded.tensors)
    assert len({fate.tensor for fate in fates}) == len(fates)
    assert set(reference.state_dict()) - set(used) == set()
    assert [(fate.tensor, fate.note) for fate in loaded.report.of("resampled")] == [
        ("position.grid", "4x4 -> 5x3 (bicubic-antialias)")
    ]


def test_giant_at_toy_size(monkeypatch: pytest.MonkeyPatch, randomised: Any, ours: Any, apart: Any) -> None:
    """SwiGLU, whose two halves lie in one matrix; the name fixes 1.1 billion numbers, so the table is changed."""
    monkeypatch.setitem(SIZES, "g", (2, 24, 64, 3))
    reference = randomised(
        timm.create_model(
            "vit_giant_patch14_dinov2", img_size=56, embed_dim=24, depth=2, num_heads=3, mlp_ratio=128 / 24
        )
    )
    loaded = load_weights(reference.state_dict(), architecture="vit_giant_patch14_dinov2_56", image_size=(56, 56))
    assert loaded.card.architecture.encoder.mlp == "swiglu"
    images = torch.randn(2, 3, 56, 56, dtype=torch.float64)
    model = ours(loaded, torch.float64)
    answer, feature_map = _answers(reference.double(), images)
    assert apart(model.features(images), answer) <= 1e-10
    assert apart(model.feature_map(images), feature_map) <= 1e-10


def test_bare_state_dict(tmp_path: Path, randomised: Any, ours: Any, apart: Any) -> None:
    reference = randomised(timm.create_model("vit_tiny_patch16_224", num_classes=3))
    state = reference.state_dict()
    torch.save({"model": state, "epoch": 3}, tmp_path / "deit_style.pth")
    save_file(state, tmp_path / "weights.safetensors")
    images = torch.randn(1, 3, 224, 224)
    expected = _answers(reference, images)[0]
    for source in (state, tmp_path / "deit_style.pth", str(tmp_path / "weights.safetensors")):
        loaded = load_weights(source, architecture="vit_tiny_patch16_224.augreg_in21k")
        assert apart(ours(loaded)(images), expected) <= 1e-5
        with pytest.raises(
            UserError, match=r"do not say how many heads .*: pass the architecture, such as vit_base_patch16_224"
        ):
            load_weights(source)
    more_heads = load_weights(state, architecture="vit_tiny_patch16_224", heads=12)
    assert more_heads.card.architecture.encoder.heads == 12
    assert apart(ours(more_heads)(images), expected) > 1e-3
    with pytest.raises(UserError, match=r"^7 heads do not divide a width of 192: .*\.$"):
        load_weights(state, architecture="vit_tiny_patch16_224", heads=7)


@pytest.mark.parametrize(
    ("architecture", "sentence"),
    [
        ("vit_tny_patch16_224", r"timm's architecture 'vit_tny_patch16_224'; the nearest is vit_tiny_patch16_224\.$"),
        ("vit_small_patch14_reg4_dinov2", r"does not fit the architecture it says it is: .*\.$"),
        ("vit_giant_patch14_224", r"does not read timm's architecture 'vit_giant_patch14_224'"),
        ("vit_small_patch16_224", r"does not fit the architecture it says it is: .*\.$"),
        ("vit_tiny_patch16_384", r"position.grid \(24, 24, 192\) needed, .*pos_embed \(1, 197, 192\) found"),
        ("vit_tiny_patch32_224", r"does not fit the architecture it says it is: patches.projection.weight"),
    ],
)
def test_bare_state_dict_of_another_architecture(architecture: str, sentence: str) -> None:
    state = timm.create_model("vit_tiny_patch16_224", num_classes=0).state_dict()
    with pytest.raises(UserError, match=sentence):
        load_weights(state, architecture=architecture)


CONFIG = {"architecture": "vit_tiny_patch16_224", "model_args": {"img_size": 32}}
SETTINGS: dict[str, tuple[dict[str, Any], Preprocessing]] = {
    "nothing said": ({}, Preprocessing((32, 32), "crop", 0.9, "bicubic")),
    "said": (
        {
            "input_size": [3, 48, 32],
            "crop_pct": 0.95,
            "interpolation": "bilinear",
            "mean": [0.1, 0.2, 0.3],
            "std": [1, 2, 3],
        },
        Preprocessing((48, 32), "crop", 0.95, "bilinear", (0.1, 0.2, 0.3), (1, 2, 3)),
    ),
    "squashed": ({"crop_mode": "squash", "crop_pct": 0.8}, Preprocessing((32, 32), "squash", 0.8, "bicubic")),
}


@pytest.fixture(scope="module")
def tiny() -> dict[str, torch.Tensor]:
    """A ViT-Ti/16 at 32 pixels with three classes."""
    state: dict[str, torch.Tensor] = timm.create_model("vit_tiny_patch16_224", img_size=32, num_classes=3).state_dict()
    return state


def _folder(folder: Path, tensors: dict[str, torch.Tensor], config: dict[str, Any]) -> Path:
    save_file(tensors, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize("which", SETTINGS)
@pytest.mark.parametrize("nested", [True, False])
def test_preprocessing(which: str, nested: bool, tmp_path: Path, tiny: Any) -> None:
    """In ``pretrained_cfg`` as timm writes it today, or beside the architecture as it used to."""
    settings, expected = SETTINGS[which]
    config = {**CONFIG, "pretrained_cfg": settings} if nested else {**CONFIG, **settings}
    assert load_weights(_folder(tmp_path, tiny, config)).card.preprocessing == expected


def test_preprocessing_is_what_timm_resolves(tmp_path: Path) -> None:
    for name, mean, std in (
        ("deit_tiny_patch16_224", IMAGENET_MEAN, IMAGENET_STD),
        ("vit_tiny_patch16_224", (0.5,) * 3, (0.5,) * 3),
    ):
        model = timm.create_model(name, img_size=32)
        resolved = timm.data.resolve_model_data_config(model)
        save_for_hf(model, str(tmp_path / name), safe_serialization=True)
        found = load_weights(tmp_path / name).card.preprocessing
        assert (found.size, found.crop_fraction, found.mean, found.std) == ((32, 32), resolved["crop_pct"], mean, std)
        assert (resolved["mean"], resolved["std"], resolved["interpolation"]) == (mean, std, found.interpolation)
        bare = load_weights(model.state_dict(), architecture=f"{name[: name.rindex('_')]}_32").card.preprocessing
        assert bare == found


@pytest.mark.parametrize("names", [["cat", "dog", "emu"], {"0": "cat", "1": "dog", "2": "emu"}])
def test_class_names(names: Any, tmp_path: Path, tiny: Any) -> None:
    loaded = load_weights(_folder(tmp_path, tiny, {**CONFIG, "label_names": names}))
    assert loaded.card.class_names == ("cat", "dog", "emu")


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"architecture": "resnet50"}, r"does not read timm's architecture 'resnet50'"),
        ({"model_args": {"img_size": 32, "reg_tokens": 4}}, r"has positions for its register tokens, which .*\.$"),
        (
            {"model_args": {"img_size": 32, "pos_embed": "none"}},
            r"made with pos_embed='none', which Vitrail cannot .*\.$",
        ),
        ({"model_args": {"img_size": 32, "act_layer": "relu"}}, r"has the activation 'relu'; .*\.$"),
        ({"num_classes": 4}, r"says num_classes=4, but its classifier tells 3 apart: .*\.$"),
        ({"label_names": ["cat", "dog"]}, r"names 2 classes, but the classifier tells 3 apart: .*\.$"),
        ({"global_pool": "map"}, r"pools by 'map'; .*\.$"),
        ({"pretrained_cfg": {"crop_mode": "border"}}, r"crop_mode='border'"),
        ({"pretrained_cfg": {"interpolation": "random"}}, r"interpolation='random'\.$"),
        ({"pretrained_cfg": {"crop_pct": "much"}}, r"incomplete or garbled at .*'much'\.$"),
        ({"pretrained_cfg": {"input_size": 32}}, r"incomplete or garbled at .*\.$"),
        ({"model_args": [1, 2]}, r"incomplete or garbled at .*\.$"),
    ],
)
def test_faulty_configuration(changes: dict[str, Any], sentence: str, tmp_path: Path, tiny: Any) -> None:
    with pytest.raises(UserError, match=sentence):
        load_weights(_folder(tmp_path, tiny, {**CONFIG, **changes}))


def test_register_tokens_are_refused(tmp_path: Path, tiny: Any) -> None:
    with pytest.raises(UserError, match=r"holds a tensor reg_token that this architecture has no place for: .*\.$"):
        load_weights(_folder(tmp_path, {**tiny, "reg_token": torch.zeros(1, 4, 192)}, CONFIG))
