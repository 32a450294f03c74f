"""CSV files that name pictures: columns path, label and, optionally, split."""

from __future__ import annotations

import csv
import os
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from vitrail.atomic import new_file
from vitrail.errors import UserError

COLUMNS = ("path", "label", "split")


class Row(NamedTuple):
    """One picture; ``split`` is empty where the file has no such column, ``label`` where none is needed."""

    path: Path
    label: str
    split: str = ""


def read_table(path: Path, labelled: bool = True) -> list[Row]:
    """Read a UTF-8 CSV (with or without a byte-order mark); paths are relative to its folder.

    A row that says again what an earlier one said is dropped.

    Args:
        labelled: whether there must be labels.

    Raises:
        UserError: not UTF-8, not a CSV, a column is missing, a cell is empty, a picture is not there or
            is listed with two labels or in two splits.
    """
    rows: dict[str, Row] = {}
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file, skipinitialspace=True)
            reader.fieldnames = [(name or "").strip().lower() for name in reader.fieldnames or ()]
            if lacking := ({"path", "label"} if labelled else {"path"}) - set(reader.fieldnames):
                raise UserError(
                    f"{path} lacks the column {min(lacking)!r}: its first line must name the columns path,label "
                    f"and optionally split, separated by commas; it says {','.join(reader.fieldnames)!r}."
                )
            for cells in reader:
                name, label, split = ((cells.get(column) or "").strip() for column in COLUMNS)
                if not name or (labelled and not label) or ("split" in reader.fieldnames and not split):
                    raise UserError(f"{path}, line {reader.line_num}, has an empty cell: fill it, or remove the line.")
                row = Row(path.parent / name, label, split.lower())
                if rows.setdefault(os.path.abspath(row.path), row)[1:] != row[1:]:
                    raise UserError(
                        f"{path}, line {reader.line_num}, lists {row.path} again with another label or split: "
                        "keep one of the lines."
                    )
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text: save it as CSV UTF-8.") from error
    except csv.Error as error:
        raise UserError(f"{path} is not a CSV file ({error}): save it as comma-separated text.") from error
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}): check its permissions.") from error
    if missing := [row.path for row in rows.values() if not os.path.lexists(row.path)]:
        raise UserError(
            f"{path} names pictures that are not there ({len(missing)}), such as {', '.join(map(str, missing[:3]))}: "
            f"paths are relative to {path.parent}; correct them or remove the lines."
        )
    return list(rows.values())


class Extra(NamedTuple):
    """What a row may say besides."""

    shares: tuple[float, ...] = ()
    """A soft label: a number for each class, in the order of their sorted names; empty: the label alone."""
    times: int = 1
    """How often an epoch shows the picture."""


def read_extras(path: Path) -> dict[Path, Extra]:
    """The columns shares (numbers separated by blanks) and times of a CSV that ``read_table`` takes.

    Returns:
        By the paths that ``read_table`` gives, for rows that say something.

    Raises:
        UserError: shares do not add up to 1, or times is no number from 1 on.
    """
    found: dict[Path, Extra] = {}
    with open(path, newline="", encoding="utf-8-sig") as file:
        reader = csv.DictReader(file, skipinitialspace=True)
        reader.fieldnames = [(name or "").strip().lower() for name in reader.fieldnames or ()]
        for cells in reader if {"shares", "times"} & set(reader.fieldnames) else ():
            try:
                shares = tuple(map(float, (cells.get("shares") or "").split()))
                extra = Extra(shares, int(cells.get("times") or 1))
            except ValueError:
                extra = Extra(times=0)
            if extra.times < 1 or (extra.shares and not (abs(sum(extra.shares) - 1) < 0.01 and min(extra.shares) >= 0)):
                raise UserError(
                    f"{path}, line {reader.line_num}: shares are numbers from 0 on that add up to 1, separated by "
                    "blanks, and times is a whole number from 1 on; correct them, or leave the cells empty."
                )
            if extra != Extra():
                found[path.parent / cells["path"].strip()] = extra
    return found


def write_table(rows: Iterable[Row], path: Path) -> None:
    """Write what ``read_table`` reads back, with absolute paths.

    Raises:
        UserError: the disk is full, or the folder cannot be written.
    """
    with new_file(path) as beside, open(beside, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(COLUMNS)
        writer.writerows((row.path.absolute(), row.label, row.split) for row in rows)
