"""A run as one page of HTML that needs nothing but itself: no script, no font, no request."""

from __future__ import annotations

import math
import shlex
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields
from functools import partial
from typing import Any

import numpy as np

from vitrail import __version__
from vitrail.config import Size, size_text
from vitrail.evaluate.metrics import ClassAccuracy, calibration_error, wilson
from vitrail.report.figures import Line, heat_map, lines, reliability, scale, whisker
from vitrail.report.run import Alike, Epoch, Predicted, Run, Suspected
from vitrail.report.templates import environment
from vitrail.report.terminal import duration, interval, percent
from vitrail.settings import FinetuneSettings

MOST_PICTURES = 24
"""Photos, or pairs of them, that a section shows."""
MOST_CELLS = 40
"""Classes up to which the confusion matrix is drawn."""
MOST_ROWS = 40
"""Classes, or pairs of them, that a table lists outright."""
MOST_FOLDED = 1000
"""Further classes that a table lists when unfolded."""


@dataclass(frozen=True)
class Photo:
    """A picture as it will stand on the page, or the reason why it cannot."""

    path: str
    uri: str | None = None
    """``data:image/jpeg;base64,...``"""
    reason: str = ""


@dataclass(frozen=True)
class Mistake:
    """A held-out photo that was classified wrongly, and where the class token looked."""

    row: Predicted
    photo: Photo
    attention: Photo | None


@dataclass(frozen=True)
class Album:
    """The pictures of a report."""

    mistakes: list[Mistake]
    suspects: list[tuple[Suspected, Photo]]
    pairs: list[tuple[Alike, Photo, Photo]]
    no_attention: str = ""
    """A sentence on why there is no attention to show, if so."""


@dataclass(frozen=True)
class Confused:
    """A class taken for another."""

    label: str
    predicted: str
    count: int
    total: int


def mistakes(run: Run) -> list[Predicted]:
    """Held-out photos classified wrongly, the most confident first."""
    return sorted((row for row in run.predictions if row.label != row.predicted), key=lambda row: -row.confidence)


def pairs(run: Run) -> list[Alike]:
    """Near-duplicates, those across training and held-out photos first, then the most similar."""
    return sorted(run.near_duplicates, key=lambda row: (not row.across, -row.similarity))


def most_confused(names: list[str], confusion: tuple[tuple[int, ...], ...]) -> list[Confused]:
    """Pairs of classes by how often the first was taken for the second."""
    found = [
        Confused(names[row], names[column], count, sum(counts))
        for row, counts in enumerate(confusion)
        for column, count in enumerate(counts)
        if count and row != column
    ]
    return sorted(found, key=lambda pair: -pair.count)


def worst_first(per_class: tuple[ClassAccuracy, ...]) -> list[ClassAccuracy]:
    """Classes by accuracy; those with nothing held out last."""
    return sorted(per_class, key=lambda entry: (math.inf if entry.accuracy is None else entry.accuracy, entry.name))


def command(run: Run) -> str:
    """The ``vitrail finetune`` that does the run again, with every setting that is not the usual one."""
    settings, words = run.settings, []
    usual = {entry.name: entry.default for entry in fields(FinetuneSettings)}
    method = run.result.method if run.result and run.result.method else settings.get("method")
    for name, value in {**settings, **({"method": method} if "method" in settings else {})}.items():
        if name == "tuning" and isinstance(value, dict):
            words += [word for key, item in value.items() for word in ("--set", f"{key}={_set(item)}")]
        elif name != "data" and value is not None and (value != usual.get(name) or name in ("weights", "seed")):
            words += [f"--{name.replace('_', '-')}", _word(value)]
    return shlex.join(["vitrail", "finetune", str(settings.get("data", "PHOTOS")), *words, "--out", "AGAIN"])


