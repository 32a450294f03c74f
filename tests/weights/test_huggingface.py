"""On a par with transformers: toy models of random weights, saved by it, loaded by us."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file

from vitrail.config import IMAGENET_MEAN, IMAGENET_STD, Preprocessing
from vitrail.errors import UserError
from vitrail.model.position import resample_grid
from vitrail.weights.dialects import written
from vitrail.weights.load import load_weights

TOY = {"hidden_size": 24, "num_hidden_layers": 3, "num_attention_heads": 3, "image_size": 32, "patch_size": 8}
NAMED = {"id2label": {0: "cat", 1: "dog", 2: "emu"}, "label2id": {"cat": 0, "dog": 1, "emu": 2}}
MODELS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "vit": ("ViT", "ForImageClassification", {"intermediate_size": 40, **NAMED}),
    "vit without classifier": ("ViT", "Model", {"intermediate_size": 40}),
    "vit, tanh GELU": ("ViT", "ForImageClassification", {"intermediate_size": 40, "hidden_act": "gelu_new"}),
    "vit, PyTorch's tanh GELU": ("ViT", "Model", {"intermediate_size": 40, "hidden_act": "gelu_pytorch_tanh"}),
    "vit, no qkv bias": ("ViT", "ForImageClassification", {"intermediate_size": 40, "qkv_bias": False}),
    "vit, coarse epsilon": ("ViT", "ForImageClassification", {"intermediate_size": 40, "layer_norm_eps": 0.1}),
    "vit, one channel": ("ViT", "ForImageClassification", {"intermediate_size": 40, "num_channels": 1}),
    "vit, non-square": ("ViT", "ForImageClassification", {"intermediate_size": 40, "image_size": [24, 48]}),
    "vit, non-square patches": ("ViT", "Model", {"intermediate_size": 40, "patch_size": [4, 16]}),
    "deit": ("DeiT", "ForImageClassification", {"intermediate_size": 40, **NAMED}),
    "deit with teacher": ("DeiT", "ForImageClassificationWithTeacher", {"intermediate_size": 40, **NAMED}),
    "deit without classifier": ("DeiT", "Model", {"intermediate_size": 40}),
    "dinov2": ("Dinov2", "Model", {}),
    "dinov2 with classifier": ("Dinov2", "ForImageClassification", NAMED),
    "dinov2 with registers": ("Dinov2WithRegisters", "Model", {"num_register_tokens": 3}),
    "dinov2 with registers and classifier": ("Dinov2WithRegisters", "ForImageClassification", NAMED),
    "mae": ("ViTMAE", "Model", {"intermediate_size": 40, "mask_ratio": 0.0}),
    "dinov2, SwiGLU": ("Dinov2", "Model", {"use_swiglu_ffn": True}),
    "dinov2, SwiGLU, with classifier": ("Dinov2", "ForImageClassification", {"use_swiglu_ffn": True, "mlp_ratio": 2}),
}
SINGLE, DOUBLE = torch.float32, torch.float64


def _saved(folder: Path, which: str, randomised: Any, **options: Any) -> Any:
    family, kind, settings = MODELS[which]
    config = getattr(transformers, f"{family}Config")(**{**TOY, **settings})
    extra = {"add_pooling_layer": False} if kind == "Model" and family in ("ViT", "DeiT") else {}
    model = randomised(getattr(transformers, family + kind)(config, **extra))
    model.save_pretrained(folder, **options)
    return model


def _answers(model: Any, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(logits or class token, feature map (B, D, h, w)) of transformers."""
    base = getattr(model, model.base_model_prefix, model)
    other = images.shape[2:] == (48, 24) and "Dinov2" not in type(model).__name__  # which always interpolates
    options: dict[str, Any] = {"interpolate_pos_encoding": True} if other else {}
    if "MAE" in type(model).__name__:  # which shuffles the patches before it drops none of them
        count = images.shape[2] * images.shape[3] // base.config.patch_size**2
        options["noise"] = torch.arange(count, dtype=images.dtype).expand(len(images), -1)
    with torch.no_grad():
        tokens = base(images, **options).last_hidden_state
        answer = model(images, **options).logits if base is not model else tokens[:, 0]
    patch = base.config.patch_size
    patch = (patch, patch) if isinstance(patch, int) else patch
    h, w = images.shape[2] // patch[0], images.shape[3] // patch[1]
    return answer, tokens[:, -h * w :].mT.unflatten(2, (h, w))


