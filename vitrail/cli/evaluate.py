"""``vitrail evaluate``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from vitrail.cli.options import BatchSize, Device, Json, Quiet, Runtime, print_json


def evaluate(
    model: Annotated[str, typer.Argument(help="A run folder, or any model that finetune's --weights takes.")],
    data: Annotated[
        str,
        typer.Argument(
            help="Labelled pictures: a folder of <class>/, a folder with val/ in it, a CSV, or a built-in set."
        ),
    ],
    batch_size: BatchSize = 32,
    device: Device = None,
    runtime: Runtime = None,
    real: Annotated[Path | None, typer.Option(help="ReaL's JSON of right labels, to judge by those too.")] = None,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Measure a classifier on labelled pictures: accuracy with its interval, per class, calibration, speed."""
    from vitrail.report.terminal import Show, interval, percent, show_evaluation
    from vitrail.tasks.classifier import load

    result = load(model, device=device, runtime=runtime, quiet=quiet).evaluate(data, batch_size, quiet, real)
    if as_json:
        print_json(result.to_dict())
    else:
        show = Show(out=True)
        show_evaluation(show, result.evaluation, result.unreadable, result.images_per_second)
        if result.real is not None:
            found = f"{percent(result.real.accuracy)} of {result.real.images}"
            show.facts([("by ReaL labels", f"{found} (95 % interval {interval(result.real.interval)})")])
