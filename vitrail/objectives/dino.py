"""DINO: a student guesses what its own slow copy makes of another view (2104.14294)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from vitrail.config import Preprocessing
from vitrail.data.distort import Distortion
from vitrail.model.build import Model, seeded
from vitrail.objectives.momentum import Policies, follow, follower, risen, two_views
from vitrail.objectives.objective import Objective

VIEWS: Policies = (Distortion(smallest_crop=0.4, blur=1.0), Distortion(smallest_crop=0.4, blur=0.1, solarize=0.2))
"""BYOL's two distributions with the published code's crops."""


class DINO(Objective[Model]):
    """Cross-entropy of the student's outputs with the teacher's, which are centred and sharpened.

    Two departures from the paper: the views are the two large crops alone, since small ones would need
    positions on a grid of their own, and the teacher's temperature is constant, as it is by default in
    the published code.

    Args:
        model: which is to be trained, the student; the teacher starts as its copy.
        hidden, bottleneck, outputs: widths of the projection head (appendix C).
        temperature, teacher_temperature: of the softmaxes (equations 1 and 2).
        momentum: of the teacher at the start; it rises to 1.
        centring: momentum of the centre (equation 4).
    """

    def __init__(
        self,
        model: Model,
        how: Preprocessing,
        policies: Policies = VIEWS,
        hidden: int = 2048,
        bottleneck: int = 256,
        outputs: int = 65_536,
        temperature: float = 0.1,
        teacher_temperature: float = 0.04,
        momentum: float = 0.996,
        centring: float = 0.9,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.how = how
        self.policies = policies
        self.temperature = temperature
        self.teacher_temperature = teacher_temperature
        self.momentum = momentum
        with seeded(seed):
            self.head = Head(model.config.feature_width, hidden, bottleneck, outputs)
        self.teacher, self.teacher_head = follower(model), follower(self.head)
        self.centre = Centre(outputs, centring)
        self.modules["head"] = self.head
        self.modules["teacher"] = self.teacher
        self.modules["teacher_head"] = self.teacher_head
        self.modules["centre"] = self.centre

    def views(self, image: Image.Image, chance: np.random.Generator) -> Tensor:
        """A picture -> two differently distorted views (2, C, H, W)."""
        return two_views(image, self.how, self.policies, chance)

    def loss(
        self, model: Model, views: Tensor, labels: Tensor, chances: Sequence[np.random.Generator]
    ) -> tuple[Tensor, dict[str, float]]:
        """Pairs of images (B, 2, C, H, W) -> the mean of both directions.

        Told are the share of samples for which student and teacher find the same output the likeliest,
        and the entropy of the teacher's outputs in nats: 0, or the logarithm of their number, is collapse.
        """
        images, others = views.flatten(0, 1), views.flip(1).flatten(0, 1)  # (2 B, C, H, W) each
        student = self.head(model.features(images)).float()  # (2 B, outputs)
        with torch.no_grad():
            teacher = self.teacher_head(self.teacher.features(others)).float()
            wanted = torch.softmax((teacher - self.centre.value) / self.teacher_temperature, dim=-1)
            self.centre.take(teacher)
        guess = torch.log_softmax(student / self.temperature, dim=-1)
        loss = -(wanted * guess).sum(dim=-1).mean()
        agreement = (wanted.argmax(dim=-1) == guess.argmax(dim=-1)).float().mean()
        entropy = torch.special.entr(wanted).sum(dim=-1).mean()
        return loss, {"agreement": float(agreement), "teacher_entropy": float(entropy)}

    def after_step(self, model: Model, progress: float) -> None:
        """Teacher and centre follow."""
        momentum = risen(self.momentum, progress)
        follow(self.teacher, model, momentum)
        follow(self.teacher_head, self.head, momentum)
        self.centre.follow()


class Head(nn.Module):
    """A three-layer MLP to a bottleneck of length 1, and its products with as many unit vectors as there are outputs.

    The paper's last layer is weight-normalised; with its norms held at 1 that is what these are.
    """

    def __init__(self, inputs: int, hidden: int, bottleneck: int, outputs: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(
            nn.Linear(inputs, hidden), nn.GELU(), nn.Linear(hidden, hidden), nn.GELU(), nn.Linear(hidden, bottleneck)
        )
        for layer in self.mlp:
            if isinstance(layer, nn.Linear):
                nn.init.trunc_normal_(layer.weight, std=0.02)
                nn.init.zeros_(layer.bias)
        self.last = nn.Linear(bottleneck, outputs, bias=False)

    def forward(self, features: Tensor) -> Tensor:
        """(B, F) -> (B, outputs), each in [-1, 1]."""
        return F.linear(F.normalize(self.mlp(features), dim=-1), F.normalize(self.last.weight, dim=-1))


class Centre(nn.Module):
    """A moving average of the teacher's outputs (equation 4).

    What a step saw is summed up until the step is over, so that several small batches give the centre
    that a large one would.
    """

    def __init__(self, outputs: int, momentum: float) -> None:
        super().__init__()
        self.momentum = momentum
        self.register_buffer("value", torch.zeros(outputs))
        self.register_buffer("total", torch.zeros(outputs))
        self.register_buffer("count", torch.zeros(()))
        self.value: Tensor
        self.total: Tensor
        self.count: Tensor

    def take(self, outputs: Tensor) -> None:
        """Note outputs (B, outputs) of the step under way."""
        self.total += outputs.sum(dim=0)
        self.count += len(outputs)

    def follow(self) -> None:
        """The step is over."""
        self.value.lerp_(self.total / self.count, 1.0 - self.momentum)
        self.total.zero_()
        self.count.zero_()
