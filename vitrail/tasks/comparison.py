"""What a comparison of models came to, and how it is told."""

from __future__ import annotations

import shlex
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vitrail.config import is_variant
from vitrail.evaluate.metrics import paired_bootstrap, wilson
from vitrail.report.markdown import table
from vitrail.report.terminal import duration, percent
from vitrail.runtime.machine import processor

HEADER = ["model", "begins as", "accuracy, % (95 %)", "behind, points", "min", "img/s", "size"]


@dataclass(frozen=True)
class Asked:
    """What is compared, on what, and how; kept, so that a comparison that goes on is the same one."""

    data: str
    models: tuple[str, ...]
    methods: tuple[str, ...]
    folds: int
    minutes: float
    resolution: int | None
    seed: int


@dataclass(frozen=True)
class Candidate:
    """A model and a method, over all folds: each picture judged once, by a model that had not seen it."""

    model: str
    method: str
    right: np.ndarray
    """(n,)"""
    minutes: float
    """Of one training, with the features of all pictures, whether they were in the cache or not."""
    epochs: int | None
    images_per_second: float
    parameters: int
    epoch_minutes: float | None = None
    """Of one epoch, as measured beforehand; None: a probe."""

    @property
    def name(self) -> str:
        """``dinov2-small, probe``."""
        return f"{self.model}, {self.method}"

    @property
    def accuracy(self) -> float:
        """Share of all pictures."""
        return float(self.right.mean())

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON values."""
        found = {name: value for name, value in asdict(self).items() if name != "right"}
        bounds = wilson(int(self.right.sum()), len(self.right))
        return {**found, "accuracy": self.accuracy, "interval": list(bounds), "images": len(self.right)}


@dataclass(frozen=True)
class Comparison:
    """What came out."""

    folder: Path
    candidates: tuple[Candidate, ...]
    """The most accurate first."""

    def behind(self, other: Candidate) -> tuple[float, float, float]:
        """By how much a candidate is less accurate than the best, and its 95 % interval: paired bootstrap."""
        return paired_bootstrap(self.candidates[0].right, other.right)

    @property
    def tied(self) -> tuple[Candidate, ...]:
        """Those that the pictures cannot tell from the best."""
        return tuple(other for other in self.candidates[1:] if self.behind(other)[1] <= 0)

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON values."""
        rows = [
            {**one.to_dict(), "behind": [0.0, 0.0, 0.0] if at == 0 else list(self.behind(one))}
            for at, one in enumerate(self.candidates)
        ]
        return {"best": self.candidates[0].name, "tied": [one.name for one in self.tied], "candidates": rows}


def is_random(model: str) -> bool:
    """Whether it is a variant's name, which begins with random weights."""
    return is_variant(model) and not Path(model).exists()


def rows(result: Comparison) -> list[list[str]]:
    """A row of ``HEADER`` for each candidate."""
    best, found = result.candidates[0], []
    for one in result.candidates:
        low, high = wilson(int(one.right.sum()), len(one.right))
        behind = "" if one is best else _points(result.behind(one))
        accuracy = f"{100 * one.accuracy:.1f} ({100 * low:.1f} to {100 * high:.1f})"
        speed, size = f"{one.images_per_second:.1f}", f"{one.parameters / 1e6:.1f} M"
        begun = "random weights" if is_random(one.model) else "pretrained"
        found.append([one.name, begun, accuracy, behind, f"{one.minutes:.1f}", speed, size])
    return found


def over(name: str, epoch_minutes: float, minutes: float) -> str:
    """A sentence where not even one epoch fits into the minutes, or nothing."""
    if epoch_minutes <= minutes:
        return ""
    one, there = duration(60 * epoch_minutes), duration(60 * minutes)
    return f"One epoch of {name}, the least there is, takes about {one}, more than the {there} asked for."


def verdict(result: Comparison, minutes: float) -> list[str]:
    """Sentences: what to use, what cannot be told from it, and who had more than its ``minutes``."""
    best = result.candidates[0]
    found = [f"Use {best.name}: {percent(best.accuracy)} right, each picture judged by a model that had not seen it."]
    for one in result.tied:
        gains = _gains(one, best)
        found.append(
            f"{one.name} cannot be told from it on {len(one.right)} pictures ({_points(result.behind(one))} behind)"
            + (f", and is {gains}: use that where it matters." if gains else ".")
        )
    budgets = [(one.name, one.epoch_minutes) for one in result.candidates if one.epoch_minutes is not None]
    return found + [said for name, each in budgets if (said := over(name, each, minutes))]


def section(result: Comparison, asked: Asked) -> str:
    """In Markdown, with the command."""
    about = f"{len(result.candidates[0].right):,} pictures, {asked.folds} folds, on {processor()}."
    said = "\n".join(f"- {one}" for one in verdict(result, asked.minutes))
    return "\n\n".join([table(HEADER, rows(result)), said, f"`{command(asked, result.folder)}`: {about}"])


def command(asked: Asked, folder: Path) -> str:
    """The ``vitrail compare`` that makes the comparison, or goes on with it."""
    words = [*_each("--model", asked.models), *_each("--method", asked.methods), "--folds", str(asked.folds)]
    words += ["--minutes", str(asked.minutes), *_shared(asked), "--out", str(folder)]
    return shlex.join(["vitrail", "compare", asked.data, *words])


def onward(one: Candidate, asked: Asked) -> str:
    """The ``vitrail finetune`` that trains a candidate."""
    weights = ["--weights", "none", "--architecture"] if is_random(one.model) else ["--weights"]
    epochs = [] if one.epochs is None else ["--epochs", str(one.epochs)]
    words = [*weights, one.model, "--method", one.method, *epochs, *_shared(asked), "--out", "ANOTHER"]
    return shlex.join(["vitrail", "finetune", asked.data, *words])


def _each(option: str, values: tuple[str, ...]) -> list[str]:
    return [word for value in values for word in (option, value)]


def _shared(asked: Asked) -> list[str]:
    """Options that a comparison and a training have in common."""
    size = [] if asked.resolution is None else ["--resolution", str(asked.resolution)]
    return [*size, "--seed", str(asked.seed)]


def _gains(one: Candidate, best: Candidate) -> str:
    """In what it is better by half or more."""
    ratios = {
        "faster to predict with": one.images_per_second / best.images_per_second,
        "faster to train": best.minutes / one.minutes,
        "smaller": best.parameters / one.parameters,
    }
    return " and ".join(f"{ratio:.1f} times {what}" for what, ratio in ratios.items() if ratio >= 1.5)


def _points(behind: tuple[float, float, float]) -> str:
    mean, low, high = (100 * value for value in behind)
    return f"{mean:+.1f} ({low:+.1f} to {high:+.1f})"
