"""Pretraining without labels on one small machine: ``VITRAIL_DATA=folder python -m benchmarks.self_supervision``

``cifar10``, a ViT of 6 layers x 128 with patches of 4 on 32 pixels. Written down before the first run:

- Pretraining on the 50,000 training pictures, without labels, by MAE, masked patches and MoCo v3, each for the
  number of steps that take ``MINUTES`` on this machine, by step times measured in turns beforehand: equal compute.
  One rate each, the task's usual; nothing is searched.
- Then 2,000 labels (200 a class), ``STEPS`` steps, the same for all and for random weights. The learning rate is
  searched equally for every arm: ``RATES``, one seed, by accuracy on 1,000 other labelled training pictures.
- With the best rate ``SEEDS``; accuracy on all 10,000 test pictures, which nothing is chosen by. The verdict on an
  arm is the mean over seeds of its accuracy less that of random weights with the same seed: it gains, or loses, if
  the 95 % t interval lies above, or below, zero; else it is undecided.

Every finished cell is a file in ``results/self_supervision/`` and is not run again; a run that is killed is gone on
with, and one whose weights are gone is made again where they are needed. ``splits/cifar10-2000.csv`` lists the
labelled pictures. About an hour on two cores with nothing beside. With ``mae`` behind the command only what
belongs to that arm is made, so that several can be made at a time (``OMP_NUM_THREADS=1`` for each of two).
"""

from __future__ import annotations

import csv
import json
import os
import random
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.results_file import RESULTS, record
from vitrail.analyze import canvas
from vitrail.experiments.verdict import difference, over_seeds
from vitrail.report.markdown import table, write_section
from vitrail.tasks.classifier import load
from vitrail.tasks.pretrain import pretrain

OBJECTIVES = ("mae", "masked-patches", "moco")
SCRATCH = "random weights"
MINUTES, BATCH = 10, 256
STEPS, LABELLED_BATCH = 600, 64
RATES, SEEDS = (3e-4, 1e-3, 3e-3), (0, 1, 2)
MODEL: dict[str, Any] = {"layers": 6, "width": 128, "heads": 4, "patch": 4, "resolution": 32}

CELLS = RESULTS / "self_supervision"
SPLIT = Path(__file__).parent / "splits" / "cifar10-2000.csv"
RUNS = Path(os.environ.get("VITRAIL_RUNS", "runs")) / "self-supervision"
DOCS = Path(__file__).parents[1] / "docs"
FIGURE = DOCS / "images" / "self-supervision.png"
Cell = dict[str, Any]


def main() -> None:
    """Run what is missing, of the arms that are named or of all, then print and draw."""
    data = Path(os.environ.get("VITRAIL_DATA", "")) / "cifar10"
    if not (data / "train").is_dir():
        sys.exit("Set VITRAIL_DATA to the folder that holds cifar10/{train,test}.")
    RUNS.mkdir(parents=True, exist_ok=True)
    cell("budget", lambda: budget(data))
    named = [arm for arm in (SCRATCH, *OBJECTIVES) if arm in sys.argv[1:]]
    results = {arm: accuracies(data, arm) for arm in named or (SCRATCH, *OBJECTIVES)}
    if named:
        return
    verdicts = {arm: verdict(results[arm], results[SCRATCH]) for arm in OBJECTIVES}
    for arm, values in results.items():
        print(f"{arm:<16} {' '.join(f'{100 * value:.2f}' for value in values)}", verdicts.get(arm, ""))
    record("self_supervision/verdicts", {"accuracies": results, "verdicts": verdicts})
    draw()
    write_section(DOCS / "pretrain.md", "self-supervision", section(results, verdicts))


def accuracies(data: Path, arm: str) -> list[float]:
    """On the test pictures, a seed after the other, at the arm's best rate."""
    if arm != SCRATCH:
        cell(f"pretrain-{arm}", lambda: pretrained(data, arm))
    best = max(RATES, key=lambda rate: learned(data, arm, rate, SEEDS[0])["search_accuracy"])
    return [learned(data, arm, best, seed)["test_accuracy"] for seed in SEEDS]


def cell(name: str, work: Callable[[], Cell]) -> Cell:
    """A finished cell from its file, or its work, done and written."""
    path = CELLS / f"{name}.json"
    if not path.is_file():
        start = time.perf_counter()
        result = work()
        record(f"self_supervision/{name}", {**result, "minutes": (time.perf_counter() - start) / 60})
        print(name, {key: value for key, value in result.items() if key != "curve"}, flush=True)
    found: Cell = json.loads(path.read_text())["findings"]
    return found


def budget(data: Path, rounds: int = 3, each: int = 12) -> Cell:
    """Seconds a step of each objective, measured in turns."""
    times: dict[str, list[float]] = {objective: [] for objective in OBJECTIVES}
    for turn in range(rounds):
        for objective in OBJECTIVES:
            out = RUNS / f"budget-{objective}-{turn}"
            pretrain(data / "train", out, objective=objective, steps=each, batch_size=BATCH, quiet=True, **MODEL)
            lines = (out / "training" / "timing.jsonl").read_text().splitlines()
            times[objective] += [json.loads(line)["seconds"] for line in lines][2:]
    return {"seconds_per_step": {objective: statistics.median(found) for objective, found in times.items()}}


def pretraining(data: Path, objective: str) -> Path:
    """The run folder of one objective, made if it is not there, and gone on with if it was stopped."""
    out = RUNS / f"pretrain-{objective}"
    seconds = cell("budget", lambda: budget(data))["seconds_per_step"][objective]
    steps = round(60 * MINUTES / seconds)
    pretrain(data / "train", out, objective=objective, steps=steps, batch_size=BATCH, **MODEL)
    return out


