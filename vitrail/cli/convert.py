"""``vitrail convert``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from vitrail.cli.options import Architecture, Heads, Json, Quiet, print_json


def convert(
    model: Annotated[str, typer.Argument(help="Any model that finetune's --weights takes.")],
    out: Annotated[
        Path,
        typer.Argument(help="The folder to make; for google a .npz file, for torchvision a .safetensors file."),
    ],
    to: Annotated[str, typer.Option(help="Whose words: google, timm, huggingface, torchvision, vitrail.")],
    resolution: Annotated[
        str | None, typer.Option(help="Pixels, 224 or 224x168; by default what the source is fed.")
    ] = None,
    patch: Annotated[str | None, typer.Option(help="Another patch size, to which the kernel is resampled.")] = None,
    heads: Heads = None,
    architecture: Architecture = None,
    drop_head: Annotated[bool, typer.Option("--drop-head", help="Leave out the classifier, and how it pools.")] = False,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Write a model in another library's words, and read it back to be sure.

    What decides its answers and has no word there is refused; what has none and does not is named.
    """
    from vitrail.tasks import convert as task

    result = task.convert(
        model,
        out,
        to,
        resolution=resolution,
        patch=patch,
        heads=heads,
        architecture=architecture,
        drop_head=drop_head,
        quiet=quiet,
    )
    if as_json:
        print_json(result.to_dict())
        return
    print(result.report.summary())
    print(f"{result.out}: written for {result.to}, read back, the same to the bit.")
    if result.lost:
        print(f"Not in it, for {result.to} has no words for them: {', '.join(result.lost)}.")
