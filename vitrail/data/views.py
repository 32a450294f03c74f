"""What a model is to see of a sample, made where it is needed: in a thread or in another process."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from vitrail.config import Preprocessing
from vitrail.data.augment import augment
from vitrail.data.distort import Distortion, distort
from vitrail.data.held import Pictures
from vitrail.settings import Augmentation

Policy = Augmentation | tuple[Distortion, ...]
"""One augmented view, or as many distorted ones."""


@dataclass(frozen=True, eq=False)
class Views:
    """Sample number and its random numbers -> the view; without a model, so that it can be sent to a process."""

    pictures: Pictures
    how: Preprocessing
    policy: Policy

    def __call__(self, sample: int, chance: np.random.Generator) -> Tensor:
        """(C, H, W), or (views, C, H, W) for distorted ones."""
        image = self.pictures(sample)
        if isinstance(self.policy, Augmentation):
            return augment(image, self.how, self.policy, chance)
        return torch.stack([distort(image, self.how, policy, chance) for policy in self.policy])


def smallest_crop(policy: Policy) -> float:
    """Share of a picture's area that the smallest random crop takes."""
    policies = [policy] if isinstance(policy, Augmentation) else policy
    return min(one.smallest_crop for one in policies)
