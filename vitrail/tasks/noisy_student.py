"""Noisy Student: a teacher labels unlabelled pictures, and a student learns from all, with noise (1911.04252).

A method with rounds over ordinary supervised runs: each round's student is the next one's teacher. What a round
needs is written before it is used, and a student's run goes on where it was, so the same call goes on with all.
"""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from vitrail.atomic import new_file, refuse_existing, refuse_unwritable
from vitrail.config import architecture
from vitrail.data.batches import batches
from vitrail.data.order import generator
from vitrail.data.sources import Dataset, open_dataset
from vitrail.data.unlabelled import open_unlabelled
from vitrail.errors import UserError
from vitrail.record import to_dict
from vitrail.report.terminal import Show
from vitrail.resnet import BiTConfig
from vitrail.tasks.classifier import Classifier, download_progress, load
from vitrail.tasks.features import content_hashes
from vitrail.tasks.pretrain import pretrain
from vitrail.tasks.pretrain_folder import Pretrained
from vitrail.weights.load import load_weights
from vitrail.weights.store import read_json, write_json

NOISE: dict[str, Any] = {"operations": 2, "magnitude": 0.9, "mixing": 0.0}
"""RandAugment of the paper's strength (section 3.1: 27 of 30); dropout and stochastic depth are the model's."""
DROP_PATH = 0.1
"""Stochastic depth of a student that can have it; the paper's far larger ones have 0.2 (section 3.1)."""
SETTINGS, FIRST, TABLE, STUDENT = "noisy-student.json", "round-1", "pseudo.csv", "student"


@dataclass(frozen=True)
class PseudoLabels:
    """How a teacher's answers become labels."""

    soft: bool = True
    """Shares of all classes, or the likeliest class alone."""
    confidence: float = 0.3
    """Pictures whose likeliest class has less are left out (section 3.1)."""
    per_class: int | None = None
    """So many of each class, the most confident; classes with fewer are repeated (section 3.1). None: all there are."""

    def __post_init__(self) -> None:
        if not 0.0 <= self.confidence < 1.0:
            raise UserError(f"confidence must lie in [0, 1), not {self.confidence}.")
        if self.per_class is not None and self.per_class < 1:
            raise UserError(f"per_class must be at least 1, not {self.per_class}.")


def noisy_student(
    data: str | Path,
    unlabelled: str | Path,
    teacher: str | Path,
    out: str | Path,
    *,
    rounds: int = 1,
    pseudo: PseudoLabels | None = None,
    val_fraction: float = 0.2,
    seed: int = 0,
    quiet: bool = False,
    tuning: Mapping[str, Any] | None = None,
    **student: Any,
) -> Pretrained:
    """Train students on labelled pictures and on unlabelled ones as their teacher labels them.

    The same call goes on with what was stopped, to the bit.

    Args:
        data: labelled pictures, as ``finetune`` takes them; those held out judge every student.
        unlabelled: a folder of pictures.
        teacher: a model that knows the classes of ``data``.
        out: the folder; each round has its table of labels and its student's run folder in it.
        tuning: of training and views; the usual views are noisy (``NOISE``).
        student: arguments of ``pretrain`` that say the student and how long it is trained; a student should
            be no smaller than its teacher, and has a ``drop_path`` of ``DROP_PATH`` unless another is given.

    Returns:
        What the last student's run gave.

    Raises:
        UserError: the teacher does not know the classes, no picture passes its confidence, the folder is
            another's, or a run fails.
    """
    if rounds < 1:
        raise UserError(f"rounds must be at least 1, not {rounds}.")
    pseudo, folder, show = pseudo or PseudoLabels(), Path(out), Show(quiet)
    labelled = open_dataset(data, val_fraction, seed)
    others, _ = open_unlabelled(unlabelled)
    if not (folder / SETTINGS).is_file():
        refuse_existing(folder)
        refuse_unwritable(folder)
    student = _noisy(student, labelled.classes, show)  # a wrong name should not wait for the teacher
    about = {
        "data": str(data), "unlabelled": str(unlabelled), "teacher": str(teacher), "pseudo": to_dict(pseudo),
        "val_fraction": val_fraction, "seed": seed, "student": dict(student), "tuning": dict(tuning or {}),
    }  # fmt: skip
    asked = json.loads(json.dumps(about, default=str))  # as it is read again, where a tuple is a list
    if not (folder / FIRST / STUDENT).exists():  # the teacher has still to label: before the folder becomes its own
        _check_classes(load(teacher, quiet=True), labelled.classes)
    _claim(folder, asked)
    result: Pretrained | None = None
    for number in range(1, rounds + 1):
        place = folder / f"round-{number}"
        if not (place / TABLE).is_file():
            teaching = load(teacher, quiet=True)
            size = sum(parameter.numel() for parameter in teaching.model.parameters()) / 1e6
            show.say(f"Round {number}: {teacher}, {size:.2f} M parameters, labels {len(others)} pictures.")
            label(teaching, labelled, others, place / TABLE, pseudo, seed, show)
        result = pretrain(
            place / TABLE, place / STUDENT, objective="supervised", seed=seed, quiet=quiet,
            tuning={**NOISE, **asked["tuning"]}, **student,
        )  # fmt: skip
        teacher = place / STUDENT
    assert result is not None
    return result