def render(run: Run, album: Album, model: str = "") -> str:
    """The page.

    Args:
        model: what the model is, in a clause; empty: unknown.
    """
    templates = environment()
    templates.filters |= {"percent": _kept(percent), "interval": _kept(interval), "n": "{:,}".format, "count": _count}
    counts = list(zip(*run.counts.values(), strict=True)) or [(0,), (0,)]
    return templates.get_template("page.html.j2").render(
        run=run,
        problems=defaultdict(str, run.problems),
        name=run.folder.absolute().name,
        album=album,
        headline=whisker(run.result.top1, *run.result.interval) if run.result else "",
        totals=[sum(part) for part in counts],
        spread=[_spread(part) for part in counts],
        facts=list(_facts(run, model)),
        settings=list(_settings(run)),
        learning=_learning(run),
        classes=_classes(run),
        confusion=_confusion(run),
        trust=_trust(run),
        wrong=mistakes(run),
        across=sum(row.across for row in run.near_duplicates),
        disagreeing=sum(row.label_a != row.label_b for row in run.near_duplicates),
        command=command(run),
        onwards=list(_onwards(run)),
        versions=[(name, run.about[name]) for name in ("vitrail", "torch", "machine") if name in run.about],
        version=__version__,
    )


def _onwards(run: Run) -> Iterator[tuple[str, str]]:
    """Commands that take the run folder, and what for."""
    folder = str(run.folder.absolute())
    if not (run.result and run.result.neighbours):  # kNN leaves no model
        yield shlex.join(["vitrail", "predict", folder, "PHOTO..."]), "classify new photos, or whole folders of them"
        yield shlex.join(["vitrail", "evaluate", folder, "PHOTOS"]), "measure it on other labelled photos"
    yield shlex.join(["vitrail", "report", folder]), "write this page again"


def _facts(run: Run, model: str) -> Iterator[tuple[str, str]]:
    """What belongs beside the headline."""
    result, settings = run.result, run.settings
    if "weights" in settings:
        yield "weights", str(settings["weights"])
    if model:
        yield "model", model
    if size := _size(settings.get("resolution")):
        yield "resolution", f"{size_text(size)} pixels"
    if method := _method(run):
        yield "method", method
    if result and result.trained_on is not None:
        yield "trained on", f"{_count(result.trained_on, 'photo')} of {_count(len(result.per_class), 'class')}"
    if result and result.minutes is not None:
        yield "time", duration(60 * result.minutes)


def _method(run: Run) -> str:
    name = str((run.result and run.result.method) or run.settings.get("method") or "")
    if name.startswith("layers:"):
        return f"training the last {name.removeprefix('layers:')} layers"
    if name.startswith("lora:"):
        return f"training low-rank updates of rank {name.removeprefix('lora:')} beside the model's matrices (LoRA)"
    known = {"probe": "a linear probe; the model itself stays as it is", "full": "training the whole model"}
    if run.result and run.result.neighbours:
        known["knn"] = f"a vote of the {run.result.neighbours} nearest training photos; the model stays as it is"
    return known.get(name, name)


def _settings(run: Run) -> Iterator[tuple[str, str]]:
    """Everything that was set, section by section of config.yaml."""
    for section in ("finetune", "training", "augmentation", "lora"):
        values = run.about.get(section)
        for name, value in values.items() if isinstance(values, dict) else ():
            if value not in (None, {}):
                yield str(name).replace("_", " "), _word(value)


def _learning(run: Run) -> dict[str, Any]:
    """The figures of the learning section, the fewest words that explain them, and their numbers."""
    training = run.about.get("training")
    stops = isinstance(training, dict) and bool(training.get("patience"))
    found: dict[str, Any] = {"figures": [], "best": None, "epochs": run.epochs, "stops": stops, "votes": run.votes}
    if run.votes:
        votes = Line("left out in turn", tuple((float(vote.k), vote.accuracy) for vote in run.votes))
        found["figures"].append(lines("Accuracy on training photos", [votes], "neighbours that vote", as_percent=True))
    if run.epochs:
        followed = {"trained on": "train_accuracy", "held out": "val_accuracy"}
        curves = [_curve(name, run.epochs, key) for name, key in followed.items()]
        found["figures"] += [
            lines("Loss", [_curve("trained on", run.epochs, "loss")], "epoch"),
            lines("Accuracy", [curve for curve in curves if curve.points], "epoch", as_percent=True),
        ]
    if run.candidates:
        best = min(run.candidates, key=lambda candidate: candidate.log_loss)
        found["best"] = best
        for title, key in (("Accuracy", "accuracy"), ("Log-loss", "log_loss")):
            chosen = (float(best.layers), float(getattr(best, key)))
            curves = [
                Line(
                    " and ".join(parts),
                    tuple((c.layers, getattr(c, key)) for c in run.candidates if c.parts == parts),
                )
                for parts in dict.fromkeys(candidate.parts for candidate in run.candidates)
            ]
            title = f"{title} in cross-validation"
            found["figures"].append(lines(title, curves, "last layers used", key == "accuracy", chosen))
    return found


