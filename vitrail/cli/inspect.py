"""``vitrail inspect``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from vitrail.cli.options import Architecture, Device, Heads, Json, Quiet, print_json


def inspect(
    model: Annotated[
        str,
        typer.Argument(help="A run folder, any model that finetune's --weights takes, or R50 for an untrained CNN."),
    ],
    images: Annotated[
        list[str] | None,
        typer.Argument(help="Files, folders, a CSV or a built-in set; without any, only what needs no pictures."),
    ] = None,
    out: Annotated[Path, typer.Option(help="The folder to make.")] = Path("inspection"),
    part: Annotated[
        list[str] | None,
        typer.Option(help="One part, such as attention-distance, and again for more; by default all there are."),
    ] = None,
    resolution: Annotated[
        str | None, typer.Option(help="Pixels, 224 or 224x168; by default what the model is fed.")
    ] = None,
    layer: Annotated[
        int | None, typer.Option(help="Layer, from 1, whose attention maps are shown; by default the last.")
    ] = None,
    limit: Annotated[
        int, typer.Option(min=1, help="Statistics are over at most so many pictures, evenly chosen.")
    ] = 200,
    shown: Annotated[int, typer.Option(min=1, help="Pictures whose attention is shown.")] = 6,
    heads: Heads = None,
    architecture: Architecture = None,
    device: Device = None,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """See what a model learned: where it attends and how far, what its positions say, how local it is, what it costs.

    The folder holds inspect.html to look at, figures as PNG and SVG, and numbers as Parquet and JSON. Exit
    code 1 if any picture could not be read.
    """
    from vitrail.report.terminal import Show
    from vitrail.tasks import inspection as task
    from vitrail.tasks.inspection_folder import write_inspection

    found = task.inspect(
        model,
        images or [],
        resolution=resolution,
        layer=layer,
        limit=limit,
        shown=shown,
        heads=heads,
        architecture=architecture,
        device=device,
        quiet=quiet,
    )
    result = write_inspection(found, out, part or [])
    if as_json:
        print_json(result.to_dict())
    else:
        Show(out=True).facts(result.rows())
    for path, reason in result.unreadable:
        print(f"{path}: not read: {reason}", file=sys.stderr)
    if result.unreadable:
        raise typer.Exit(1)
