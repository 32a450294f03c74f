"""Compiled blocks: the same model, by another way."""

from __future__ import annotations

import copy
import shutil
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from vitrail.config import EncoderConfig, HeadConfig, ViTConfig, architecture
from vitrail.errors import UserError
from vitrail.model.build import Model, build
from vitrail.model.cnn import CNN
from vitrail.model.compiling import compile_blocks

CONFIG = ViTConfig(EncoderConfig(2, 24, 3, 48, layer_scale=0.5), (8, 8), (16, 24), head=HeadConfig(("mean",)))


def _gradients(model: Model, images: Tensor) -> list[Tensor]:
    model.zero_grad()
    model.features(images).pow(2).sum().backward()  # type: ignore[no-untyped-call]
    return [parameter.grad for parameter in model.parameters() if parameter.grad is not None]


# The compiler looks at the gradients of tensors that have none.
@pytest.mark.filterwarnings("ignore:The .grad attribute:UserWarning")
def test_a_compiled_model_is_the_same_model() -> None:
    """Features and gradients, at two batch sizes; names and copies as if nothing had happened."""
    eager = build(CONFIG, seed=1)
    compiled = copy.deepcopy(eager)
    compile_blocks(compiled)
    assert compiled.state_dict().keys() == eager.state_dict().keys()
    for count in (4, 3):
        images = torch.randn(count, 3, 16, 24)
        torch.testing.assert_close(compiled.features(images), eager.features(images), rtol=1e-5, atol=1e-5)
        for ours, theirs in zip(_gradients(compiled, images), _gradients(eager, images), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
    assert all(block._compiled_call_impl is not None for block in compiled.encoder.blocks)
    assert all(block._compiled_call_impl is None for block in copy.deepcopy(compiled).encoder.blocks)


@pytest.mark.filterwarnings("ignore:The .grad attribute:UserWarning")
def test_a_compiled_model_drops_what_it_would_drop() -> None:
    eager = build(replace(CONFIG, encoder=replace(CONFIG.encoder, dropout=0.3)), seed=1).train()
    compiled = copy.deepcopy(eager)
    compile_blocks(compiled)
    images, found = torch.randn(4, 3, 16, 24), []
    for model in (eager, compiled):
        torch.manual_seed(3)
        found.append(_gradients(model, images))
    assert len(found[0]) == len(found[1]) > 0
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


@pytest.mark.filterwarnings("ignore:The .grad attribute:UserWarning")
def test_a_compiled_resnet_is_the_same_model() -> None:
    """Whose convolutions are laid out otherwise; in float64, or a ReLU may fall to the other side."""
    eager = build(architecture("R1-1-1x0.5", (32, 32)), seed=1).double()
    compiled = copy.deepcopy(eager)
    compile_blocks(compiled)
    images = torch.randn(4, 3, 32, 32, dtype=torch.float64)
    torch.testing.assert_close(compiled.features(images), eager.features(images))
    for ours, theirs in zip(_gradients(compiled, images), _gradients(eager, images), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("name", ["R14x0.5", "EfficientNet-B0"])
def test_the_blocks_of_a_cnn_are_compiled(name: str) -> None:
    """All that the optimiser's depths count, and nothing else."""
    if not any(shutil.which(compiler) for compiler in ("g++", "clang++", "c++")):
        pytest.skip("no C++ compiler")
    model = build(architecture(name, (32, 32)))
    assert isinstance(model, CNN)
    compile_blocks(model)
    compiled = [part for part in model.modules() if part._compiled_call_impl is not None]
    assert compiled == model.blocks()
    assert len(compiled) == model.config.layers


def test_without_a_compiler_there_is_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(UserError, match="install g"):
        compile_blocks(build(CONFIG))
