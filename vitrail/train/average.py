"""An exponential average of the weights while they are trained."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class WeightAverage:
    """Follows a model's trained parameters; short at first, so that the start is forgotten."""

    def __init__(self, model: nn.Module, horizon: float) -> None:
        """``horizon``: over about how many steps to average; up to 1, the weights themselves."""
        self.decay = max(0.0, 1.0 - 1.0 / max(horizon, 1.0))
        trained = {name: p for name, p in model.named_parameters() if p.requires_grad} if self.decay else {}
        self.weights = {name: parameter.detach().clone() for name, parameter in trained.items()}

    @torch.no_grad()
    def update(self, model: nn.Module, step: int) -> None:
        """Take in the weights after ``step`` steps (counted from 1)."""
        decay = min(self.decay, (step - 1) / (step + 9))
        if self.weights:
            now: list[Tensor] = [parameter for name, parameter in model.named_parameters() if name in self.weights]
            torch._foreach_lerp_(list(self.weights.values()), now, 1.0 - decay)  # in the same order

    def state(self, model: nn.Module) -> dict[str, Tensor]:
        """The model's state dict with the averages in place."""
        return {**model.state_dict(), **self.weights}
