"""Learning labels: softmax cross-entropy with label smoothing, mixup and cutmix."""

from __future__ import annotations

import math

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from vitrail.config import Augmentation, Preprocessing
from vitrail.data.augment import augment
from vitrail.objectives.objective import Objective


class Supervised(Objective[nn.Module]):
    """Cross-entropy of a model's logits (B, classes); batches may be mixed with themselves in another order."""

    def __init__(self, how: Preprocessing, policy: Augmentation, smoothing: float = 0.1) -> None:
        self.how = how
        self.policy = policy
        self.smoothing = smoothing

    def views(self, image: Image.Image, chance: np.random.Generator) -> Tensor:
        """A picture -> (C, H, W), augmented."""
        return augment(image, self.how, self.policy, chance)

    def loss(self, model: nn.Module, views: Tensor, labels: Tensor, chance: np.random.Generator) -> tuple[Tensor, int]:
        """Images (B, C, H, W) and labels (B,) -> mean loss, and how many have their own label as the likeliest."""
        partner = torch.from_numpy(chance.permutation(len(views))).to(views.device)
        views, own = _mixed(views, partner, self.policy, chance)
        logits = model(views)  # (B, classes)
        loss = own * F.cross_entropy(logits, labels, label_smoothing=self.smoothing)
        if own < 1.0:
            loss = loss + (1.0 - own) * F.cross_entropy(logits, labels[partner], label_smoothing=self.smoothing)
        main = labels if own >= 0.5 else labels[partner]
        return loss, int((logits.argmax(dim=-1) == main).sum())


def _mixed(images: Tensor, partner: Tensor, policy: Augmentation, chance: np.random.Generator) -> tuple[Tensor, float]:
    """Images blended with, or patched from, their partners (B, C, H, W), and the share that is still their own."""
    kinds = [kind for kind, alpha in (("mixup", policy.mixup), ("cutmix", policy.cutmix)) if alpha > 0]
    if not kinds or chance.random() >= policy.mixing:
        return images, 1.0
    kind = kinds[int(chance.integers(len(kinds)))]
    alpha = policy.mixup if kind == "mixup" else policy.cutmix
    own = float(chance.beta(alpha, alpha))
    if kind == "mixup":
        return own * images + (1.0 - own) * images[partner], own
    height, width = images.shape[2:]
    h, w = round(height * math.sqrt(1.0 - own)), round(width * math.sqrt(1.0 - own))
    top, left = int(chance.integers(height - h + 1)), int(chance.integers(width - w + 1))
    images = images.clone()
    images[:, :, top : top + h, left : left + w] = images[partner, :, top : top + h, left : left + w]
    return images, 1.0 - h * w / (height * width)
