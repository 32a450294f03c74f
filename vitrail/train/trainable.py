"""What of a model is trained."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn


def train_only(model: nn.Module, depth: Callable[[str], int], lowest: int) -> int:
    """Let the parameters from depth ``lowest`` up require a gradient, and no others; returns how many numbers do."""
    count = 0
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(depth(name) >= lowest)
        count += parameter.numel() if parameter.requires_grad else 0
    return count
