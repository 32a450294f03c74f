"""``vitrail suite``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from vitrail.cli.options import Json, print_json


def suite(
    name: Annotated[
        str, typer.Argument(help="imagenet, cifar10, cifar100, pets, flowers102, vtab-1k or vtab-1k-search.")
    ],
    folder: Annotated[Path, typer.Argument(help="Where the set was unpacked, as its authors lay it out.")],
    out: Annotated[Path, typer.Option(help="The CSV to write, named so that it ends in .csv.")],
    as_json: Json = False,
) -> None:
    """Check a published benchmark set and write it as a CSV that finetune, evaluate and the others take."""
    from vitrail.report.terminal import Show
    from vitrail.tasks.suite import suite as task

    found = task(name, folder, out)
    if as_json:
        print_json(found.to_dict())
        return
    judged = [("evaluate", f"vitrail evaluate MODEL {found.out}")]
    learned = [
        ("learn", f"vitrail finetune {found.out} --out RUN"),
        ("few shots", f"vitrail few-shot MODEL {found.out}"),
    ]
    Show(out=True).facts(
        [
            ("classes", f"{found.classes:,}"),
            ("to learn from", f"{found.train:,}"),
            ("to be judged by", f"{found.val:,}"),
            ("written", str(found.out)),
            *(learned if found.train else ()),
            *judged,
        ]
    )
