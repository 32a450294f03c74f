"""Another resolution: positions resampled in 2-D against positions filled up with zeros (article 5.1; claim 7)."""

from __future__ import annotations

from functools import partial

from vitrail.experiments.baseline import supervised
from vitrail.experiments.figure import rows_of_seeds
from vitrail.experiments.findings import Findings, Verdict, accuracies
from vitrail.experiments.lab import Lab
from vitrail.experiments.run import Photos, Run
from vitrail.experiments.scale import SCALES, ScaleName
from vitrail.experiments.verdict import above, difference, over_seeds, together

WAYS = {
    "resampled in 2-D": "bicubic-corner",
    "raster order, then zeros": "zeros-raster",
    "rows and columns, zeros beyond": "zeros-corner",
}
LARGER, RATE, MARGIN = (1.5, 2.0), 3e-4, 0.0
SHORT = {"a few steps": 100, "long": 10}
"""Fine-tuning takes the usual steps divided by this."""


def run(lab: Lab, data: str, scale: ScaleName, command: str) -> Findings:
    """Pretrain on labels at one resolution, go on at larger ones, with each way of taking positions there."""
    usual = SCALES[scale]
    base = [Run(Photos(data), usual.settings(), seed) for seed in usual.seeds]
    side = usual.model["resolution"]
    runs: dict[tuple[float, str, str], list[Run]] = {}
    for factor in LARGER:
        for length, share in SHORT.items():
            for label, way in WAYS.items():
                steps = max(1, usual.steps // share)
                settings = {
                    **supervised(scale, {}, steps),
                    "resolution": int(side * factor),
                    "resampling": way,
                    "learning_rate": usual.finetune.get("learning_rate", RATE),
                }
                runs[factor, length, label] = [Run(Photos(data), settings, start.seed, start=start) for start in base]
    results = lab.table(runs)
    accuracy = {key: [result.accuracy for result in own] for key, own in results.items()}
    resampled = next(iter(WAYS))
    gains = {
        (factor, length, label): difference(accuracy[factor, length, resampled], accuracy[factor, length, label])
        for factor, length, label in results
        if label != resampled
    }
    labelled = {
        f"{int(side * factor)} px, {length}: {label}": values for (factor, length, label), values in accuracy.items()
    }
    start = over_seeds(accuracies({"start": lab.results(base)})["start"])
    return Findings(
        name="resolution",
        title="Another resolution",
        source="Article 5.1; ViT section 3.2.",
        margins=(
            f"On {data}, from {side} px ({start.percent()} %) to {' and '.join(f'{factor:g}' for factor in LARGER)} "
            "times as many a side. Written down before: resampling gains if the 95 % t interval over seeds of its lead "
            "lies above zero, at every resolution and after few steps and many."
        ),
        header=["pixels", "fine-tuning", "positions", "test accuracy, %", "resampling leads by, points (95 %)"],
        rows=[
            [
                f"{int(side * factor)}",
                f"{results[factor, length, label][0].run['settings']['steps']} steps",
                label,
                over_seeds(values).percent(),
                "" if label == resampled else gains[factor, length, label].points(),
            ]
            for (factor, length, label), values in accuracy.items()
        ],
        verdicts=[
            Verdict(
                f"Resampled positions beat zero-filled ones after {length.removeprefix('a ')}"
                + ("" if "steps" in length else " fine-tuning"),
                together(partial(above, margin=MARGIN), (gain for (_, own, _), gain in gains.items() if own == length)),
                "; ".join(
                    f"{int(side * factor)} px, {label}: {gain.points()}"
                    for (factor, own, label), gain in gains.items()
                    if own == length
                ),
            )
            for length in SHORT
        ],
        draw=lambda: rows_of_seeds("Another resolution", labelled),
        command=command,
        pairs={
            f"{int(side * factor)} px, {length}, resampled less {label}": (
                results[factor, length, resampled],
                results[factor, length, label],
            )
            for factor, length, label in gains
        },
        results=[result for own in results.values() for result in own],
    )
