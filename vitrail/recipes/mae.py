"""Masked autoencoders (MAE, 2111.06377): pretraining, and the fine-tuning its accuracies were reported after.

The paper's own lines known here are the share of patches that is seen, the decoder and the loss. The rest
is as in the authors' code, and counts as assumed: it has not been held against the paper.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from vitrail.config import HeadConfig, PositionConfig, ViTConfig, variant
from vitrail.recipes.recipe import Recipe
from vitrail.recipes.source import Learned, Result, Source, Span, Views, assumed, stated, unverified
from vitrail.recipes.vit import CLASSES, IMAGENET

PAPER = "2111.06377"
PRETRAINED = assumed(
    "as in the authors' code, PRETRAIN.md",
    *("batch_size", "learning_rate", "scaling", "warmup", "weight_decay", "hardware"),
)
CODE = "as in the authors' code, main_pretrain.py"
README = "the authors' FINETUNE.md says so; not held against the paper"


def _vit(model: str, classes: int = 0) -> ViTConfig:
    return replace(variant(model, classes=classes), position=PositionConfig("sincos-2d", resampling="bicubic"))


def _pretrained(name: str, model: str, epochs: int, result: Result, *sources: Source) -> Recipe:
    return Recipe(
        name=name,
        makes="pretrain",
        paper=PAPER,
        where="section 3",
        variant=model,
        architecture=_vit(model),
        objective=Learned(
            "mae",
            {"hidden": 0.75, "layers": 8, "width": 512, "heads": 16, "normalised": True},
            note="squared error of hidden patches' pixels",
        ),
        data=IMAGENET,
        batch_size=4096,
        duration=Span(epochs, "epochs"),
        optimizer="adamw",
        betas=(0.9, 0.95),
        learning_rate=1.5e-4 * 4096 / 256,
        scaling="linear",
        schedule="cosine",
        warmup=Span(40, "epochs"),
        weight_decay=0.05,
        views=Views(smallest_crop=0.2),
        hardware="64 V100 GPUs",
        reported=(result,),
        sources=(
            stated("section 3", "objective", "objective.hidden"),
            stated("section 4, table 1", "objective.layers", "objective.width", "objective.normalised"),
            stated("2010.11929, table 1", "variant"),
            stated("2010.11929, section 4.1: its size", "data"),
            PRETRAINED,
            assumed(CODE, "optimizer", "betas", "resolution", "augmentation", "clip", "average", "layer_decay"),
            assumed("as in the authors' code, models_mae.py", "objective.heads", "dropout", "drop_path", "position"),
            assumed("the class token goes along, and nothing is learned of it", "head"),
            assumed("as in the authors' code, util/lr_sched.py", "schedule"),
            *sources,
        ),
    )


def mae_b16_imagenet() -> Recipe:
    """``vitrail pretrain DATA --recipe mae-b16-imagenet``

    Hardware: 64 V100 GPUs (assumed). Accuracy: 83.57 +- 0.08 % on ImageNet, fine-tuned (unverified).
    """
    result = Result(83.57, "ImageNet", 0.08, "fine-tuned")
    length = assumed("as the authors' FINETUNE.md says of the weights that it starts from", "duration")
    return _pretrained("mae-b16-imagenet", "ViT-B/16", 1600, result, length, unverified(README, "reported"))


def mae_l16_imagenet() -> Recipe:
    """``vitrail pretrain DATA --recipe mae-l16-imagenet``

    Hardware: 64 V100 GPUs (assumed). Accuracy: 85.4 % on ImageNet, fine-tuned (unverified).
    """
    source = unverified("table 1d, as the authors' PRETRAIN.md quotes it", "reported")
    result = Result(85.4, "ImageNet", how="fine-tuned")
    length = assumed("as in the authors' code, PRETRAIN.md", "duration")
    return _pretrained("mae-l16-imagenet", "ViT-L/16", 800, result, length, source)


def mae_b16_imagenet_to_imagenet() -> Recipe:
    """``vitrail finetune DATA --weights RUN --method full --resolution 224 --batch-size 1024 --epochs 100 --set
    optimizer=adamw --set betas=0.9,0.999 --set learning_rate=0.002 --set schedule=cosine --set warmup=6250 --set
    weight_decay=0.05 --set layer_decay=0.65 --set clip=0 --set average=0 --set smallest_crop=0.08 --set flip=0.5
    --set operations=2 --set magnitude=0.9 --set erase=0.25 --set mixup=0.8 --set cutmix=1 --set mixing=1``

    Hardware: 32 V100 GPUs (assumed). Accuracy: 83.57 +- 0.08 % on ImageNet (unverified).
    """
    config = _vit("ViT-B/16", 1000)
    return Recipe(
        name="mae-b16-imagenet-to-imagenet",
        makes="finetune",
        paper=PAPER,
        where="section 4",
        variant="ViT-B/16",
        architecture=replace(
            config,
            encoder=replace(config.encoder, drop_path=0.1),
            head=HeadConfig(("mean",), norm="pooled", classes=1000),
        ),
        objective=Learned("supervised"),
        data=IMAGENET,
        start="mae-b16-imagenet",
        batch_size=1024,
        duration=Span(100, "epochs"),
        optimizer="adamw",
        betas=(0.9, 0.999),
        learning_rate=5e-4 * 1024 / 256,
        scaling="linear",
        schedule="cosine",
        warmup=Span(5, "epochs"),
        weight_decay=0.05,
        layer_decay=0.65,
        label_smoothing=0.1,
        views=Views(smallest_crop=0.08, operations=2, magnitude=0.9, erase=0.25, mixup=0.8, cutmix=1.0, mixing=1.0),
        hardware="32 V100 GPUs",
        reported=(Result(83.57, "ImageNet", 0.08),),
        sources=(
            stated("2010.11929, table 1", "variant"),
            stated("2010.11929, section 4.1: its size", "data"),
            assumed(
                "as in the authors' code, FINETUNE.md",
                *("batch_size", "duration", "learning_rate", "scaling", "layer_decay", "weight_decay", "drop_path"),
                *("mixup", "cutmix", "head", "hardware", "objective", "start"),
            ),
            assumed(
                "as in the authors' code, main_finetune.py",
                *("optimizer", "warmup", "label_smoothing", "mixing", "clip", "average", "resolution"),
            ),
            assumed("AdamW's defaults, which the authors' code leaves as they are", "betas"),
            assumed(
                "RandAugment and erasing as in main_finetune.py, its magnitude without deviation; usual crops",
                "augmentation",
            ),
            assumed("as pretrained; the authors' code goes on to learn them from there", "position"),
            assumed("as in the authors' code, util/lr_sched.py", "schedule"),
            assumed("as while pretraining", "dropout"),
            CLASSES,
            unverified(README, "reported"),
        ),
    )


RESULTS: tuple[Callable[[], Recipe], ...] = (mae_b16_imagenet, mae_l16_imagenet, mae_b16_imagenet_to_imagenet)
