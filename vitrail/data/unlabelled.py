"""What the user names (a folder of any shape, a CSV, a built-in set) -> pictures to learn from without labels."""

from __future__ import annotations

import os
from pathlib import Path

from vitrail.data.builtin import BUILTIN, materialise
from vitrail.data.listing import entries, extension
from vitrail.data.sources import HELD_OUT, TRAINED, find_images
from vitrail.data.table import read_table
from vitrail.errors import UserError


def open_unlabelled(source: str | Path) -> tuple[list[Path], str]:
    """The pictures in and below ``source``, and which they are; those held out for judging are left alone.

    Args:
        source: a folder, of which train/ alone is taken where there is a val/ (validation/, valid/, test/)
            beside it; a CSV with a column path, of which the rows of the split train are taken where there
            is such a column; a picture; or a built-in name.

    Raises:
        UserError: there is no such thing, or no picture in it.
    """
    if not str(source).strip():
        raise UserError("No data are named: give a folder of pictures, a CSV file, or a built-in set.")
    path = Path(source)
    if not os.path.lexists(path) and str(source) in BUILTIN:
        path = materialise(str(source))
    if extension(path.name) == ".csv" and os.path.isfile(path):
        found, which = _rows(path)
    elif os.path.isdir(path) and (part := _trained(path)):
        found, which = find_images([path / part]), f"those in {part}/; the held-out ones are left alone"
    else:
        found, which = find_images([path]), f"all in {source}"
    for picture in found:
        try:
            str(picture).encode()
        except UnicodeEncodeError as error:
            raise UserError(f"The name of {os.fsencode(picture)!r} is not UTF-8: rename it.") from error
    return found, which


def _trained(root: Path) -> str | None:
    """The name of the folder to train on, if there is one to hold out as well."""
    known = {name.lower(): name for name, is_folder in entries(root) if is_folder}
    if not any(name in known for name in HELD_OUT):
        return None
    return next((known[name] for name in TRAINED if name in known), None)


def _rows(path: Path) -> tuple[list[Path], str]:
    rows = read_table(path, labelled=False)
    trained = [row.path for row in rows if row.split in TRAINED]
    if any(row.split for row in rows):
        if not trained:
            raise UserError(f"{path} has no rows of the split train: write train in that column, or remove the column.")
        return trained, "the rows of the split train"
    if not rows:
        raise UserError(f"{path} lists no pictures: add a line with a path for each.")
    return [row.path for row in rows], f"all in {path.name}"
