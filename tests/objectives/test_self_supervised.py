"""What holds of every objective that needs no labels."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from vitrail.config import HeadConfig, Preprocessing, ViTConfig
from vitrail.model.build import build
from vitrail.model.vision import VisionTransformer
from vitrail.objectives.dino import DINO
from vitrail.objectives.mae import MAE
from vitrail.objectives.masked_patches import MaskedPatches
from vitrail.objectives.moco import MoCoV3
from vitrail.objectives.objective import Objective

HOW = Preprocessing((12, 32))
Make = Callable[[VisionTransformer], Objective[VisionTransformer]]
MAKE: dict[str, Make] = {
    "masked patches": lambda model: MaskedPatches(model.config, HOW),
    "MAE": lambda model: MAE(model.config, HOW, layers=2, width=32, heads=2),
    "MoCo v3": lambda model: MoCoV3(model, HOW, hidden=64, outputs=32),
    "DINO": lambda model: DINO(model, HOW, hidden=64, bottleneck=16, outputs=48, momentum=0.9),
}
FALLS = {"masked patches": 0.5, "MAE": 0.6, "MoCo v3": 0.6, "DINO": 0.4}
"""The share of the first step's loss that it has to come below in 60 steps, with new masks in each."""


def _views(objective: Objective[VisionTransformer], photos: Any, chances: Any) -> Tensor:
    return torch.stack(
        [objective.views(photo, chance) for photo, chance in zip(photos, chances(range(8), 99), strict=True)]
    )


@pytest.mark.parametrize("name", MAKE)
@pytest.mark.parametrize("tokens", [("class", "register"), ()], ids=["class token", "no class token"])
def test_the_loss_falls(name: str, tokens: Any, toy: ViTConfig, photos: Any, chances: Any, descend: Any) -> None:
    model = build(replace(toy, tokens=tokens, head=HeadConfig(("class",) if tokens else ("mean",))))
    objective = MAKE[name](model)
    losses = descend(model, objective, _views(objective, photos, chances), 60)
    assert sum(losses[-5:]) / 5 < FALLS[name] * losses[0]


@pytest.mark.parametrize("name", MAKE)
def test_views_are_a_function_of_photo_and_generator(name: str, toy: ViTConfig, photos: Any, chances: Any) -> None:
    objective = MAKE[name](build(toy))
    views = _views(objective, photos, chances)
    assert views.shape == ((8, 2, 3, 12, 32) if name in ("MoCo v3", "DINO") else (8, 3, 12, 32))
    assert views.dtype == torch.float32
    assert torch.equal(views, _views(objective, photos, chances))
    one, other = (objective.views(photos[0], chance) for chance in chances([0, 1]))
    assert not torch.equal(one, other)
    if views.dim() == 5:
        assert not torch.equal(views[:, 0], views[:, 1])


@pytest.mark.parametrize("name", MAKE)
def test_bf16_changes_little_and_the_loss_stays_float32(name: str, toy: ViTConfig, photos: Any, chances: Any) -> None:
    model = build(toy).train()
    objective = MAKE[name](model)
    views, labels = _views(objective, photos, chances), torch.zeros(8, dtype=torch.int64)
    exact, _ = objective.loss(model, views, labels, chances(range(8)))
    with torch.autocast("cpu", torch.bfloat16):
        loss, metrics = objective.loss(model, views, labels, chances(range(8)))
    assert loss.dtype == torch.float32
    assert loss.shape == ()
    loss.backward()
    assert float(loss.detach()) == pytest.approx(float(exact.detach()), rel=0.05)
    assert all(isinstance(value, float) for value in metrics.values())
    assert all(p.grad is None or torch.isfinite(p.grad).all() for p in objective.modules.parameters())


@pytest.mark.parametrize("name", MAKE)
def test_nothing_of_it_is_in_the_model(name: str, toy: ViTConfig, photos: Any, chances: Any, descend: Any) -> None:
    model = build(toy)
    names = set(model.state_dict())
    objective = MAKE[name](model)
    assert len(list(objective.modules.parameters()))
    own = {id(parameter) for parameter in model.parameters()}
    assert not any(id(parameter) in own for parameter in objective.modules.parameters())
    descend(model, objective, _views(objective, photos, chances), 1)
    assert set(model.state_dict()) == names


@pytest.mark.parametrize("name", MAKE)
def test_state_dicts_are_all_there_is_to_a_run(
    name: str, toy: ViTConfig, photos: Any, chances: Any, descend: Any
) -> None:
    """Fresh objects with the tensors of a run go on as that run would."""
    model = build(toy)
    objective = MAKE[name](model)
    views, labels = _views(objective, photos, chances), torch.zeros(8, dtype=torch.int64)
    descend(model, objective, views, 3)
    again = build(toy, seed=1)
    fresh = MAKE[name](again)
    again.load_state_dict(model.state_dict())
    fresh.modules.load_state_dict(objective.modules.state_dict())
    again.train()
    fresh.modules.train()
    loss, metrics = objective.loss(model, views, labels, chances(range(8), 7))
    other, others = fresh.loss(again, views, labels, chances(range(8), 7))
    assert torch.equal(loss, other)
    assert metrics == others


@pytest.mark.parametrize("name", MAKE)
def test_fresh_weights_are_a_function_of_the_seed(name: str, toy: ViTConfig) -> None:
    torch.manual_seed(1)
    first = MAKE[name](build(toy)).modules.state_dict()
    torch.manual_seed(2)
    state = torch.get_rng_state()
    second = MAKE[name](build(toy)).modules.state_dict()
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(first[key], second[key]) for key in first)


@pytest.mark.parametrize("name", ["masked patches", "MAE"])
def test_a_samples_loss_does_not_depend_on_its_batch(name: str, toy: ViTConfig, photos: Any, chances: Any) -> None:
    model = build(toy).double().train()
    objective = MAKE[name](model)
    objective.modules.double()
    assert not objective.in_batch
    views = _views(objective, photos, chances).double()

    def loss(samples: list[int]) -> float:
        labels = torch.zeros(len(samples), dtype=torch.int64)
        return float(objective.loss(model, views[samples], labels, chances(samples))[0].detach())

    alone = [loss([sample]) for sample in range(8)]
    assert len(set(alone)) == 8
    for batch in (list(range(8)), [5, 2, 7, 0, 1, 3, 6, 4], [3, 1], [0, 4, 6]):
        assert loss(batch) == pytest.approx(sum(alone[sample] for sample in batch) / len(batch), rel=1e-6)
