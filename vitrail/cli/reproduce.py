"""``vitrail reproduce``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from vitrail.cli.options import Quiet
from vitrail.errors import UserError


def reproduce(
    name: Annotated[str, typer.Argument(help="An experiment, such as position-embeddings; ? lists all.")],
    data: Annotated[
        Path | None, typer.Option(help="A folder of {train,test}/<class>/ or {train,val}/<class>/.")
    ] = None,
    out: Annotated[Path, typer.Option(help="The folder of results; finished runs in it are not made again.")] = Path(
        "evidence"
    ),
    scale: Annotated[
        Literal["small", "medium", "paper"],
        typer.Option(help="How large: for two cores, an accelerator, as published."),
    ] = "small",
    page: Annotated[Path | None, typer.Option(help="A page whose section on it is written too.")] = None,
    processes: Annotated[int, typer.Option(min=1, help="Runs made at a time.")] = 1,
    quiet: Quiet = False,
) -> None:
    """Make one of the article's experiments: a grid of runs, a table, a figure, a verdict."""
    from vitrail.experiments import index

    if name == "?":
        print("\n".join(index.EXPERIMENTS))
        return
    if data is None:
        raise UserError("No pictures are named: say --data and a folder of {train,test}/<class>/.")
    found = index.reproduce(name, data, out, scale, page, processes, quiet)
    if quiet:
        for verdict in found.verdicts:
            print(f"{verdict.claim}: {verdict.word}")
        for note in found.notes:
            print(note)
