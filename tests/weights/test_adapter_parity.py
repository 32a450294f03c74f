"""Adapters on a par with what peft's documentation says it does to transformers' own models of random weights."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from vitrail.model.lora import add_lora, merge
from vitrail.model.vision import VisionTransformer
from vitrail.parts import ROLES, LoraConfig
from vitrail.weights.adapter import read_adapter, write_adapter
from vitrail.weights.load import load_weights

TOY = {"hidden_size": 24, "num_hidden_layers": 3, "num_attention_heads": 3, "image_size": 32, "patch_size": 8}
NAMED = {"id2label": {0: "cat", 1: "dog", 2: "emu"}, "label2id": {"cat": 0, "dog": 1, "emu": 2}}
MODELS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "vit": ("ViT", "ForImageClassification", {"intermediate_size": 40, **NAMED}),
    "vit without classifier": ("ViT", "Model", {"intermediate_size": 40}),
    "deit": ("DeiT", "ForImageClassification", {"intermediate_size": 40, **NAMED}),
    "mae": ("ViTMAE", "Model", {"intermediate_size": 40, "mask_ratio": 0.0}),
    "dinov2": ("Dinov2", "ForImageClassification", NAMED),
    "dinov2 with registers": ("Dinov2WithRegisters", "ForImageClassification", NAMED),
    "dinov2, SwiGLU": ("Dinov2", "Model", {"use_swiglu_ffn": True}),
}
CONFIGS = [
    LoraConfig(4, 8, ROLES),
    LoraConfig(3, 5, ("q",), layers=(0, 2), stabilised=True),
    LoraConfig(2, 0.5, ("v", "fc1"), dropout=0.1),
]


def _saved(which: str, folder: Path, randomised: Any) -> Any:
    family, kind, settings = MODELS[which]
    config = getattr(transformers, f"{family}Config")(**{**TOY, **settings})
    extra = {"add_pooling_layer": False} if kind == "Model" and family == "ViT" else {}
    model = randomised(getattr(transformers, family + kind)(config, **extra))
    model.save_pretrained(folder)
    return model


def _random(model: VisionTransformer, only: str) -> None:
    generator = torch.Generator().manual_seed(3)
    for name, tensor in model.named_parameters():
        if only in name:
            tensor.data = torch.randn(tensor.shape, generator=generator) * 0.3


def _answer(model: Any) -> Tensor:
    """Logits, or the normalised class token of a model without a classifier."""
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        if isinstance(model, VisionTransformer):
            ours: Tensor = model(images) if model.classifier is not None else model.features(images)
            return ours
        extra = {"noise": torch.arange(16.0).expand(2, -1)} if "MAE" in type(model).__name__ else {}
        answer = model(images, **extra)
        theirs: Tensor = answer.logits if hasattr(answer, "logits") else answer.last_hidden_state[:, 0]
        return theirs


def _applied(model: nn.Module, folder: Path, called: Mapping[str, str] | None = None) -> set[str]:
    """Do to a model, by hand, what peft's documentation says it does with an adapter; the modules adapted.

    ``target_modules`` are whole names, or what names end in; the weight of each such module gains scale B A, and the
    modules to save are replaced.

    Args:
        called: modules that the tensors call otherwise than the model.
    """
    settings = json.loads((folder / "adapter_config.json").read_text())
    tensors = load_file(folder / "adapter_model.safetensors")
    scale = settings["lora_alpha"] / (math.sqrt(settings["r"]) if settings["use_rslora"] else settings["r"])
    found = set()
    for name, module in model.named_modules():
        there = f"base_model.model.{(called or {}).get(name, name)}"
        if any(name == target or name.endswith(f".{target}") for target in settings["target_modules"]):
            assert isinstance(module, nn.Linear)
            a, b = (tensors.pop(f"{there}.lora_{side}.weight") for side in "AB")
            assert (a.shape[0], b.shape[1]) == (settings["r"], settings["r"])
            module.weight.data += scale * b @ a
            found.add(name)
        elif name in (settings["modules_to_save"] or ()):
            for kind in ("weight", "bias"):
                getattr(module, kind).data.copy_(tensors.pop(f"{there}.{kind}"))
    assert not tensors
    return found


def _made(model: nn.Module, folder: Path, called: Mapping[str, str], r: int, alpha: int, stabilised: bool) -> None:
    """An adapter as peft saves it, with random numbers; ``called``: the modules adapted, and their names on disk."""
    generator = torch.Generator().manual_seed(4)
    tensors = {}
    for module, name in called.items():
        outputs, inputs = model.get_parameter(f"{module}.weight").shape
        tensors[f"base_model.model.{name}.lora_A.weight"] = torch.randn(r, inputs, generator=generator) * 0.2
        tensors[f"base_model.model.{name}.lora_B.weight"] = torch.randn(outputs, r, generator=generator) * 0.2
    folder.mkdir()
    save_file(tensors, folder / "adapter_model.safetensors")
    settings = {"peft_type": "LORA", "r": r, "lora_alpha": alpha, "use_rslora": stabilised, "lora_dropout": 0.25}
    settings |= {"target_modules": list(called), "modules_to_save": None, "bias": "none", "rank_pattern": {}}
    (folder / "adapter_config.json").write_text(json.dumps(settings))


def _of_4(name: str, which: str) -> str:
    """What transformers 4 called a module."""
    for new, old in {"q_proj": "query", "k_proj": "key", "v_proj": "value"}.items():
        name = name.replace(f"attention.{new}", f"attention.attention.{old}")
    name = name.replace("attention.o_proj", "attention.output.dense")
    if "dinov2" in which:
        return name.replace("down_proj", "weights_out")
    name = name.replace("mlp.fc1", "intermediate.dense").replace("mlp.fc2", "output.dense")
    return name.replace("layers.", "encoder.layer.")


@pytest.mark.parametrize("which", MODELS)
@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: ",".join(config.roles))
def test_written_by_us(which: str, config: LoraConfig, tmp_path: Path, randomised: Any, ours: Any, apart: Any) -> None:
    theirs = _saved(which, tmp_path / "model", randomised)
    loaded = load_weights(tmp_path / "model")
    model = ours(loaded)
    add_lora(model, config)
    _random(model, ".lora_")
    _random(model, "classifier")
    write_adapter(tmp_path / "adapter", model, loaded.card)
    before = _answer(theirs)
    adapted = _applied(theirs, tmp_path / "adapter")
    modules = len(config.roles) + (which == "dinov2, SwiGLU" and "fc1" in config.roles)
    assert len(adapted) == modules * len(config.layers or range(3))
    assert apart(_answer(model), _answer(theirs)) <= 1e-6
    assert apart(_answer(model), before) > 0.01


@pytest.mark.parametrize("which", MODELS)
@pytest.mark.parametrize("version", [5, 4])
def test_read_by_us(which: str, version: int, tmp_path: Path, randomised: Any, ours: Any, apart: Any) -> None:
    theirs = _saved(which, tmp_path / "model", randomised)
    model = ours(load_weights(tmp_path / "model"))
    dense = [name for name, module in theirs.named_modules() if isinstance(module, nn.Linear) and "layer" in name]
    if version == 5:
        called, roles = {name: name for name in dense}, ROLES
    elif which == "dinov2, SwiGLU":  # whose halves were stacked
        called = {name: _of_4(name, which) for name in dense if "gate" not in name and "up_proj" not in name}
        roles = ("q", "k", "v", "out", "fc2")
    else:
        called, roles = {name: _of_4(name, which) for name in dense}, ROLES
    _made(theirs, tmp_path / "adapter", called, r=2, alpha=3, stabilised=which == "vit")
    before = _answer(theirs)
    assert _applied(theirs, tmp_path / "adapter", called) == set(called)
    config = read_adapter(tmp_path / "adapter", model)
    assert config == LoraConfig(2, 3, roles, dropout=0.25, stabilised=which == "vit")
    unmerged = _answer(model)
    merge(model)
    for answer in (unmerged, _answer(model)):
        assert apart(answer, _answer(theirs)) <= 1e-6
        assert apart(answer, before) > 0.01


def test_swiglu_as_transformers_4_stacked_it(tmp_path: Path, randomised: Any, ours: Any, apart: Any) -> None:
    """There the halves are one matrix: they share A, and the rows of B are the one's, then the other's."""
    theirs = _saved("dinov2, SwiGLU", tmp_path / "model", randomised)
    model = ours(load_weights(tmp_path / "model"))
    r, hidden = 2, theirs.encoder.layer[0].mlp.gate_proj.out_features
    _made(theirs, tmp_path / "adapter", {}, r, alpha=r, stabilised=False)
    generator = torch.Generator().manual_seed(5)
    tensors = {}
    for layer in range(3):
        a, b = torch.randn(r, 24, generator=generator) * 0.2, torch.randn(2 * hidden, r, generator=generator) * 0.2
        name = f"base_model.model.encoder.layer.{layer}.mlp.weights_in"
        tensors |= {f"{name}.lora_A.weight": a, f"{name}.lora_B.weight": b}
        theirs.encoder.layer[layer].mlp.gate_proj.weight.data += (b @ a)[:hidden]
        theirs.encoder.layer[layer].mlp.up_proj.weight.data += (b @ a)[hidden:]
    save_file(tensors, tmp_path / "adapter" / "adapter_model.safetensors")
    assert read_adapter(tmp_path / "adapter", model).roles == ("fc1",)
    assert apart(_answer(model), _answer(theirs)) <= 1e-6


def test_what_is_written(tmp_path: Path, randomised: Any, ours: Any) -> None:
    _saved("vit", tmp_path / "model", randomised)
    loaded = load_weights(tmp_path / "model")
    model = ours(loaded)
    add_lora(model, LoraConfig(2, 4, ("v", "q"), layers=(1,)))
    write_adapter(tmp_path / "adapter", model, loaded.card)
    assert sorted(load_file(tmp_path / "adapter" / "adapter_model.safetensors")) == [
        "base_model.model.classifier.bias",
        "base_model.model.classifier.weight",
        "base_model.model.vit.layers.1.attention.q_proj.lora_A.weight",
        "base_model.model.vit.layers.1.attention.q_proj.lora_B.weight",
        "base_model.model.vit.layers.1.attention.v_proj.lora_A.weight",
        "base_model.model.vit.layers.1.attention.v_proj.lora_B.weight",
    ]
    assert json.loads((tmp_path / "adapter" / "adapter_config.json").read_text()) == {
        "peft_type": "LORA",
        "task_type": None,
        "base_model_name_or_path": str(tmp_path / "model"),
        "revision": None,
        "inference_mode": True,
        "r": 2,
        "lora_alpha": 4,
        "use_rslora": False,
        "use_dora": False,
        "lora_dropout": 0.0,
        "bias": "none",
        "target_modules": ["vit.layers.1.attention.q_proj", "vit.layers.1.attention.v_proj"],
        "modules_to_save": ["classifier"],
    }


OF_PEFT = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
"""What peft asks of a model of transformers, whose next version calls it otherwise."""


@OF_PEFT
@pytest.mark.parametrize("which", MODELS)
def test_peft_itself_reads_what_we_write(which: str, tmp_path: Path, randomised: Any, ours: Any, apart: Any) -> None:
    theirs = _saved(which, tmp_path / "model", randomised)
    loaded = load_weights(tmp_path / "model")
    model = ours(loaded)
    add_lora(model, LoraConfig(3, 5, ("q", "v", "fc2"), dropout=0.2, stabilised=True))
    _random(model, ".lora_")
    _random(model, "classifier")
    write_adapter(tmp_path / "adapter", model, loaded.card)
    adapted = peft.PeftModel.from_pretrained(theirs, tmp_path / "adapter").eval()
    assert apart(_answer(model), _answer(adapted.base_model.model)) <= 1e-6


@OF_PEFT
@pytest.mark.parametrize("which", MODELS)
def test_we_read_what_peft_itself_writes(which: str, tmp_path: Path, randomised: Any, ours: Any, apart: Any) -> None:
    theirs = _saved(which, tmp_path / "model", randomised)
    model = ours(load_weights(tmp_path / "model"))
    settings = peft.LoraConfig(r=2, lora_alpha=3, target_modules=["q_proj", "v_proj"], lora_dropout=0.1)
    adapted = peft.get_peft_model(theirs, settings).eval()
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    adapted.save_pretrained(tmp_path / "adapter")
    assert read_adapter(tmp_path / "adapter", model) == LoraConfig(2, 3, ("q", "v"), dropout=0.1)
    assert apart(_answer(model), _answer(adapted.base_model.model)) <= 1e-6
