"""``vitrail finetune``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, get_args

import typer

from vitrail.cli.options import BatchSize, Device, Json, Quiet, print_json
from vitrail.config import Resampling


def finetune(
    data: Annotated[
        str,
        typer.Argument(
            help="Labelled pictures: a folder of {train,val}/<class>/ or of <class>/, a CSV with the columns path and "
            "label (and split), or a built-in set: mnist-5k, digits."
        ),
    ],
    out: Annotated[Path, typer.Option(help="The run folder to make; it must not exist yet.")],
    weights: Annotated[
        str,
        typer.Option(
            help="Pretrained weights: a short name (dinov2-small, vit-base-patch16-224, saliency-s14), a hub id, a "
            "Vitrail, Hugging Face or timm folder or file, or none for random ones."
        ),
    ] = "dinov2-small",
    architecture: Annotated[
        str | None,
        typer.Option(help="What a bare state dict is (vit_base_patch16_224), or which model none means (ViT-S/16)."),
    ] = None,
    resolution: Annotated[
        str | None,
        typer.Option(help="Pixels, 224 or 224x168 (height x width); by default what the weights are usually fed."),
    ] = None,
    resampling: Annotated[
        Resampling,
        typer.Option(
            metavar="WAY", help=f"How positions are taken to another grid: {', '.join(get_args(Resampling))}."
        ),
    ] = "bicubic-corner",
    val_fraction: Annotated[
        float, typer.Option(help="Share of each class held out, where the data have no split of their own.")
    ] = 0.2,
    seed: Annotated[int, typer.Option(help="Decides the split and the folds; the same seed, the same result.")] = 0,
    max_unreadable: Annotated[
        float, typer.Option(help="Stop if more than this share of the pictures cannot be read.")
    ] = 0.1,
    batch_size: BatchSize = 32,
    device: Device = None,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Train a classifier of your pictures on top of a pretrained Vision Transformer.

    The model itself stays as it is: its features of each picture are computed once and kept, and a
    regularised linear classifier is fitted to them, everything chosen by cross-validation. The run
    folder is a model that evaluate, predict and embed take.
    """
    from vitrail.tasks import finetune as task

    result = task.finetune(
        data,
        out,
        weights=weights,
        architecture=architecture,
        resolution=resolution,
        resampling=resampling,
        val_fraction=val_fraction,
        seed=seed,
        batch_size=batch_size,
        device=device,
        max_unreadable=max_unreadable,
        quiet=quiet,
    )
    if as_json:
        print_json(result.to_dict())
    elif quiet:
        print(f"{100 * result.evaluation.top1:.1f} % on {result.evaluation.images} held-out pictures: {result.folder}")
