"""ReaL: all the right labels of ImageNet's validation pictures, given anew by people (Beyer et al., 2006.07159)."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from vitrail.errors import UserError
from vitrail.evaluate.metrics import Interval, wilson

AGREE = 0.5
"""Share of the pictures with labels that must have their folder's among them; of the right file nearly all do."""
Labels = Mapping[int, frozenset[int]]
"""The number of a picture -> the positions of its right classes."""


@dataclass(frozen=True)
class Real:
    """How many pictures were given one of their right labels."""

    accuracy: float
    interval: Interval
    """95 %, Wilson."""
    images: int
    """With at least one right label; the others say nothing."""


def read_real(path: str | Path, pictures: Sequence[Path], labels: Sequence[int], classes: int) -> list[frozenset[int]]:
    """The right labels of each picture, found by the number that its file's name ends with; empty: it has none.

    Args:
        path: JSON: a list of lists, the first of them of picture 1 (the published file), or names of files -> lists.
        labels: those of the pictures' folders, to see whether the file is of this set.
        classes: of the model.

    Raises:
        UserError: the file is no such list, has no entry for a picture, or is of another set.
    """
    known = _parsed(Path(path), classes)
    found = []
    for picture in pictures:
        number = _number(picture.name)
        if number not in known:
            raise UserError(
                f"{path} has no entry for {picture.name}: it holds those of {len(known):,} pictures, found by the "
                "number that a name ends with; take the file that belongs to these pictures."
            )
        found.append(known[number])
    counted = [(label, own) for label, own in zip(labels, found, strict=True) if own]
    agreed = sum(label in own for label, own in counted)
    if agreed < AGREE * len(counted) or not counted:
        raise UserError(
            f"{path} agrees with the folders of {agreed} of {len(counted)} pictures, so it is of another set: take the "
            "file that belongs to these pictures."
        )
    return found


def real_accuracy(answers: Sequence[int], right: Sequence[frozenset[int]]) -> Real:
    """Of answers (n,) to pictures of which some have right labels.

    Raises:
        UserError: none has.
    """
    counted = [answer in own for answer, own in zip(answers, right, strict=True) if own]
    if not counted:
        raise UserError("None of the pictures that can be read has a ReaL label.")
    return Real(sum(counted) / len(counted), wilson(sum(counted), len(counted)), len(counted))


def _parsed(path: Path, classes: int) -> dict[int | None, frozenset[int]]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"The ReaL file {path} cannot be read ({error}): take the published one.") from None
    rows = dict(enumerate(content, 1)) if isinstance(content, list) else content
    if not isinstance(rows, dict) or not all(_is_labels(row) for row in rows.values()):
        raise UserError(f"{path} is no list with a list of class numbers for each picture: take the published file.")
    found = {_number(str(name)): frozenset(row) for name, row in rows.items()}
    if most := max((label for row in found.values() for label in row if label >= classes), default=None):
        raise UserError(f"{path} has the class number {most}, and the model {classes} classes: it is of another set.")
    return found


def _is_labels(row: object) -> bool:
    return isinstance(row, list) and all(type(label) is int and label >= 0 for label in row)


def _number(name: str) -> int | None:
    """What a name without its extension ends with."""
    digits = re.search(r"(\d+)(?:\.\w+)?$", name)
    return int(digits[1]) if digits else None
