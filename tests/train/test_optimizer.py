"""Which weights decay and how fast they learn, against torch's own steps."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from tests.train.toys import CONFIG
from vitrail.model.build import build
from vitrail.settings import TrainSettings
from vitrail.train.optimizer import optimizer_of


def test_only_matrices_decay_and_deeper_layers_learn_faster() -> None:
    model = build(CONFIG)
    modules = nn.ModuleDict({"decoder": nn.Linear(3, 3)})
    settings = TrainSettings(1, weight_decay=0.05, layer_decay=0.5)
    optimizer = optimizer_of(model, settings, model.depth, 4, modules)
    names = {id(p): name for name, p in [*model.named_parameters(), *modules.named_parameters()]}
    seen = {
        names[id(parameter)]: (group["weight_decay"], group["share"])
        for group in optimizer.param_groups
        for parameter in group["params"]
    }
    assert set(seen) == set(names.values())
    assert seen["encoder.blocks.0.attention.qkv.weight"] == (0.05, 0.5**3)
    assert seen["patches.projection.weight"] == (0.05, 0.5**4)
    assert seen["classifier.weight"] == seen["decoder.weight"] == (0.05, 1.0)
    for name in ("norm.weight", "classifier.bias", "decoder.bias", "position.grid", "position.tokens", "tokens"):
        assert seen[name][0] == 0.0, name
    assert seen["encoder.blocks.2.scale1.scale"] == (0.0, 0.5)


def test_without_depths_all_learn_alike_and_what_is_frozen_is_left_out() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    model[0].requires_grad_(False)
    groups = optimizer_of(model, TrainSettings(1)).param_groups
    assert {group["share"] for group in groups} == {1.0}
    assert [len(group["params"]) for group in groups] == [1, 1]


@pytest.mark.parametrize("kind", ["adamw", "sgd"])
def test_a_step_is_that_of_the_papers(kind: str) -> None:
    """Two steps of SGD with momentum, or of AdamW (1711.05101, algorithm 2), written out."""
    layer = nn.Linear(1, 1, bias=False)
    start = weight = layer.weight.item()
    settings = TrainSettings(1, optimizer=kind, learning_rate=0.1, weight_decay=0.2, betas=(0.8, 0.9))  # type: ignore[arg-type]
    optimizer = optimizer_of(layer, settings)
    first = second = 0.0
    for step, gradient in enumerate((0.5, -0.3), 1):
        layer.weight.grad = torch.tensor([[gradient]])
        optimizer.step()
        if kind == "sgd":
            first = 0.9 * first + gradient + 0.2 * weight if step > 1 else gradient + 0.2 * weight
            weight -= 0.1 * first
        else:
            first, second = 0.8 * first + 0.2 * gradient, 0.9 * second + 0.1 * gradient**2
            fresh = (first / (1 - 0.8**step)) / ((second / (1 - 0.9**step)) ** 0.5 + 1e-8)
            weight -= 0.1 * fresh + 0.1 * 0.2 * weight
    assert layer.weight.item() == pytest.approx(weight, rel=1e-5)
    assert weight != start
