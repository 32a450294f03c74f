"""A published benchmark set -> a table of pictures that every command takes."""

from __future__ import annotations

import shutil
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vitrail.atomic import refuse_existing
from vitrail.data.suites import read_suite
from vitrail.data.table import write_table


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
        UserError: the folder does not hold that set, labels and files do not fit, or ``out`` is there already.
    """
    path = Path(out)
    pictures = path.absolute().with_suffix("")
    for place in (path, pictures):
        refuse_existing(place)
    try:
        rows = read_suite(name, folder, pictures)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_table(rows, path)
    except BaseException:
        shutil.rmtree(pictures, ignore_errors=True)  # it was not there before
        raise
    parts = Counter(row.split for row in rows)
    return Suite(path, len({row.label for row in rows}), parts["train"], parts["val"])
