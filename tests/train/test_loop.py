"""The loop: what it repeats to the bit, what it refuses, what it leaves alone."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor, nn

from vitrail.config import Augmentation, EncoderConfig, HeadConfig, Preprocessing, TrainSettings, ViTConfig
from vitrail.errors import UserError
from vitrail.model.build import build
from vitrail.objectives.objective import Objective
from vitrail.objectives.supervised import Supervised
from vitrail.train.average import WeightAverage
from vitrail.train.loop import descend, train
from vitrail.train.optimizer import adamw
from vitrail.train.schedule import warmup_cosine
from vitrail.train.trainable import train_only

CONFIG = ViTConfig(
    EncoderConfig(3, 24, 3, 48, dropout=0.1, drop_path=0.2, layer_scale=1e-2),
    (8, 8),
    (16, 16),
    head=HeadConfig(("class", "mean"), 2, classes=3),
)
PHOTOS = [
    Image.fromarray(np.random.default_rng(i).integers(0, 60, (20, 20, 3), dtype=np.uint8) + np.uint8(60 * (i % 3)))
    for i in range(21)
]
LABELS = torch.arange(21) % 3
CPU = torch.device("cpu")


def run(
    settings: TrainSettings, objective: Objective[nn.Module] | None = None
) -> tuple[nn.Module, list[float], dict[str, Tensor]]:
    model = build(CONFIG)
    objective = objective or Supervised(Preprocessing((16, 16)), Augmentation())
    optimizer = adamw(model, model.depth, settings, top=4)

    def view(sample: int, chance: np.random.Generator) -> Tensor:
        return objective.views(PHOTOS[sample], chance)

    steps = list(train(model, objective, view, LABELS, optimizer, settings, CPU, bf16=False))
    assert [step.done for step, _ in steps] == list(range(1, settings.steps + 1))
    return model, [step.loss for step, _ in steps], steps[-1][1].state(model)


def test_the_same_settings_are_the_same_run_to_the_bit() -> None:
    settings = TrainSettings(12, 8, learning_rate=1e-3)
    torch.manual_seed(1)
    first, losses, averages = run(settings)
    torch.manual_seed(2)
    second, again, other = run(settings)
    assert losses == again
    for name, tensor in first.state_dict().items():
        assert torch.equal(tensor, second.state_dict()[name]), name
        assert torch.equal(averages[name], other[name]), name
    _, different, _ = run(TrainSettings(12, 8, learning_rate=1e-3, seed=1))
    assert different != losses


def test_it_learns() -> None:
    plain = Augmentation(mixup=0, cutmix=0, operations=0, erase=0)
    _, losses, _ = run(TrainSettings(60, 21, learning_rate=3e-3), Supervised(Preprocessing((16, 16)), plain, 0.0))
    assert np.mean(losses[-5:]) < 0.4 * losses[0]


def test_a_loss_that_is_no_number_stops_with_a_sentence() -> None:
    class Broken(Supervised):
        def loss(
            self, model: nn.Module, views: Tensor, labels: Tensor, chances: Sequence[np.random.Generator]
        ) -> tuple[Tensor, dict[str, float]]:
            value, metrics = super().loss(model, views, labels, chances)
            return value * float("nan"), metrics

    with pytest.raises(UserError, match="The loss became nan at step 1: lower the learning rate"):
        run(TrainSettings(3, 8), Broken(Preprocessing((16, 16)), Augmentation()))


def test_the_gradient_is_clipped_by_its_global_norm() -> None:
    weight = nn.Parameter(torch.zeros(4))
    holder = nn.Module()
    holder.register_parameter("weight", weight)
    optimizer = torch.optim.SGD([{"params": [weight], "share": 0.5}], lr=1.0)
    descend(holder, (torch.tensor([3.0, 0.0, 4.0, 0.0]) * weight).sum(), optimizer, rate=0.1, clip=1.0)
    assert torch.allclose(weight.detach(), -0.05 * torch.tensor([0.6, 0.0, 0.8, 0.0]), atol=1e-6)


@given(steps=st.integers(1, 500), warmup=st.floats(0.0, 0.9))
def test_the_rate_rises_then_falls_within_bounds(steps: int, warmup: float) -> None:
    rates = [warmup_cosine(step, steps, warmup) for step in range(steps)]
    assert all(0.0 <= rate <= 1.0 + 1e-9 for rate in rates)
    top = rates.index(max(rates))
    assert rates[: top + 1] == sorted(rates[: top + 1])
    assert rates[top:] == sorted(rates[top:], reverse=True)


def test_the_cosine_is_half_way_down_half_way_through() -> None:
    assert warmup_cosine(50, 100, 0.0) == pytest.approx(0.5)
    assert warmup_cosine(0, 100, 0.1) == pytest.approx(1 / 11)


def test_only_matrices_decay_and_deeper_layers_learn_faster() -> None:
    model = build(CONFIG)
    optimizer = adamw(model, model.depth, TrainSettings(1, weight_decay=0.05, layer_decay=0.5), top=4)
    seen = {}
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            name = next(n for n, p in model.named_parameters() if p is parameter)
            seen[name] = (group["weight_decay"], group["share"])
    assert set(seen) == {name for name, _ in model.named_parameters()}
    assert seen["encoder.blocks.0.attention.qkv.weight"] == (0.05, 0.5**3)
    assert seen["patches.projection.weight"] == (0.05, 0.5**4)
    assert seen["classifier.weight"] == (0.05, 1.0)
    for name in ("norm.weight", "classifier.bias", "position.grid", "position.tokens", "tokens"):
        assert seen[name][0] == 0.0, name
    assert seen["encoder.blocks.2.scale1.scale"] == (0.0, 0.5)


def test_layers_below_do_not_move() -> None:
    model = build(CONFIG)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    count = train_only(model, model.depth, lowest=3)
    assert count == sum(p.numel() for n, p in model.named_parameters() if "blocks.2" in n or n[:4] in ("norm", "clas"))
    settings = TrainSettings(4, 8, learning_rate=1e-2)
    objective = Supervised(Preprocessing((16, 16)), Augmentation())
    optimizer = adamw(model, model.depth, settings, top=4)
    steps = train(
        model, objective, lambda i, chance: objective.views(PHOTOS[i], chance), LABELS, optimizer, settings, CPU, False
    )
    average = [average for _, average in steps][-1]
    for name, tensor in average.state(model).items():
        frozen = not ("blocks.2" in name or name.startswith(("norm.", "classifier.")))
        assert torch.equal(tensor, before[name]) == frozen, name


def test_the_average_of_what_does_not_change_is_itself_and_a_horizon_of_one_is_the_weights() -> None:
    layer = nn.Linear(3, 3)
    still, current = WeightAverage(layer, 20.0), WeightAverage(layer, 1.0)
    kept = layer.weight.detach().clone()
    for step in range(1, 6):
        still.update(layer, step)
    assert torch.allclose(still.state(layer)["weight"], kept)
    with torch.no_grad():
        layer.weight.add_(1.0)
    current.update(layer, 6)
    still.update(layer, 6)
    assert torch.equal(current.state(layer)["weight"], layer.weight)
    assert 0.0 < float((still.state(layer)["weight"] - kept).mean()) < 1.0
