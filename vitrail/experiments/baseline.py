"""The ResNet that ViTs are held against, and how many of its steps cost what a ViT's do."""

from __future__ import annotations

from typing import Any

from vitrail.cost import flops
from vitrail.experiments.run import Result
from vitrail.experiments.scale import SCALES, ScaleName
from vitrail.resnet import resnet

RESNETS: dict[ScaleName, str] = {"small": "R1-1-1x0.5", "medium": "R26", "paper": "R50"}
"""Small: as many parameters as the ViT has, for two and a half times the work."""


def cnn(scale: ScaleName) -> dict[str, Any]:
    """Arguments of ``vitrail.pretrain`` that say the model."""
    return {"architecture": RESNETS[scale], "resolution": SCALES[scale].model["resolution"]}


def affordable(steps: int, vit: Result, scale: ScaleName, classes: int) -> int:
    """Steps of the ResNet for the operations that ``steps`` of the ViT take."""
    side = SCALES[scale].model["resolution"]
    return max(1, round(steps * vit.flops / flops(resnet(RESNETS[scale], (side, side), classes))))
