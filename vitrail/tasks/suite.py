"""A published benchmark set -> a table of pictures that every command takes."""

from __future__ import annotations

import os
import shutil
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vitrail.atomic import refuse_existing, refuse_unwritable
from vitrail.data.listing import extension
from vitrail.data.suites import WRITTEN, read_suite
from vitrail.data.table import write_table
from vitrail.errors import UserError


@dataclass(frozen=True)
class Suite:
    """What was written."""

    out: Path
    classes: int
    train: int
    val: int
    """Pictures that a model is judged by."""

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON values."""
        return {"out": str(self.out), "classes": self.classes, "train": self.train, "val": self.val}


def suite(name: str, folder: str | Path, out: str | Path) -> Suite:
    """Check a set against its lists, and write them as a CSV of path, label, split.

    Args:
        name: ``imagenet``, ``cifar10``, ``cifar100``, ``pets``, ``flowers102``, ``vtab-1k`` or ``vtab-1k-search``.
        folder: where the set was unpacked, as its authors lay it out.
        out: the CSV; pictures that are in no files of their own go into a folder beside it, named after it.

    Raises:
        UserError: ``out`` does not end in .csv, is there already or cannot be written, the folder does not hold
            that set, or labels and files do not fit.
    """
    path = Path(out)
    if extension(path.name) != ".csv":
        raise UserError(f"{path} does not end in .csv, by which commands know a table: name it so, as in {name}.csv.")
    if os.path.isdir(path):
        raise UserError(f"{path} is a folder: name a file to write.")
    refuse_existing(path)
    pictures = path.absolute().with_suffix("")
    if name in WRITTEN and os.path.lexists(pictures):  # which may be the set itself, so nothing says to remove it
        raise UserError(f"The pictures would go into {pictures}, which is there already: give {path} another name.")
    refuse_unwritable(path)
    rows = read_suite(name, folder, pictures)
    try:
        write_table(rows, path)
    except BaseException:
        if name in WRITTEN:
            shutil.rmtree(pictures, ignore_errors=True)  # it was not there before
        raise
    parts = Counter(row.split for row in rows)
    return Suite(path, len({row.label for row in rows}), parts["train"], parts["val"])