def _curve(name: str, epochs: list[Epoch], key: str) -> Line:
    values = ((entry.epoch, getattr(entry, key)) for entry in epochs)
    return Line(name, tuple((epoch, value) for epoch, value in values if value is not None))


def _confusion(run: Run) -> dict[str, Any]:
    if run.result is None:
        return {"map": None, "pairs": [], "classes": 0}
    names = [entry.name for entry in run.result.per_class]
    drawn = heat_map(run.result.confusion, names) if 0 < len(names) <= MOST_CELLS else None
    found = most_confused(names, run.result.confusion)
    return {"map": drawn, "pairs": found[: 12 if drawn else MOST_ROWS], "classes": len(names), "all": len(found)}


def _classes(run: Run) -> dict[str, Any]:
    ordered = worst_first(run.result.per_class) if run.result else []
    lowest = min((entry.interval[0] for entry in ordered if entry.total), default=0.0)
    floor, ticks = scale(lowest)
    rows = [(entry, run.counts.get(entry.name, (None, None))[0]) for entry in ordered]
    return {
        "rows": rows[:MOST_ROWS],
        "folded": rows[MOST_ROWS : MOST_ROWS + MOST_FOLDED],
        "left": len(rows[MOST_ROWS + MOST_FOLDED :]),
        "ticks": [f"{100 * tick:.0f}" for tick in ticks],
        "whisker": partial(whisker, floor=floor),
    }


def _trust(run: Run) -> dict[str, Any]:
    """Reliability diagrams and their errors, of the confidence before temperature where it is known, and after."""
    correct = np.array([row.label == row.predicted for row in run.predictions])
    found: dict[str, Any] = {"figures": [], "photos": len(correct), "accuracy": None}
    if not len(correct):
        return found
    found["accuracy"], found["interval"] = float(correct.mean()), wilson(int(correct.sum()), len(correct))
    unscaled = [row.unscaled for row in run.predictions]
    both = None not in unscaled
    for title, values in (
        ("before temperature", unscaled if both else None),
        ("after temperature" if both else "confidence and accuracy", [row.confidence for row in run.predictions]),
    ):
        if values is not None:
            confidence = np.clip(np.nan_to_num(np.array(values, np.float64)), 0.0, 1.0)
            error = calibration_error(confidence, correct)
            found["figures"].append((title, error, reliability(confidence, correct, title)))
    return found


def _spread(counts: Sequence[int]) -> str:
    """``250`` where all are that many, else ``18 to 300``."""
    return f"{counts[0]:,}" if min(counts) == max(counts) else f"{min(counts):,} to {max(counts):,}"


def _size(value: Any) -> Size | None:
    if isinstance(value, (list, tuple)) and len(value) == 2 and all(isinstance(side, int) for side in value):
        return (value[0], value[1])
    return None


def _set(value: Any) -> str:
    """A setting as ``--set`` takes it."""
    return ",".join(map(str, value)) if isinstance(value, list) else str(value)


def _word(value: Any) -> str:
    if size := _size(value):
        return size_text(size)
    if isinstance(value, dict):
        return ", ".join(f"{key}={number}" for key, number in value.items())
    return str(value)


def _kept(text: Callable[[Any], str]) -> Callable[[Any], str]:
    """The same text with percent signs that stay with their numbers."""
    return lambda value: text(value).replace(" %", "\N{NO-BREAK SPACE}%")


def _count(number: int, thing: str) -> str:
    """``1 photo``, ``2,500 photos``, ``10 classes``."""
    plural = f"{thing}es" if thing.endswith("s") else f"{thing}s"
    return f"{number:,} {thing if number == 1 else plural}"
