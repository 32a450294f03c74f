"""A ResNet is trained, kept, read, fine-tuned and judged like any ViT; what needs tokens says so."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

import vitrail
from tests.tasks.shades import write_shades
from vitrail.config import BiTConfig, HeadConfig, ModelCard, Preprocessing, ViTConfig, architecture, resnet, variant
from vitrail.cost import flops, inference_bytes, parameters, training_bytes
from vitrail.errors import UserError
from vitrail.model.build import build
from vitrail.record import from_dict, to_dict
from vitrail.runtime.engines import engine
from vitrail.runtime.plan import Runtime
from vitrail.settings import PretrainSettings
from vitrail.tasks.convert import convert
from vitrail.tasks.pretrain_plan import training_of
from vitrail.tasks.show import show

NAME = "R14x0.5"


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve dark pictures and twelve light ones."""
    return write_shades(tmp_path_factory.mktemp("resnets"), 12)


@pytest.fixture(scope="module")
def trained(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("resnets-run") / "run"
    vitrail.pretrain(
        photos, out, objective="supervised", architecture=NAME, resolution=16, steps=12, batch_size=8,
        learning_rate=3e-3, quiet=True, tuning={"mixing": 0.0},
    )  # fmt: skip
    return out


def test_it_is_trained_and_its_folder_says_what_it_is(trained: Path, photos: Path) -> None:
    card = json.loads((trained / "model" / "config.json").read_text())
    assert card["architecture"]["kind"] == "bit"
    assert card["architecture"]["root"] == "3x3"
    model = vitrail.load(trained, quiet=True)
    assert model.evaluate(photos).evaluation.top1 > 0.9
    assert model.embed(photos)[1].shape == (24, 1024)
    assert "ResNet" not in dict(show(str(trained)).rows())["map"]
    assert dict(show(str(trained)).rows())["units"].startswith("1-1-1-1")


def test_from_random_weights_it_is_trained_at_the_size_of_small_pictures(photos: Path, tmp_path: Path) -> None:
    """A probe of features that nobody learned is what nobody asks for."""
    found = vitrail.finetune(photos, tmp_path / "run", weights="none", architecture=NAME, epochs=1, quiet=True)
    assert found.method == "full"
    assert vitrail.load(tmp_path / "run", quiet=True).model.config.image_size == (16, 16)


@pytest.mark.parametrize("method", ["full", "layers:1", "probe", "knn"])
def test_every_method_that_needs_no_tokens(method: str, trained: Path, photos: Path, tmp_path: Path) -> None:
    epochs = None if method in ("probe", "knn") else 1
    found = vitrail.finetune(photos, tmp_path / "run", weights=trained, method=method, epochs=epochs, quiet=True)
    assert found.evaluation.top1 > 0.7
    if method == "layers:1":
        assert found.trained is not None
        whole = parameters(vitrail.load(trained, quiet=True).card.architecture)
        assert 0 < found.trained.parameters < whole
    if method != "knn":
        assert (
            vitrail.load(tmp_path / "run", quiet=True).predict(photos / "light" / "00.png")[0].labels[0][0] == "light"
        )


def test_other_resolutions_and_engines(trained: Path) -> None:
    larger = vitrail.load(trained, image_size=24, quiet=True)
    pictures = torch.randn(2, 3, 24, 24)
    for way in ("onnx", "openvino"):
        made = engine(larger.model, Runtime(way), pictures)  # type: ignore[arg-type]
        torch.testing.assert_close(made(pictures), larger.model.features(pictures), atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"objective": "mae"}, "The objective mae needs a Vision Transformer"),
        ({"objective": "moco", "tuning": {"freeze_patches": True}}, "no patch embedding to leave at random"),
        ({"patch": 4}, "--patch needs a Vision Transformer"),
        ({"stem": "1-1"}, "--stem needs a Vision Transformer"),
        ({"drop_path": 0.1}, "BiT's ResNets have no drop_path"),
        ({"architecture": "R27"}, "There is no ResNet 'R27'; the nearest is R26"),
        ({"tuning": {"drop_patches": 0.5}}, "Only a Vision Transformer has patches to leave out"),
    ],
)
def test_what_needs_tokens_is_refused(options: dict[str, object], said: str, photos: Path, tmp_path: Path) -> None:
    usual: dict[str, object] = {"objective": "supervised", "architecture": NAME, "resolution": 16, "steps": 2}
    with pytest.raises(UserError, match=said):
        vitrail.pretrain(photos, tmp_path / "run", quiet=True, **{**usual, **options})  # type: ignore[arg-type]


