"""What the configurations of all CNNs have in common; no torch.

They say of themselves what a ``ViTConfig`` does, in the same words, so that nobody who trains or runs a model need ask
which it is: there are no tokens, and for D a CNN has the channels of its last feature map.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

from vitrail.errors import UserError
from vitrail.parts import HeadConfig, Token
from vitrail.size import Size, check_resolution


class Convolutional(ABC):
    """A model whose head pools the mean of its last feature map."""

    image_size: Size
    channels: int
    head: HeadConfig

    @property
    @abstractmethod
    def stride(self) -> int:
        """Pixels of the image for one cell of the last feature map, each way."""

    @property
    @abstractmethod
    def width(self) -> int:
        """Channels of the last feature map."""

    @property
    def grid(self) -> Size:
        """Cells of the last feature map, down and across."""
        return (-(-self.image_size[0] // self.stride), -(-self.image_size[1] // self.stride))

    @property
    def feature_width(self) -> int:
        """Length of the vector of features."""
        return self.width

    @property
    def classifier_width(self) -> int:
        """Length of the vector the classifier sees."""
        return self.width

    @property
    def tokens(self) -> tuple[Token, ...]:
        """It has none."""
        return ()

    @property
    def sequence(self) -> int:
        """Number of tokens: none."""
        return 0

    def check(self) -> None:
        """Raise UserError for what no CNN can be."""
        if self.channels < 1:
            raise UserError(f"channels must be at least 1, not {self.channels}.")
        check_resolution(self.image_size, (1, 1))
        if self.head.parts != ("mean",) or self.head.layers != 1 or self.head.prelogits is not None:
            raise UserError("A CNN has no tokens to choose from: its head pools the mean of its last layer.")