def _noisy(student: Mapping[str, Any], classes: tuple[str, ...], show: Show) -> dict[str, Any]:
    """Its arguments, with ``DROP_PATH`` where nothing is said of it and the model can have it.

    Raises:
        UserError: there is no such model, or it cannot have what was said.
    """
    name, weights = student.get("architecture"), student.get("weights")
    config = None if name is None else architecture(name)
    if weights is not None:
        with download_progress(show, str(weights)) as progress:
            found = load_weights(str(weights), architecture=name, classes=classes, progress=progress)
        config = found.card.architecture
    if (drop_path := student.get("drop_path")) is None:
        return {**student, "drop_path": None if isinstance(config, BiTConfig) else DROP_PATH}
    if config is not None:
        config.noisy(None, drop_path)
    return dict(student)


def label(
    teacher: Classifier,
    labelled: Dataset,
    others: Sequence[Path],
    out: Path,
    pseudo: PseudoLabels,
    seed: int,
    show: Show,
) -> None:
    """Write the table that a student learns from: the labelled pictures, and the others as the teacher labels them.

    Raises:
        UserError: the teacher knows other classes, no answer is confident enough, a picture is both labelled and
            not, or ``out`` cannot be written.
    """
    _check_classes(teacher, labelled.classes)  # the data may have got another since the first round
    answers = _answers(teacher, labelled.classes, others, show)
    chosen = choose(answers, pseudo, seed)
    _say_chosen(show, labelled.classes, answers, chosen)
    _write_table(out, labelled, others, answers, chosen, pseudo.soft)


def choose(answers: np.ndarray, pseudo: PseudoLabels, seed: int) -> list[int]:
    """Which pictures are learned from, by row; one may stand several times.

    Args:
        answers: (n, classes) probabilities; a row of zeros was not read.

    Raises:
        UserError: none is confident enough.
    """
    best, sure = answers.argmax(axis=1), answers.max(axis=1)
    passing = np.flatnonzero(sure >= max(pseudo.confidence, 1e-9))
    if not passing.size:
        raise UserError(
            f"The teacher is nowhere surer than {sure.max():.2f}, and {pseudo.confidence} is asked for: lower the "
            "confidence, or train the teacher better."
        )
    if pseudo.per_class is None:
        return [int(row) for row in passing]
    chosen: list[int] = []
    for label in range(answers.shape[1]):
        own = passing[best[passing] == label]
        own = own[np.argsort(-sure[own], kind="stable")][: pseudo.per_class]
        if not own.size:
            continue
        more = generator(seed, "sample", label).integers(own.size, size=pseudo.per_class - own.size)
        chosen += [int(row) for row in (*own, *own[more])]
    return chosen


