"""A toy model on a grid that is not square, photos with something to learn in them, and a plain training loop."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from vitrail.config import EncoderConfig, HeadConfig, ViTConfig
from vitrail.model.vision import VisionTransformer
from vitrail.objectives.objective import Objective

Chances = Callable[..., list[np.random.Generator]]


@pytest.fixture
def toy() -> ViTConfig:
    """3 x 4 patches of 4 x 8 pixels."""
    return ViTConfig(EncoderConfig(2, 32, 4, 64), (4, 8), (12, 32), head=HeadConfig(("mean",)))


@pytest.fixture
def photos() -> list[Image.Image]:
    """Each a slope from one colour to another, with a square of a third."""
    made = []
    for seed in range(8):
        chance = np.random.default_rng(seed)
        colours = chance.integers(0, 256, (3, 3))
        slope = np.linspace(0, 1, 32)[None, :, None] * np.linspace(0.5, 1, 24)[:, None, None]
        pixels = colours[0] * (1 - slope) + colours[1] * slope
        top, left = chance.integers(0, 12), chance.integers(0, 20)
        pixels[top : top + 10, left : left + 10] = colours[2]
        made.append(Image.fromarray(pixels.astype(np.uint8)))
    return made


@pytest.fixture
def chances() -> Chances:
    """Fresh generators of the samples with these numbers."""
    return lambda samples, step=0: [np.random.default_rng([step, sample]) for sample in samples]


@pytest.fixture
def randomised() -> Callable[..., None]:
    """Make every parameter of some modules random: fresh ones are often zeros or ones."""

    def randomise(*modules: torch.nn.Module) -> None:
        generator = torch.Generator().manual_seed(5)
        for module in modules:
            for tensor in module.parameters():
                noise = torch.randn(tensor.shape, generator=generator)
                tensor.data = noise * tensor.shape[-1] ** -0.5 if tensor.dim() > 1 else 0.5 + 0.2 * noise

    return randomise


@pytest.fixture
def descend(chances: Chances) -> Callable[..., list[float]]:
    """Train on the same views for some steps, each with masks of its own; returns the losses."""

    def run(
        model: VisionTransformer, objective: Objective[VisionTransformer], views: Tensor, steps: int, rate: float = 3e-3
    ) -> list[float]:
        everything: Iterable[torch.nn.Parameter] = (*model.parameters(), *objective.modules.parameters())
        trained = [parameter for parameter in everything if parameter.requires_grad]
        optimizer = torch.optim.AdamW(trained, lr=rate, weight_decay=0.01)
        samples: Sequence[int] = range(len(views))
        labels = torch.zeros(len(views), dtype=torch.int64)
        losses = []
        model.train()
        objective.modules.train()
        for step in range(steps):
            loss, _ = objective.loss(model, views, labels, chances(samples, step))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            objective.after_step(model, (step + 1) / steps)
            losses.append(loss.item())
        return losses

    return run
