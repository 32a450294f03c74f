"""BiT's ResNet-v2: pre-activation bottlenecks, GroupNorm, standardised kernels (1912.11370, section 3.2).

Borders are padded by the same number of zeros on all sides, where the hybrids' stem pads as ``SAME``.
"""

from __future__ import annotations

import re

from torch import Tensor, nn
from torch.nn import functional as F

from vitrail.config import BiTConfig, ResNetConfig
from vitrail.model.cnn import CNN, classifier_of
from vitrail.model.heads import Pooling
from vitrail.model.resnet import GROUPS, Convolution, channels_last


class Centred(Convolution):
    """A standardised convolution padded by (P - 1) / 2 on every side."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C', ceil(H / stride), ceil(W / stride))."""
        kernels = channels_last(self.standardised())
        return F.conv2d(channels_last(x), kernels, stride=self.stride, padding=self.kernel_size[0] // 2)


class Unit(nn.Module):
    """Norm and ReLU before each of 1x1, 3x3 with the stride, 1x1; the sum is left as it is (1603.05027).

    The first unit of a stage has a convolution as its shortcut, which sees what the first ReLU gave.
    """

    def __init__(self, config: ResNetConfig, inputs: int, width: int, stride: int, first: bool) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(GROUPS, inputs, eps=config.norm_eps)
        self.conv1 = Centred(config, inputs, width, 1)
        self.norm2 = nn.GroupNorm(GROUPS, width, eps=config.norm_eps)
        self.conv2 = Centred(config, width, width, 3, stride)
        self.norm3 = nn.GroupNorm(GROUPS, width, eps=config.norm_eps)
        self.conv3 = Centred(config, width, 4 * width, 1)
        self.shortcut = Centred(config, inputs, 4 * width, 1, stride) if first else None

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, 4 width, ceil(H / stride), ceil(W / stride))."""
        y = F.relu(self.norm1(x))
        kept = x if self.shortcut is None else self.shortcut(y)
        y = F.relu(self.norm2(self.conv1(y)))
        y = F.relu(self.norm3(self.conv2(y)))
        x = kept + self.conv3(y)
        return x


class BiT(CNN):
    """Root, stages, norm, mean over the map, classifier."""

    config: BiTConfig

    def __init__(self, config: BiTConfig) -> None:
        super().__init__()
        self.config = config
        trunk = config.trunk
        size, stride = (7, 2) if config.root == "7x7" else (3, 1)
        self.root = Centred(trunk, config.channels, trunk.width, size, stride)
        self.stages = nn.ModuleList()
        inputs = trunk.width
        for stage, count in enumerate(trunk.layers):
            width = trunk.width * 2**stage
            units = []
            for unit in range(count):
                units.append(Unit(trunk, inputs, width, 2 if stage > 0 and unit == 0 else 1, first=unit == 0))
                inputs = 4 * width
            self.stages.append(nn.Sequential(*units))
        self.norm = nn.GroupNorm(GROUPS, inputs, eps=trunk.norm_eps)
        self.pooling = Pooling(config.head, ())
        self.classifier = classifier_of(config)

    def staged(self, images: Tensor) -> list[Tensor]:
        """See ``CNN.stage_maps``: before any further norm."""
        x: Tensor = self.root(images)
        if self.config.root == "7x7":
            x = F.max_pool2d(F.pad(x, (1, 1, 1, 1)), 3, stride=2)  # zeros take part in the maximum, as in timm
        found: list[Tensor] = []
        for stage in self.stages:
            x = stage(x)
            found.append(x)
        return found

    def last(self, x: Tensor) -> Tensor:
        """Normalised, and ReLU."""
        return F.relu(self.norm(x))

    def blocks(self) -> list[nn.Module]:
        """See ``CNN.blocks``."""
        return [unit for stage in self.stages for unit in stage.children()]

    def depth(self, parameter: str) -> int:
        """See ``CNN.depth``."""
        of_unit = re.match(r"stages\.(\d+)\.(\d+)\.", parameter)
        if of_unit is not None:
            return sum(self.config.trunk.layers[: int(of_unit[1])]) + int(of_unit[2]) + 1
        return 0 if parameter.startswith("root.") else self.config.layers + 1
