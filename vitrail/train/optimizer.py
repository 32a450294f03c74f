"""Which weights learn how fast, and which decay."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from vitrail.settings import TrainSettings

MOMENTUM = 0.9


def optimizer_of(
    model: nn.Module,
    settings: TrainSettings,
    depth: Callable[[str], int] | None = None,
    top: int = 0,
    modules: nn.Module | None = None,
) -> torch.optim.Optimizer:
    """AdamW or SGD over what requires a gradient, a group for each depth and kind.

    Args:
        depth: a parameter's name -> its layer, 0 at the input; None: all are at the top.
        top: the depth whose rate is the highest; each below has ``layer_decay`` times the one above.
        modules: an objective's own, which learn at the highest rate.

    Returns:
        An optimiser whose groups carry their share of the rate as ``share``.
    """
    groups: dict[tuple[int, bool], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        layer = top if depth is None else depth(name)
        groups.setdefault((layer, decays(name, parameter)), []).append(parameter)
    for name, parameter in modules.named_parameters() if modules is not None else ():
        groups.setdefault((top, decays(name, parameter)), []).append(parameter)
    described = [
        {
            "params": trained,
            "weight_decay": settings.weight_decay if decaying else 0.0,
            "share": settings.layer_decay ** (top - layer),
        }
        for (layer, decaying), parameters in sorted(groups.items(), key=lambda item: item[0])
        if (trained := [parameter for parameter in parameters if parameter.requires_grad])
    ]
    # Fused: one pass over the weights.
    if settings.optimizer == "sgd":
        return torch.optim.SGD(described, lr=settings.learning_rate, momentum=MOMENTUM, fused=True)
    return torch.optim.AdamW(described, lr=settings.learning_rate, betas=settings.betas, fused=True)


def decays(name: str, parameter: nn.Parameter) -> bool:
    """Whether weight decay is for it: matrices and kernels, not norms, biases, scales, tokens or positions."""
    return parameter.ndim > 1 and name.endswith("weight")