@pytest.mark.parametrize("which", MODELS)
def test_parity(which: str, tmp_path: Path, randomised: Any, ours: Any, apart: Any) -> None:
    reference = _saved(tmp_path, which, randomised)
    native = load_weights(tmp_path)
    sizes = [native.card.architecture.image_size]
    if "non-square" not in which:  # where transformers takes the root of the number of positions
        sizes.append((48, 24))
    for size in sizes:
        loaded = load_weights(tmp_path, image_size=size)
        images = torch.randn(2, loaded.card.architecture.channels, *size, generator=torch.Generator().manual_seed(1))
        # Averaging DeiT's two biases rounds once in the precision of the file.
        for dtype, bound in ((SINGLE, 1e-5), (DOUBLE, 1e-7 if which == "deit with teacher" else 1e-10)):
            model = ours(loaded, dtype)
            if dtype == DOUBLE and size == (48, 24) and not which.startswith("dinov2"):
                # Its ViT interpolates in the model's own precision, which weights on disk do not have.
                table = native.tensors["position.grid"].double()
                model.position.grid.data = resample_grid(table, model.config.grid, "bicubic")
            answer, feature_map = _answers(reference.to(dtype), images.to(dtype))
            with torch.no_grad():
                run = model if model.classifier is not None else model.features
                assert apart(run(images.to(dtype)), answer) <= bound
                assert apart(model.feature_map(images.to(dtype)), feature_map) <= bound
        reference.float()


@pytest.mark.parametrize("which", ["vit", "deit with teacher", "dinov2 with classifier"])
def test_every_tensor_has_one_fate(which: str, tmp_path: Path, randomised: Any) -> None:
    reference = _saved(tmp_path, which, randomised)
    theirs = set(load_file(tmp_path / "model.safetensors"))
    loaded = load_weights(tmp_path, image_size=(48, 24))
    fates = loaded.report.fates
    used = [name for fate in fates if fate.what != "ignored" for name in fate.note.removeprefix("from ").split(", ")]
    grid = next(fate for fate in fates if fate.tensor == "position.grid")
    assert (grid.what, grid.note) == ("resampled", "4x4 -> 6x3 (bicubic)")
    assert {fate.tensor for fate in fates if fate.what != "ignored"} == set(loaded.tensors)
    ignored = [fate.tensor for fate in loaded.report.of("ignored")]
    assert len({fate.tensor for fate in fates}) == len(fates)
    assert theirs - set(used) == set(ignored)
    assert ignored == (["dinov2.embeddings.mask_token"] if which.startswith("dinov2") else [])
    assert loaded.card.class_names == ("cat", "dog", "emu")
    assert loaded.card.provenance["dialect"] == "huggingface"
    assert reference.config.model_type == loaded.card.provenance["model_type"]


def test_pooler_is_ignored(tmp_path: Path, randomised: Any, ours: Any, apart: Any) -> None:
    config = transformers.ViTConfig(**TOY, intermediate_size=40)
    reference = randomised(transformers.ViTModel(config, add_pooling_layer=True))
    reference.save_pretrained(tmp_path)
    loaded = load_weights(tmp_path)
    assert {fate.tensor for fate in loaded.report.of("ignored")} == {"pooler.dense.weight", "pooler.dense.bias"}
    images = torch.randn(2, 3, 32, 32)
    assert apart(ours(loaded).features(images), _answers(reference, images)[0]) <= 1e-5


def test_class_token_row_is_untouched(tmp_path: Path, randomised: Any) -> None:
    _saved(tmp_path, "deit", randomised)
    table = load_file(tmp_path / "model.safetensors")["deit.embeddings.position_embeddings"]
    resampled = load_weights(tmp_path, image_size=(64, 40)).tensors
    assert torch.equal(resampled["position.tokens"], table[0, :2])
    assert resampled["position.grid"].shape == (8, 5, 24)


def test_shards(tmp_path: Path, randomised: Any) -> None:
    _saved(tmp_path / "whole", "vit", randomised)
    _saved(tmp_path / "shards", "vit", randomised, max_shard_size="10KB")
    assert len(list((tmp_path / "shards").glob("*.safetensors"))) > 2
    assert not (tmp_path / "shards" / "model.safetensors").exists()
    whole, shards = load_weights(tmp_path / "whole"), load_weights(tmp_path / "shards")
    assert all(torch.equal(whole.tensors[name], shards.tensors[name]) for name in whole.tensors | shards.tensors)


