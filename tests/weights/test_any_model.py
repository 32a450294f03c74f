"""Whatever is asked for: it builds, runs, is looked into, saved, loaded, and taken to another resolution and patch."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import get_args

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from vitrail import cost
from vitrail.config import (
    ABSOLUTE,
    RELATIVE,
    EncoderConfig,
    HeadConfig,
    MLPKind,
    ModelCard,
    Place,
    PositionConfig,
    PositionKind,
    Preprocessing,
    Resampling,
    ResNetConfig,
    Size,
    ViTConfig,
)
from vitrail.model.build import build
from vitrail.model.encoder import Trace
from vitrail.weights.load import load_weights
from vitrail.weights.store import write_model

grids = st.tuples(st.integers(1, 5), st.integers(1, 5))


@st.composite
def positions(draw: st.DrawFn) -> PositionConfig:
    """Any scheme in any place."""
    kind = draw(st.sampled_from(get_args(PositionKind)))
    axes = RELATIVE.get(kind)
    offsets = st.lists(st.integers(0, 6), min_size=axes or 0, max_size=axes or 0).map(tuple)
    return PositionConfig(
        kind=kind,
        resampling=draw(st.sampled_from(get_args(Resampling))),
        place=draw(st.sampled_from(get_args(Place))) if kind in ABSOLUTE else "stem",
        special=draw(st.booleans()),
        clip=draw(st.none() | offsets) if axes else None,
        rope_base=draw(st.floats(1.0, 1e4)),
    )


@st.composite
def configs(draw: st.DrawFn) -> ViTConfig:
    """Any small architecture."""
    tokens = draw(st.sampled_from([(), ("class",), ("class", "distillation")]))
    parts = draw(st.lists(st.sampled_from(["mean", "map", *tokens]), min_size=1, unique=True))
    patch = draw(st.sampled_from([(1, 1), (2, 3)]))
    stem = draw(st.none() | st.just(ResNetConfig((1,), 64)))
    pixels = 4 if stem is not None else 1
    grid = draw(grids)
    return ViTConfig(
        encoder=EncoderConfig(2, 16, draw(st.sampled_from([1, 2, 4])), 8, mlp=draw(st.sampled_from(get_args(MLPKind)))),
        patch=patch,
        image_size=(grid[0] * patch[0] * pixels, grid[1] * patch[1] * pixels),
        tokens=(*tokens, *["register"] * draw(st.integers(0, 2))),
        position=draw(positions()),
        head=HeadConfig(
            tuple(parts),
            layers=1 if "map" in parts else draw(st.integers(1, 2)),
            norm=draw(st.sampled_from(["tokens", "pooled"])),
            classes=3,
            prelogits=draw(st.none() | st.integers(1, 5)),
        ),
        stem=stem,
    )


@settings(max_examples=60)
@given(config=configs(), grid=grids, seed=st.integers(0, 3))
def test_from_config_to_another_resolution_and_back(config: ViTConfig, grid: Size, seed: int) -> None:
    model = build(config, seed)
    for tensor in model.parameters():
        tensor.data += 0.1 * torch.randn(tensor.shape, generator=torch.Generator().manual_seed(seed))
    assert cost.parameters(config) == sum(tensor.numel() for tensor in model.parameters())
    images = torch.randn(2, 3, *config.image_size, generator=torch.Generator().manual_seed(seed))
    logits = model(images).detach()
    seen: list[Tensor] = []
    traced = model(images, Trace(lambda what, layer, value: seen.append(value), attention=(0, 1), blocks=(1,)))
    torch.testing.assert_close(traced, logits, rtol=1e-3, atol=1e-4)
    assert [value.shape[-1] for value in seen] == [config.sequence, config.sequence, 16]
    with tempfile.TemporaryDirectory() as folder:
        write_model(Path(folder), ModelCard(config, Preprocessing(config.image_size)), model.state_dict())
        loaded = load_weights(folder)
        assert loaded.card.architecture == config
        again = build(config, seed + 1)
        again.load_state_dict(loaded.tensors)
        assert torch.equal(again(images), logits)
        size = (grid[0] * config.cell[0], grid[1] * config.cell[1])
        moved = load_weights(folder, image_size=size)
        assert moved.card.architecture == config.at(size)
        _runs(moved.card.architecture, moved.tensors)
        changed = {name for name in moved.tensors if not torch.equal(moved.tensors[name], model.state_dict()[name])}
        assert changed <= {fate.tensor for fate in moved.report.of("resampled")}
        assert all(name.startswith("position.") for name in changed)
        if grid != config.grid and config.position.kind != "none":
            text = f"{config.grid[0]}x{config.grid[1]} -> {grid[0]}x{grid[1]}"
            assert any(text in fate.note for fate in moved.report)
        patched = load_weights(folder, patch=(2, 2), image_size=(config.cell[0] * 2 * 12, config.cell[1] * 2 * 12))
        _runs(patched.card.architecture, patched.tensors)
        assert patched.card.architecture.patch == (2, 2)


def _runs(config: ViTConfig, tensors: dict[str, Tensor]) -> None:
    model = build(config)
    model.load_state_dict(tensors)
    assert model(torch.zeros(1, 3, *config.image_size)).isfinite().all()
