"""What an EfficientNet is (1905.11946), as torchvision builds it; no torch."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field, replace
from typing import Literal

from vitrail.cnn import Convolutional
from vitrail.errors import UserError, suggestion
from vitrail.parts import HeadConfig
from vitrail.size import Size


@dataclass(frozen=True)
class MBConv:
    """A stage of inverted bottlenecks with squeeze-and-excitation, alike but for the first one's stride and inputs."""

    expansion: int
    """Inner channels for each of the inputs."""
    kernel: int
    stride: int
    inputs: int
    outputs: int
    layers: int


STAGES = (
    MBConv(1, 3, 1, 32, 16, 1),
    MBConv(6, 3, 2, 16, 24, 2),
    MBConv(6, 5, 2, 24, 40, 2),
    MBConv(6, 3, 2, 40, 80, 3),
    MBConv(6, 5, 1, 80, 112, 3),
    MBConv(6, 5, 2, 112, 192, 4),
    MBConv(6, 3, 1, 192, 320, 1),
)
"""EfficientNet-B0 (1905.11946, table 1)."""


@dataclass(frozen=True)
class EfficientNetConfig(Convolutional):
    """B0 made wider and deeper (EfficientNet, 1905.11946, sections 3.3 and 4), as torchvision builds it."""

    times_wide: float = 1.0
    times_deep: float = 1.0
    image_size: Size = (224, 224)
    channels: int = 3
    head: HeadConfig = field(default_factory=lambda: HeadConfig(("mean",)))
    dropout: float = 0.2
    """Of the features."""
    drop_path: float = 0.2
    """Stochastic depth: it rises linearly from 0 at the first block, to this after the last."""
    norm_eps: float = 1e-5
    """Of BatchNorm: torchvision has 1e-3 from B5 on, as TensorFlow's code has throughout."""
    norm_momentum: float = 0.1
    """Of BatchNorm's running statistics: 0.01 from B5 on."""
    kind: Literal["efficientnet"] = "efficientnet"

    def __post_init__(self) -> None:
        self.check()
        if self.channels != 3:
            raise UserError(f"torchvision's EfficientNet takes 3 channels, not {self.channels}: choose a ResNet.")
        if min(self.times_wide, self.times_deep) <= 0:
            raise UserError("An EfficientNet needs a width and a depth above 0.")
        for name in ("dropout", "drop_path"):
            if not 0.0 <= getattr(self, name) < 1.0:
                raise UserError(f"{name} must lie in [0, 1), not {getattr(self, name)}.")

    @property
    def stages(self) -> tuple[MBConv, ...]:
        """Those of this width and depth."""
        return tuple(
            replace(
                stage,
                inputs=eighths(stage.inputs * self.times_wide),
                outputs=eighths(stage.outputs * self.times_wide),
                layers=math.ceil(stage.layers * self.times_deep),
            )
            for stage in STAGES
        )

    @property
    def layers(self) -> int:
        """Blocks in all stages."""
        return sum(stage.layers for stage in self.stages)

    @property
    def width(self) -> int:
        """Channels of the last feature map."""
        return 4 * self.stages[-1].outputs

    @property
    def stride(self) -> int:
        """Pixels of the image for one cell of the last feature map, each way."""
        return 2 * math.prod(stage.stride for stage in STAGES)

    @property
    def summary(self) -> str:
        """``EfficientNet of 16 blocks up to 1280 channels``."""
        return f"EfficientNet of {self.layers} blocks up to {self.width} channels"

    def at(self, image_size: Size) -> EfficientNetConfig:
        """The same model at another resolution."""
        return replace(self, image_size=image_size)

    def with_head(self, head: HeadConfig) -> EfficientNetConfig:
        """The same model with another head."""
        return replace(self, head=head)

    def noisy(self, dropout: float | None, drop_path: float | None) -> EfficientNetConfig:
        """With other dropout and stochastic depth; None: as they are."""
        return replace(
            self,
            dropout=self.dropout if dropout is None else dropout,
            drop_path=self.drop_path if drop_path is None else drop_path,
        )


def eighths(channels: float) -> int:
    """The multiple of 8 that is nearest, but at least nine tenths of ``channels`` (the published code)."""
    nearest = max(8, int(channels + 4) // 8 * 8)
    return nearest + 8 if nearest < 0.9 * channels else nearest


# Times as wide, times as deep, pixels a side, dropout: the published code's; the last is of section 5.2.
SCALED: dict[str, tuple[float, float, int, float]] = {
    "B0": (1.0, 1.0, 224, 0.2),
    "B1": (1.0, 1.1, 240, 0.2),
    "B2": (1.1, 1.2, 260, 0.3),
    "B3": (1.2, 1.4, 300, 0.3),
    "B4": (1.4, 1.8, 380, 0.4),
    "B5": (1.6, 2.2, 456, 0.4),
    "B6": (1.8, 2.6, 528, 0.5),
    "B7": (2.0, 3.1, 600, 0.5),
}
_NAME = re.compile(r"EfficientNet-(?P<scale>\w+)")


def is_efficientnet(name: str) -> bool:
    """Whether a name is written as an EfficientNet's, existing or not."""
    return _NAME.fullmatch(name) is not None


def efficientnet(name: str, image_size: Size | None = None, classes: int = 0) -> EfficientNetConfig:
    """The configuration that a name such as ``EfficientNet-B0`` stands for.

    Args:
        image_size: None: the paper's.

    Raises:
        UserError: there is none of this name.
    """
    match = _NAME.fullmatch(name)
    if match is None or match["scale"] not in SCALED:
        raise UserError(f"There is no {name!r}{suggestion(name, [f'EfficientNet-{scale}' for scale in SCALED])}.")
    wide, deep, side, dropout = SCALED[match["scale"]]
    late = match["scale"] in ("B5", "B6", "B7")
    return EfficientNetConfig(
        wide,
        deep,
        image_size or (side, side),
        head=HeadConfig(("mean",), classes=classes),
        dropout=dropout,
        norm_eps=1e-3 if late else 1e-5,
        norm_momentum=0.01 if late else 0.1,
    )
