"""The ViT of a scale, the ResNet that it is held against, and how many of its steps cost what the ViT's do."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from vitrail.config import ViTConfig
from vitrail.cost import flops
from vitrail.experiments.scale import SCALES, ScaleName
from vitrail.resnet import resnet
from vitrail.settings import PretrainSettings
from vitrail.tasks.pretrain_plan import architecture_of

RESNETS: dict[ScaleName, str] = {"small": "R1-1-1x0.5", "medium": "R26", "paper": "R50"}
"""Small: as many parameters as the ViT has, for two and a half times the work."""


def cnn(scale: ScaleName) -> dict[str, Any]:
    """Arguments of ``vitrail.pretrain`` that say the model."""
    return {"architecture": RESNETS[scale], "resolution": SCALES[scale].model["resolution"]}


def vit(scale: ScaleName, classes: int, **settings: Any) -> ViTConfig:
    """What ``vitrail.pretrain`` makes of the scale's model, with other ``settings`` if given, and a classifier."""
    asked = {**SCALES[scale].model, **settings}
    side = asked.pop("resolution")
    made = architecture_of(PretrainSettings("", "supervised", **asked, resolution=(side, side)), None, None, side)
    assert isinstance(made, ViTConfig)
    return made.with_head(replace(made.head, classes=classes))


def affordable(steps: int, scale: ScaleName, classes: int) -> int:
    """Steps of the ResNet for the operations that ``steps`` of the ViT take."""
    side = SCALES[scale].model["resolution"]
    cost = flops(resnet(RESNETS[scale], (side, side), classes))
    return max(1, round(steps * flops(vit(scale, classes)) / cost))
