"""The one training loop: it knows no model and no objective."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from vitrail.config import TrainSettings
from vitrail.data.ahead import ahead
from vitrail.data.order import batch_at, generator
from vitrail.errors import UserError
from vitrail.objectives.objective import Objective
from vitrail.train.average import WeightAverage
from vitrail.train.schedule import warmup_cosine

Model = TypeVar("Model", bound=nn.Module)
View = Callable[[int, np.random.Generator], Tensor]
"""Sample index and the random numbers of its view -> what the model is to see of it."""


@dataclass(frozen=True)
class Step:
    """What one step gave."""

    done: int
    """Steps behind us."""
    epoch: int
    """Counted from 0."""
    loss: float
    metrics: dict[str, float]
    """What the objective tells of the batch."""
    images: int
    learning_rate: float


def train(
    model: Model,
    objective: Objective[Model],
    view: View,
    labels: Tensor,
    optimizer: torch.optim.Optimizer,
    settings: TrainSettings,
    device: torch.device,
    bf16: bool,
) -> Iterator[tuple[Step, WeightAverage]]:
    """Train in place, yielding after every step; whoever consumes may look, log, evaluate or stop.

    All randomness is a function of the seed and the place: a view's of (epoch, sample), a step's of
    the step. So two runs with the same settings are the same run.

    Args:
        view: reads a sample and makes the objective's view of it; called from threads.
        labels: (n,), one a sample.
        optimizer: its groups say which share of the learning rate is theirs.

    Raises:
        UserError: the loss is no longer a finite number.
    """
    average = WeightAverage(model, settings.average * settings.steps)
    batches = [batch_at(step, len(labels), settings.batch_size, settings.seed) for step in range(settings.steps)]
    places = [(epoch, sample) for epoch, samples in batches for sample in samples]

    def load(place: tuple[int, int]) -> Tensor:
        return view(place[1], generator(settings.seed, "view", *place))

    views = ahead(places, load, 2 * settings.batch_size)
    try:
        for step, (epoch, samples) in enumerate(batches):
            images = torch.stack([next(views) for _ in samples]).to(device)
            rate = settings.learning_rate * warmup_cosine(step, settings.steps, settings.warmup)
            model.train()
            torch.manual_seed(int(generator(settings.seed, "step", step, 0).integers(2**63)))
            with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
                chances = [generator(settings.seed, "sample", epoch, sample) for sample in samples]
                loss, metrics = objective.loss(model, images, labels[samples].to(device), chances)
            if not torch.isfinite(loss):
                raise UserError(
                    f"The loss became {loss.item()} at step {step + 1}: lower the learning rate ({rate:.1e} there)."
                )
            descend(model, loss, optimizer, rate, settings.clip)
            average.update(model, step + 1)
            objective.after_step(model, (step + 1) / settings.steps)
            yield Step(step + 1, epoch, loss.item(), metrics, len(samples), rate), average
    finally:
        views.close()


def descend(model: nn.Module, loss: Tensor, optimizer: torch.optim.Optimizer, rate: float, clip: float) -> None:
    """One step of the optimiser along the gradient, clipped by its global norm."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group["share"]
    optimizer.zero_grad(set_to_none=True)
    loss.backward()  # type: ignore[no-untyped-call]
    nn.utils.clip_grad_norm_(model.parameters(), clip)
    optimizer.step()
