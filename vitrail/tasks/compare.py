"""Which model to use on a person's own pictures: candidates, cross-validated on the same folds with the same budget."""

from __future__ import annotations

import csv
import hashlib
import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from vitrail.atomic import explained, new_file, refuse_unwritable
from vitrail.config import architecture as named
from vitrail.cost import parameters
from vitrail.data.held import fingerprint
from vitrail.data.sources import Dataset, Sample, open_dataset
from vitrail.errors import UserError
from vitrail.evaluate.folds import folds
from vitrail.record import from_dict, to_dict
from vitrail.report.markdown import refuse_page, write_section
from vitrail.report.terminal import Show
from vitrail.settings import FinetuneSettings
from vitrail.tasks.begun import unfinished
from vitrail.tasks.classifier import load
from vitrail.tasks.comparison import (
    HEADER,
    Asked,
    Candidate,
    Comparison,
    is_random,
    onward,
    over,
    rows,
    section,
    verdict,
)
from vitrail.tasks.dry_run import plan
from vitrail.tasks.features import content_hashes, measured_speed
from vitrail.tasks.finetune import opened, resume, run
from vitrail.tasks.preparation import compute_features, pooling_of
from vitrail.weights.store import read_json, write_json

MODELS = ("dinov2-small", "timm/resnetv2_50x1_bit.goog_in21k")
METHODS = ("probe", "full")
SETTINGS, CELLS, RUNS = "compare.json", "cells", "runs"
PICTURES = "pictures"
"""The field of the settings' file that says what the answers of finished trainings are of."""
EPOCHS = "-epochs"
"""What the name of a file ends in that says how many fit into the minutes."""
SPEED_ON = 64
"""Pictures that the speed of prediction is measured on."""


@dataclass(frozen=True)
class Cell:
    """One training: a candidate without one fold, judged on it."""

    correct: str
    """1, 0, or, of a picture that cannot be read, a space, for each of the fold in the order of its list."""
    minutes: float
    """With the features of all pictures, whether they were in the cache or not."""
    epochs: int | None
    epoch_minutes: float | None
    """Of one, as measured beforehand; None, as ``epochs``: a probe."""
    images_per_second: float
    """Pictures read and predicted."""
    parameters: int


def compare(
    data: str | Path,
    out: str | Path,
    models: Sequence[str] = MODELS,
    methods: Sequence[str] = METHODS,
    folds: int = 5,
    minutes: float = 10.0,
    resolution: int | None = None,
    seed: int = 0,
    quiet: bool = False,
    page: str | Path | None = None,
) -> Comparison:
    """Cross-validate models on labelled pictures and say which to use.

    Every candidate is trained on the same folds, for as many minutes (``full`` and what trains the model; a probe
    takes what it takes), and judged on the fold left out. A comparison that was stopped is gone on with by the same
    call: no finished training is made again.

    Args:
        data: labelled pictures, as for ``finetune``; those of a split of its own that are held out are not touched.
        out: the folder of results.
        models: pretrained weights, as for ``finetune``, or a variant such as ``R50`` or ``ViT-S/16`` from random
            weights.
        methods: of ``finetune``.
        minutes: of training, as measured here before: so many epochs are made as fit. Where not even one does,
            one is made, and that is said.
        resolution: pixels a side, the same for all; None: each model's usual.
        page: a page whose section on ``data`` is written, besides ``comparison.md`` in ``out``.

    Raises:
        UserError: the pictures, models or settings are not usable, or ``out`` holds another comparison, or one of
            other pictures.
    """
    asked = Asked(str(data), tuple(models), tuple(methods), folds, minutes, resolution, seed)
    folder, show = Path(out), Show(quiet)
    if minutes <= 0:
        raise UserError(f"minutes must be more than 0, not {minutes}.")
    if len(asked.models) * len(asked.methods) < 2:
        raise UserError("There is nothing to compare: name two models, or two methods.")
    for method in methods:
        if method in ("auto", "knn"):
            raise UserError(f"{method} is no method to compare by: name probe, full, layers:K or lora.")
    for model in models:
        for method in methods:
            _settings(asked, model, method)  # a wrong name should not wait for the first training
    refuse_unwritable(folder / SETTINGS)
    if page is not None:
        refuse_page(Path(page))
    samples, places, classes, digest = _pictures(asked, show)
    _claim(folder, asked, digest)
    for fold in range(folds):
        _write_fold(folder / f"fold-{fold}.csv", samples, [place == fold for place in places], classes)
    pairs = [(model, method) for model in models for method in methods]
    candidates = [_Candidate(folder, asked, number, *pair, show) for number, pair in enumerate(pairs, 1)]
    show.say(
        f"{len(candidates)} candidates, {folds} folds of {len(samples)} pictures of {len(classes)} classes: "
        f"{len(candidates) * folds} trainings, of about {minutes:g} minutes where the model itself is trained."
    )
    cells = {one: [one.cell(fold) for fold in range(folds)] for one in candidates}
    answers = {one: _in_place(own, places) for one, own in cells.items()}
    readable = np.all([own != " " for own in answers.values()], axis=0)
    if not readable.all():
        show.warn(f"{len(readable) - readable.sum()} of {len(readable)} pictures cannot be read and are left out.")
    found = [one.judged(cells[one], own[readable] == "1") for one, own in answers.items()]
    result = Comparison(folder, tuple(sorted(found, key=lambda one: -one.accuracy)))
    with new_file(folder / "comparison.json") as beside:
        beside.write_text(json.dumps(result.to_dict(), indent=1) + "\n", "utf-8")
    for at in (folder / "comparison.md", *([Path(page)] if page is not None else [])):
        write_section(at, f"compare-{Path(data).name}", section(result, asked), "Which model to use")
    _say(show, result, asked)
    return result


