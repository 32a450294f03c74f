"""Models that have learned nothing, to hold others against."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import torch
from torch import nn

from vitrail.config import STEMS, ResNetConfig
from vitrail.model.build import build
from vitrail.model.resnet import ResNet
from vitrail.model.vision import VisionTransformer

Make = Callable[[], nn.Module]


def untrained(model: nn.Module, channels: int) -> dict[str, Make]:
    """How to make, by name, the like of a Transformer and a plain CNN; their weights are the same each time."""
    found: dict[str, Make] = {}
    if isinstance(model, VisionTransformer):
        config = model.config
        found["the same, random weights"] = _seeded(lambda: build(config))
    found["plain CNN, random weights"] = _seeded(lambda: _plain_cnn(channels))
    return found


def _seeded(make: Make) -> Make:
    def made() -> nn.Module:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return make()

    return made


def _resnet(layers: tuple[int, ...]) -> Make:
    return _seeded(lambda: ResNet(ResNetConfig(layers), 3))


CNNS: dict[str, Make] = {name: _resnet(layers) for (name, stride), layers in STEMS.items() if stride == 32}
"""ResNets by name, such as ``R50``."""


def _plain_cnn(channels: int) -> nn.Module:
    """Convolutions and nothing else, with a cell every 16 pixels that sees 91: what the article means by a CNN.

    A ResNet's GroupNorm sees the whole picture, and its padding reaches far: neither moves along with a shift.
    """
    widths = (channels, 64, 128, 256, 512)
    layers: list[nn.Module] = []
    for inputs, outputs in pairwise(widths):
        for stride, wide in ((2, inputs), (1, outputs)):
            convolution = nn.Conv2d(wide, outputs, 3, stride, 1)
            nn.init.kaiming_normal_(convolution.weight)  # so that the signal keeps its size
            layers += [convolution, nn.ReLU()]
    return nn.Sequential(*layers)
