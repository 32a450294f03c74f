"""The pictures of a pretraining run: found, read once, and counted."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from vitrail.config import Preprocessing
from vitrail.data.held import Pictures, fingerprint, hold
from vitrail.data.sources import open_dataset
from vitrail.data.table import Row, read_extras, write_table
from vitrail.data.unlabelled import open_unlabelled
from vitrail.errors import UserError
from vitrail.report.terminal import Show, percent
from vitrail.settings import PretrainSettings

GIGABYTE = 10**9
NAMED = 5
"""Unreadable files that are named; the others are counted."""


@dataclass(frozen=True)
class Found:
    """Which pictures there are, none of them read yet; labels are all 0 where none are learned."""

    train: list[Path]
    labels: list[int]
    val: list[Path]
    val_labels: list[int]
    classes: tuple[str, ...]
    which: str
    """Which pictures these are, in words."""
    notes: tuple[str, ...] = ()
    shares: dict[Path, tuple[float, ...]] = field(default_factory=dict)
    """Soft labels of pictures to train on that have them: a share for each class."""

    @property
    def digest(self) -> str:
        """Of names, sizes and labels: whether these are the same pictures as another time."""
        files = [fingerprint(self.train), self.labels, fingerprint(self.val), self.val_labels, self.classes]
        files += [[self.shares.get(path) for path in self.train]] if self.shares else []
        return hashlib.sha256(repr(tuple(files)).encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Readable:
    """Pictures to train on and pictures held out, all of which could be read."""

    train: Pictures
    labels: Tensor
    """(n,), or (n, classes) where some are soft."""
    val: Pictures
    val_labels: Tensor
    unreadable: dict[str, str]
    """Path -> reason."""


def find(settings: PretrainSettings, labelled: bool) -> Found:
    """List the pictures.

    Raises:
        UserError: there are none, or, where labels are learned, nothing that a classifier can be trained on.
    """
    if not labelled:
        paths, which = open_unlabelled(settings.data)
        return Found(paths, [0] * len(paths), [], [], (), which)
    data = open_dataset(settings.data, settings.val_fraction, settings.seed)
    train, val = ([sample.path for sample in part] for part in (data.train, data.val))
    labels, val_labels = ([sample.label for sample in part] for part in (data.train, data.val))
    extras = read_extras(Path(settings.data)) if Path(settings.data).is_file() else {}
    times = [extras[path].times if path in extras else 1 for path in train]
    train = [path for path, count in zip(train, times, strict=True) for _ in range(count)]
    labels = [label for label, count in zip(labels, times, strict=True) for _ in range(count)]
    shares = {path: extra.shares for path, extra in extras.items() if extra.shares}
    for path, own in shares.items():
        if len(own) != len(data.classes):
            raise UserError(
                f"{path} has {len(own)} shares in {settings.data}, and there are {len(data.classes)} classes: give one "
                "for each, in the order of their names."
            )
    return Found(train, labels, val, val_labels, data.classes, data.split, data.notes, shares)


def read(
    show: Show,
    found: Found,
    settings: PretrainSettings,
    shortest: int,
    how: Preprocessing,
    known: dict[str, str] | None = None,
) -> Readable:
    """Read every picture once, and keep them in memory where they fit.

    Args:
        shortest: length of the shorter side that pictures to train on are reduced to.
        how: what is done to held-out pictures, which are kept as the model is shown them.
        known: unreadable ones from when the run was begun; those alone are then left out.

    Raises:
        UserError: too many cannot be read, or no picture of a class can.
    """

    def lost(paths: list[Path]) -> dict[Path, str] | None:
        return None if known is None else {path: known[str(path)] for path in paths if str(path) in known}

    most = settings.memory * GIGABYTE / (1 + settings.workers)  # each process has its own
    with show.progress("Reading pictures") as advance:
        train, failed = hold(Pictures(found.train, shortest), most, advance, lost(found.train))
    val, more = Pictures([]), dict[Path, str]()
    if found.val:
        with show.progress("Reading held-out pictures") as advance:
            val, more = hold(Pictures(found.val, how=how), most - train.bytes, advance, lost(found.val))
    unreadable = {str(path): reason for path, reason in {**failed, **more}.items()}
    if known is None:
        _check(show, found, unreadable, settings)
    elif unreadable != known:
        path = min(set(unreadable.items()) ^ set(known.items()))[0]
        raise UserError(
            f"{path} {'cannot' if path in unreadable else 'can'} be read now, which was otherwise when the run was "
            "begun: bring it back to what it was, or start another run."
        )
    labels, val_labels = (
        torch.tensor([label for path, label in zip(paths, numbers, strict=True) if path not in gone], dtype=torch.long)
        for paths, numbers, gone in ((found.train, found.labels, failed), (found.val, found.val_labels, more))
    )
    if known is None and found.classes:
        _check_classes(found.classes, labels.tolist(), len(val))
    return Readable(train, _softened(found, labels, failed), val, val_labels, unreadable)


def _softened(found: Found, labels: Tensor, failed: Mapping[Path, str]) -> Tensor:
    """The labels (n,), or, where some are soft, a row of shares for each (n, classes)."""
    if not found.shares:
        return labels
    soft = torch.nn.functional.one_hot(labels, len(found.classes)).float()  # (n, classes)
    for row, path in enumerate(path for path in found.train if path not in failed):
        if path in found.shares:
            soft[row] = torch.tensor(found.shares[path])
    return soft


def write_split(folder: Path, found: Found) -> None:
    """Write ``split.csv``, by which ``evaluate`` knows what was trained on, and which is data to train on again.

    Raises:
        UserError: the disk is full, or it cannot be written.
    """
    parts = (("train", found.train, found.labels), ("val", found.val, found.val_labels))
    write_table(
        (
            Row(path, found.classes[label], part)
            for part, paths, labels in parts
            for path, label in zip(paths, labels, strict=True)
        ),
        folder / "split.csv",
    )


def _check(show: Show, found: Found, unreadable: dict[str, str], settings: PretrainSettings) -> None:
    if not unreadable:
        return
    total = len(found.train) + len(found.val)
    failed = [f"{path} ({reason})" for path, reason in unreadable.items()]
    if len(failed) > settings.max_unreadable * total:
        raise UserError(
            f"{len(failed)} of {total} pictures cannot be read, such as {failed[0]}: mend or remove them, or allow "
            f"more than {percent(settings.max_unreadable)} with --max-unreadable."
        )
    more = f"; and {len(failed) - NAMED} more" if len(failed) > NAMED else ""
    show.warn(f"{len(failed)} of {total} pictures cannot be read and are skipped: {'; '.join(failed[:NAMED])}{more}.")


def _check_classes(classes: Sequence[str], labels: list[int], held_out: int) -> None:
    left = Counter(labels)
    for label, name in enumerate(classes):
        if not left[label]:
            raise UserError(f"The class {name!r} has no readable picture to train on: mend some, or remove it.")
    if not held_out:
        raise UserError("None of the held-out pictures can be read, so the result could not be judged: mend them.")
