"""``vitrail few-shot``."""

from __future__ import annotations

from typing import Annotated

import typer

from vitrail.cli.options import Architecture, BatchSize, Device, Json, Quiet, print_json


def few_shot(
    model: Annotated[str, typer.Argument(help="A run folder, or any model that finetune's --weights takes.")],
    data: Annotated[str, typer.Argument(help="Labelled pictures, as for finetune.")],
    shots: Annotated[
        list[int] | None, typer.Option(min=1, help="Pictures of each class to learn from; again for more.")
    ] = None,
    seeds: Annotated[int, typer.Option(min=1, help="How often they are drawn.")] = 5,
    resolution: Annotated[str | None, typer.Option(help="Pixels a side, or HEIGHTxWIDTH.")] = None,
    architecture: Architecture = None,
    batch_size: BatchSize = 32,
    device: Device = None,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Say how well a frozen model tells classes apart after a few pictures of each, by least squares."""
    from vitrail.report.terminal import Show, percent
    from vitrail.tasks.few_shot import SHOTS
    from vitrail.tasks.few_shot import few_shot as task

    found = task(
        model,
        data,
        shots or SHOTS,
        seeds,
        resolution=resolution,
        architecture=architecture,
        batch_size=batch_size,
        device=device,
        quiet=quiet,
    )
    if as_json:
        print_json(found.to_dict())
        return
    rows = []
    for row in found.rows:
        reach = row.interval[1] - row.accuracy
        rows.append([str(row.shots), percent(row.accuracy), "" if seeds < 2 else f"± {100 * reach:.1f}"])
    show = Show(out=True)
    show.table(["shots a class", "accuracy", f"95 %, {seeds} draws"], rows)
    show.facts([("classes", f"{found.classes:,}"), ("judged by", f"{found.judged:,} held-out pictures")])
