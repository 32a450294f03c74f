"""What a ResNet is: BiT's, the baseline that the paper compares with; no torch."""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace
from typing import Literal

from vitrail.cnn import Convolutional
from vitrail.errors import UserError, suggestion
from vitrail.parts import HeadConfig, ResNetConfig
from vitrail.size import Size


@dataclass(frozen=True)
class BiTConfig(Convolutional):
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
        self.check()

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
    def stride(self) -> int:
        """Pixels of the image for one cell of the last feature map, each way."""
        return self.trunk.stride // (1 if self.root == "7x7" else 4)

    def at(self, image_size: Size) -> BiTConfig:
        """The same model at another resolution."""
        return replace(self, image_size=image_size)

    def with_head(self, head: HeadConfig) -> BiTConfig:
        """The same model with another head."""
        return replace(self, head=head)

    def noisy(self, dropout: float | None, drop_path: float | None) -> BiTConfig:
        """With dropout and stochastic depth while training, of which it has neither; None: as it is.

        Raises:
            UserError: one is asked for.
        """
        for name, value in (("dropout", dropout), ("drop_path", drop_path)):
            if value:
                raise UserError(f"BiT's ResNets have no {name}: leave it out, or take a ViT or an EfficientNet.")
        return self


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

_RESNET = re.compile(r"R(?P<depth>\d+(?:-\d+)*)(?:x(?P<times>\d+(?:\.\d+)?))?")


def is_resnet(name: str) -> bool:
    """Whether a name is written as a ResNet's, existing or not."""
    return _RESNET.fullmatch(name) is not None


def resnet(name: str, image_size: Size = (224, 224), classes: int = 0) -> BiTConfig:
    """The configuration that a name such as ``R50``, ``R50x3`` or ``R2-2x0.5`` stands for: depth x width (BiT).

    A depth may be said by the units of each stage, too.

    Raises:
        UserError: no such depth, the nearest is suggested; or a width that GroupNorm cannot divide.
    """
    match = _RESNET.fullmatch(name)
    depth = "" if match is None else match["depth"]
    units = tuple(map(int, depth.split("-"))) if "-" in depth else DEPTHS.get(int(depth or 0))
    if match is None or units is None:
        raise UserError(f"There is no ResNet {name!r}{suggestion(name, [f'R{depth}' for depth in DEPTHS])}.")
    width = 64 * float(match["times"] or 1)
    if width % 32 or not width:
        raise UserError(f"{name} is {width:g} channels wide, which 32 groups do not divide: choose multiples of x0.5.")
    return BiTConfig(
        ResNetConfig(units, int(width), "variance", standard_eps=1e-8, norm_eps=1e-5),
        root="3x3" if max(image_size) <= SMALL else "7x7",
        image_size=image_size,
        head=HeadConfig(("mean",), classes=classes),
    )