class _Candidate:
    """A model and a method, and where their trainings are."""

    def __init__(self, folder: Path, asked: Asked, number: int, model: str, method: str, show: Show) -> None:
        self.folder, self.asked, self.model, self.method, self.show = folder, asked, model, method, show
        # Numbered, since two paths may be alike but for their slashes.
        self.plain = "".join(letter if letter.isalnum() else "-" for letter in f"{number} {model} {method}")
        self.cached = False

    def cell(self, fold: int) -> Cell:
        """The training without one fold, made if it is not there."""
        path = self.folder / CELLS / f"{self.plain}-{fold}.json"
        if path.is_file():
            return from_dict(Cell, read_json(path), str(path))
        self.show.say(f"{self.model}, {self.method}, fold {fold + 1} of {self.asked.folds}.")
        made = self._make(fold)
        with new_file(path) as beside:
            beside.write_text(json.dumps(to_dict(made)) + "\n", "utf-8")
        shutil.rmtree(self._run(fold))  # its weights are wanted no more
        return made

    def judged(self, cells: Sequence[Cell], right: np.ndarray) -> Candidate:
        """Over all folds."""
        minutes = float(np.mean([cell.minutes for cell in cells]))
        speed = float(np.median([cell.images_per_second for cell in cells]))
        first = cells[0]
        return Candidate(
            self.model, self.method, right, minutes, first.epochs, speed, first.parameters, first.epoch_minutes
        )

    def _run(self, fold: int) -> Path:
        return self.folder / RUNS / f"{self.plain}-{fold}"

    def _list(self, fold: int) -> Path:
        return self.folder / f"fold-{fold}.csv"

    def _make(self, fold: int) -> Cell:
        out = self._run(fold)
        self._cache()
        epochs, epoch_minutes = (None, None) if self.method == "probe" else self._epochs()
        settings = replace(_settings(self.asked, self.model, self.method), data=str(self._list(fold)), epochs=epochs)
        if unfinished(out):
            result = resume(out, quiet=True)
        else:
            if out.exists():
                shutil.rmtree(out)
            out.parent.mkdir(parents=True, exist_ok=True)
            result = run(settings, out, quiet=True)
        found = result.findings
        judged = zip(found.val, found.logits.argmax(axis=1), strict=True)
        answers = {str(sample.path): "01"[int(likeliest == sample.label)] for sample, likeliest in judged}
        correct = "".join(answers.get(path, " ") for path in _left_out(self._list(fold)))
        classifier = load(out, quiet=True)
        paths = [sample.path for sample in found.val][:SPEED_ON]
        speed = measured_speed(classifier.predictor, classifier.card.preprocessing, paths, 32)
        minutes = result.minutes
        if result.images_per_second is None:  # all features were in the cache, which is no merit of the model
            minutes += (len(found.train) + len(found.val)) / speed / 60
        return Cell(correct, minutes, epochs, epoch_minutes, speed, parameters(classifier.card.architecture))

    def _cache(self) -> None:
        """Compute the features that are not in the cache, for all folds: else only the first's minutes had them."""
        if self.cached:
            return
        settings = replace(_settings(self.asked, self.model, self.method), data=str(self._list(0)))
        dataset, classifier = opened(settings, self.show)
        samples = [*dataset.train, *dataset.val]
        digests = content_hashes(sample.path for sample in samples)
        compute_features(self.show, classifier, samples, digests, pooling_of(classifier), settings.batch_size)
        self.cached = True

    def _epochs(self) -> tuple[int, float]:
        """As many as fit into the budget, one at least, and the minutes of one, measured once."""
        path = self.folder / CELLS / f"{self.plain}{EPOCHS}.json"
        if not path.is_file():
            settings = replace(_settings(self.asked, self.model, self.method), data=str(self._list(0)), epochs=1)
            found = plan(settings, quiet=True)
            assert found.training_seconds is not None
            # Not rounded: a model with more minutes than were asked for would be compared with one that has fewer.
            fit = max(1, int(60 * self.asked.minutes / found.training_seconds))
            with new_file(path) as beside:
                beside.write_text(json.dumps({"epochs": fit, "seconds_each": found.training_seconds}) + "\n", "utf-8")
            if said := over(f"{self.model}, {self.method}", found.training_seconds / 60, self.asked.minutes):
                self.show.warn(said)
        known = read_json(path)
        return int(known["epochs"]), float(known["seconds_each"]) / 60


