"""MoCo v3: a view is to be matched with the other view of the same photo (2104.02057)."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from vitrail.config import Preprocessing
from vitrail.data.distort import Distortion
from vitrail.errors import UserError
from vitrail.model.build import Model, seeded
from vitrail.model.vision import VisionTransformer
from vitrail.objectives.momentum import Policies, follow, follower, risen, two_views
from vitrail.objectives.objective import Objective

VIEWS: Policies = (Distortion(blur=1.0), Distortion(blur=0.1, solarize=0.2))
"""BYOL's two distributions, as in the published code."""


class MoCoV3(Objective[Model]):
    """Queries of one view against the keys of all photos' other views, which a momentum encoder makes.

    The features are what the model's own head would see, the class token's output by default.

    Args:
        model: which is to be trained; the momentum encoder starts as its copy.
        hidden, outputs: widths of projector and predictor (section 5, "MLP heads").
        temperature: of the softmax (equation 1).
        momentum: of the momentum encoder at the start; it rises to 1.
        freeze_patches: leave the patch embedding at random, without gradients (section 4.2).

    Raises:
        UserError: a CNN has no patch embedding to freeze.
    """

    in_batch = True

    def __init__(
        self,
        model: Model,
        how: Preprocessing,
        policies: Policies = VIEWS,
        hidden: int = 4096,
        outputs: int = 256,
        temperature: float = 0.2,
        momentum: float = 0.99,
        freeze_patches: bool = True,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.how = how
        self.policies = policies
        self.temperature = temperature
        self.momentum = momentum
        if freeze_patches:
            if not isinstance(model, VisionTransformer):
                raise UserError("A CNN has no patch embedding to leave at random: set freeze_patches to 0.")
            model.patches.requires_grad_(False)
        with seeded(seed):
            self.projector = mlp(model.config.feature_width, hidden, outputs, layers=3)
            self.predictor = mlp(outputs, hidden, outputs, layers=2)
        self.slow_model, self.slow_projector = follower(model), follower(self.projector)
        self.modules["projector"] = self.projector
        self.modules["predictor"] = self.predictor
        self.modules["momentum_model"] = self.slow_model
        self.modules["momentum_projector"] = self.slow_projector

    def views(self, image: Image.Image, chance: np.random.Generator) -> Tensor:
        """A picture -> two differently distorted views (2, C, H, W)."""
        return two_views(image, self.how, self.policies, chance)

    def loss(
        self, model: Model, views: Tensor, labels: Tensor, chances: Sequence[np.random.Generator]
    ) -> tuple[Tensor, dict[str, float]]:
        """Pairs of images (B, 2, C, H, W) -> the loss of both directions, and the share of queries well matched."""
        queries = [self.predictor(self.projector(model.features(images))) for images in views.unbind(1)]  # (B, outputs)
        with torch.no_grad():
            keys = [self.slow_projector(self.slow_model.features(images)) for images in views.unbind(1)]
        there, there_right = contrast(queries[0], keys[1], self.temperature)
        back, back_right = contrast(queries[1], keys[0], self.temperature)
        return there + back, {"accuracy": (there_right + back_right) / 2}

    def after_step(self, model: Model, progress: float) -> None:
        """The momentum encoder follows (algorithm 1)."""
        momentum = risen(self.momentum, progress)
        follow(self.slow_model, model, momentum)
        follow(self.slow_projector, self.projector, momentum)


def contrast(queries: Tensor, keys: Tensor, temperature: float) -> tuple[Tensor, float]:
    """InfoNCE, times twice the temperature (equation 1, algorithm 1).

    Args:
        queries, keys: (B, D) each, of any length; those of the same row belong together.

    Returns:
        The loss, and the share of queries that are nearest to their own key.
    """
    with torch.autocast(queries.device.type, enabled=False):
        q, k = F.normalize(queries.float(), dim=-1), F.normalize(keys.float(), dim=-1)
        logits = q @ k.mT / temperature  # (B, B)
        own = torch.arange(len(q), device=q.device)
        loss = 2.0 * temperature * F.cross_entropy(logits, own)
    return loss, float((logits.argmax(dim=-1) == own).float().mean())


def mlp(inputs: int, hidden: int, outputs: int, layers: int) -> nn.Sequential:
    """Linear layers without biases, each with BatchNorm, and ReLU between.

    The last BatchNorm has neither scale nor shift, of which the published code knows and the paper does not tell.
    """
    widths = [inputs, *[hidden] * (layers - 1), outputs]
    parts: list[nn.Module] = []
    for before, after in itertools.pairwise(widths):
        parts += [nn.Linear(before, after, bias=False), nn.BatchNorm1d(after), nn.ReLU()]
    parts[-2:] = [nn.BatchNorm1d(outputs, affine=False)]
    return nn.Sequential(*parts)