def _claim(folder: Path, asked: dict[str, Any]) -> None:
    """Note what was asked for, or see that it is the same as before; where no student was begun, it may be another.

    Raises:
        UserError: another thing was asked for in this folder.
    """
    path, first = folder / SETTINGS, folder / FIRST
    if path.is_file():
        before = read_json(path)
        if before != asked and not (first / STUDENT).exists():
            shutil.rmtree(first, ignore_errors=True)
            path.unlink()
    if path.is_file():
        if differing := sorted(name for name in asked if before.get(name) != asked[name]):
            name = differing[0]
            raise UserError(
                f"{folder} was begun with {name} = {_told(before.get(name))}, not {_told(asked[name])}: say the same, "
                "or take another folder."
            )
        return
    with new_file(path) as beside:
        write_json(beside, asked)


def _told(value: Any) -> str:
    """A setting in words."""
    if isinstance(value, dict):
        return ", ".join(f"{name} {value[name]}" for name in value) or "nothing"
    return str(value)


def _answers(teacher: Classifier, classes: Sequence[str], paths: Sequence[Path], show: Show) -> np.ndarray:
    """(n, classes) probabilities at the teacher's own temperature; zeros for a picture that cannot be read."""
    places = [teacher.classes().index(name) for name in classes]
    found = np.zeros((len(paths), len(classes)), np.float32)
    with show.progress("Labelling") as advance:
        for batch in batches(paths, teacher.card.preprocessing, 128):
            if batch.index:
                logits = teacher.predictor.logits(batch.images)[1] / teacher.card.temperature  # (B, classes)
                found[batch.index] = torch.softmax(logits, dim=-1)[:, places].numpy()
            advance(batch.start + len(batch.paths), len(paths))
    return found


def _check_classes(teacher: Classifier, classes: Sequence[str]) -> None:
    """Raise UserError when the teacher knows other classes than these."""
    if set(teacher.classes()) != set(classes):
        odd = min(set(teacher.classes()) ^ set(classes))
        where = "the teacher does not know" if odd in classes else "the labelled pictures do not have"
        raise UserError(f"The class {odd!r} is one that {where}: take a teacher trained on these classes.")


def _write_table(
    path: Path, labelled: Dataset, others: Sequence[Path], answers: np.ndarray, chosen: Iterable[int], soft: bool
) -> None:
    """Labelled and chosen pictures as ``pretrain`` takes them.

    Raises:
        UserError: a picture is both labelled and unlabelled, or the file cannot be written.
    """
    names = labelled.classes
    known = {sample.path.absolute() for sample in (*labelled.train, *labelled.val)}
    counts: dict[int, int] = {}
    for row in chosen:
        counts[row] = counts.get(row, 0) + 1
    # A copy of one that is trained on anyway does no harm; of one that judges, it would.
    judges = {digest for digest in content_hashes(sample.path for sample in labelled.val) if isinstance(digest, str)}
    rows = list(counts)
    for row, digest in zip(rows, content_hashes(others[row] for row in rows), strict=True):
        if others[row].absolute() in known or digest in judges:
            raise UserError(
                f"{others[row]} is among the labelled pictures too, or is a copy of one that is held out: take it out "
                "of the unlabelled ones, or what judges would be trained on."
            )
    with new_file(path) as beside, open(beside, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["path", "label", "split", "shares", "times"])
        for part, samples in (("train", labelled.train), ("val", labelled.val)):
            writer.writerows([sample.path.absolute(), names[sample.label], part, "", 1] for sample in samples)
        for row, times in counts.items():
            shares = " ".join(f"{share:.4f}" for share in answers[row] / answers[row].sum()) if soft else ""
            writer.writerow([others[row].absolute(), names[int(answers[row].argmax())], "train", shares, times])


def _say_chosen(show: Show, classes: Sequence[str], answers: np.ndarray, chosen: Sequence[int]) -> None:
    counts = np.bincount(answers[list(chosen)].argmax(axis=1), minlength=len(classes))
    show.say(
        f"{len(set(chosen))} are taken, {len(chosen)} with repetitions: {counts.min()} to {counts.max()} of a class."
    )
