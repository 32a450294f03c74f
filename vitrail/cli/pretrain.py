"""``vitrail pretrain``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from vitrail.cli.options import Device, Json, Quiet, assignments, print_json
from vitrail.config import Resampling
from vitrail.settings import OBJECTIVES


def pretrain(
    data: Annotated[
        str | None,
        typer.Argument(
            help="Any folder of pictures, a CSV with the column path, or a built-in set (mnist-5k, digits); to learn "
            "labels, what finetune takes."
        ),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="The run folder; one that was begun is gone on with.")] = None,
    objective: Annotated[
        str | None, typer.Option(metavar="NAME", help=f"What is learned: {', '.join(OBJECTIVES)}.")
    ] = None,
    resume: Annotated[
        Path | None, typer.Option(metavar="RUN", help="Go on with a run that was stopped; all settings are the run's.")
    ] = None,
    recipe: Annotated[
        str | None, typer.Option(help="A paper's settings by name (vitrail recipes lists them); options go before it.")
    ] = None,
    weights: Annotated[
        str | None, typer.Option(help="A model to go on from, as finetune's --weights; by default random weights.")
    ] = None,
    architecture: Annotated[
        str | None,
        typer.Option(
            "--architecture",
            "--model",
            help="A model such as ViT-S/16, R50 or EfficientNet-B0, or what a bare state dict in --weights is.",
        ),
    ] = None,
    layers: Annotated[int | None, typer.Option(min=1, help="Number of blocks.")] = None,
    width: Annotated[int | None, typer.Option(min=1, help="Numbers a token.")] = None,
    heads: Annotated[int | None, typer.Option(min=1, help="Attention heads.")] = None,
    patch: Annotated[int | None, typer.Option(min=1, help="Pixels a side of a patch.")] = None,
    resolution: Annotated[str | None, typer.Option(help="Pixels, 224 or 224x168 (height x width).")] = None,
    resampling: Annotated[
        Resampling | None, typer.Option(metavar="WAY", help="How the positions of --weights go to another resolution.")
    ] = None,
    stem: Annotated[
        str | None, typer.Option(metavar="UNITS", help="A ResNet before the patches (hybrid): 1-1, 3-4-9, 1-1x0.5.")
    ] = None,
    position: Annotated[
        str | None,
        typer.Option(
            metavar="KIND", help="none, learned-1d, relative-2d, rope-2d, ...; with a place, learned-1d:shared."
        ),
    ] = None,
    pool: Annotated[str | None, typer.Option(help="What labels are told from: class, mean or map.")] = None,
    dropout: Annotated[float | None, typer.Option(help="Of dense layers, while training.")] = None,
    drop_path: Annotated[float | None, typer.Option(help="Stochastic depth of the last block, while training.")] = None,
    epochs: Annotated[int | None, typer.Option(min=1, help="How often each picture is trained on.")] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="Optimiser steps, instead of epochs.")] = None,
    batch_size: Annotated[int | None, typer.Option(min=1, help="Pictures a step.")] = None,
    lr: Annotated[float | None, typer.Option(help="Learning rate at its highest, for this batch size.")] = None,
    tuning: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="NAME=VALUE",
            help="A setting of training (weight_decay=0.1, accumulate=4), of views (smallest_crop=0.3) or of the "
            "objective (hidden=0.6).",
        ),
    ] = None,
    val_fraction: Annotated[
        float | None, typer.Option(help="Share of each class held out, if labels are learned and not yet split.")
    ] = None,
    max_unreadable: Annotated[float | None, typer.Option(help="Stop if more than this share cannot be read.")] = None,
    seed: Annotated[int | None, typer.Option(help="The same seed, the same result.")] = None,
    workers: Annotated[
        int | None, typer.Option(min=0, help="Processes that prepare pictures; by default threads do.")
    ] = None,
    checkpoint_every: Annotated[
        int | None, typer.Option(min=1, help="Steps between checkpoints, besides one every ten minutes.")
    ] = None,
    memory: Annotated[
        float | None, typer.Option(help="Gigabytes that decoded pictures may take in memory; by default 2.")
    ] = None,
    tensorboard: Annotated[Path | None, typer.Option(help="A folder for TensorBoard's curves.")] = None,
    device: Device = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would be done and how long it takes here; write nothing.")
    ] = False,
    profile: Annotated[
        Path | None,
        typer.Option(metavar="TRACE", help="Say where the time of a step goes, write a trace (Perfetto); then stop."),
    ] = None,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Train a Vision Transformer or a CNN on your pictures, with or without labels.

    The run folder is a model that finetune takes as --weights. A run that was stopped goes on where it was.
    """
    from vitrail.tasks import pretrain as task

    result = task.pretrain(
        data,
        out,
        objective=objective,
        resume=resume,
        recipe=recipe,
        weights=weights,
        architecture=architecture,
        layers=layers,
        width=width,
        heads=heads,
        patch=patch,
        resolution=resolution,
        resampling=resampling,
        stem=stem,
        position=position,
        pool=pool,
        dropout=dropout,
        drop_path=drop_path,
        epochs=epochs,
        steps=steps,
        batch_size=batch_size,
        learning_rate=lr,
        tuning=assignments(tuning or []),
        val_fraction=val_fraction,
        max_unreadable=max_unreadable,
        seed=seed,
        workers=workers,
        checkpoint_every=checkpoint_every,
        memory=memory,
        tensorboard=tensorboard,
        device=device,
        dry_run=dry_run,
        profile=profile,
        quiet=quiet,
    )
    if result is None:
        return
    if as_json:
        print_json(result.to_dict())
    elif quiet:
        print(f"{result.steps} steps of {result.objective}: {result.folder}")
