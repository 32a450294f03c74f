"""What the loop asks of an objective."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Generic, TypeVar

import numpy as np
from PIL import Image
from torch import Tensor, nn

Model = TypeVar("Model", bound=nn.Module)


class Objective(ABC, Generic[Model]):
    """The views of a sample, the loss of a batch of them, and what happens after a step.

    Attributes:
        modules: what it learns with besides the model (decoder, projector, momentum encoder), trained,
            checkpointed and averaged with it, and left behind when the model is written.
    """

    in_batch = False
    """Whether a sample's loss depends on the others in its batch; then gradients cannot be accumulated."""

    def __init__(self) -> None:
        self.modules = nn.ModuleDict()

    @abstractmethod
    def views(self, image: Image.Image, chance: np.random.Generator) -> Tensor:
        """A picture -> what the model is to see of it this time; the same for the same generator."""

    @abstractmethod
    def loss(
        self, model: Model, views: Tensor, labels: Tensor, chances: Sequence[np.random.Generator]
    ) -> tuple[Tensor, dict[str, float]]:
        """Views (B, ...) and labels (B,) -> the mean loss, to descend, and means over the batch to be told.

        Args:
            chances: one generator a sample, a function of its place, for masks and mixing: what happens
                to a sample does not depend on the batch it is in (a pair's partner is its neighbour).
        """

    def after_step(self, model: Model, progress: float) -> None:
        """The optimiser has stepped; ``progress`` in (0, 1] is the share of all steps behind us."""
