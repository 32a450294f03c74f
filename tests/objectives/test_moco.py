"""InfoNCE by hand, the momentum encoder, what is frozen, and that views find their own."""

from __future__ import annotations

import copy
import itertools
import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from vitrail.config import HeadConfig, Preprocessing, ViTConfig
from vitrail.model.build import build
from vitrail.objectives.moco import MoCoV3, contrast, mlp
from vitrail.objectives.momentum import follow, risen

HOW = Preprocessing((12, 32))


def _pairs(count: int) -> Tensor:
    """Photos of one pattern each, seen twice through noise: (B, 2, C, H, W)."""
    generator = torch.Generator().manual_seed(0)
    patterns = torch.randn(count, 1, 3, 12, 32, generator=generator)
    return patterns + 0.3 * torch.randn(count, 2, 3, 12, 32, generator=generator)


@pytest.mark.parametrize("temperature", [0.2, 1.0])
def test_info_nce_is_that_of_a_loop(temperature: float) -> None:
    generator = torch.Generator().manual_seed(0)
    queries, keys = torch.randn(6, 5, generator=generator), 3 * torch.randn(6, 5, generator=generator)
    total, right = 0.0, 0
    for i in range(6):
        similar = [float(queries[i] @ keys[j] / queries[i].norm() / keys[j].norm()) for j in range(6)]
        total -= math.log(math.exp(similar[i] / temperature) / sum(math.exp(s / temperature) for s in similar))
        right += similar[i] == max(similar)
    loss, accuracy = contrast(queries, keys, temperature)
    assert float(loss) == pytest.approx(2 * temperature * total / 6, rel=1e-5)
    assert accuracy == pytest.approx(right / 6)


def test_the_loss_is_of_both_directions(toy: ViTConfig, chances: Any) -> None:
    model = build(toy).train()
    objective = MoCoV3(model, HOW, hidden=48, outputs=16)
    objective.modules.train()
    views = _pairs(6)
    loss, metrics = objective.loss(model, views, torch.zeros(6), chances(range(6)))
    first, second = views[:, 0], views[:, 1]
    # In training BatchNorm goes by the batch, so that a second pass gives the same.
    q1, q2 = (objective.predictor(objective.projector(model.features(view))) for view in (first, second))
    k1, k2 = (objective.slow_projector(objective.slow_model.features(view)) for view in (first, second))
    there, back = contrast(q1, k2, 0.2), contrast(q2, k1, 0.2)
    assert float(loss.detach()) == pytest.approx(float((there[0] + back[0]).detach()), rel=1e-6)
    assert metrics == {"accuracy": pytest.approx((there[1] + back[1]) / 2)}
    swapped, _ = objective.loss(model, views.flip(1), torch.zeros(6), chances(range(6)))
    assert float(swapped.detach()) == pytest.approx(float(loss.detach()), rel=1e-6)
    assert objective.in_batch


def test_momentum_rises_along_half_a_cosine() -> None:
    assert risen(0.99, 0.0) == pytest.approx(0.99)
    assert risen(0.99, 0.5) == pytest.approx(0.995)
    assert risen(0.99, 1.0) == 1.0
    assert risen(0.9, 0.25) == pytest.approx(1 - 0.1 * (1 + math.sqrt(0.5)) / 2)


def test_what_follows_goes_the_rest_of_the_way() -> None:
    slow, fast = nn.Linear(3, 2), nn.Linear(3, 2)
    before = copy.deepcopy(slow.state_dict())
    follow(slow, fast, 0.9)
    for name, tensor in slow.state_dict().items():
        torch.testing.assert_close(tensor, 0.9 * before[name] + 0.1 * fast.state_dict()[name])


def test_the_momentum_encoder_has_no_gradient_and_follows(toy: ViTConfig, chances: Any, randomised: Any) -> None:
    model = build(toy)
    objective = MoCoV3(model, HOW, hidden=48, outputs=16, momentum=0.8)
    slow = {"momentum_model": model, "momentum_projector": objective.projector}
    for name, fast in slow.items():  # it starts as a copy, with tensors of its own
        for one, other in zip(objective.modules[name].parameters(), fast.parameters(), strict=True):
            assert torch.equal(one, other)
            assert one is not other
    objective.loss(model, _pairs(4), torch.zeros(4), chances(range(4)))[0].backward()
    assert all(p.grad is None and not p.requires_grad for name in slow for p in objective.modules[name].parameters())
    learning = [p for name in ("projector", "predictor") for p in objective.modules[name].parameters()]
    assert all(p.grad is not None for p in learning)
    before = {name: copy.deepcopy(list(objective.modules[name].parameters())) for name in slow}
    randomised(model, objective.projector)
    objective.after_step(model, 0.5)
    for name, fast in slow.items():
        for now, old, new in zip(objective.modules[name].parameters(), before[name], fast.parameters(), strict=True):
            torch.testing.assert_close(now, 0.9 * old + 0.1 * new)  # 0.8 halfway to 1
    objective.after_step(model, 1.0)
    assert torch.equal(now, next(reversed(list(objective.slow_projector.parameters()))))


def test_views_find_their_own(toy: ViTConfig, chances: Any, descend: Any) -> None:
    """32 photos, 30 steps; the class token and the patches' mean both do."""
    for parts in (("class",), ("mean",)):
        model = build(replace(toy, head=HeadConfig(parts)))
        objective = MoCoV3(model, HOW, hidden=64, outputs=32, momentum=0.9)
        views = _pairs(32)
        losses = descend(model, objective, views, 30)
        assert losses[-1] < 0.7 * losses[0]
        _, metrics = objective.loss(model, views, torch.zeros(32), chances(range(32)))
        assert metrics["accuracy"] > 0.9


@pytest.mark.parametrize("freeze", [True, False])
def test_the_patch_projection_stays_as_it_was(freeze: bool, toy: ViTConfig, descend: Any) -> None:
    model = build(toy)
    before = copy.deepcopy(model.state_dict())
    objective = MoCoV3(model, HOW, hidden=32, outputs=16, freeze_patches=freeze)
    descend(model, objective, _pairs(8), 3)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name]) is (freeze and name.startswith("patches.")), name
    assert torch.equal(objective.slow_model.patches.projection.weight, model.patches.projection.weight) is freeze


def test_the_papers_heads(toy: ViTConfig) -> None:
    """Three layers and two, 4096 wide inside and 256 at the end, BatchNorm after each."""
    objective = MoCoV3(build(toy), HOW)
    for part, widths in ((objective.projector, [32, 4096, 4096, 256]), (objective.predictor, [256, 4096, 256])):
        layers = [layer for layer in part if isinstance(layer, nn.Linear)]
        assert [(layer.in_features, layer.out_features) for layer in layers] == list(itertools.pairwise(widths))
        assert all(layer.bias is None for layer in layers)
        assert [type(layer).__name__ for layer in part][-3:] == ["ReLU", "Linear", "BatchNorm1d"]
        assert part[-1].weight is None
    assert objective.temperature == 0.2


def test_statistics_of_the_heads_are_kept_with_the_modules() -> None:
    assert {name for name in mlp(4, 8, 2, 2).state_dict() if "running" in name} == {
        "1.running_mean",
        "1.running_var",
        "4.running_mean",
        "4.running_var",
    }
