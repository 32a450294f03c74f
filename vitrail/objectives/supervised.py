"""Learning labels: cross-entropy of softmax or sigmoids, with label smoothing, mixup and cutmix."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from vitrail.config import Preprocessing
from vitrail.data.augment import augment
from vitrail.errors import UserError
from vitrail.model.vision import VisionTransformer
from vitrail.objectives.masking import shuffled
from vitrail.objectives.objective import Objective
from vitrail.settings import Augmentation


class Supervised(Objective[nn.Module]):
    """Cross-entropy of a model's logits (B, classes); neighbours in a batch may be mixed with each other.

    Classes share one probability (softmax), or with ``sigmoid`` each has its own, and their losses are added up.
    """

    def __init__(self, how: Preprocessing, policy: Augmentation, smoothing: float = 0.1, sigmoid: bool = False) -> None:
        super().__init__()
        self.how = how
        self.policy = policy
        self.smoothing = smoothing
        self.sigmoid = sigmoid

    def views(self, image: Image.Image, chance: np.random.Generator) -> Tensor:
        """A picture -> (C, H, W), augmented."""
        return augment(image, self.how, self.policy, chance)

    def loss(
        self, model: nn.Module, views: Tensor, labels: Tensor, chances: Sequence[np.random.Generator]
    ) -> tuple[Tensor, dict[str, float]]:
        """Images (B, C, H, W) and labels -> mean loss, and ``accuracy``: the share whose main label is likeliest.

        Labels are numbers (B,) or, soft ones, shares of the classes (B, classes).
        Samples 2k and 2k + 1 are partners; the last of an odd batch stays as it is.
        """
        views, own = mixed(views, self.policy, chances)  # (B, C, H, W), (B,)
        logits = self._logits(model, views, chances)  # (B, classes)
        other = labels[partners(len(labels)).to(labels.device)]
        losses = own * self._entropy(logits, labels)
        if bool((own < 1.0).any()):
            losses = losses + (1.0 - own) * self._entropy(logits, other)
        main, others = (one if one.ndim == 1 else one.argmax(dim=-1) for one in (labels, other))
        right = logits.argmax(dim=-1) == torch.where(own >= 0.5, main, others)
        return losses.mean(), {"accuracy": float(right.float().mean())}

    def _entropy(self, logits: Tensor, labels: Tensor) -> Tensor:
        """(B, classes) and labels (B,) or (B, classes) -> each sample's loss (B,)."""
        if not self.sigmoid:
            return F.cross_entropy(logits, labels, label_smoothing=self.smoothing, reduction="none")
        classes = logits.shape[1]
        shares = labels if labels.ndim == 2 else F.one_hot(labels, classes)
        shares = (1.0 - self.smoothing) * shares.float() + self.smoothing / classes
        return F.binary_cross_entropy_with_logits(logits.float(), shares, reduction="none").sum(dim=-1)

    def _logits(self, model: nn.Module, images: Tensor, chances: Sequence[np.random.Generator]) -> Tensor:
        """Of whole images, or of those patches of each that are not dropped (PatchDropout, 2208.07220, section 3)."""
        kept = {}
        if self.policy.drop_patches:
            kept["kept"] = self._kept(model, chances).to(images.device)
        logits: Tensor = model(images, **kept)
        return logits

    def _kept(self, model: nn.Module, chances: Sequence[np.random.Generator]) -> Tensor:
        """Places (B, n) in raster order of the patches that are seen.

        Raises:
            UserError: the model has none.
        """
        if not isinstance(model, VisionTransformer):
            raise UserError("Only a Vision Transformer has patches to leave out: set drop_patches to 0.")
        patches = math.prod(model.config.grid)
        left = max(1, round((1.0 - self.policy.drop_patches) * patches))
        return shuffled(chances, patches)[:, :left]


def partners(samples: int) -> Tensor:
    """(B,): each sample's partner, 1 0 3 2 ...; the last of an odd number is its own."""
    return (torch.arange(samples) ^ 1).clamp(max=samples - 1)


def mixed(images: Tensor, policy: Augmentation, chances: Sequence[np.random.Generator]) -> tuple[Tensor, Tensor]:
    """Images (B, C, H, W) blended with, or patched from, their partners, and the shares (B,) still their own.

    Whether, how and how much a pair is mixed is drawn from the generator of its first sample.
    """
    count, (height, width) = len(images), images.shape[2:]
    drawn = [_draw(policy, height, width, chance) for chance in chances[0 : count - 1 : 2]]
    plan = [mix for mix in drawn for _ in range(2)] + [_ALONE] * (count % 2)
    own = torch.tensor([mix.own for mix in plan], dtype=torch.float32, device=images.device)
    if all(mix.own == 1.0 for mix in plan):
        return images, own
    boxes = torch.tensor([mix.box for mix in plan], device=images.device)[:, :, None]  # (B, 4, 1)
    rows, columns = (torch.arange(size, device=images.device) for size in (height, width))
    down = (rows >= boxes[:, 0]) & (rows < boxes[:, 1])  # (B, H)
    across = (columns >= boxes[:, 2]) & (columns < boxes[:, 3])  # (B, W)
    blend = torch.tensor([mix.blend for mix in plan], dtype=torch.float32, device=images.device)
    share = blend[:, None, None] * ~(down[:, :, None] & across[:, None, :])  # (B, H, W)
    share = share[:, None]  # (B, 1, H, W)
    return share * images + (1.0 - share) * images[partners(count).to(images.device)], own


@dataclass(frozen=True)
class _Mix:
    """How a pair is mixed: a blend outside the box, the partner alone inside it."""

    own: float = 1.0
    blend: float = 1.0
    box: tuple[int, int, int, int] = (0, 0, 0, 0)
    """Top, bottom, left, right."""


_ALONE = _Mix()


def _draw(policy: Augmentation, height: int, width: int, chance: np.random.Generator) -> _Mix:
    kinds = [kind for kind, alpha in (("mixup", policy.mixup), ("cutmix", policy.cutmix)) if alpha > 0]
    if not kinds or chance.random() >= policy.mixing:
        return _ALONE
    kind = kinds[int(chance.integers(len(kinds)))]
    alpha = policy.mixup if kind == "mixup" else policy.cutmix
    own = float(chance.beta(alpha, alpha))
    if kind == "mixup":
        return _Mix(own, own)
    h, w = round(height * math.sqrt(1.0 - own)), round(width * math.sqrt(1.0 - own))
    top, left = int(chance.integers(height - h + 1)), int(chance.integers(width - w + 1))
    return _Mix(1.0 - h * w / (height * width), 1.0, (top, top + h, left, left + w))
