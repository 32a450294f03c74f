"""Sources told apart, taken to a resolution and given a head; what is wrong is said in one sentence."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from vitrail.config import (
    RELATIVE,
    EncoderConfig,
    HeadConfig,
    ModelCard,
    PositionConfig,
    Preprocessing,
    ViTConfig,
    variant,
)
from vitrail.errors import UserError
from vitrail.model.build import build
from vitrail.model.patches import resize_patches
from vitrail.model.position import resample_grid
from vitrail.weights.load import load_weights
from vitrail.weights.store import write_model

TOY = ViTConfig(
    encoder=EncoderConfig(layers=2, width=24, heads=3, mlp_width=40),
    patch=(8, 8),
    image_size=(32, 48),
    head=HeadConfig(("class", "mean"), layers=2, classes=2),
)
CARD = ModelCard(TOY, Preprocessing((32, 48)), ("cat", "dog"), {"source": "a test"})


@pytest.fixture
def folder(tmp_path: Path, randomised: Any) -> Path:
    """A model folder of ours."""
    write_model(tmp_path / "model", CARD, randomised(build(TOY)).state_dict())
    return tmp_path / "model"


def test_own_folder_and_run_folder(folder: Path) -> None:
    """Bit for bit, and the card with it; a run folder stands for the model in it."""
    tensors = load_file(folder / "model.safetensors")
    for source in (folder, str(folder), folder.parent):
        loaded = load_weights(source)
        assert loaded.card == CARD
        assert {fate.what for fate in loaded.report.fates} == {"loaded"}
        assert set(loaded.tensors) == set(tensors)
        assert all(torch.equal(loaded.tensors[name], tensors[name]) for name in tensors)


def test_another_resolution(folder: Path) -> None:
    native = load_weights(folder)
    for how in (None, "bilinear-corner"):
        loaded = load_weights(folder, image_size=(64, 24), resampling=how)  # type: ignore[arg-type]
        used = how or "bicubic-corner"
        assert loaded.card.architecture.position.resampling == used
        assert loaded.card.preprocessing.size == loaded.card.architecture.image_size == (64, 24)
        expected = resample_grid(native.tensors["position.grid"], (8, 3), used)  # type: ignore[arg-type]
        assert torch.equal(loaded.tensors["position.grid"], expected)
        [fate] = loaded.report.of("resampled")
        assert (fate.tensor, fate.note) == ("position.grid", f"4x6 -> 8x3 ({used})")
        others = set(native.tensors) - {"position.grid"}
        assert all(torch.equal(loaded.tensors[name], native.tensors[name]) for name in others)


def test_another_patch_size(folder: Path, ours: Any) -> None:
    """The images stay, the grid follows: kernels by pseudo-inverse, positions resampled."""
    native = load_weights(folder)
    loaded = load_weights(folder, patch=(16, 4))
    config = loaded.card.architecture
    assert (config.patch, config.image_size, config.grid) == ((16, 4), (32, 48), (2, 12))
    expected = resize_patches(native.tensors["patches.projection.weight"], (16, 4))
    assert torch.equal(loaded.tensors["patches.projection.weight"], expected)
    assert [(fate.tensor, fate.note) for fate in loaded.report.of("resampled")] == [
        ("patches.projection.weight", "8x8 -> 16x4 (pseudo-inverse)"),
        ("position.grid", "4x6 -> 2x12 (bicubic-corner)"),
    ]
    assert ours(loaded)(torch.randn(2, 3, 32, 48)).isfinite().all()
    both = load_weights(folder, patch=(10, 10), image_size=(40, 60))
    assert both.card.architecture.grid == (4, 6)
    assert [fate.tensor for fate in both.report.of("resampled")] == ["patches.projection.weight"]
    with pytest.raises(UserError, match=r"not a whole number of patches of 10x10: .*\.$"):
        load_weights(folder, patch=(10, 10))
    assert load_weights("none", architecture="ViT-Ti/16", patch=(7, 7)).card.architecture.grid == (32, 32)


@pytest.mark.parametrize("kind", [*RELATIVE, "sincos-2d", "learned-2d", "none"])
def test_every_scheme_says_how(kind: Any, tmp_path: Path) -> None:
    config = replace(TOY, position=PositionConfig(kind), encoder=replace(TOY.encoder, layers=2))
    card = ModelCard(config, Preprocessing((32, 48)), ("cat", "dog"))
    write_model(tmp_path, card, build(config).state_dict())
    notes = {fate.tensor: fate.note for fate in load_weights(tmp_path, image_size=(64, 24)).report.of("resampled")}
    tables = [f"position.layers.{layer}.offsets" for layer in range(2)]
    formula = "4x6 -> 8x3 (computed anew)"
    bicubic = "4x6 -> 8x3 (bicubic-corner)"
    assert (
        notes
        == {
            "none": {},
            "sincos-2d": {"position": formula},
            "learned-2d": {"position.down": bicubic, "position.across": bicubic},
            "relative-2d": dict.fromkeys(tables, bicubic),
            "relative-1d": dict.fromkeys(tables, f"{bicubic[:-1]}; in rows of another length they lead elsewhere)"),
        }[kind]
    )
    if kind == "relative-2d":
        clipped = replace(config, position=PositionConfig(kind, clip=(1, 2)))
        write_model(tmp_path, replace(card, architecture=clipped), build(clipped).state_dict())
        report = load_weights(tmp_path, image_size=(64, 24)).report
        assert not report.of("resampled")
        kept = {fate.tensor: fate.note for fate in report if "kept" in fate.note}
        assert kept[tables[1]] == "as it is; 4x6 -> 8x3 (kept, offsets count patches)"


def test_a_new_head_drops_the_pre_logits(folder: Path) -> None:
    config = TOY.with_head(replace(TOY.head, prelogits=9))
    write_model(folder, replace(CARD, architecture=config), build(config).state_dict())
    kept = load_weights(folder)
    assert kept.card.architecture.head.prelogits == 9
    assert not kept.report.of("ignored")
    for classes in (["a", "b", "c"], ()):
        loaded = load_weights(folder, classes=classes)
        assert loaded.card.architecture.head.prelogits is None
        ignored = {fate.tensor for fate in loaded.report.of("ignored")}
        assert ignored == {f"{layer}.{kind}" for layer in ("classifier", "prelogits") for kind in ("weight", "bias")}


def test_new_head_is_zeros_on_the_features_of_the_source(folder: Path, ours: Any) -> None:
    loaded = load_weights(folder, classes=["a", "b", "c"])
    assert loaded.card.class_names == ("a", "b", "c")
    assert loaded.card.architecture.head == replace(TOY.head, classes=3)
    assert not loaded.tensors["classifier.weight"].any()
    assert not loaded.tensors["classifier.bias"].any()
    assert [fate.tensor for fate in loaded.report.of("new")] == ["classifier.weight", "classifier.bias"]
    assert {fate.tensor for fate in loaded.report.of("ignored")} == {"classifier.weight", "classifier.bias"}
    images = torch.randn(2, 3, 32, 48)
    assert not ours(loaded)(images).any()
    assert torch.equal(ours(loaded).features(images), ours(load_weights(folder)).features(images))


def test_dropped_head(folder: Path) -> None:
    loaded = load_weights(folder, classes=())
    assert loaded.card.architecture.head.classes == 0
    assert loaded.card.class_names == ()
    assert not any(name.startswith("classifier") for name in loaded.tensors)
    assert not loaded.report.of("new")


def test_heads_are_overruled(folder: Path, ours: Any) -> None:
    images = torch.randn(2, 3, 32, 48)
    six = load_weights(folder, heads=6)
    assert six.card.architecture.encoder.heads == 6
    assert not torch.allclose(ours(six)(images), ours(load_weights(folder))(images))
    with pytest.raises(UserError, match=r"^5 heads do not divide a width of 24: choose .*\.$"):
        load_weights(folder, heads=5)


def test_half_precision_model_of_ours(folder: Path) -> None:
    halved = {name: tensor.bfloat16() for name, tensor in load_file(folder / "model.safetensors").items()}
    save_file(halved, folder / "model.safetensors")
    assert {tensor.dtype for tensor in load_weights(folder).tensors.values()} == {torch.float32}


def test_none() -> None:
    """Random, new at the size asked for, the same every time."""
    loaded = load_weights("none", image_size=(32, 48), architecture="ViT-Ti/16", heads=6, classes=["a"])
    expected = variant("ViT-Ti/16", (32, 48), classes=1)
    assert loaded.card.architecture == replace(expected, encoder=replace(expected.encoder, heads=6))
    assert {fate.what for fate in loaded.report.fates} == {"new"}
    assert set(loaded.tensors) == {fate.tensor for fate in loaded.report.fates}
    again = load_weights("none", image_size=(32, 48), architecture="ViT-Ti/16").tensors
    assert all(torch.equal(loaded.tensors[name], again[name]) for name in again)
    assert loaded.card.provenance == {"source": "none"}
    assert load_weights("none").card.architecture == variant("ViT-S/16")


def test_architecture_where_it_would_count_for_nothing(folder: Path) -> None:
    for source in (folder, "saliency-s14"):
        with pytest.raises(UserError, match=r" says itself what it is: leave out the architecture ViT-B/16\.$"):
            load_weights(source, architecture="ViT-B/16")


def test_report_text(folder: Path) -> None:
    report = load_weights(folder, image_size=(32, 32), classes=["a"]).report
    assert report.summary() == (
        f"{folder}: {len(report.of('loaded'))} tensors loaded, position.grid resampled 4x6 -> 4x4 (bicubic-corner), "
        "2 new (zeros), 2 ignored (classifier)"
    )
    lines = str(report).splitlines()
    assert lines[0] == report.summary()
    assert len(lines) == 1 + len(report.fates) == 1 + len(list(report))
    assert any(line.split() == ["position.grid", "resampled", "4x6", "->", "4x4", "(bicubic-corner)"] for line in lines)


# --- faults ---


def _edit(path: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    data = json.loads(path.read_text())
    change(data)
    path.write_text(json.dumps(data))


def _tensors(folder: Path, change: Callable[[dict[str, torch.Tensor]], Any]) -> None:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")


def _truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


FAULTS: dict[str, tuple[Callable[[Path], Any], str]] = {
    "truncated": (lambda f: _truncate(f / "model.safetensors"), r"cannot be read as weights: it is damaged"),
    "empty": (lambda f: (f / "model.safetensors").write_bytes(b""), r"cannot be read as weights: it is damaged"),
    "no tensors": (lambda f: (f / "model.safetensors").unlink(), r"model.safetensors does not exist: .*\.$"),
    "no config": (lambda f: (f / "config.json").unlink(), r"config.json does not exist: a model folder needs it\.$"),
    "config no JSON": (
        lambda f: (f / "config.json").write_text("{"),
        r"config.json cannot be read as JSON \(.*\): .*\.$",
    ),
    "config a list": (lambda f: (f / "config.json").write_text("[]"), r"config.json should hold a JSON object\.$"),
    "config of nobody": (
        lambda f: (f / "config.json").write_text("{}"),
        r"is neither transformers' .* what the model is\.$",
    ),
    "later format": (
        lambda f: _edit(f / "config.json", lambda c: c.update(format="vitrail-model/9")),
        r"not a Vitrail model of format vitrail-model/1\.$",
    ),
    "unknown field": (
        lambda f: _edit(f / "config.json", lambda c: c.update(colour=1)),
        r"has a field 'colour' that this version .*\.$",
    ),
    "missing field": (
        lambda f: _edit(f / "config.json", lambda c: c["architecture"]["encoder"].pop("heads")),
        r"lacks the field 'heads'\.$",
    ),
    "another width": (
        lambda f: _edit(f / "config.json", lambda c: c["architecture"]["encoder"].update(width=48)),
        r"is damaged: its tensor .* does not fit its config.json\.$",
    ),
    "tensor missing": (
        lambda f: _tensors(f, lambda t: t.pop("norm.bias")),
        r"is damaged: its tensor norm.bias does not fit",
    ),
    "tensor too many": (
        lambda f: _tensors(f, lambda t: t.update(odd=torch.zeros(1))),
        r"is damaged: its tensor odd does not fit",
    ),
    "wrong shape": (
        lambda f: _tensors(f, lambda t: t.update(tokens=torch.zeros(24, 1))),
        r"is damaged: its tensor tokens does not fit",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_damaged_own_folder(fault: str, folder: Path) -> None:
    spoil, sentence = FAULTS[fault]
    spoil(folder)
    with pytest.raises(UserError, match=sentence):
        load_weights(folder)


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("dinov2-smal", r"no weights 'dinov2-smal': no such path or known name; the nearest is dinov2-small\.$"),
        ("saliency", r"the nearest is saliency-s14\.$"),
        ("None", r"the nearest is none\.$"),
        ("/no/such/folder", r"^There are no weights '/no/such/folder': no such path or known name"),
        ("./photos", r"The hub has no model \./photos; .*\.$"),
    ],
)
def test_unknown_names(name: str, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        load_weights(name)


@pytest.mark.parametrize("size", [(33, 48), (32, 47), (0, 48)])
def test_part_of_a_patch(size: tuple[int, int], folder: Path) -> None:
    with pytest.raises(UserError, match=r"not a whole number of patches of 8x8: the nearest sizes are .*\.$"):
        load_weights(folder, image_size=size)
    with pytest.raises(UserError, match=r"A resolution of 225x225 .* of 14x14: the nearest sizes are 224 and 238\.$"):
        load_weights("none", image_size=(225, 225), architecture="DINOv2-S/14")


def test_file_of_foreign_names(folder: Path) -> None:
    with pytest.raises(
        UserError, match=r"whose names Vitrail does not know: give the whole folder with its config.json"
    ):
        load_weights(folder / "model.safetensors")


def test_real_wheel(real_wheel: Path, tmp_path: Path) -> None:
    loaded = load_weights(real_wheel)
    expected = variant("DINOv2-S/14", (224, 224))
    found = loaded.card.architecture
    assert found == replace(
        expected, encoder=replace(expected.encoder, layer_scale=1.0), position=PositionConfig(resampling="bicubic")
    )
    assert loaded.card.preprocessing.size == (224, 224)
    assert [fate.note for fate in loaded.report.of("resampled")] == ["37x37 -> 16x16 (bicubic)"]
    assert {fate.tensor.partition(".")[0] for fate in loaded.report.of("ignored")} == {"decoder"}
    shutil.copy(real_wheel, tmp_path / real_wheel.name)
    with (tmp_path / real_wheel.name).open("r+b") as file:
        file.seek(1_000_000)
        file.write(b"?")
    with pytest.raises(UserError, match=r"its SHA-256 differs"):
        load_weights(tmp_path / real_wheel.name)


def test_a_name_too_long_for_a_path_is_no_traceback() -> None:
    with pytest.raises(UserError, match="There are no weights"):
        load_weights("x" * 300)
