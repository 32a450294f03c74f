"""Settings of our own for one small machine: a ViT of 6 layers, 128 wide, on CIFAR-10. No paper's, and not measured."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from vitrail.config import EncoderConfig, HeadConfig, PositionConfig, ViTConfig
from vitrail.recipes.recipe import Recipe
from vitrail.recipes.source import Data, Learned, Span, Views, assumed

CIFAR10 = Data("CIFAR-10", 50_000, 10)
HARDWARE = "two CPU cores"


def _small(name: str, objective: Learned, epochs: int, views: Views, *own: str, classes: int = 0) -> Recipe:
    """On 32 x 32 pixels in patches of 4: 64 tokens and the class token."""
    common: dict[str, Any] = {"patch": (4, 4), "image_size": (32, 32), "position": PositionConfig()}
    return Recipe(
        name=name,
        makes="pretrain",
        paper=None,
        where="our own",
        variant="6 x 128, patch 4",
        architecture=ViTConfig(
            EncoderConfig(layers=6, width=128, heads=4, mlp_width=512), head=HeadConfig(classes=classes), **common
        ),
        objective=objective,
        data=CIFAR10,
        batch_size=256,
        duration=Span(epochs, "epochs"),
        optimizer="adamw",
        betas=(0.9, 0.95),
        learning_rate=1e-3,
        scaling="linear",
        schedule="cosine",
        warmup=Span(2, "epochs"),
        weight_decay=0.05,
        clip=1.0,
        views=views,
        hardware=HARDWARE,
        sources=(
            assumed("a model that one small machine can train", "variant", "dropout", "drop_path", "resolution"),
            assumed("ViT's choice", "position", "head"),
            assumed("usual for small models; not searched", "optimizer", "betas", "learning_rate", "schedule"),
            assumed("usual for small models; not searched", "warmup", "weight_decay", "clip", "layer_decay", "average"),
            assumed("fits in memory, and makes enough steps", "batch_size", "scaling"),
            assumed("what such a machine can do in an hour or a few; not measured", "duration", "hardware"),
            assumed("that of the published training set", "data"),
            assumed("not measured yet", "reported"),
            assumed("ours", "objective", "augmentation", *own),
        ),
    )


def small_cifar10() -> Recipe:
    """``vitrail pretrain DATA --recipe small-cifar10``

    Hardware: two CPU cores (assumed). Accuracy: none known here.
    """
    views = Views(smallest_crop=0.35, operations=2, magnitude=0.5)
    own = ("label_smoothing", "mixup", "cutmix", "classes")
    return _small("small-cifar10", Learned("supervised"), 20, views, *own, classes=10)


def small_cifar10_mae() -> Recipe:
    """``vitrail pretrain DATA --recipe small-cifar10-mae``

    Hardware: two CPU cores (assumed). Accuracy: none known here.
    """
    objective = Learned("mae", {"hidden": 0.75, "layers": 2, "width": 64, "heads": 4, "normalised": True})
    own = [f"objective.{name}" for name in objective.arguments]
    return _small("small-cifar10-mae", objective, 40, Views(smallest_crop=0.2), *own)


RESULTS: tuple[Callable[[], Recipe], ...] = (small_cifar10, small_cifar10_mae)
