"""``vitrail report``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from vitrail.cli.options import Quiet


def report(
    run: Annotated[Path, typer.Argument(help="A run folder, as finetune --out made it.")],
    quiet: Quiet = False,
) -> None:
    """Write a run's report.html again: one page that needs nothing but itself. Prints where it is."""
    from vitrail.report.terminal import Show
    from vitrail.tasks.report import write_report

    print(write_report(run, Show(quiet)))