def pretrained(data: Path, objective: str) -> Cell:
    """What one objective's pretraining gave."""
    out = pretraining(data, objective)
    lines = [json.loads(line) for line in (out / "training" / "metrics.jsonl").read_text().splitlines()]
    losses = [(line["step"], line["loss"]) for line in lines if "loss" in line]
    every = max(1, len(losses) // 100)
    curve = [
        (losses[at][0], statistics.mean(loss for _, loss in losses[at : at + every]))
        for at in range(0, len(losses), every)
    ]
    timing = (out / "training" / "timing.jsonl").read_text().splitlines()
    steps = lines[-1]["step"]
    return {
        "steps": steps,
        "epochs": steps * BATCH / 50_000,
        "training_minutes": sum(json.loads(line).get("seconds", 0.0) for line in timing) / 60,
        "curve": curve,
        "last_loss": curve[-1][1],
    }


def learned(data: Path, arm: str, rate: float, seed: int) -> Cell:
    """The cell of one training on the labels."""
    return cell(f"labels-{arm.replace(' ', '-')}-{rate:g}-{seed}", lambda: labelled(data, arm, rate, seed))


def labelled(data: Path, arm: str, rate: float, seed: int) -> Cell:
    """Training on the 2,000 labels from one arm's weights; accuracies on the 1,000 other pictures and the test's."""
    weights = None if arm == SCRATCH else pretraining(data, arm)
    out = RUNS / f"labels-{arm.replace(' ', '-')}-{rate:g}-{seed}"
    table = RUNS / f"{out.name}.csv"
    write_table(data, table)
    result = pretrain(
        table, out, objective="supervised", weights=weights, steps=STEPS, batch_size=LABELLED_BATCH,
        learning_rate=rate, seed=seed, tuning={"layer_decay": 1.0}, **(MODEL if weights is None else {}),
    )  # fmt: skip
    assert result is not None
    assert result.evaluation is not None
    test = load(out, quiet=True).evaluate(data / "test").evaluation
    return {
        "rate": rate,
        "seed": seed,
        "search_accuracy": result.evaluation.top1,
        "test_accuracy": test.top1,
        "test_images": test.images,
        "last_loss": result.last.get("loss"),
    }


def write_table(data: Path, out: Path) -> None:
    """The labelled pictures and those that the rate is searched by, as a CSV."""
    with SPLIT.open(newline="") as file:
        rows = [(row["path"], {"train": "train", "search": "val"}[row["part"]]) for row in csv.DictReader(file)]
    with out.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["path", "label", "split"])
        writer.writerows([data / path, Path(path).parts[1], part] for path, part in rows)


def write_split(data: Path, out: Path = SPLIT) -> None:
    """How the list in ``splits/`` was made, once: 200 a class to learn from, 100 others to search the rate by."""
    with out.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["path", "part"])
        for folder in sorted((data / "train").iterdir()):
            paths = sorted(path.relative_to(data).as_posix() for path in folder.glob("*"))
            chosen = random.Random(f"cifar10 {folder.name}").sample(paths, 300)
            for part, members in (("train", chosen[:200]), ("search", chosen[200:])):
                writer.writerows([path, part] for path in sorted(members))


def verdict(accuracies: list[float], baseline: list[float]) -> Cell:
    """Mean difference over seeds, its 95 % t interval, and what follows."""
    gap = difference(accuracies, baseline)
    word = "gains" if gap.low > 0 else "loses" if gap.high < 0 else "undecided"
    return {"difference": gap.mean, "interval": [gap.low, gap.high], "verdict": word}


def section(results: dict[str, list[float]], verdicts: dict[str, Cell]) -> str:
    """In Markdown."""
    rows = []
    for arm, values in results.items():
        cells = [arm, "", over_seeds(values).percent(), "", ""]
        if arm != SCRATCH:
            found = json.loads((CELLS / f"pretrain-{arm}.json").read_text())["findings"]
            low, high = (100 * bound for bound in verdicts[arm]["interval"])
            cells[1] = f"{found['steps']:,} steps, {found['epochs']:.1f} epochs"
            cells[3] = f"{100 * verdicts[arm]['difference']:+.1f} ({low:+.1f} to {high:+.1f})"
            cells[4] = verdicts[arm]["verdict"]
        rows.append(cells)
    header = ["weights", "pretraining", "test accuracy, %", "above random weights, points (95 %)", "verdict"]
    return "\n".join([table(header, rows), "", f"![Losses and accuracies]({FIGURE.relative_to(DOCS).as_posix()})"])


def draw() -> None:
    """The losses of pretraining, and the accuracies."""
    canvas.save(_figure(), FIGURE)
    print(FIGURE)


@canvas.styled
def _figure() -> Any:
    drawn, axes = canvas.figure(1, len(OBJECTIVES) + 1, size=(10.5, 2.9))
    for at, objective in zip(axes, OBJECTIVES, strict=False):
        found = json.loads((CELLS / f"pretrain-{objective}.json").read_text())["findings"]
        at.plot(*zip(*found["curve"], strict=True), color=canvas.BLUE)
        at.set(title=objective, xlabel="steps", ylabel="loss")
    found = json.loads((CELLS / "verdicts.json").read_text())["findings"]
    for row, accuracies in enumerate(found["accuracies"].values()):
        axes[-1].plot([100 * value for value in accuracies], [row] * len(accuracies), "o", color=canvas.BLUE, ms=5)
    axes[-1].set_yticks(range(len(found["accuracies"])), list(found["accuracies"]))
    axes[-1].invert_yaxis()
    axes[-1].set(title="2,000 labels", xlabel="test accuracy, %")
    return drawn


if __name__ == "__main__":
    main()