def test_bin_and_sharded_bin(tmp_path: Path, randomised: Any) -> None:
    """What transformers wrote before safetensors, and no longer writes."""
    _saved(tmp_path, "vit", randomised)
    expected = load_weights(tmp_path).tensors
    tensors = load_file(tmp_path / "model.safetensors")
    (tmp_path / "model.safetensors").unlink()
    torch.save(tensors, tmp_path / "pytorch_model.bin")
    found = load_weights(tmp_path).tensors
    assert all(torch.equal(expected[name], found[name]) for name in expected | found)
    (tmp_path / "pytorch_model.bin").unlink()
    table = {name: f"pytorch_model-0000{1 + number % 2}-of-00002.bin" for number, name in enumerate(tensors)}
    for shard in set(table.values()):
        torch.save({name: tensors[name] for name in table if table[name] == shard}, tmp_path / shard)
    (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": table}))
    found = load_weights(tmp_path).tensors
    assert all(torch.equal(expected[name], found[name]) for name in expected | found)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_files(dtype: torch.dtype, tmp_path: Path, randomised: Any, ours: Any) -> None:
    """They run like any other: in float32, with a new head of the same type."""
    reference = _saved(tmp_path / "single", "dinov2", randomised)
    reference.to(dtype).save_pretrained(tmp_path / "half")
    loaded = load_weights(tmp_path / "half", image_size=(48, 24), classes=["a", "b"])
    assert {tensor.dtype for tensor in loaded.tensors.values()} == {torch.float32}
    exact = load_weights(tmp_path / "single").tensors
    half = load_weights(tmp_path / "half").tensors
    assert all(torch.equal(half[name], exact[name].to(dtype).float()) for name in exact)
    assert ours(loaded)(torch.randn(1, 3, 48, 24)).shape == (1, 2)


def _processed(folder: Path, processor: Any, randomised: Any, which: str = "vit") -> Preprocessing:
    _saved(folder, which, randomised)
    processor.save_pretrained(folder)
    return load_weights(folder).card.preprocessing


def test_vit_processor(tmp_path: Path, randomised: Any) -> None:
    """Squashed to the size, bilinear, 0.5."""
    processor = transformers.ViTImageProcessor(size={"height": 48, "width": 32})
    assert _processed(tmp_path, processor, randomised) == Preprocessing((48, 32), "squash", 1.0, "bilinear")


def test_deit_processor(tmp_path: Path, randomised: Any) -> None:
    """Squashed to a larger size whose centre is cut out."""
    processor = transformers.DeiTImageProcessor(size={"height": 64, "width": 64}, crop_size={"height": 48, "width": 48})
    mean, std = tuple(processor.image_mean), tuple(processor.image_std)
    found = _processed(tmp_path, processor, randomised, "deit")
    assert found == Preprocessing((48, 48), "squash", 0.75, "bicubic", mean, std)


def test_bit_processor(tmp_path: Path, randomised: Any) -> None:
    """DINOv2's: the shortest edge, then the centre."""
    processor = transformers.BitImageProcessor(
        size={"shortest_edge": 64},
        crop_size={"height": 56, "width": 56},
        image_mean=IMAGENET_MEAN,
        image_std=IMAGENET_STD,
    )
    found = _processed(tmp_path, processor, randomised, "dinov2")
    assert found == Preprocessing((56, 56), "crop", 0.875, "bicubic", IMAGENET_MEAN, IMAGENET_STD)


@pytest.mark.parametrize(
    ("which", "settings", "expected"),
    [
        (
            "vit",
            {"size": 48, "do_normalize": False},
            Preprocessing((48, 48), "squash", 1.0, "bilinear", (0.0,) * 3, (1.0,) * 3),
        ),
        (
            "vit",
            {"size": 48, "resample": 3, "image_mean": [0.1] * 3, "image_std": [0.2] * 3},
            Preprocessing((48, 48), "squash", 1.0, "bicubic", (0.1,) * 3, (0.2,) * 3),
        ),
        ("vit", None, Preprocessing((32, 32), "squash", 1.0, "bilinear")),
        (
            "dinov2",
            {"size": 64, "crop_size": 48, "do_center_crop": True, "do_normalize": False, "resample": 1},
            Preprocessing((48, 48), "crop", 0.75, "lanczos", (0.0,) * 3, (1.0,) * 3),
        ),
        ("dinov2", None, Preprocessing((32, 32), "crop", 0.875, "bicubic", IMAGENET_MEAN, IMAGENET_STD)),
    ],
)
def test_older_processor_files(
    which: str, settings: Any, expected: Preprocessing, tmp_path: Path, randomised: Any
) -> None:
    """One number is a square for ViT's and DeiT's processors and the shortest edge for DINOv2's."""
    _saved(tmp_path, which, randomised)
    if settings is not None:
        (tmp_path / "preprocessor_config.json").write_text(json.dumps(settings))
    assert load_weights(tmp_path).card.preprocessing == expected


FAULTS = {
    "another type": ({"model_type": "dinov3_vit"}, r"model type 'dinov3_vit'; the nearest is dinov2\.$"),
    "a missing field": ({"hidden_size": None}, r"vit model is incomplete or garbled at .*\.$"),
    "another activation": ({"hidden_act": "quick_gelu"}, r"'quick_gelu' is not one Vitrail's encoder has"),
    "heads that do not divide": ({"num_attention_heads": 5}, r"5 heads do not divide a width of 24: .*\.$"),
    "another width": ({"hidden_size": 48}, r"does not fit the architecture it says it is: .* needed, .* found; .*\.$"),
    "another image size": (
        {"image_size": 64},
        r"position.grid \(8, 8, 24\) needed, .*position_embeddings \(1, 17, 24\)",
    ),
    "more layers": (
        {"num_hidden_layers": 4},
        r"lacks the tensor vit.encoder.layer.3.*: it is incomplete, or not .*\.$",
    ),
    "fewer layers": ({"num_hidden_layers": 2}, r"holds a tensor vit.encoder.layer.2.* no place for: .*\.$"),
    "labels without numbers": ({"id2label": {"a": 1, "b": 2, "c": 3}}, r"garbled at '0'\.$"),
    "part of a patch": ({"image_size": 33}, r"33x33 is not a whole number of patches of 8x8: .* 32 and 40\.$"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_faulty_configuration(fault: str, tmp_path: Path, randomised: Any) -> None:
    changes, sentence = FAULTS[fault]
    _saved(tmp_path, "vit", randomised)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, **changes}))
    with pytest.raises(UserError, match=sentence):
        load_weights(tmp_path)


