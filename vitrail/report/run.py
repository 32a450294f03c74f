"""What the files of a run folder say, whichever of them are there and whatever state they are in."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePath
from typing import Any, TypeVar, get_type_hints

import yaml

from vitrail.errors import UserError
from vitrail.evaluate.metrics import ClassAccuracy, Interval
from vitrail.record import from_dict

T = TypeVar("T")


@dataclass(frozen=True)
class Result:
    """The event ``held-out``: what the run came to."""

    images: int
    top1: float
    interval: Interval
    per_class: tuple[ClassAccuracy, ...]
    confusion: tuple[tuple[int, ...], ...]
    top5: float | None = None
    trained_on: int | None = None
    minutes: float | None = None
    images_per_second: float | None = None
    method: str | None = None
    neighbours: int | None = None
    """How many vote, for kNN."""
    split: str | None = None
    temperature: float | None = None
    """What logits are divided by before the softmax that ``Predicted.confidence`` is."""

    def __post_init__(self) -> None:
        classes = len(self.per_class)
        if len(self.confusion) != classes or any(len(row) != classes for row in self.confusion):
            raise UserError("its confusion matrix does not fit its classes.")


@dataclass(frozen=True)
class Candidate:
    """The event ``candidate``: one choice of features in a probe's cross-validation."""

    parts: tuple[str, ...]
    layers: int
    accuracy: float
    log_loss: float


@dataclass(frozen=True)
class Vote:
    """The event ``neighbours``: what leaving each training photo out in turn says of one number of neighbours."""

    k: int
    accuracy: float


@dataclass(frozen=True)
class Epoch:
    """The event ``epoch`` of a trained model."""

    epoch: float
    loss: float
    train_accuracy: float | None = None
    val_accuracy: float | None = None


@dataclass(frozen=True)
class Unreadable:
    """The event ``unreadable``."""

    path: str
    reason: str


@dataclass(frozen=True)
class Predicted:
    """A row of ``predictions.csv``."""

    path: str
    label: str
    predicted: str
    confidence: float
    unscaled: float | None = None
    """The confidence without temperature, where the run wrote it."""


@dataclass(frozen=True)
class Suspected:
    """A row of ``suspects.csv``: a training photo whose label is doubtful."""

    path: str
    label: str
    suggested: str
    given: float
    score: float


@dataclass(frozen=True)
class Alike:
    """A row of ``near_duplicates.csv``."""

    path_a: str
    path_b: str
    similarity: float
    label_a: str
    label_b: str
    parts: str

    @property
    def across(self) -> bool:
        """One of the two is trained on, the other held out."""
        return len({part.strip() for part in self.parts.split("/")}) > 1


@dataclass(frozen=True)
class Placed:
    """A row of ``split.csv``."""

    path: str
    label: str
    split: str


@dataclass
class Run:
    """A run folder. A file that is missing or damaged leaves its field empty, and ``problems`` says so."""

    folder: Path
    about: dict[str, Any]
    """Versions and machine, and under ``finetune`` the settings."""
    result: Result | None
    candidates: list[Candidate]
    epochs: list[Epoch]
    unreadable: list[Unreadable]
    counts: dict[str, tuple[int, int]]
    """Class name -> its photos in (train, held out)."""
    root: str
    """The folder that all photos lie in."""
    predictions: list[Predicted]
    suspects: list[Suspected]
    near_duplicates: list[Alike]
    problems: dict[str, str]
    """File name -> a sentence on why it says nothing."""
    votes: list[Vote] = field(default_factory=list)
    """Of kNN alone."""

    @property
    def settings(self) -> dict[str, Any]:
        """What was asked for."""
        found = self.about.get("finetune")
        return found if isinstance(found, dict) else {}

    def shown(self, path: str) -> str:
        """A photo's path below ``root``."""
        inside = bool(self.root) and PurePath(path).is_relative_to(self.root)
        return str(PurePath(path).relative_to(self.root)) if inside else path


