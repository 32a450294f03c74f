"""What the loop asks of an objective."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Generic, TypeVar

import numpy as np
from PIL import Image
from torch import Tensor, nn

Model = TypeVar("Model", bound=nn.Module)


class Objective(ABC, Generic[Model]):
    """The views of a sample, the loss of a batch of them, and what happens after a step."""

    @abstractmethod
    def views(self, image: Image.Image, chance: np.random.Generator) -> Tensor:
        """A picture -> what the model is to see of it this time; the same for the same generator."""

    @abstractmethod
    def loss(self, model: Model, views: Tensor, labels: Tensor, chance: np.random.Generator) -> tuple[Tensor, int]:
        """Views (B, ...) and labels (B,) -> the scalar to descend, and how many samples were got right."""
