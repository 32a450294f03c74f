"""What a ResNet is: BiT's, the baseline that the paper compares with; no torch."""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace
from typing import Literal

from vitrail.errors import UserError, suggestion
from vitrail.parts import HeadConfig, ResNetConfig, Token
from vitrail.size import Size, check_resolution


@dataclass(frozen=True)
class BiTConfig:
    """A pre-activation ResNet with GroupNorm and standardised kernels (BiT, 1912.11370, section 3.2)."""

    trunk: ResNetConfig
    root: Literal["7x7", "3x3"] = "7x7"
    """What comes before the stages: 7x7 with stride 2 and a 3x3 maximum with stride 2, or for pictures up to
    64 pixels a 3x3 with stride 1 alone."""
    image_size: Size = (224, 224)
    channels: int = 3
    head: HeadConfig = field(default_factory=lambda: HeadConfig(("mean",)))
    kind: Literal["bit"] = "bit"

    def __post_init__(self) -> None:
        if self.channels < 1:
            raise UserError(f"channels must be at least 1, not {self.channels}.")
        check_resolution(self.image_size, (1, 1))
        if self.head.parts != ("mean",) or self.head.layers != 1 or self.head.prelogits is not None:
            raise UserError("A ResNet has no tokens to choose from: its head pools the mean of its last layer.")

    @property
    def summary(self) -> str:
        """``ResNet of 16 units up to 2048 channels``."""
        return f"ResNet of {self.layers} units up to {self.width} channels"

    @property
    def layers(self) -> int:
        """Units, that ``BiT.depth`` counts."""
        return sum(self.trunk.layers)

    @property
    def width(self) -> int:
        """Channels of the last feature map."""
        return self.trunk.outputs

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

    @property
    def grid(self) -> Size:
        """Cells of the last feature map, down and across."""
        halvings = len(self.trunk.layers) - 1 + (2 if self.root == "7x7" else 0)
        return (-(-self.image_size[0] // 2**halvings), -(-self.image_size[1] // 2**halvings))

    def at(self, image_size: Size) -> BiTConfig:
        """The same model at another resolution."""
        return replace(self, image_size=image_size)

    def with_head(self, head: HeadConfig) -> BiTConfig:
        """The same model with another head."""
        return replace(self, head=head)


# Depth: units of each stage; three convolutions a unit, and the root and the classifier. 50 and deeper are those of
# 1512.03385, table 1.
DEPTHS: dict[int, tuple[int, ...]] = {
    14: (1, 1, 1, 1),
    26: (2, 2, 2, 2),
    50: (3, 4, 6, 3),
    101: (3, 4, 23, 3),
    152: (3, 8, 36, 3),
}

SMALL = 64
"""Pixels a side up to which a ResNet begins with a 3x3 of stride 1."""

_RESNET = re.compile(r"R(?P<depth>\d+)(?:x(?P<times>\d+(?:\.\d+)?))?")


def is_resnet(name: str) -> bool:
    """Whether a name is written as a ResNet's, existing or not."""
    return _RESNET.fullmatch(name) is not None


def resnet(name: str, image_size: Size = (224, 224), classes: int = 0) -> BiTConfig:
    """The configuration that a name such as ``R50``, ``R50x3`` or ``R14x0.5`` stands for: depth x width (BiT).

    Raises:
        UserError: no such depth, the nearest is suggested; or a width that GroupNorm cannot divide.
    """
    match = _RESNET.fullmatch(name)
    if match is None or int(match["depth"]) not in DEPTHS:
        raise UserError(f"There is no ResNet {name!r}{suggestion(name, [f'R{depth}' for depth in DEPTHS])}.")
    width = 64 * float(match["times"] or 1)
    if width % 32 or not width:
        raise UserError(f"{name} is {width:g} channels wide, which 32 groups do not divide: choose multiples of x0.5.")
    return BiTConfig(
        ResNetConfig(DEPTHS[int(match["depth"])], int(width), "variance", standard_eps=1e-8, norm_eps=1e-5),
        root="3x3" if max(image_size) <= SMALL else "7x7",
        image_size=image_size,
        head=HeadConfig(("mean",), classes=classes),
    )