def read_run(folder: Path) -> Run:
    """Read a run folder.

    Raises:
        UserError: it does not exist, or nothing in it is of a run.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f"There is no run folder {folder}: name the folder that vitrail finetune --out made.")
    if not any((folder / name).is_file() for name in ("config.yaml", "metrics.jsonl")):
        raise UserError(f"{folder} is not a run folder: name one that vitrail finetune --out made.")
    problems: dict[str, str] = {}
    events = list(_events(folder / "metrics.jsonl", problems))
    held_out = _of(events, "held-out", Result, problems)
    placed = _table(folder / "split.csv", Placed, problems)
    return Run(
        folder=folder,
        about=_about(folder / "config.yaml", problems),
        result=_timed(held_out[-1], folder / "training" / "timing.jsonl") if held_out else None,
        candidates=_of(events, "candidate", Candidate, problems),
        votes=_of(events, "neighbours", Vote, problems),
        epochs=_of(events, "epoch", Epoch, problems),
        unreadable=_of(events, "unreadable", Unreadable, problems),
        counts=_counts(placed),
        root=_common(placed),
        predictions=_table(folder / "predictions.csv", Predicted, problems),
        suspects=_table(folder / "suspects.csv", Suspected, problems),
        near_duplicates=_table(folder / "near_duplicates.csv", Alike, problems),
        problems=problems,
    )


def _timed(result: Result, path: Path) -> Result:
    """A run that trained keeps its times apart, in the last line of ``path``; without it they are not known."""
    times = list(_events(path, {})) if result.minutes is None else []
    minutes = times[-1].get("minutes") if times else None
    return dataclasses.replace(result, minutes=float(minutes)) if isinstance(minutes, (int, float)) else result


def _about(path: Path, problems: dict[str, str]) -> dict[str, Any]:
    text = _text(path, problems)
    try:
        found = yaml.safe_load(text)
    except yaml.YAMLError:
        problems[path.name] = f"{path.name} is damaged."
        found = None
    return found if isinstance(found, dict) else {}


def _events(path: Path, problems: dict[str, str]) -> Iterator[dict[str, Any]]:
    for line in filter(None, _text(path, problems).split("\n")):
        try:
            event = json.loads(line)
        except (json.JSONDecodeError, RecursionError):
            problems[path.name] = f"{path.name} has damaged lines, which are left out here."
            continue
        if isinstance(event, dict):
            yield event


def _of(events: list[dict[str, Any]], name: str, cls: type[T], problems: dict[str, str]) -> list[T]:
    """The events of one name; what they say beyond the fields of ``cls`` is not the report's business."""
    wanted = {entry.name for entry in dataclasses.fields(cls)}  # type: ignore[arg-type]
    found = []
    for event in events:
        if event.get("event") == name:
            try:
                found.append(from_dict(cls, {key: value for key, value in event.items() if key in wanted}))
            except UserError as error:
                problems[name] = f"An entry {name} in metrics.jsonl cannot be used: {error}"
    return found


def _table(path: Path, cls: type[T], problems: dict[str, str]) -> list[T]:
    """The rows of a CSV as ``cls``, whose fields are text, numbers, or numbers that may be missing."""
    hints = get_type_hints(cls)
    try:
        return [
            cls(**{name: _cell(hint, row.get(name)) for name, hint in hints.items()})
            for row in csv.DictReader(io.StringIO(_text(path, problems), newline=""))
        ]
    except (csv.Error, ValueError):
        problems[path.name] = f"{path.name} is damaged."
        return []


def _cell(hint: Any, text: str | None) -> Any:
    if hint is str or hint is float:
        if text is None:
            raise ValueError
        return hint(text)
    return float(text) if text else None


def _text(path: Path, problems: dict[str, str]) -> str:
    try:
        return path.read_text(encoding="utf-8-sig", errors="replace")
    except FileNotFoundError:
        problems[path.name] = f"This run has no {path.name}."
    except OSError as error:
        problems[path.name] = f"{path.name} cannot be read ({error.strerror})."
    return ""


def _counts(placed: list[Placed]) -> dict[str, tuple[int, int]]:
    counted = Counter((row.label, row.split == "train") for row in placed)
    return {label: (counted[label, True], counted[label, False]) for label in sorted({row.label for row in placed})}


def _common(placed: list[Placed]) -> str:
    try:
        return os.path.commonpath([os.path.dirname(row.path) for row in placed])
    except ValueError:  # none at all, or on several drives
        return ""
