"""Models written in other libraries' words, described, and held side by side."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from timm.models import save_for_hf

from vitrail.config import EncoderConfig, HeadConfig, ModelCard, Preprocessing, ViTConfig
from vitrail.errors import UserError
from vitrail.model.build import build
from vitrail.parts import Part
from vitrail.tasks.classifier import load
from vitrail.tasks.convert import convert, same_numbers
from vitrail.tasks.parity import parity
from vitrail.tasks.show import show
from vitrail.weights.load import load_weights
from vitrail.weights.store import write_model

CONFIG = ViTConfig(
    EncoderConfig(layers=3, width=24, heads=3, mlp_width=40),
    patch=(8, 8),
    image_size=(32, 32),
    head=HeadConfig(classes=3),
)


def _model(folder: Path, config: ViTConfig = CONFIG, seed: int = 0) -> Path:
    model = build(config, seed)
    if model.classifier is not None:
        torch.nn.init.normal_(model.classifier.weight, generator=torch.Generator().manual_seed(seed))
    how = Preprocessing(config.image_size, "squash", 1.0, "bilinear")
    write_model(
        folder, ModelCard(config, how, ("cat", "dog", "emu") if config.head.classes else ()), model.state_dict()
    )
    return folder


@pytest.mark.parametrize("to", ["vitrail", "timm", "huggingface", "torchvision"])
def test_there_and_back(to: str, tmp_path: Path) -> None:
    source = _model(tmp_path / "ours")
    out = tmp_path / ("theirs.safetensors" if to == "torchvision" else "theirs")
    result = convert(source, out, to, heads=3 if to == "torchvision" else None)
    assert ("class names" in result.lost) == (to == "torchvision")
    convert(out, tmp_path / "back", "vitrail", heads=3)
    assert same_numbers(load_weights(source), load_weights(tmp_path / "back"))
    with pytest.raises(UserError, match="exists already"):
        convert(source, out, to)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(["ours", out.name, "back"])


def test_another_resolution_and_patch_without_head(tmp_path: Path) -> None:
    source = _model(tmp_path / "ours")
    result = convert(source, tmp_path / "theirs", "timm", resolution="48x24", patch=4, drop_head=True)
    assert {fate.what for fate in result.report} == {"loaded", "resampled", "ignored"}
    config = load_weights(tmp_path / "theirs").card.architecture
    assert (config.image_size, config.patch, config.head.classes) == ((48, 24), (4, 4), 0)


@pytest.mark.parametrize(("parts", "layers"), [(("class", "mean"), 1), (("class",), 2), (("class", "mean"), 2)])
@pytest.mark.parametrize("to", ["timm", "huggingface"])
def test_without_head_a_probe_is_the_model_it_began_with(
    to: str, parts: tuple[Part, ...], layers: int, tmp_path: Path
) -> None:
    source = _model(tmp_path / "ours", CONFIG.with_head(HeadConfig(parts=parts, layers=layers, classes=3)))
    with pytest.raises(UserError, match="or drop the head"):
        convert(source, tmp_path / "theirs", to)
    convert(source, tmp_path / "theirs", to, drop_head=True)
    assert load_weights(tmp_path / "theirs").card.architecture.head == HeadConfig()
    with pytest.raises(UserError, match="or change the model first"):  # which always has a classifier
        convert(source, tmp_path / "theirs.safetensors", "torchvision")


@pytest.mark.parametrize(
    ("out", "to", "sentence"),
    [
        ("a", "tim", r"no library 'tim' to write for; the nearest is timm"),
        ("a", "mae", r"reads mae but does not write it: choose "),
        (
            "a.pth",
            "torchvision",
            r"torchvision is written as a \.safetensors file: name it so, such as .*a\.safetensors",
        ),
        ("a.npz", "google", r"Google's \.npz has no words for an MLP of kind gelu, only for gelu-tanh"),
    ],
)
def test_refusals_leave_nothing_behind(out: str, to: str, sentence: str, tmp_path: Path) -> None:
    source = _model(tmp_path / "ours")
    with pytest.raises(UserError, match=sentence):
        convert(source, tmp_path / out, to)
    assert [path.name for path in tmp_path.iterdir()] == ["ours"]


def test_what_a_folder_of_huggingface_cannot_preprocess_is_refused(tmp_path: Path) -> None:
    source = _model(tmp_path / "ours")
    card = json.loads((source / "config.json").read_text())
    card["preprocessing"] |= {"fit": "crop", "crop_fraction": 0.9}
    (source / "config.json").write_text(json.dumps(card))
    with pytest.raises(UserError, match="transformers has no preprocessing that gives 32x32 pixels by crop at a crop"):
        convert(source, tmp_path / "theirs", "huggingface")
    assert [path.name for path in tmp_path.iterdir()] == ["ours"]


@pytest.mark.parametrize("library", ["timm", "transformers", "torchvision"])
def test_parity_with_a_library(library: str, tmp_path: Path) -> None:
    source = _model(tmp_path / "ours")
    for double, bound in ((False, 1e-5), (True, 1e-10)):
        result = parity(str(source), library, double=double)
        assert [entry.where for entry in result.differences] == ["block 0", "block 1", "block 2", "logits"]
        assert all(entry.relative <= bound for entry in result.differences)
        assert result.to_dict()["parts_at"] is None


def test_parity_reads_the_source_with_the_library_itself(tmp_path: Path) -> None:
    model = timm.create_model("vit_tiny_patch16_224", img_size=64, num_classes=5, depth=2)
    torch.nn.init.normal_(model.head.weight)
    save_for_hf(model, str(tmp_path), model_args={"img_size": 64, "num_classes": 5, "depth": 2})
    for resolution in (None, 96):  # each resamples the positions by itself
        result = parity(str(tmp_path), "timm", resolution=resolution)
        assert max(entry.relative for entry in result.differences) <= 1e-5


def test_parity_finds_where_two_models_part(tmp_path: Path) -> None:
    one, other = _model(tmp_path / "one"), _model(tmp_path / "other")
    tensors = load_weights(other).tensors
    tensors["encoder.blocks.1.mlp.fc1.bias"][3] += 0.1
    write_model(tmp_path / "other", load_weights(one).card, tensors)
    Image.fromarray(np.full((40, 30, 3), 90, np.uint8)).save(tmp_path / "a.png")
    result = parity(str(one), str(other), tmp_path / "a.png")
    apart = {entry.where: entry.relative for entry in result.differences}
    assert apart["block 0"] == 0.0
    assert apart["block 1"] > 1e-5
    assert apart["logits"] > 1e-5
    assert (result.images, result.parts_at) == (1, "block 1")


def test_parity_finds_an_epsilon_that_is_wrong(tmp_path: Path) -> None:
    one = _model(tmp_path / "one")
    card, tensors = load_weights(one).card, load_weights(one).tensors
    wrong = replace(card.architecture, encoder=replace(card.architecture.encoder, norm_eps=1e-3))
    write_model(tmp_path / "other", replace(card, architecture=wrong), tensors)
    found = parity(str(one), str(tmp_path / "other"))
    assert found.differences[0].relative > 1e-4
    assert found.parts_at == "block 0"


def test_parity_of_two_shapes(tmp_path: Path) -> None:
    one = _model(tmp_path / "one")
    other = _model(tmp_path / "other", replace(CONFIG, encoder=replace(CONFIG.encoder, width=48)))
    with pytest.raises(UserError, match="differ in the shape of block 0: they are not the same architecture"):
        parity(str(one), str(other))


def test_show_a_model_and_an_architecture(tmp_path: Path) -> None:
    source = _model(tmp_path / "ours")
    found = show(str(source), resolution="48x32").to_dict()
    assert (found["tokens"], found["grid"]) == (25, [6, 4])
    assert found["parameters"] == sum(part.numel() for part in load(source, "48x32").model.parameters())
    assert found["bytes"]["weights"] == 4 * found["parameters"]
    assert [entry["what"] for entry in found["tensors"] if entry["tensor"] == "position.grid"] == ["resampled"]
    json.dumps(found)
    text = dict(show(str(source)).rows())
    assert text["classes"] == "3: cat, dog, emu"
    bare = dict(show("ViT-B/16").rows())
    assert bare["parameters"] == "85,798,656"
    assert "provenance" not in bare
    hybrid = dict(show("R50+ViT-B/16").rows())
    assert "feature map of a ResNet 3-4-9 at stride 16" in hybrid["patches"]
    with pytest.raises(UserError, match="no variant 'ViT-b/16'; the nearest is ViT-B/16"):
        show("ViT-b/16")


def test_pre_logits_are_seen_by_the_predictor(tmp_path: Path) -> None:
    """They stand between the features and the classifier, wherever logits are made."""
    source = _model(tmp_path / "ours", replace(CONFIG, head=HeadConfig(classes=3, prelogits=20)))
    classifier = load(source, device="cpu")
    images = torch.randn(2, 3, 32, 32)
    expected = classifier.model(images)
    predictor = replace(classifier.predictor, bf16=False)  # where it is native, the predictor's own way is coarser
    assert torch.allclose(predictor.logits(images)[1], expected.detach(), atol=1e-5)


def test_schemes_without_learned_tables_survive_a_folder(tmp_path: Path) -> None:
    for kind in ("sincos-2d", "sinusoidal-1d", "rope-2d"):
        config = replace(CONFIG, position=replace(CONFIG.position, kind=kind))
        source = _model(tmp_path / kind, config)
        expected = build(config)
        expected.load_state_dict(load_weights(source).tensors)
        images = torch.randn(1, 3, 32, 32)
        # A product with the one token that is read rounds by where in memory the weights lie.
        torch.testing.assert_close(load(source, device="cpu").model(images), expected(images), rtol=1e-6, atol=1e-6)
