"""Masked patch prediction, BERT's task on patches (ViT appendix B.1.2)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from vitrail.config import Preprocessing, Size, ViTConfig
from vitrail.data.augment import augment
from vitrail.model.build import seeded
from vitrail.model.position import learned
from vitrail.model.visible import picked
from vitrail.model.vision import VisionTransformer
from vitrail.objectives.masking import CROP_AND_FLIP, check, shuffled
from vitrail.objectives.objective import Objective
from vitrail.settings import Augmentation

LEVELS = 8
"""Of the mean colour, a channel: 3 bits, so 512 colours of three channels."""


class MaskedPatches(Objective[VisionTransformer]):
    """Half of the patches are corrupted, and the mean colour of each is to be told from the last layer's outputs.

    Of the corrupted embeddings 80 % become a learned [mask], 10 % those of another patch of the image
    and 10 % stay as they are. Positions are added afterwards and are always right. What the head sees
    has been through the model's last LayerNorm, about which the paper says nothing.

    Raises:
        UserError: the model has a stem, or one patch alone.
    """

    def __init__(
        self, config: ViTConfig, how: Preprocessing, policy: Augmentation = CROP_AND_FLIP, seed: int = 0
    ) -> None:
        super().__init__()
        self.patches = check(config)
        self.cell = config.cell
        self.special = len(config.tokens)
        self.how = how
        self.policy = policy
        with seeded(seed):
            self.guess = _Guess(config.encoder.width, LEVELS**config.channels)
        self.modules["masked_patches"] = self.guess

    def views(self, image: Image.Image, chance: np.random.Generator) -> Tensor:
        """A picture -> (C, H, W), cropped and flipped."""
        return augment(image, self.how, self.policy, chance)

    def loss(
        self, model: VisionTransformer, views: Tensor, labels: Tensor, chances: Sequence[np.random.Generator]
    ) -> tuple[Tensor, dict[str, float]]:
        """Images (B, C, H, W) -> mean cross-entropy of the corrupted patches' colours, and the share told right."""
        places, sources = (tensor.to(views.device) for tensor in corruption(chances, self.patches))  # (B, n) each
        x = model.embed(views)  # (B, h w, D)
        others = picked(x, sources.clamp(min=0))  # (B, n, D)
        corrupted = torch.where((sources < 0).unsqueeze(-1), self.guess.mask.to(x.dtype), others)
        x = x.scatter(1, places.unsqueeze(-1).expand_as(corrupted), corrupted)
        z = model.norm(model.transform(x)[0])[:, self.special :]  # (B, h w, D)
        logits = self.guess.head(picked(z, places)).float()  # (B, n, colours)
        truth = colours(views, self.how, self.cell).gather(1, places)  # (B, n)
        loss = F.cross_entropy(logits.flatten(0, 1), truth.flatten())
        return loss, {"accuracy": float((logits.argmax(dim=-1) == truth).float().mean())}


class _Guess(nn.Module):
    """The embedding [mask] (D,) and the linear head."""

    def __init__(self, width: int, classes: int) -> None:
        super().__init__()
        self.mask = learned(width)
        self.head = nn.Linear(width, classes)
        nn.init.xavier_uniform_(self.head.weight)
        nn.init.zeros_(self.head.bias)


def corruption(chances: Sequence[np.random.Generator], patches: int) -> tuple[Tensor, Tensor]:
    """Which patches of each sample are corrupted, and whose embedding each gets, -1 for [mask]: (B, n) each.

    n is half of the patches, rounded (to even where that is a tie).
    """
    places = shuffled(chances, patches)[:, : round(patches / 2)]  # (B, n)
    sources = np.empty(places.shape, dtype=np.int64)
    for own, chance, source in zip(places.numpy(), chances, sources, strict=True):
        kind = chance.random(len(own))
        another = (own + chance.integers(1, patches, len(own))) % patches
        source[:] = np.where(kind < 0.8, -1, np.where(kind < 0.9, another, own))
    return places, torch.from_numpy(sources)


def colours(views: Tensor, how: Preprocessing, cell: Size) -> Tensor:
    """Standardised images (B, C, H, W) -> each patch's mean colour as a class (B, h w); the first channel counts most.

    Pixels are taken back to [0, 1], which is cut into 8 equal levels.
    """
    mean, std = views.new_tensor(how.mean)[:, None, None], views.new_tensor(how.std)[:, None, None]
    pixels = (views * std + mean).float()
    means = F.avg_pool2d(pixels, cell).flatten(2)  # (B, C, h w)
    classes = torch.zeros_like(means[:, 0], dtype=torch.int64)
    # The small number keeps a mean on a level's edge in it, whatever standardising has rounded.
    for level in (means * LEVELS + 1e-5).long().clamp(0, LEVELS - 1).unbind(1):
        classes = classes * LEVELS + level
    return classes
