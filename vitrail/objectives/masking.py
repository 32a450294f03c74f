"""What objectives that hide patches have in common: which ones, and what a model must be for it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from vitrail.config import ViTConfig
from vitrail.errors import UserError
from vitrail.settings import Augmentation

CROP_AND_FLIP = Augmentation(smallest_crop=0.2, operations=0, erase=0.0, mixup=0.0, cutmix=0.0)
"""MAE's augmentation (2111.06377, appendix A.1 and the published code): what is hidden differs each time."""


def shuffled(chances: Sequence[np.random.Generator], patches: int) -> Tensor:
    """The places of the patches in an order of chance, drawn for each sample from its own generator: (B, h w)."""
    return torch.from_numpy(np.stack([np.argsort(chance.random(patches), kind="stable") for chance in chances]))


def check(config: ViTConfig) -> int:
    """How many patches there are to choose from.

    Raises:
        UserError: one alone, or a stem that looks beyond the edges of a patch.
    """
    patches = config.grid[0] * config.grid[1]
    if config.stem is not None:
        raise UserError(
            "A hybrid's ResNet sees into the patches that are to be hidden: choose a model that embeds them one by one."
        )
    if patches < 2:
        raise UserError("There is one patch, so none can be guessed from others: choose smaller patches.")
    return patches
