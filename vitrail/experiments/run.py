"""One training run of an experiment, as data: what it learns from, what learns, and how."""

from __future__ import annotations

import base64
import csv
import hashlib
import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from vitrail.atomic import new_file
from vitrail.data.listing import images_below
from vitrail.errors import UserError
from vitrail.record import to_dict

SEARCHED = 0.1
"""Share of each class's training pictures, of at most ``SEARCHED_MOST``, that settings are searched by."""
SEARCHED_MOST = 100
REVISION = 1
"""Raised when what decides results and no run says, such as a default of ``vitrail.pretrain``, is changed: all runs are
others then. A test knows those defaults."""
TESTS = ("test", "val")
"""What the folder of pictures to be judged by may be called."""


@dataclass(frozen=True)
class Photos:
    """Labelled pictures: a folder of {train,test}/<class>/, or of {train,val}/<class>/, below the data folder."""

    data: str
    per_class: int | None = None
    """So many of each class; fewer are always among more. None: all but those that settings are searched by."""
    shuffled: bool = False
    """Labels dealt out at random, to see that nothing is learned from them."""
    labels: bool = True
    unlabelled: int = 0
    """So many more of each class, whose labels a teacher gives."""


@dataclass(frozen=True)
class Run:
    """A run is named by all that decides its result, what it starts from included."""

    photos: Photos
    settings: Mapping[str, Any]
    """Arguments of ``vitrail.pretrain``."""
    seed: int = 0
    start: Run | None = None
    """The run whose model this one goes on from."""
    teacher: Run | None = None
    """The run whose model labels the unlabelled pictures (Noisy Student, 1911.04252)."""

    @property
    def key(self) -> str:
        """A name that another run does not have."""
        text = json.dumps(to_dict(self), sort_keys=True) + (f" {REVISION}" if REVISION > 1 else "")
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def but(self, **settings: Any) -> Run:
        """The same with other settings; ``seed`` too."""
        seed = settings.pop("seed", self.seed)
        return replace(self, settings={**self.settings, **settings}, seed=seed)


@dataclass(frozen=True)
class Result:
    """What a run gave."""

    run: Mapping[str, Any]
    minutes: float
    loss: float
    """Of the last steps."""
    parameters: int
    flops: float
    """Of one picture's forward pass."""
    tokens: int
    """Of one picture; 0 of a model that has none."""
    seen: int
    """Pictures, repetitions counted."""
    search_accuracy: float | None = None
    """On pictures that settings are searched by."""
    test_accuracy: float | None = None
    test_images: int = 0
    correct: str = ""
    """A bit for each test picture, in the order of their names: base64 of the packed bits."""
    curve: list[list[float]] = field(default_factory=list)
    """Steps and mean losses."""
    processor: str = ""
    """That it was made on, or an accelerator's name."""

    @property
    def accuracy(self) -> float:
        """On the test pictures; of a run that learned labels."""
        assert self.test_accuracy is not None
        return self.test_accuracy

    @property
    def right(self) -> np.ndarray:
        """(n,): whether each test picture was classified correctly."""
        bits = np.unpackbits(np.frombuffer(base64.b64decode(self.correct), np.uint8))
        return bits[: self.test_images].astype(bool)


def packed(right: np.ndarray) -> str:
    """What ``Result.right`` reads."""
    return base64.b64encode(np.packbits(right.astype(bool)).tobytes()).decode()


def test_folder(root: Path) -> Path:
    """Where the pictures are that nothing is chosen by.

    Raises:
        UserError: nowhere.
    """
    for name in TESTS:
        if (root / name).is_dir():
            return root / name
    raise UserError(f"{root} should hold train/ and test/, with a folder for each class in both.")


def order(root: Path, split: Path) -> dict[str, list[str]]:
    """Each class's training pictures in a fixed order of chance, from the list ``split``, which is made if it is not.

    Returns:
        Paths relative to ``root``, by class.

    Raises:
        UserError: there are no classes, or a listed picture is not there.
    """
    if not split.is_file():
        _write_order(root, split)
    found: dict[str, list[str]] = {}
    with split.open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            found.setdefault(row["class"], []).append(row["path"])
    missing = next((path for paths in found.values() for path in paths if not (root / path).is_file()), None)
    if missing is not None:
        raise UserError(f"{split} lists {missing}, which is not in {root}: bring it back, or remove the list.")
    return found


def _write_order(root: Path, split: Path) -> None:
    rows = []
    if not (root / "train").is_dir():
        raise UserError(f"{root} should hold train/ and test/, with a folder for each class in both.")
    for name in sorted(path.name for path in (root / "train").iterdir() if path.is_dir()):
        paths = sorted(path.relative_to(root).as_posix() for path in images_below(root / "train" / name))
        random.Random(f"{root.name} {name}").shuffle(paths)
        rows += [[name, path] for path in paths]
    split.parent.mkdir(parents=True, exist_ok=True)
    with new_file(split) as beside, beside.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["class", "path"])
        writer.writerows(rows)


def set_aside(paths: Sequence[str]) -> int:
    """How many of a class's pictures settings are searched by."""
    return min(SEARCHED_MOST, max(1, round(SEARCHED * len(paths))))


def hidden(photos: Photos, root: Path, split: Path) -> list[Path]:
    """The pictures whose labels are not looked at: those that come after the labelled ones.

    Raises:
        UserError: a class has too few.
    """
    found: list[Path] = []
    for name, paths in order(root, split).items():
        first, there = photos.per_class or 0, len(paths) - set_aside(paths)
        if first + photos.unlabelled > there:
            raise UserError(
                f"{root} has {there} pictures of {name} to learn from, fewer than the {first} and {photos.unlabelled} "
                "asked for."
            )
        found += [root / path for path in paths[first : first + photos.unlabelled]]
    return found


def write_table(photos: Photos, root: Path, split: Path, out: Path) -> None:
    """The pictures a run learns from, and those that settings are searched by as its held-out ones, as a CSV.

    Raises:
        UserError: a class has too few.
    """
    rows: list[tuple[str, str, str]] = []
    for name, paths in order(root, split).items():
        there = len(paths) - set_aside(paths)
        count = there if photos.per_class is None else photos.per_class
        if count > there:
            raise UserError(f"{root} has {there} pictures of {name} to learn from, fewer than the {count} asked for.")
        rows += [(str(root / path), name, "train") for path in paths[:count]]
        if photos.labels:
            rows += [(str(root / path), name, "val") for path in paths[there:]]
    if photos.shuffled:
        labels = [label for _, label, part in rows if part == "train"]
        random.Random("shuffled").shuffle(labels)
        dealt = iter(labels)
        rows = [(path, next(dealt) if part == "train" else label, part) for path, label, part in rows]
    with out.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["path", "label", "split"] if photos.labels else ["path"])
        writer.writerows(rows if photos.labels else [row[:1] for row in rows])