def test_registers_where_there_should_be_none(tmp_path: Path, randomised: Any) -> None:
    config = transformers.Dinov2WithRegistersConfig(**TOY)
    transformers.Dinov2WithRegistersModel(config).save_pretrained(tmp_path)
    changed = json.loads((tmp_path / "config.json").read_text()) | {"model_type": "dinov2"}
    (tmp_path / "config.json").write_text(json.dumps(changed))
    with pytest.raises(UserError, match=r"holds a tensor embeddings.register_tokens that .* no place for: .*\.$"):
        load_weights(tmp_path)


def test_averaged_heads_of_unequal_size(tmp_path: Path, randomised: Any) -> None:
    _saved(tmp_path, "deit with teacher", randomised)
    tensors = load_file(tmp_path / "model.safetensors")
    tensors["distillation_classifier.weight"] = torch.zeros(2, 24)
    (tmp_path / "model.safetensors").unlink()
    torch.save(tensors, tmp_path / "pytorch_model.bin")
    with pytest.raises(
        UserError, match=r"classifier.weight \(3, 48\).* needed, .*distillation_classifier.weight \(2, 24\)"
    ):
        load_weights(tmp_path)


@pytest.mark.parametrize(
    "name", ["intermediate.dense.weight", "attention.attention.query.weight", "layernorm_before.weight"]
)
def test_transposed_tensors_are_no_fit(name: str, tmp_path: Path, randomised: Any) -> None:
    """The count of numbers alone would let them pass."""
    _saved(tmp_path, "vit", randomised)
    tensors = load_file(tmp_path / "model.safetensors")
    full = f"vit.encoder.layer.1.{name}"
    rows = tensors[full].numel() // 12
    tensors[full] = tensors[full].reshape(rows, 12)
    (tmp_path / "model.safetensors").unlink()
    torch.save(tensors, tmp_path / "pytorch_model.bin")
    with pytest.raises(UserError, match=r"does not fit the architecture it says it is"):
        load_weights(tmp_path)


def test_config_alone(tmp_path: Path, randomised: Any) -> None:
    _saved(tmp_path, "vit", randomised)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(UserError, match=r"holds no weights: one of model.safetensors, .* is needed\.$"):
        load_weights(tmp_path)
    shutil.copy(tmp_path / "config.json", tmp_path / "model.safetensors.index.json")
    with pytest.raises(UserError, match=r"has no table weight_map from tensors to files: .*\.$"):
        load_weights(tmp_path)


def test_names_of_another_number_of_classes(tmp_path: Path, randomised: Any) -> None:
    _saved(tmp_path, "vit", randomised)
    config = json.loads((tmp_path / "config.json").read_text())
    config["id2label"]["3"] = "fox"
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=r"names 4 classes, but the classifier tells 3 apart: .*\.$"):
        load_weights(tmp_path)


def test_the_encoder_of_mae_stays_one(tmp_path: Path, randomised: Any) -> None:
    _saved(tmp_path / "a", "mae", randomised)
    loaded = load_weights(tmp_path / "a")
    card = replace(loaded.card, preprocessing=Preprocessing((32, 32), "squash", 1.0))
    written("huggingface").write(card, loaded.tensors, tmp_path / "b")
    theirs, about = transformers.AutoModel.from_pretrained(tmp_path / "b", output_loading_info=True)
    assert isinstance(theirs, transformers.ViTMAEModel)
    assert not about["missing_keys"]
    assert not about["unexpected_keys"]
    theirs.save_pretrained(tmp_path / "c")
    again = load_weights(tmp_path / "c").tensors
    assert all(torch.equal(again[name], tensor) for name, tensor in loaded.tensors.items())
