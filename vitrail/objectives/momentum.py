"""What MoCo v3 and DINO have in common: two views, and a copy of the model that follows it slowly."""

from __future__ import annotations

import copy
import math
from typing import TypeVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from vitrail.config import Preprocessing
from vitrail.data.distort import Distortion, distort

Module = TypeVar("Module", bound=nn.Module)
Policies = tuple[Distortion, Distortion]
"""How the first and the second view are distorted."""


def two_views(image: Image.Image, how: Preprocessing, policies: Policies, chance: np.random.Generator) -> Tensor:
    """A picture -> two looks at it (2, C, H, W)."""
    return torch.stack([distort(image, how, policy, chance) for policy in policies])


def follower(module: Module) -> Module:
    """A copy that has no gradients."""
    return copy.deepcopy(module).requires_grad_(False)


def risen(start: float, progress: float) -> float:
    """A momentum that rises from ``start`` to 1 along half a cosine (BYOL, 2006.07733)."""
    return 1.0 - (1.0 - start) * (1.0 + math.cos(math.pi * progress)) / 2.0


@torch.no_grad()
def follow(slow: nn.Module, fast: nn.Module, momentum: float) -> None:
    """slow = momentum * slow + (1 - momentum) * fast, for every parameter."""
    # Which leaves what is equal as it is, to the bit.
    torch._foreach_lerp_(list(slow.parameters()), list(fast.parameters()), 1.0 - momentum)