def _settings(asked: Asked, model: str, method: str) -> FinetuneSettings:
    size = None if asked.resolution is None else (asked.resolution, asked.resolution)
    settings = FinetuneSettings(data="", weights=model, method=method, resolution=size, seed=asked.seed)
    if not is_random(model):
        return settings
    named(model)  # one that there is not should not wait for its turn
    return replace(settings, weights="none", architecture=model)


def _claim(folder: Path, asked: Asked, pictures: str) -> None:
    """Make the folder this comparison's; another's in which no training was begun gives way.

    Args:
        pictures: the digest of all that are taken; a folder made before there was one counts as of others.

    Raises:
        UserError: it holds another, or one of other pictures.
    """
    path, wanted = folder / SETTINGS, {**to_dict(asked), PICTURES: pictures}
    begun = [cell for cell in (folder / CELLS).glob("*.json") if not cell.stem.endswith(EPOCHS)]
    begun += (folder / RUNS).iterdir() if (folder / RUNS).is_dir() else ()
    if path.is_file() and not begun and read_json(path) != wanted:
        path.unlink()
        for name in (CELLS, RUNS):
            shutil.rmtree(folder / name, ignore_errors=True)
    if path.is_file():
        before = read_json(path)
        for name, value in to_dict(asked).items():
            if before.get(name) != value:
                raise UserError(
                    f"{folder} holds a comparison with {name} {before.get(name)}, not {value}: choose another --out."
                )
        if before.get(PICTURES) != pictures:
            raise UserError(
                f"{folder} was made of other pictures or labels than {asked.data} has now, or by an earlier version: "
                "put those back, or choose another --out for these."
            )
        return
    for name in (CELLS, RUNS):
        with explained(folder):
            (folder / name).mkdir(parents=True, exist_ok=True)
    with new_file(path) as beside:
        write_json(beside, wanted)


def _pictures(asked: Asked, show: Show) -> tuple[list[Sample], list[int], tuple[str, ...], str]:
    """The pictures that can be read, in the order of their paths, their folds, the classes, and a digest of all."""
    dataset = open_dataset(asked.data, seed=asked.seed)
    samples = sorted(_members(dataset), key=lambda sample: str(sample.path))
    digests = content_hashes(sample.path for sample in samples)
    known = [(sample, digest) for sample, digest in zip(samples, digests, strict=True) if isinstance(digest, str)]
    if len(known) < len(samples):
        show.warn(f"{len(samples) - len(known)} of {len(samples)} files cannot be opened and are left out.")
    samples, contents = [sample for sample, _ in known], [digest for _, digest in known]
    places = folds([sample.label for sample in samples], contents, asked.folds, asked.seed)
    names = [name for name, _ in fingerprint([sample.path for sample in samples])]
    labels = [dataset.classes[sample.label] for sample in samples]
    taken = json.dumps(list(zip(names, labels, contents, places, strict=True)))
    return samples, places, dataset.classes, hashlib.sha256(taken.encode()).hexdigest()


def _write_fold(path: Path, samples: Sequence[Sample], left_out: Sequence[bool], classes: Sequence[str]) -> None:
    """A list that ``finetune`` takes."""
    with new_file(path) as beside, beside.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["path", "label", "split"])
        for sample, out in zip(samples, left_out, strict=True):
            writer.writerow([str(sample.path.absolute()), classes[sample.label], "val" if out else "train"])


def _left_out(path: Path) -> list[str]:
    """The pictures that a list holds out, in its order."""
    with path.open(newline="", encoding="utf-8") as file:
        return [row["path"] for row in csv.DictReader(file) if row["split"] == "val"]


def _members(dataset: Dataset) -> tuple[Sample, ...]:
    """All pictures, or those to train on where the data say which are held out."""
    return (*dataset.train, *dataset.val) if dataset.drawn else dataset.train


def _in_place(cells: Sequence[Cell], places: Sequence[int]) -> np.ndarray:
    """(n,): every picture's answer."""
    found = np.full(len(places), " ")
    for fold, cell in enumerate(cells):
        found[np.array(places) == fold] = list(cell.correct)
    return found


def _say(show: Show, result: Comparison, asked: Asked) -> None:
    show.table(HEADER, rows(result))
    for sentence in verdict(result, asked.minutes):
        show.say(sentence)
    show.facts([("results", f"{result.folder}: comparison.json, comparison.md, the folds as lists")])
    show.say(f"To train it: {onward(result.candidates[0], asked)}")  # a line of its own, not folded, to be copied
