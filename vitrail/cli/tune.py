"""``vitrail tune``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from vitrail.cli.options import Json, Quiet, print_json


def tune(
    model: Annotated[str, typer.Argument(help="A run folder or a model folder; what is found is written into it.")],
    data: Annotated[
        str, typer.Option(help="Labelled pictures it was not trained on: a folder of <class>/, one with val/, a CSV.")
    ],
    max_loss: Annotated[float, typer.Option(min=0, help="Points of accuracy that may be lost.")] = 0.3,
    minutes: Annotated[float, typer.Option(help="After which nothing new is begun.")] = 10.0,
    merging: Annotated[bool, typer.Option(help="Whether tokens may be merged.")] = True,
    out: Annotated[Path | None, typer.Option(help="Where the figure goes; by default into the model's folder.")] = None,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Find the fastest way to run a model here that keeps its accuracy; whatever runs it then takes that."""
    from vitrail.tasks.tune import tune as task

    result = task(model, data, max_loss, minutes, merging, out, quiet)
    if as_json:
        print_json(result.to_dict())
