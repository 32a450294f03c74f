"""The ViT of a scale, the ResNet that it is held against, how many of its steps cost what the ViT's do, its rate."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from vitrail.config import ViTConfig
from vitrail.cost import flops
from vitrail.experiments.lab import Lab
from vitrail.experiments.run import Photos, Run
from vitrail.experiments.scale import SCALES, ScaleName
from vitrail.recipes.index import recipe
from vitrail.resnet import resnet
from vitrail.settings import PretrainSettings
from vitrail.tasks.pretrain_plan import architecture_of

RESNETS: dict[ScaleName, str] = {"small": "R1-1-1x0.5", "medium": "R26", "paper": "R50"}
"""Small: as many parameters as the ViT has, for two and a half times the work."""
RATES = (3e-4, 1e-3, 3e-3)
"""Learning rates that are searched among, and beyond while the best is the lowest or the highest."""
AMONG = f"{', '.join(f'{rate:g}' for rate in RATES)} and, while the best is at an end, up to three beyond"
SEARCHED_AT = 0.25
"""Of the usual steps, or of what they cost, for a search on all pictures."""


def supervised(scale: ScaleName, model: Mapping[str, Any], steps: int, **settings: Any) -> dict[str, Any]:
    """Arguments of ``vitrail.pretrain`` for so many steps of a model, ``{}`` for one that is there, by labels.

    Where what goes on has another batch than the usual one, it takes as many more steps as see the same pictures.
    """
    usual = SCALES[scale]
    plain = {name: value for name, value in usual.settings().items() if name not in usual.model}
    if not model:
        plain |= usual.finetune
        steps = steps * usual.batch_size // plain["batch_size"]
    return {**plain, **model, "steps": steps, "tuning": looking(plain["tuning"], steps), **settings}


def looking(tuning: Mapping[str, Any], steps: int) -> dict[str, Any]:
    """The same tuning, held against the pictures that settings are searched by once, at the end."""
    return {**tuning, "evaluate_every": steps}


def resnets(lab: Lab, data: str, scale: ScaleName) -> Run:
    """The ResNet at the rate that does best, for ``SEARCHED_AT`` of what the ViT's usual steps cost."""
    steps = affordable(max(1, round(SEARCHED_AT * SCALES[scale].steps)), scale, lab.classes(data))
    return lab.searched(Run(Photos(data), supervised(scale, cnn(scale), steps)), RATES)


def cnn(scale: ScaleName) -> dict[str, Any]:
    """Arguments of ``vitrail.pretrain`` that say the model."""
    return {"architecture": RESNETS[scale], "resolution": SCALES[scale].model["resolution"]}


def vit(scale: ScaleName, classes: int, **settings: Any) -> ViTConfig:
    """What ``vitrail.pretrain`` makes of the scale's model, with other ``settings`` if given, and a classifier."""
    asked = {**SCALES[scale].model, **settings}
    side = asked.pop("resolution")
    named = recipe(asked["recipe"]) if "recipe" in asked else None
    made = architecture_of(PretrainSettings("", "supervised", **asked, resolution=(side, side)), named, None, side)
    assert isinstance(made, ViTConfig)
    return made.with_head(replace(made.head, classes=classes))


def affordable(steps: int, scale: ScaleName, classes: int) -> int:
    """Steps of the ResNet for the operations that ``steps`` of the ViT take."""
    side = SCALES[scale].model["resolution"]
    cost = flops(resnet(RESNETS[scale], (side, side), classes))
    return max(1, round(steps * flops(vit(scale, classes)) / cost))
