"""Adapters in peft's format: there and back on our own models, and a sentence for what is wrong with others."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from vitrail.config import EncoderConfig, HeadConfig, ModelCard, PositionConfig, Preprocessing, ViTConfig
from vitrail.errors import UserError
from vitrail.model.build import build
from vitrail.model.lora import add_lora, lora_config
from vitrail.model.vision import VisionTransformer
from vitrail.parts import ROLES, LoraConfig
from vitrail.weights.adapter import read_adapter, write_adapter

OURS = ViTConfig(  # which transformers has no words for
    encoder=EncoderConfig(layers=2, width=24, heads=3, mlp_width=32, mlp="swiglu"),
    patch=(4, 8),
    image_size=(12, 32),
    position=PositionConfig("relative-2d", clip=(2, 2)),
    head=HeadConfig(classes=5),
)
CARD = ModelCard(OURS, Preprocessing(OURS.image_size))
ALL = LoraConfig(4, 8, ROLES)


def _random(model: VisionTransformer, only: str = "") -> VisionTransformer:
    """Random numbers, as after training, for the parameters whose name holds ``only``."""
    generator = torch.Generator().manual_seed(3)
    for name, tensor in model.named_parameters():
        if only in name:
            tensor.data = torch.randn(tensor.shape, generator=generator) * (0.3 if tensor.dim() > 1 else 0.5)
    return model


def _trained(config: LoraConfig = ALL, architecture: ViTConfig = OURS) -> VisionTransformer:
    model = _random(build(architecture))
    add_lora(model, config)
    return _random(model, ".lora_")


def _answer(model: VisionTransformer) -> Tensor:
    images = torch.randn(2, 3, *model.config.image_size, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        answer: Tensor = model(images)
    return answer


@pytest.mark.parametrize(
    "config", [ALL, LoraConfig(3, 0.7, ("k", "fc1"), 0.3, (1,), True)], ids=lambda config: ",".join(config.roles)
)
def test_there_and_back_bit_for_bit(config: LoraConfig, tmp_path: Path) -> None:
    model = _trained(config)
    write_adapter(tmp_path, model, CARD)
    fresh = _random(build(OURS))
    fresh.classifier.weight.data.zero_()
    assert read_adapter(tmp_path, fresh) == config
    assert torch.equal(_answer(fresh), _answer(model))
    theirs = fresh.state_dict()
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in model.state_dict().items())
    learning = [{name for name, tensor in one.named_parameters() if tensor.requires_grad} for one in (model, fresh)]
    assert learning[0] == learning[1]


def test_our_own_names(tmp_path: Path) -> None:
    write_adapter(tmp_path, _trained(), CARD)
    modules = [f"attention.{name}" for name in ("k", "out", "q", "v")] + ["mlp.fc2", "mlp.gate", "mlp.up"]
    settings = json.loads((tmp_path / "adapter_config.json").read_text())
    assert settings["target_modules"] == modules
    assert settings["base_model_name_or_path"] is None
    names = {name for name in load_file(tmp_path / "adapter_model.safetensors") if ".lora_" in name}
    assert names == {
        f"base_model.model.encoder.blocks.{layer}.{module}.lora_{side}.weight"
        for layer in range(2)
        for module in modules
        for side in "AB"
    }


def test_an_adapter_without_classifier_leaves_the_models(tmp_path: Path) -> None:
    bare = OURS.with_head(HeadConfig())
    write_adapter(tmp_path, _trained(ALL, bare), ModelCard(bare, CARD.preprocessing))
    assert json.loads((tmp_path / "adapter_config.json").read_text())["modules_to_save"] is None
    model = _random(build(OURS))
    kept = model.classifier.weight.clone()
    read_adapter(tmp_path, model)
    assert torch.equal(model.classifier.weight, kept)


def test_half_precision_and_double(tmp_path: Path) -> None:
    write_adapter(tmp_path, _trained(), CARD)
    path = tmp_path / "adapter_model.safetensors"
    save_file({name: tensor.bfloat16() for name, tensor in load_file(path).items()}, path)
    model = _random(build(OURS)).double()
    read_adapter(tmp_path, model)
    assert {tensor.dtype for tensor in model.parameters()} == {torch.float64}


def test_the_older_file_is_read(tmp_path: Path) -> None:
    model = _trained()
    write_adapter(tmp_path, model, CARD)
    torch.save(load_file(tmp_path / "adapter_model.safetensors"), tmp_path / "adapter_model.bin")
    (tmp_path / "adapter_model.safetensors").unlink()
    fresh = _random(build(OURS))
    read_adapter(tmp_path, fresh)
    assert torch.equal(_answer(fresh), _answer(model))


# --- mistakes ---


def _settings(**changes: Any) -> Any:
    def change(folder: Path) -> None:
        path = folder / "adapter_config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))

    return change


def _tensors(change: Any) -> Any:
    def rewrite(folder: Path) -> None:
        path = folder / "adapter_model.safetensors"
        tensors = load_file(path)
        change(tensors)
        save_file(tensors, path)

    return rewrite


Q = "base_model.model.encoder.blocks.0.attention.q.lora_{}.weight"
OUT = "base_model.model.encoder.blocks.1.attention.out.lora_{}.weight"


def _renamed(old: str, new: str) -> Any:
    return _tensors(lambda tensors: tensors.update({new: tensors.pop(old)}))


FAULTS: dict[str, tuple[Any, str]] = {
    "nothing there": (lambda folder: [path.unlink() for path in folder.iterdir()], "holds no adapter: adapter_config"),
    "no settings": (lambda folder: (folder / "adapter_config.json").unlink(), "holds no adapter: adapter_config"),
    "no tensors": (lambda folder: (folder / "adapter_model.safetensors").unlink(), "safetensors does not exist"),
    "cut tensors": (
        lambda folder: (folder / "adapter_model.safetensors").write_bytes(b"\x90\x00\x00\x00\x00\x00\x00\x00{"),
        "damaged or incomplete",
    ),
    "cut settings": (lambda folder: (folder / "adapter_config.json").write_text('{"r": 4'), "cannot be read as JSON"),
    "settings of nothing": (lambda folder: (folder / "adapter_config.json").write_text("[]"), "hold a JSON object"),
    "another method": (_settings(peft_type="IA3"), "of type 'IA3', but Vitrail reads LORA alone"),
    "no method": (_settings(peft_type=None), "of type None"),
    "DoRA": (_settings(use_dora=True), r"asks for DoRA, .*: merge the adapter"),
    "ranks by module": (_settings(rank_pattern={"q": 2}), "asks for ranks that differ"),
    "alphas by module": (_settings(alpha_pattern={"q": 2}), "asks for alphas that differ"),
    "biases": (_settings(bias="all"), "asks for biases that were trained"),
    "PiSSA": (_settings(init_lora_weights="pissa_niter_4"), "initialisation 'pissa_niter_4', which changes"),
    "no rank": (_settings(r="four"), "field 'rank' should be int, not 'four'"),
    "rank 0": (_settings(r=0), "rank of at least 1"),
    "another rank": (_settings(r=8), r"says r is 8, but encoder\.blocks\.0\.attention\.qkv\.lora_A\.\w\.weight is \(4"),
    "a mad rank": (_settings(r=10**30), "says r is 1000"),
    "alpha below 0": (_settings(lora_alpha=-1), "alpha above 0"),
    "dropout of 1": (_settings(lora_dropout=1.0), "dropout must lie"),
    "no low-rank matrices": (
        _tensors(lambda tensors: [tensors.pop(name) for name in list(tensors) if "lora" in name]),
        "holds no low-rank matrices",
    ),
    "another role": (
        _renamed(Q.format("A"), "base_model.model.patches.projection.lora_A.weight"),
        r"adapts patches\.projection, for which the model has no place: .* more than q, k, v, out, fc1, fc2 in",
    ),
    "another architecture": (
        _renamed(Q.format("A"), "base_model.model.bert.encoder.layer.0.attention.self.query.lora_A.weight"),
        r"adapts bert\.encoder.*another architecture's",
    ),
    "a layer too many": (
        _renamed(Q.format("A"), Q.format("A").replace("blocks.0", "blocks.2")),
        r"adapts encoder\.blocks\.2\.attention\.q, .* in layers 0 to 1",
    ),
    "a classifier that is adapted": (
        _renamed(Q.format("A"), "base_model.model.classifier.lora_A.weight"),
        "adapts classifier, for which",
    ),
    "a module saved whole": (
        _renamed(Q.format("A"), "base_model.model.norm.weight"),
        r"holds a tensor base_model\.model\.norm\.weight, but",
    ),
    "DoRA's magnitudes": (
        _renamed(Q.format("A"), Q.format("A").replace("lora_A.weight", "lora_magnitude_vector")),
        "holds a tensor .*lora_magnitude_vector",
    ),
    "A without B": (
        _tensors(lambda tensors: tensors.pop(OUT.format("B"))),
        r"lacks encoder\.blocks\.1\.attention\.out\.lora_B\.out\.weight: it is incomplete",
    ),
    "a role in one layer alone": (
        _tensors(lambda tensors: [tensors.pop(OUT.format(side)) for side in "AB"]),
        r"lacks encoder\.blocks\.1\.attention\.out\.lora_A\.out\.weight: .* other roles in one layer",
    ),
    "half a SwiGLU": (
        _tensors(lambda tensors: [tensors.pop(name) for name in list(tensors) if "mlp.up" in name]),
        r"lacks encoder\.blocks\.0\.mlp\.fc1\.lora_A\.up\.weight",
    ),
    "half a classifier": (
        _tensors(lambda tensors: tensors.pop("base_model.model.classifier.bias")),
        r"lacks classifier\.bias",
    ),
    "a number for a matrix": (
        _tensors(lambda tensors: tensors.update({Q.format("A"): torch.tensor(1.0)})),
        r"says r is 4, but .* is \(\)",
    ),
    "a number for another": (
        _tensors(lambda tensors: tensors.update({Q.format("B"): torch.tensor(1.0)})),
        r"is \(\), not \(24, 4\)",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_faults_get_a_sentence_and_change_nothing(fault: str, tmp_path: Path) -> None:
    write_adapter(tmp_path, _trained(), CARD)
    plant, sentence = FAULTS[fault]
    plant(tmp_path)
    model = _random(build(OURS))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(UserError, match=sentence) as caught:
        read_adapter(tmp_path, model)
    assert str(caught.value).count(". ") == 0
    assert str(caught.value).endswith(".")
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert lora_config(model) is None
    assert all(parameter.requires_grad for parameter in model.parameters())


@pytest.mark.parametrize(
    ("other", "sentence"),
    [
        (replace(OURS, encoder=replace(OURS.encoder, width=48)), r"does not fit the model: its .* other widths"),
        (
            replace(OURS, encoder=replace(OURS.encoder, mlp_width=40)),
            r"fc2\.lora_A\.fc2\.weight is \(4, 32\), not \(4, 40\)",
        ),
        (replace(OURS, encoder=replace(OURS.encoder, mlp="gelu")), r"adapts encoder\.blocks\.0\.mlp\.gate, for which"),
        (
            replace(OURS, encoder=replace(OURS.encoder, layers=1)),
            r"adapts encoder\.blocks\.1\.attention\.\w+, for which",
        ),
        (OURS.with_head(HeadConfig(classes=6)), r"classifier\.bias is \(5,\), not \(6,\)"),
        (OURS.with_head(HeadConfig()), "brings a classifier of 5 classes, but the model has none"),
    ],
)
def test_an_adapter_of_another_model(other: ViTConfig, sentence: str, tmp_path: Path) -> None:
    write_adapter(tmp_path, _trained(), CARD)
    model = build(other)
    with pytest.raises(UserError, match=sentence):
        read_adapter(tmp_path, model)
    assert lora_config(model) is None


def test_nothing_to_write(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="has no LoRA to write"):
        write_adapter(tmp_path / "adapter", build(OURS), CARD)
    assert not (tmp_path / "adapter").exists()


def test_one_adapter_at_a_time(tmp_path: Path) -> None:
    model = _trained()
    write_adapter(tmp_path, model, CARD)
    with pytest.raises(UserError, match="has LoRA already"):
        read_adapter(tmp_path, model)
