"""``vitrail tune`` on a real model, against a full sweep: ``VITRAIL_DATA=folder python -m benchmarks.tune``

``saliency-s14`` at 224 pixels with a head fitted on ``imagenette-subset`` (that of ``benchmarks/engines.py``), tuned
on the 1,000 held-out pictures with 0.3 points allowed. Then what tuning chooses among is measured, all in
batches of one size: every engine, and the fastest with every family of merging at ``LEVELS`` shares; speeds by turns,
accuracy on the same pictures.

Aims, written down before: tuning ends within 10 minutes, and no way of the sweep that loses at most 0.3 points is
faster than its winner by more than a tenth, which counts as a tie. The figure is ``docs/images/tune.png``; the findings
are a section of ``docs/performance.md``. About half an hour on two cores.
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from benchmarks.engines import SETS, with_head
from benchmarks.limits import limits
from benchmarks.results_file import PERFORMANCE, publish, record
from vitrail.config import transformer
from vitrail.record import to_dict
from vitrail.report.markdown import table
from vitrail.report.terminal import Show
from vitrail.runtime.engines import available
from vitrail.runtime.plan import Runtime
from vitrail.runtime.schedules import KINDS, schedule
from vitrail.runtime.tuning import TIE, Trial
from vitrail.tasks.tune import BATCH, Work, pictures_for, read_pictures, reference_speed, tune

ALLOWED, MINUTES = 0.3, 10.0
LEVELS = (0.125, 0.25, 0.375, 0.5, 0.75)
FIGURE = PERFORMANCE.parent / "images" / "tune.png"


def main() -> None:
    """Tune, sweep, compare."""
    data = Path(os.environ.get("VITRAIL_DATA", "")) / SETS["numerics"][0]
    if not data.is_dir():
        sys.exit("Set VITRAIL_DATA to the folder that holds imagenette-subset/.")
    classifier = with_head("numerics", data, SETS["numerics"][1])
    with tempfile.TemporaryDirectory() as scratch:
        folder = classifier.save(Path(scratch) / "model")
        tuned = tune(folder, data / "val", ALLOWED, MINUTES, out=FIGURE)
        shutil.rmtree(folder / "builds")
        speed = reference_speed(classifier)
        pictures = read_pictures(classifier, data / "val", Show(), pictures_for(MINUTES, speed))
        work = Work(classifier, folder, pictures, Show(), speed)
        start = time.monotonic()
        winner = replace(tuned.tuned.runtime, batch_size=BATCH, threads=None, ranges="")
        swept = sweep(work, winner)
    findings = {
        "tuned": tuned.to_dict(),
        "sweep": [to_dict(trial) for trial in swept],
        "sweep_minutes": (time.monotonic() - start) / 60,
        **verdict(winner, swept),
    }
    publish("tune", section(findings), record("tune", findings, limits()))


def sweep(work: Work, winner: Runtime) -> list[Trial]:
    """Every engine, the fastest with merging, and the winner: fastest first."""
    plain = [Runtime(*pair, batch_size=BATCH) for pair in available(torch.device("cpu"))]
    speeds = {way: speed for way, speed in work.speeds(plain).items() if not isinstance(speed, str)}
    fastest = max(speeds, key=lambda way: speeds[way])
    config = transformer(work.classifier.card.architecture, "Merging")
    merged = [replace(fastest, merging=schedule(config, share, kind)) for kind in KINDS for share in LEVELS]
    ways = list(dict.fromkeys([fastest, winner, *merged]))
    again = {way: speed for way, speed in work.speeds(ways).items() if not isinstance(speed, str)}
    trials = [Trial(way, speed, work.loss(way)) for way, speed in {**speeds, **again}.items()]
    return sorted(trials, key=lambda trial: -trial.speed)


def verdict(winner: Runtime, swept: list[Trial]) -> dict[str, Any]:
    """The fastest of the sweep that loses little enough, and its speed to the winner's."""
    best = next(trial for trial in swept if trial.loss is not None and trial.loss.points <= ALLOWED)
    own = next(trial for trial in swept if trial.runtime == winner)
    return {"sweep_best": to_dict(best), "ratio": best.speed / own.speed, "tie": best.speed <= TIE * own.speed}


def section(findings: dict[str, Any]) -> str:
    """In Markdown."""
    tuned, best = findings["tuned"], findings["sweep_best"]
    rows = []
    for trial in findings["sweep"]:
        runtime, loss = trial["runtime"], trial["loss"]
        lost = f"{loss['points']:+.1f} ({loss['low']:+.1f} to {loss['high']:+.1f})"
        name = f"{runtime['backend']}:{runtime['precision']}"
        merged = str(sum(runtime["merging"]) or "")
        first_layer = str(runtime["merging"][0]) if merged else ""
        rows.append([name, merged, first_layer, f"{trial['speed']:.1f}", f"{100 * loss['accuracy']:.1f}", lost])
    winner, first = _named(tuned["runtime"]), _named(best["runtime"])
    lines = [
        table(["way", "merged", "in the first layer", "pictures/s", "accuracy, %", "points lost (95 %)"], rows),
        "",
        f"`tune` took {tuned['minutes']:.1f} minutes and chose {winner}, in batches of "
        f"{tuned['runtime']['batch_size']}, {tuned['images_per_second']:.1f} pictures a second. In the sweep, "
        f"{findings['sweep_minutes']:.0f} minutes, all in batches of {BATCH}, that makes "
        f"{best['speed'] / findings['ratio']:.1f} pictures a second, and the fastest that loses at most {ALLOWED} "
        f"points, {first}, {best['speed']:.1f}: {findings['ratio']:.2f} times as fast.",
        "",
        f"![What tune judged](images/{FIGURE.name})",
    ]
    return "\n".join(lines)


def _named(runtime: dict[str, Any]) -> str:
    merged = sum(runtime["merging"])
    return f"{runtime['backend']}:{runtime['precision']}" + (f" with {merged} tokens merged" if merged else "")


if __name__ == "__main__":
    main()
