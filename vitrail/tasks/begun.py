"""A run whose training has begun: all that it needs to go on, whatever happened to the process and to the cache.

``RUN/training/start`` holds the model as it was before the first step and, in ``begun.json``, what had been
decided and found by then. It stands there from the moment training starts until the run is complete;
``checkpoints`` beside it says how far training has come.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import yaml

from vitrail.atomic import new_folder
from vitrail.data.read import UnreadableImage
from vitrail.data.sources import Sample
from vitrail.errors import UserError
from vitrail.evaluate.duplicates import Pair
from vitrail.evaluate.mislabel import Suspect
from vitrail.evaluate.probe import Candidate, Probe
from vitrail.record import from_dict, to_dict
from vitrail.settings import Augmentation, FinetuneSettings, Lora, TrainSettings
from vitrail.tasks.features import content_hashes
from vitrail.tasks.findings import Findings
from vitrail.tasks.preparation import Prepared
from vitrail.tasks.run_folder import write_asked
from vitrail.tasks.training import Course
from vitrail.train.run import CHECKPOINTS, FREE
from vitrail.weights.load import Loaded
from vitrail.weights.report import LoadReport
from vitrail.weights.store import read_json, read_model, write_json, write_model

TRAINING, START, DECIDED = "training", "start", "begun.json"
T = TypeVar("T")


@dataclass(frozen=True)
class Begun:
    """What was settled before the first step."""

    settings: FinetuneSettings
    course: Course
    loaded: Loaded
    """The model before it, with the probe for its head."""
    probe: Probe
    findings: Findings
    """Of the probe; without its logits."""
    digests: list[str]
    """Content hashes of the photos of ``findings.train`` and then ``findings.val``."""
    split: str
    notes: tuple[str, ...]
    unreadable: list[tuple[Path, str]]
    images_per_second: float | None
    minutes: float
    """What all before the first step took."""

    def check_photos(self) -> None:
        """See that the photos are those that the run began with.

        Raises:
            UserError: one has changed, or can no longer be read.
        """
        samples = [*self.findings.train, *self.findings.val]
        found = content_hashes(sample.path for sample in samples)
        for sample, before, now in zip(samples, self.digests, found, strict=True):
            if isinstance(now, UnreadableImage):
                raise UserError(
                    f"{sample.path} could be read when the run began and no longer can ({now.reason}): put it back."
                )
            if now != before:
                raise UserError(
                    f"{sample.path} has changed since the run began: put the former picture back, or start a new run."
                )


def begin(folder: Path, settings: FinetuneSettings, prepared: Prepared, course: Course, minutes: float) -> None:
    """Make the run folder, whole: from now on an interruption costs what was done since the last checkpoint.

    Raises:
        UserError: the folder exists, the disk is full, or it cannot be written.
    """
    found, probe = prepared.findings, prepared.probe
    assert probe is not None
    decided = {
        "method": prepared.method,
        "why": prepared.why,
        "classes": list(prepared.dataset.classes),
        "split": prepared.dataset.split,
        "notes": list(prepared.dataset.notes),
        "train": [_plain(sample) for sample in found.train],
        "val": [_plain(sample) for sample in found.val],
        "digests": prepared.digests,
        "twins": [[_plain(one), _plain(other)] for one, other in found.twins],
        "suspects": [asdict(suspect) for suspect in found.suspects],
        "pairs": [asdict(pair) for pair in found.pairs],
        "unreadable": [[str(path.absolute()), reason] for path, reason in prepared.unreadable],
        "probe": {"parts": list(probe.parts), "layers": probe.layers, "strength": probe.strength},
        "candidates": [asdict(candidate) for candidate in probe.cross_validation],
        "images_per_second": prepared.images_per_second,
        "minutes": minutes,
    }
    with new_folder(folder) as beside:
        write_asked(beside, settings, prepared.dataset, prepared.loaded.report, course)
        start = beside / TRAINING / START
        write_model(start, prepared.loaded.card, prepared.loaded.tensors)
        write_json(start / DECIDED, decided)


def unfinished(folder: Path) -> bool:
    """Whether training has begun in a run folder and the run is not complete."""
    return (Path(folder) / TRAINING / START).is_dir()


def read_begun(folder: Path) -> Begun:
    """Read what ``begin`` wrote.

    Raises:
        UserError: there is no run that could go on, or a file is damaged.
    """
    if not folder.is_dir():
        raise UserError(f"There is no run folder {folder}: name the one that vitrail finetune --out began.")
    if not unfinished(folder):
        if (folder / "metrics.jsonl").is_file() and "finetune" in _config(folder / "config.yaml"):
            _tidy(folder)
            raise UserError(f"{folder} is complete, so nothing is left to do: vitrail report {folder} writes its page.")
        raise UserError(f"{folder} holds no run that could go on: name one that vitrail finetune --out began.")
    start = folder / TRAINING / START
    about = _config(folder / "config.yaml")
    decided = read_json(start / DECIDED)
    card, tensors = read_model(start)
    try:
        course = Course(
            decided["method"],
            _section(about, "training", TrainSettings, folder),
            _section(about, "augmentation", Augmentation, folder),
            _section(about, "lora", Lora, folder) if "lora" in about else None,
        )
        train, val = ([_sample(entry) for entry in decided[part]] for part in ("train", "val"))
        where = str(start / DECIDED)
        found = Findings(
            train,
            val,
            np.empty((0, len(card.class_names))),
            1.0,
            [from_dict(Suspect, entry, where) for entry in decided["suspects"]],
            [(_sample(one), _sample(other)) for one, other in decided["twins"]],
            [from_dict(Pair, entry, where) for entry in decided["pairs"]],
        )
        probe = Probe(
            parts=tuple(decided["probe"]["parts"]),
            layers=decided["probe"]["layers"],
            strength=decided["probe"]["strength"],
            weight=tensors["classifier.weight"].numpy().copy(),
            bias=tensors["classifier.bias"].numpy().copy(),
            cross_validation=tuple(from_dict(Candidate, entry, where) for entry in decided["candidates"]),
            out_of_fold=None,
        )
        return Begun(
            settings=_section(about, "finetune", FinetuneSettings, folder),
            course=course,
            loaded=Loaded(card, tensors, LoadReport(str(start), ())),
            probe=probe,
            findings=found,
            digests=decided["digests"],
            split=decided["split"],
            notes=tuple(decided["notes"]),
            unreadable=[(Path(path), reason) for path, reason in decided["unreadable"]],
            images_per_second=decided["images_per_second"],
            minutes=decided["minutes"],
        )
    except (KeyError, TypeError, ValueError):
        raise UserError(f"{start / DECIDED} is damaged: start a new run in another folder.") from None


def with_asked(begun: Begun, asked: FinetuneSettings, folder: Path) -> Begun:
    """The run as it goes on when some settings are given again; only where and how it is computed may be others.

    Args:
        asked: settings; those that are the usual ones say nothing.

    Raises:
        UserError: one is not the run's; the sentence names it.
    """
    for entry in fields(FinetuneSettings):
        given, before = getattr(asked, entry.name), getattr(begun.settings, entry.name)
        usual = "" if entry.name == "data" else entry.default
        if entry.name in ("tuning", "device", "tensorboard") or given in (usual, before):
            continue
        raise _differs(folder, entry.name, before, given)
    settings = begun.course.settings
    known = to_dict(settings) | to_dict(begun.course.augmentation) | to_dict(begun.course.lora or Lora())
    for name, value in asked.tuning.items():
        if f"settings.{name}" in FREE:
            settings = from_dict(TrainSettings, {**to_dict(settings), name: value}, "the tuning")
        elif name not in known or known[name] not in (value, [value]):
            raise _differs(folder, name, known.get(name), value)
    changed = {name: value for name in ("device", "tensorboard") if (value := getattr(asked, name)) is not None}
    return replace(begun, settings=replace(begun.settings, **changed), course=replace(begun.course, settings=settings))


def complete(folder: Path) -> None:
    """The results are there: remove what was needed to go on; the logs stay."""
    start = folder / TRAINING / START
    gone = start.with_name(f".{START}")
    shutil.rmtree(gone, ignore_errors=True)
    start.rename(gone)  # in one moment: half-removed it could not be gone on with
    _tidy(folder)


def _tidy(folder: Path) -> None:
    """Remove what a process that was killed while completing the run left."""
    training = folder / TRAINING
    for name in (f".{START}", CHECKPOINTS):
        shutil.rmtree(training / name, ignore_errors=True)
    for lock in (training / ".lock", folder / ".lock"):
        lock.unlink(missing_ok=True)


def _differs(folder: Path, name: str, before: Any, given: Any) -> UserError:
    return UserError(
        f"{folder} was begun with {name} = {before!r}, not {given!r}: go on with the same, or choose another folder."
    )


def _plain(sample: Sample) -> list[Any]:
    return [str(sample.path.absolute()), sample.label]


def _sample(entry: list[Any]) -> Sample:
    return Sample(Path(entry[0]), int(entry[1]))


def _config(path: Path) -> Mapping[str, Any]:
    try:
        about = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError):
        about = None
    if not isinstance(about, Mapping):
        raise UserError(f"{path} is missing or damaged: put it back, or start a new run in another folder.")
    return about


def _section(about: Mapping[str, Any], name: str, cls: type[T], folder: Path) -> T:
    return from_dict(cls, about.get(name, {}), f"{folder / 'config.yaml'}, section {name!r}")