def test_what_can_be_seen_inside(trained: Path, photos: Path) -> None:
    """What needs no tokens; the rest is refused."""
    inspection = vitrail.inspect(trained, photos, limit=4)
    found = inspection.equivariance.model
    assert found.layers == ("stage 1", "stage 2", "stage 3", "stage 4")
    with pytest.raises(UserError, match="has no attention, and no positions or patches"):
        _ = inspection.attention_distance
    with pytest.raises(UserError, match="for another resolution"):
        vitrail.inspect(vitrail.load(trained, quiet=True), photos, resolution=24)


def test_the_usual_rate_is_a_cnns() -> None:
    asked = PretrainSettings("x", "supervised", batch_size=256)
    assert training_of(asked, None, "supervised", resnet("R26"), 1000, False).learning_rate == pytest.approx(2e-3)
    assert training_of(asked, None, "supervised", variant("ViT-B/16"), 1000, False).learning_rate == 1.5e-4


@pytest.mark.parametrize("objective", ["moco", "dino"])
def test_views_are_matched_without_labels(objective: str, photos: Path, tmp_path: Path) -> None:
    """In the same loop, by the same modules; what comes out is a ResNet without a classifier."""
    tuning = {"outputs": 32, "hidden": 16}
    vitrail.pretrain(
        photos, tmp_path / "run", objective=objective, architecture=NAME, steps=2, batch_size=4, tuning=tuning,
        quiet=True,
    )  # fmt: skip
    model = vitrail.load(tmp_path / "run", quiet=True)
    assert model.model.classifier is None
    assert model.card.architecture.image_size == (16, 16)  # of small pictures, if nothing is said
    assert isinstance(model.card.architecture, BiTConfig)
    assert model.card.architecture.root == "3x3"


def test_a_name_and_sizes_that_go_together_only_together(photos: Path, tmp_path: Path) -> None:
    """28 pixels are no whole number of ViT-Ti/16's own patches."""
    config = show("none", resolution=28, architecture="R26").card.architecture
    assert config.grid == (4, 4)
    vitrail.pretrain(
        photos, tmp_path / "run", objective="supervised", architecture="ViT-Ti/16", resolution=28, patch=14, layers=1,
        steps=1, batch_size=4, quiet=True,
    )  # fmt: skip
    assert vitrail.load(tmp_path / "run", quiet=True).card.architecture.grid == (2, 2)


def test_lora_merging_and_attention_are_refused(trained: Path, photos: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="LoRA adapts attention, which a CNN has not"):
        vitrail.finetune(photos, tmp_path / "run", weights=trained, method="lora", quiet=True)
    tuning = {"drop_patches": 0.5}
    with pytest.raises(UserError, match="patches to leave out"):
        vitrail.finetune(photos, tmp_path / "run", weights=trained, method="full", tuning=tuning, quiet=True)
    assert not (tmp_path / "run").exists()
    model = vitrail.load(trained, quiet=True)
    with pytest.raises(UserError, match="no tokens to merge"):
        engine(model.model, Runtime(merging=(1, 1)))
    with pytest.raises(UserError, match="no attention to look at"):
        model.predictor.encode(torch.zeros(1, 3, 16, 16))
    with pytest.raises(UserError, match="timm has no words for a root of 3x3"):
        convert(trained, tmp_path / "theirs", to="timm")
    assert not (tmp_path / "theirs").exists()


@pytest.mark.parametrize(("name", "side"), [("R50", 224), ("R26", 96), ("R14x0.5", 32), ("R26x1.5", 50)])
def test_cost_is_what_the_model_takes(name: str, side: int) -> None:
    config = replace(resnet(name, (side, side), classes=7))
    model = build(config)
    assert parameters(config) == sum(parameter.numel() for parameter in model.parameters())
    with torch.device("meta"):
        counted = build(config)
        with FlopCounterMode(display=False) as counter:
            grid = counted.feature_map(torch.zeros(1, 3, side, side)).shape[2:]
            counted.classify(torch.zeros(1, config.width))
    assert flops(config) == counter.get_total_flops()
    assert config.grid == tuple(grid)
    assert inference_bytes(config) < training_bytes(config)


def test_a_card_of_either_kind_is_read_back_and_an_older_one_is_a_vit() -> None:
    for name in (NAME, "ViT-Ti/16"):
        card = ModelCard(architecture(name, (32, 32)), Preprocessing((32, 32)))
        assert from_dict(ModelCard, json.loads(json.dumps(to_dict(card)))) == card
    written = to_dict(card)
    assert "kind" not in written["architecture"]
    assert isinstance(card.architecture, ViTConfig)
    written["architecture"]["kind"] = "mixer"
    with pytest.raises(UserError, match="kind 'mixer' that this version"):
        from_dict(ModelCard, written)


def test_the_head_is_the_mean_alone() -> None:
    with pytest.raises(UserError, match="no tokens to choose from"):
        resnet(NAME).with_head(HeadConfig(("class",)))
