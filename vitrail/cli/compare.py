"""``vitrail compare``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from vitrail.cli.options import Json, Quiet, print_json


def compare(
    data: Annotated[str, typer.Argument(help="Labelled pictures, as for finetune.")],
    out: Annotated[Path, typer.Option(help="The folder of results; finished trainings in it are not made again.")],
    model: Annotated[
        list[str] | None,
        typer.Option(
            help="Pretrained weights, or a variant such as R50 or ViT-S/16 from random weights; again for each. "
            "By default a ViT, dinov2-small, and a CNN, timm/resnetv2_50x1_bit.goog_in21k."
        ),
    ] = None,
    method: Annotated[
        list[str] | None, typer.Option(help="probe, full, layers:K or lora; again for each. By default probe and full.")
    ] = None,
    folds: Annotated[int, typer.Option(min=2, help="Each is left out once and judged.")] = 5,
    minutes: Annotated[float, typer.Option(help="Of each training of the model itself.")] = 10.0,
    resolution: Annotated[int | None, typer.Option(min=1, help="Pixels a side, the same for all.")] = None,
    seed: Annotated[int, typer.Option(help="The same seed, the same folds.")] = 0,
    page: Annotated[Path | None, typer.Option(help="A page whose section on these pictures is written too.")] = None,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Say which model to use on your pictures, a ViT or a CNN: cross-validated, with the same budget."""
    from vitrail.tasks.compare import METHODS, MODELS
    from vitrail.tasks.compare import compare as task

    result = task(data, out, model or MODELS, method or METHODS, folds, minutes, resolution, seed, quiet, page)
    if as_json:
        print_json(result.to_dict())
