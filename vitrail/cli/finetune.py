"""``vitrail finetune``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, get_args

import typer

from vitrail.cli.options import Device, Json, Quiet, assignments, print_json
from vitrail.config import Resampling, parse_size
from vitrail.errors import UserError
from vitrail.settings import FinetuneSettings

WEIGHTS = FinetuneSettings.weights


def finetune(
    data: Annotated[
        str,
        typer.Argument(
            help="Labelled pictures: a folder of {train,val}/<class>/ or of <class>/, a CSV with the columns path and "
            "label (and split), or a built-in set: mnist-5k, digits.",
            show_default=False,
        ),
    ] = "",
    out: Annotated[Path | None, typer.Option(help="The run folder to make.")] = None,
    resume: Annotated[
        Path | None, typer.Option(metavar="RUN", help="A run that was interrupted in training: go on.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show plan, memory and measured time alone.")] = False,
    profile: Annotated[
        Path | None,
        typer.Option(metavar="TRACE", help="That, and where a step's time goes; its trace."),
    ] = None,
    weights: Annotated[
        str,
        typer.Option(
            help="Pretrained weights: dinov2-small, saliency-s14, a hub id, a folder or file of Vitrail, Hugging Face "
            "or timm, or none."
        ),
    ] = WEIGHTS,
    architecture: Annotated[
        str | None,
        typer.Option(help="What a bare state dict is: vit_base_patch16_224."),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(help="A model with random weights: ViT-S/16, R50, ..."),
    ] = None,
    method: Annotated[
        str,
        typer.Option(
            help="probe: a linear classifier on the features; full: then train the model too; layers:K: its top K "
            "layers; lora, lora:R: low-rank updates; knn: only measure; auto: probe or full."
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
            metavar="WAY", help=f"How positions are taken to another grid: {', '.join(get_args(Resampling)[:6])}."
        ),
    ] = "bicubic-corner",
    val_fraction: Annotated[float, typer.Option(help="Share of each class held out, if not yet split.")] = 0.2,
    seed: Annotated[int, typer.Option(help="The same seed, the same result.")] = 0,
    max_unreadable: Annotated[float, typer.Option(help="Stop if more than this share cannot be read.")] = 0.1,
    tuning: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="NAME=VALUE", help="A training setting, such as optimizer=sgd."),
    ] = None,
    tensorboard: Annotated[Path | None, typer.Option(help="A folder for TensorBoard's curves.")] = None,
    batch_size: Annotated[
        int, typer.Option(min=1, help="Pictures of a training step, and run through the model at a time.")
    ] = 32,
    device: Device = None,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Train a classifier of your pictures from a pretrained Vision Transformer.

    Its features of each picture are computed once and kept. The run folder is a
    model that evaluate, predict and embed take.
    """
    if model is not None:
        if architecture is not None or weights != WEIGHTS:
            raise UserError("--model names a model with random weights: leave out --weights and --architecture.")
        weights, architecture = "none", model
    settings = FinetuneSettings(
        data=data,
        weights=weights,
        architecture=architecture,
        method=method,
        epochs=epochs,
        resolution=None if resolution is None else parse_size(resolution),
        resampling=resampling,
        val_fraction=val_fraction,
        seed=seed,
        batch_size=batch_size,
        device=device,
        max_unreadable=max_unreadable,
        tensorboard=None if tensorboard is None else str(tensorboard),
        tuning=assignments(tuning or []),
    )
    if resume is not None and (out is not None or dry_run or profile is not None):
        raise UserError(f"--resume goes on in {resume}: leave out --out, --dry-run and --profile.")
    if resume is None and not data:
        raise UserError("No data are named: give a folder, a CSV file or a built-in set, or --resume RUN.")
    if dry_run or profile is not None:
        from vitrail.tasks.dry_run import plan

        planned = plan(settings, quiet, profile)
        if as_json:
            print_json(planned.to_dict())
        elif quiet:
            print(planned.summary())
        return
    from vitrail.tasks import finetune as task

    if resume is not None:
        result = task.resume(resume, settings, quiet)
    elif out is not None:
        result = task.run(settings, out, quiet)
    else:
        raise UserError("No run folder is named: give --out RUN, a folder to make.")
    if as_json:
        print_json(result.to_dict())
    elif quiet:
        print(f"{100 * result.evaluation.top1:.1f} % on {result.evaluation.images} held-out pictures: {result.folder}")
