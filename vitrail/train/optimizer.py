"""Which weights learn how fast, and which decay."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from vitrail.config import TrainSettings


def adamw(model: nn.Module, depth: Callable[[str], int], settings: TrainSettings, top: int) -> torch.optim.AdamW:
    """AdamW over what requires a gradient, a group for each depth and kind.

    Args:
        depth: a parameter's name -> its layer, 0 at the input.
        top: the depth whose rate is the highest; each below has ``layer_decay`` times the one above.

    Returns:
        An optimiser whose groups carry their share of the rate as ``share``.
    """
    groups: dict[tuple[int, bool], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            groups.setdefault((depth(name), decays(name, parameter)), []).append(parameter)
    return torch.optim.AdamW(
        [
            {
                "params": parameters,
                "weight_decay": settings.weight_decay if decaying else 0.0,
                "share": settings.layer_decay ** (top - layer),
            }
            for (layer, decaying), parameters in sorted(groups.items(), key=lambda item: item[0])
        ],
        lr=settings.learning_rate,
        betas=(0.9, 0.999),
        fused=True,  # one pass over the weights
    )


def decays(name: str, parameter: nn.Parameter) -> bool:
    """Whether weight decay is for it: matrices and kernels, not norms, biases, scales, tokens or positions."""
    return parameter.ndim > 1 and name.endswith("weight")
