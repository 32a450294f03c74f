"""MoCo v3 (2104.02057): pretraining by telling photos apart.

The paper's own lines known here are the two views, the momentum encoder, the loss with its temperature and
the frozen patch projection. The rest is as in the authors' code, and counts as assumed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from vitrail.config import PositionConfig, ViTConfig, variant
from vitrail.recipes.recipe import Recipe
from vitrail.recipes.source import Learned, Result, Source, Span, assumed, stated, unverified
from vitrail.recipes.vit import IMAGENET

PAPER = "2104.02057"
MAIN = assumed(
    "as in the authors' code, main_moco.py",
    *("objective.hidden", "objective.outputs", "objective.momentum", "resolution", "augmentation", "clip"),
    *("average", "layer_decay"),
)


def _pretrained(name: str, model: str, architecture: ViTConfig, hardware: str, linear: float, source: Source) -> Recipe:
    return Recipe(
        name=name,
        makes="pretrain",
        paper=PAPER,
        where="section 3",
        variant=model,
        architecture=replace(architecture, position=PositionConfig("sincos-2d")),
        objective=Learned(
            "moco-v3",
            {"hidden": 4096, "outputs": 256, "temperature": 0.2, "momentum": 0.99, "freeze_patches": True},
            note="two views, a momentum encoder, InfoNCE",
        ),
        data=IMAGENET,
        batch_size=4096,
        duration=Span(300, "epochs"),
        optimizer="adamw",
        betas=(0.9, 0.999),
        learning_rate=1.5e-4 * 4096 / 256,
        scaling="linear",
        schedule="cosine",
        warmup=Span(40, "epochs"),
        weight_decay=0.1,
        hardware=hardware,
        reported=(Result(linear, "ImageNet", how="linear probe"),),
        sources=(
            stated("section 3, equation 1", "objective", "objective.temperature"),
            stated("section 4.2", "objective.freeze_patches"),
            stated("2010.11929, section 4.1: its size", "data"),
            source,
            MAIN,
            assumed(
                "as in the authors' code, CONFIG.md",
                *("batch_size", "duration", "optimizer", "learning_rate", "warmup", "weight_decay", "hardware"),
            ),
            assumed("AdamW's defaults, which the authors' code leaves as they are", "betas"),
            assumed("as in the authors' code, main_moco.py: times the batch over 256", "scaling"),
            assumed("as in the authors' code, which scales by half a cosine", "schedule"),
            assumed("as in the authors' code, vits.py", "position", "head", "dropout", "drop_path"),
            unverified("the authors' CONFIG.md says so; not held against the paper", "reported"),
        ),
    )


def moco_s16_imagenet() -> Recipe:
    """``vitrail pretrain DATA --recipe moco-s16-imagenet``

    Hardware: 32 V100 GPUs (assumed). Accuracy: 73.2 % on ImageNet, linear probe (unverified).
    Its ViT-S has 12 heads where DeiT's has 6.
    """
    config = variant("ViT-S/16")
    return _pretrained(
        *("moco-s16-imagenet", "ViT-S/16", replace(config, encoder=replace(config.encoder, heads=12))),
        *("32 V100 GPUs", 73.2),
        stated("the paper's own ViT-S, which has 12 heads (vits.py of the authors' code)", "variant"),
    )


def moco_b16_imagenet() -> Recipe:
    """``vitrail pretrain DATA --recipe moco-b16-imagenet``

    Hardware: 64 V100 GPUs (assumed). Accuracy: 76.7 % on ImageNet, linear probe (unverified).
    """
    return _pretrained(
        *("moco-b16-imagenet", "ViT-B/16", variant("ViT-B/16"), "64 V100 GPUs", 76.7),
        stated("2010.11929, table 1", "variant"),
    )


RESULTS: tuple[Callable[[], Recipe], ...] = (moco_s16_imagenet, moco_b16_imagenet)
