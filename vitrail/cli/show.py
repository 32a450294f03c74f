"""``vitrail show``."""

from __future__ import annotations

from typing import Annotated

import typer

from vitrail.cli.options import Architecture, Heads, Json, Quiet, print_json


def show(
    model: Annotated[
        str, typer.Argument(help="Any model that finetune's --weights takes, or an architecture such as ViT-B/16.")
    ],
    resolution: Annotated[
        str | None, typer.Option(help="Pixels, 224 or 224x168; by default what the model is fed.")
    ] = None,
    heads: Heads = None,
    architecture: Architecture = None,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Say what a model is: layers, tokens, cost, preprocessing, provenance, and what became of every tensor."""
    from vitrail.report.terminal import Show
    from vitrail.tasks import show as task

    result = task.show(model, resolution=resolution, heads=heads, architecture=architecture, quiet=quiet)
    if as_json:
        print_json(result.to_dict())
    else:
        Show(out=True).facts(result.rows())
