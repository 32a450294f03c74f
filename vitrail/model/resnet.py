"""ResNet with GroupNorm and weight standardisation: the convolutional stem of ViT's hybrids (ViT section 3.1, B.2).

The units are post-activation bottlenecks, as in Google's published hybrids; BiT's own come before.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vitrail.config import ResNetConfig

GROUPS = 32


class Convolution(nn.Conv2d):
    """A convolution without bias whose kernels are standardised on their way in (1903.10520).

    Borders are padded as TensorFlow's ``SAME``: the output has ceil(H / stride) rows, and where the
    padding is odd, the bottom and the right get more.
    """

    def __init__(self, config: ResNetConfig, inputs: int, outputs: int, size: int, stride: int = 1) -> None:
        super().__init__(inputs, outputs, size, stride, bias=False)
        self.config = config
        nn.init.kaiming_normal_(self.weight)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C', ceil(H / stride), ceil(W / stride))."""
        x = channels_last(same(x, self.kernel_size[0], self.stride[0]))
        return F.conv2d(x, channels_last(self.standardised()), stride=self.stride)

    def standardised(self) -> Tensor:
        """Kernels (C', C, P, P) of mean 0 and deviation 1 each."""
        variance, mean = torch.var_mean(self.weight, dim=(1, 2, 3), correction=0, keepdim=True)
        epsilon = self.config.standard_eps
        if self.config.standard == "deviation":
            return (self.weight - mean) / (variance.sqrt() + epsilon)
        return (self.weight - mean) * torch.rsqrt(variance + epsilon)


def channels_last(x: Tensor) -> Tensor:
    """The same numbers, (B, C, H, W), laid out as inductor's convolutions like them.

    Not in eager mode, where GroupNorm would be slower by more than convolutions are faster, nor in what is exported.
    """
    return x.contiguous(memory_format=torch.channels_last) if torch.compiler.is_dynamo_compiling() else x


def same(x: Tensor, size: int, stride: int, value: float = 0.0) -> Tensor:
    """(B, C, H, W) with borders for ``SAME``."""
    sides: list[int] = []
    for length in (x.shape[3], x.shape[2]):
        missing = max((-(-length // stride) - 1) * stride + size - length, 0)
        sides += [missing // 2, missing - missing // 2]
    return F.pad(x, sides, value=value) if any(sides) else x


class Bottleneck(nn.Module):
    """1x1, 3x3 with the stride, 1x1 to four times the width; each with GroupNorm; ReLU after the sum."""

    def __init__(self, config: ResNetConfig, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = Convolution(config, inputs, width, 1)
        self.norm1 = nn.GroupNorm(GROUPS, width, eps=config.norm_eps)
        self.conv2 = Convolution(config, width, width, 3, stride)
        self.norm2 = nn.GroupNorm(GROUPS, width, eps=config.norm_eps)
        self.conv3 = Convolution(config, width, 4 * width, 1)
        self.norm3 = nn.GroupNorm(GROUPS, 4 * width, eps=config.norm_eps)
        self.shortcut: nn.Module = nn.Identity()
        if inputs != 4 * width or stride > 1:
            self.shortcut = nn.Sequential(
                Convolution(config, inputs, 4 * width, 1, stride), nn.GroupNorm(GROUPS, 4 * width, eps=config.norm_eps)
            )

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, 4 width, H / stride, W / stride)."""
        y = F.relu(self.norm1(self.conv1(x)))
        y = F.relu(self.norm2(self.conv2(y)))
        return F.relu(self.norm3(self.conv3(y)) + self.shortcut(x))


class ResNet(nn.Module):
    """Root (7x7 with stride 2, 3x3 maximum with stride 2), then stages that double width and halve size."""

    def __init__(self, config: ResNetConfig, channels: int) -> None:
        super().__init__()
        self.root = Convolution(config, channels, config.width, 7, stride=2)
        self.norm = nn.GroupNorm(GROUPS, config.width, eps=config.norm_eps)
        self.stages = nn.ModuleList()
        inputs = config.width
        for stage, units in enumerate(config.layers):
            width = config.width * 2**stage
            made = []
            for unit in range(units):
                made.append(Bottleneck(config, inputs, width, stride=2 if stage > 0 and unit == 0 else 1))
                inputs = 4 * width
            self.stages.append(nn.Sequential(*made))

    def forward(self, images: Tensor) -> Tensor:
        """(B, C, H, W) -> feature map (B, outputs, H / stride, W / stride) of the configuration."""
        x = F.relu(self.norm(self.root(images)))  # (B, width, H / 2, W / 2)
        x = F.max_pool2d(same(x, 3, 2, -math.inf), 3, stride=2)  # (B, width, H / 4, W / 4)
        for stage in self.stages:
            x = stage(x)
        return x
