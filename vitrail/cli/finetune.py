"""``vitrail finetune``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, get_args

import typer

from vitrail.cli.options import BatchSize, Device, Json, Quiet, print_json
from vitrail.config import Resampling
from vitrail.errors import UserError


def finetune(
    data: Annotated[
        str,
        typer.Argument(
            help="Labelled pictures: a folder of {train,val}/<class>/ or of <class>/, a CSV with the columns path and "
            "label (and split), or a built-in set: mnist-5k, digits."
        ),
    ],
    out: Annotated[Path, typer.Option(help="The run folder to make.")],
    weights: Annotated[
        str,
        typer.Option(
            help="Pretrained weights: a short name (dinov2-small, vit-base-patch16-224, saliency-s14), a hub id, a "
            "Vitrail, Hugging Face or timm folder or file, or none for random ones."
        ),
    ] = "dinov2-small",
    architecture: Annotated[
        str | None,
        typer.Option(help="What a bare state dict is (vit_base_patch16_224), or none (ViT-S/16)."),
    ] = None,
    method: Annotated[
        str,
        typer.Option(
            help="probe: a linear classifier on the model's features; full: then train the model too; layers:K: its "
            "top K layers; auto: probe or full, as the photos and this machine suggest."
        ),
    ] = "auto",
    epochs: Annotated[int | None, typer.Option(min=1, help="How often each photo is trained on.")] = None,
    resolution: Annotated[
        str | None,
        typer.Option(help="Pixels, 224 or 224x168 (height x width); by default the weights' usual."),
    ] = None,
    resampling: Annotated[
        Resampling,
        typer.Option(
            metavar="WAY", help=f"How positions are taken to another grid: {', '.join(get_args(Resampling))}."
        ),
    ] = "bicubic-corner",
    val_fraction: Annotated[float, typer.Option(help="Share of each class held out, if not yet split.")] = 0.2,
    seed: Annotated[int, typer.Option(help="The same seed, the same result.")] = 0,
    max_unreadable: Annotated[float, typer.Option(help="Stop if more than this share cannot be read.")] = 0.1,
    tuning: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="NAME=NUMBER", help="A training setting, such as learning_rate=5e-5 or mixup=0."),
    ] = None,
    tensorboard: Annotated[Path | None, typer.Option(help="A folder for TensorBoard's curves while training.")] = None,
    batch_size: BatchSize = 32,
    device: Device = None,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Train a classifier of your pictures from a pretrained Vision Transformer.

    Its features of each picture are computed once and kept. The run folder is a model that evaluate,
    predict and embed take.
    """
    from vitrail.tasks import finetune as task

    result = task.finetune(
        data,
        out,
        weights=weights,
        architecture=architecture,
        method=method,
        epochs=epochs,
        resolution=resolution,
        resampling=resampling,
        val_fraction=val_fraction,
        seed=seed,
        batch_size=batch_size,
        device=device,
        max_unreadable=max_unreadable,
        tensorboard=tensorboard,
        tuning=_numbers(tuning or []),
        quiet=quiet,
    )
    if as_json:
        print_json(result.to_dict())
    elif quiet:
        print(f"{100 * result.evaluation.top1:.1f} % on {result.evaluation.images} held-out pictures: {result.folder}")


def _numbers(words: list[str]) -> dict[str, float]:
    """``["mixup=0"]`` -> ``{"mixup": 0.0}``."""
    numbers: dict[str, float] = {}
    for word in words:
        name, _, value = word.partition("=")
        try:
            numbers[name] = int(value) if value.isdigit() else float(value)
        except ValueError:
            raise UserError(f"{word!r} should be NAME=NUMBER, such as learning_rate=5e-5.") from None
    return numbers
