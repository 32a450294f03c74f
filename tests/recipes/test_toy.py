"""Every recipe at toy size is built and learns something, with all its parts."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from vitrail.model.build import build
from vitrail.recipes.index import recipes
from vitrail.recipes.recipe import Recipe
from vitrail.recipes.toy import CLASSES, toy

ALL = pytest.mark.parametrize("whole", recipes(), ids=lambda each: each.name)


@ALL
def test_size(whole: Recipe) -> None:
    small = toy(whole)
    config, encoder = small.architecture, small.architecture.encoder
    assert (encoder.layers, encoder.width, config.patch, config.image_size) == (2, 24, (4, 4), (16, 16))
    assert (small.batch_size, small.steps(), small.name) == (4, 2, whole.name)
    assert small.warmup_steps() == min(1, whole.warmup_steps())
    assert max((v for v in small.objective.arguments.values() if type(v) is int), default=0) <= 32
    assert small.objective.arguments.keys() == whole.objective.arguments.keys()


@ALL
def test_parts_are_kept(whole: Recipe) -> None:
    small = toy(whole)
    before, after = whole.architecture, small.architecture
    assert (after.encoder.dropout, after.encoder.drop_path) == (before.encoder.dropout, before.encoder.drop_path)
    assert (after.position, after.tokens) == (before.position, before.tokens)
    assert (after.head.parts, after.head.norm) == (before.head.parts, before.head.norm)
    assert (after.head.prelogits is None) == (before.head.prelogits is None)
    for name in ("optimizer", "schedule", "clip", "average", "views", "label_smoothing", "layer_decay", "sources"):
        assert getattr(small, name) == getattr(whole, name), name


@ALL
def test_one_step_of_supervised_learning(whole: Recipe) -> None:
    """Every parameter has a gradient, and a step along it lowers the loss; without a classifier, of the features."""
    small = toy(whole)
    model = build(small.architecture)
    outputs = model if small.objective.kind == "supervised" else model.features
    chance = torch.Generator().manual_seed(0)
    images = torch.randn(small.batch_size, 3, 16, 16, generator=chance)
    labels = torch.arange(small.batch_size) % CLASSES

    def loss() -> torch.Tensor:
        return F.cross_entropy(outputs(images), labels, label_smoothing=small.label_smoothing)

    assert outputs(images).shape == (4, CLASSES if small.objective.kind == "supervised" else 24)
    before = loss()
    before.backward()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            assert parameter.grad is not None, name
            assert parameter.grad.isfinite().all(), name
            parameter -= 1e-2 * parameter.grad
    assert loss() < before
