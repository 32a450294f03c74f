"""The loss by hand, centre and teacher, and that neither of the two collapses comes about."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from vitrail.config import Preprocessing, ViTConfig
from vitrail.model.build import build
from vitrail.objectives.dino import DINO, Centre, Head

HOW = Preprocessing((12, 32))


def _pairs(count: int) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    patterns = torch.randn(count, 1, 3, 12, 32, generator=generator)
    return patterns + 0.3 * torch.randn(count, 2, 3, 12, 32, generator=generator)


def test_the_loss_is_that_of_a_loop(toy: ViTConfig, chances: Any, randomised: Any) -> None:
    model = build(toy)
    objective = DINO(model, HOW, hidden=24, bottleneck=8, outputs=10)
    randomised(model, objective.head)
    objective.centre.value += torch.linspace(-0.1, 0.1, 10)
    views = _pairs(4)
    loss, metrics = objective.loss(model, views, torch.zeros(4), chances(range(4)))
    total, same, entropy = 0.0, 0, 0.0
    with torch.no_grad():
        for pair in views:
            for view in (0, 1):
                student = objective.head(model.features(pair[view][None]))[0] / 0.1
                teacher = objective.teacher_head(objective.teacher.features(pair[1 - view][None]))[0]
                wanted = torch.softmax((teacher - objective.centre.value) / 0.04, dim=0).tolist()
                logarithms = torch.log_softmax(student, dim=0).tolist()
                total -= sum(p * q for p, q in zip(wanted, logarithms, strict=True))
                entropy -= sum(p * math.log(p) for p in wanted if p)
                same += wanted.index(max(wanted)) == logarithms.index(max(logarithms))
    assert float(loss.detach()) == pytest.approx(total / 8, rel=1e-4)
    assert metrics["agreement"] == pytest.approx(same / 8)
    assert metrics["teacher_entropy"] == pytest.approx(entropy / 8, rel=1e-3)


def test_small_batches_move_the_centre_as_a_large_one() -> None:
    outputs = torch.randn(12, 5, generator=torch.Generator().manual_seed(0))
    large, small = Centre(5, 0.9), Centre(5, 0.9)
    for centre, parts in ((large, [outputs]), (small, outputs.split([3, 4, 5]))):
        for part in parts:
            centre.take(part)
            assert not centre.value.any()  # until the step is over
        centre.follow()
    torch.testing.assert_close(large.value, 0.1 * outputs.mean(dim=0))
    torch.testing.assert_close(small.value, large.value)
    large.take(outputs + 1)
    large.follow()
    torch.testing.assert_close(large.value, 0.09 * outputs.mean(dim=0) + 0.1 * (outputs.mean(dim=0) + 1))


def test_the_teacher_has_no_gradient_and_follows(toy: ViTConfig, chances: Any, randomised: Any) -> None:
    model = build(toy)
    objective = DINO(model, HOW, hidden=24, bottleneck=8, outputs=10, momentum=0.8)
    objective.loss(model, _pairs(4), torch.zeros(4), chances(range(4)))[0].backward()
    slow = (*objective.teacher.parameters(), *objective.teacher_head.parameters())
    fast = (*model.parameters(), *objective.head.parameters())
    assert all(parameter.grad is None and not parameter.requires_grad for parameter in slow)
    assert all(parameter.grad is not None for parameter in fast)
    before = [parameter.clone() for parameter in slow]
    randomised(model, objective.head)
    objective.after_step(model, 0.5)
    for now, old, new in zip(slow, before, fast, strict=True):
        torch.testing.assert_close(now, 0.9 * old + 0.1 * new)


def test_outputs_are_cosines() -> None:
    outputs = Head(6, 12, 4, 9)(torch.randn(5, 6)).detach()
    assert outputs.shape == (5, 9)
    assert float(outputs.abs().max()) <= 1.0 + 1e-6


def test_photos_are_told_apart(toy: ViTConfig, chances: Any, descend: Any) -> None:
    """The teacher is sure of each photo, and not of the same output for all."""
    model = build(toy)
    objective = DINO(model, HOW, hidden=64, bottleneck=16, outputs=32, momentum=0.9)
    views = _pairs(16)
    descend(model, objective, views, 60)
    with torch.no_grad():
        teacher = objective.teacher_head(objective.teacher.features(views.flatten(0, 1))) - objective.centre.value
        wanted = torch.softmax(teacher / 0.04, dim=-1)  # (2 B, outputs)
    together = float(torch.special.entr(wanted.mean(dim=0)).sum())
    each = float(torch.special.entr(wanted).sum(dim=-1).mean())
    assert together - each > 0.5
