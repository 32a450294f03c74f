"""``vitrail parity``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from vitrail.cli.options import Architecture, Heads, Json, print_json


def parity(
    a: Annotated[str, typer.Argument(help="Any model that finetune's --weights takes.")],
    b: Annotated[
        str,
        typer.Argument(help="Another, or timm, transformers or torchvision: the same model as that library runs it."),
    ],
    images: Annotated[
        Path | None, typer.Option(help="A picture, or a folder of them; by default two images of noise.")
    ] = None,
    resolution: Annotated[str | None, typer.Option(help="Pixels, 224 or 224x168; by default what A is fed.")] = None,
    heads: Heads = None,
    architecture: Architecture = None,
    double: Annotated[bool, typer.Option("--double", help="Compute in float64.")] = False,
    as_json: Json = False,
) -> None:
    """Compare two models layer by layer on the same images: ||a - b|| / ||b|| of every block, features and logits."""
    from vitrail.report.terminal import Show
    from vitrail.tasks import parity as task

    result = task.parity(a, b, images, resolution=resolution, heads=heads, architecture=architecture, double=double)
    if as_json:
        print_json(result.to_dict())
        return
    rows = [[entry.where, f"{entry.relative:.1e}", f"{entry.largest:.1e}"] for entry in result.differences]
    show = Show(out=True)
    show.table(["at", "||a - b|| / ||b||", "max |a - b|"], rows)
    verdict = f"They part at {result.parts_at}." if result.parts_at else "They are the same but for rounding."
    show.say(f"{result.images} images in {result.precision}: a is {result.a}, b is {result.b}. {verdict}")
