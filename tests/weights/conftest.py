"""Toy models whose every number counts, and how far two answers are apart."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import pytest
import torch
from torch import Tensor, nn

from vitrail.cache import cache_dir
from vitrail.model.build import build
from vitrail.model.vision import VisionTransformer
from vitrail.weights.load import Loaded
from vitrail.weights.wheel import WHEELS

Model = TypeVar("Model", bound=nn.Module)


@pytest.fixture
def randomised() -> Callable[[Model], Model]:
    """A reference model with all its tensors random: fresh biases, scales and heads are often zeros or ones."""

    def randomise(model: Model, seed: int = 0) -> Model:
        generator = torch.Generator().manual_seed(seed)
        for tensor in model.parameters():
            noise = torch.randn(tensor.shape, generator=generator)
            tensor.data = noise * tensor.shape[-1] ** -0.5 if tensor.dim() > 1 else 0.5 + 0.2 * noise
        return model.eval()

    return randomise


@pytest.fixture
def ours() -> Callable[[Loaded, torch.dtype], VisionTransformer]:
    """The model that was loaded."""

    def make(loaded: Loaded, dtype: torch.dtype = torch.float32) -> VisionTransformer:
        model = build(loaded.card.architecture)
        model.load_state_dict(loaded.tensors, strict=True)
        return model.to(dtype)

    return make


@pytest.fixture
def apart() -> Callable[[Tensor, Tensor], float]:
    """||a - b|| / ||b||, of equal shapes."""

    def distance(a: Tensor, b: Tensor) -> float:
        assert a.shape == b.shape
        return float((a.detach().double() - b.detach().double()).norm() / b.detach().double().norm())

    return distance


@pytest.fixture(scope="session")
def real_wheel() -> Path:
    """The pinned wheel with the real weights, where this machine has it."""
    entry = WHEELS["saliency-s14"]
    places = [cache_dir() / "weights" / entry.filename]
    if "VITRAIL_WHEEL" in os.environ:
        places.insert(0, Path(os.environ["VITRAIL_WHEEL"]))
    found = next((path for path in places if path.is_file()), None)
    if found is None:
        pytest.skip(f"{entry.filename} is neither in the cache nor named by VITRAIL_WHEEL")
    return found
