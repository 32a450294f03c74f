"""``vitrail embed``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from vitrail.cli.options import BatchSize, Device, Json, Quiet, Runtime, print_json


def embed(
    model: Annotated[str, typer.Argument(help="A run folder, or any model that finetune's --weights takes.")],
    pictures: Annotated[list[Path], typer.Argument(help="Files, and folders to take all pictures from.")],
    out: Annotated[
        Path,
        typer.Option(help="The file to write: .npz (arrays paths, features) or .parquet (columns path, features)."),
    ],
    batch_size: BatchSize = 32,
    device: Device = None,
    runtime: Runtime = None,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Write the features of pictures, which the classifier sees, to a file; exit code 1 if any could not be read."""
    from vitrail.tasks import embedding as task

    result = task.embed(model, pictures, out, batch_size=batch_size, device=device, runtime=runtime, quiet=quiet)
    if as_json:
        print_json(result.to_dict())
    else:
        print(f"{result.images} x {result.width} features: {result.out}")
    for path, reason in result.unreadable:
        print(f"{path}: not read: {reason}", file=sys.stderr)
    if result.unreadable:
        raise typer.Exit(1)
