"""Losses of timm and of Vitrail, the same weights on the same batches: ``python -m benchmarks.training_curves``

At the shapes of ``training.py``, three seeds, random weights and real pictures: timm (bf16 autocast, the shortest loop)
and Vitrail (its own loop, in bf16, blocks compiled), both AdamW at one learning rate.

Written down before: the mean loss of the last quarter of the steps differs by less than the seeds do (two-sided t of
the seeds' differences, 95 %). An hour on two cores; name shapes to train those alone. Wants ``VITRAIL_DATA``. Draws
``docs/images/training-curves.png``.
"""

from __future__ import annotations

import json
import os
import re
import statistics
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.results_file import PERFORMANCE, RESULTS, publish, record
from benchmarks.training import SHAPES, our_steps, peer_step, timm_model
from vitrail.analyze import canvas
from vitrail.config import Preprocessing
from vitrail.data.order import batch_at
from vitrail.data.preprocess import preprocess
from vitrail.data.read import read_image
from vitrail.evaluate.metrics import t_interval
from vitrail.model.build import build
from vitrail.model.compiling import compile_blocks
from vitrail.report.markdown import table
from vitrail.train.loop import Step
from vitrail.weights.dialect import translate_back
from vitrail.weights.timm import rules

SEEDS = (0, 1, 2)
FIGURE = PERFORMANCE.parent / "images" / "training-curves.png"


@dataclass(frozen=True)
class Course:
    """What a shape is trained on, so many pictures of each class of a set, and how."""

    data: str
    pictures: int
    steps: int
    learning_rate: float


COURSES = {
    "S/16, 224 px, batch 32": Course("imagenette-subset", 250, 60, 3e-4),
    "Ti/16, 224 px, batch 32": Course("imagenette-subset", 250, 100, 3e-4),
    "9 layers x 192, 32 px, batch 128": Course("cifar10", 500, 200, 1e-3),
}


def main() -> None:
    """Train what is named, or all, and tell."""
    if unknown := set(sys.argv[1:]) - set(COURSES):
        sys.exit(f"No shape {', '.join(sorted(unknown))}: name one of {'; '.join(COURSES)}.")
    data = Path(os.environ.get("VITRAIL_DATA", ""))
    if not all((data / course.data / "train").is_dir() for course in COURSES.values()):
        sys.exit("Set VITRAIL_DATA to the folder that holds imagenette-subset and cifar10.")
    for shape in sys.argv[1:] or COURSES:
        record(f"training_curves/{_file(shape).stem}", losses(shape, data))
    canvas.save(_figure(), FIGURE)
    publish("training-curves", section(), *(_file(shape) for shape in COURSES if _file(shape).is_file()))


def losses(name: str, data: Path) -> dict[str, Any]:
    """Of every step, seed by seed, and what they say."""
    shape, course = SHAPES[name], COURSES[name]
    images, labels = _pictures(data / course.data / "train", course.pictures, shape.config.image_size)
    found: dict[str, list[list[float]]] = {"timm": [], "vitrail": []}
    for seed in SEEDS:
        model = build(shape.config, seed)
        theirs = timm_model(shape.config)
        theirs.load_state_dict(translate_back(rules(shape.config), shape.config, model.state_dict()))
        compile_blocks(model)
        told: list[Step] = []
        our_steps(model, images, labels, shape.batch, course.steps, seed, told.append, course.learning_rate)
        optimizer = torch.optim.AdamW(theirs.parameters(), lr=course.learning_rate, weight_decay=0.01, fused=True)
        order = (batch_at(step, len(labels), shape.batch, seed)[1] for step in range(course.steps))
        found["vitrail"].append([step.loss for step in told])
        found["timm"].append([peer_step(theirs, optimizer, images[at], labels[at], bf16=True) for at in order])
        print(name, seed, {way: _last(rows[-1]) for way, rows in found.items()}, flush=True)
    differences = [_last(a) - _last(b) for a, b in zip(found["vitrail"], found["timm"], strict=True)]
    mean, (low, high) = statistics.mean(differences), t_interval(differences)
    verdict = "within noise" if low <= 0 <= high else "different"
    print(f"vitrail less timm: {mean:+.4f}, 95 % {low:+.4f} to {high:+.4f}: {verdict}", flush=True)
    return {"difference": mean, "interval": [low, high], "verdict": verdict, "losses": found}


def _pictures(folder: Path, count: int, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """The first ``count`` of each class: images (n, 3, H, W), labels (n,)."""
    classes = sorted(path.name for path in folder.iterdir())
    paths = [path for name in classes for path in sorted((folder / name).iterdir())[:count]]
    how = Preprocessing(size, crop_fraction=1.0)
    images = torch.stack([preprocess(read_image(path), how) for path in paths])
    return images, torch.tensor([classes.index(path.parent.name) for path in paths])


def _last(losses: list[float]) -> float:
    """Mean of the last quarter."""
    return statistics.mean(losses[3 * len(losses) // 4 :])


def section() -> str:
    """In Markdown."""
    rows = []
    for shape, found in _measured().items():
        low, high = found["interval"]
        means = [", ".join(f"{_last(one):.3f}" for one in found["losses"][way]) for way in ("timm", "vitrail")]
        steps = f"{len(found['losses']['timm'][0])} of {COURSES[shape].data}"
        apart = f"{found['difference']:+.3f} ({low:+.3f} to {high:+.3f}), {found['verdict']}"
        rows.append([shape, steps, *means, apart])
    header = ["shape", "steps", "timm, three seeds", "vitrail", "vitrail less timm (95 %)"]
    picture = f"![Losses of both, step by step]({FIGURE.relative_to(PERFORMANCE.parent).as_posix()})"
    return f"Mean loss of the last quarter of the steps:\n\n{table(header, rows)}\n\n{picture}"


@canvas.styled
def _figure() -> Any:
    measured = _measured()
    drawn, axes = canvas.figure(1, len(measured), size=(3.5 * len(measured), 3.2))
    for at, (shape, found) in zip(axes, measured.items(), strict=True):
        for way, colour in (("timm", canvas.AMBER), ("vitrail", canvas.BLUE)):
            for seed, own in enumerate(found["losses"][way]):
                smooth = [statistics.mean(own[max(0, step - 4) : step + 5]) for step in range(len(own))]
                at.plot(smooth, color=colour, lw=1, label=way if seed == 0 else None)
        at.set(title=shape, xlabel="step", ylabel="loss, mean of 9 steps")
    canvas.legend(drawn, axes[0])
    return drawn


def _measured() -> dict[str, dict[str, Any]]:
    there = {shape: _file(shape) for shape in COURSES if _file(shape).is_file()}
    return {shape: json.loads(path.read_text())["findings"] for shape, path in there.items()}


def _file(shape: str) -> Path:
    name = re.sub(r"\W+", "-", shape)
    return RESULTS / "training_curves" / f"{name}.json"


if __name__ == "__main__":
    main()
