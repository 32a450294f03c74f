"""Position information: none against all kinds of it (article 3.2, ViT appendix D.4 and table 8)."""

from __future__ import annotations

from vitrail.experiments.figure import rows_of_seeds
from vitrail.experiments.findings import Findings, Verdict, accuracies
from vitrail.experiments.lab import Lab
from vitrail.experiments.run import Photos, Result, Run
from vitrail.experiments.scale import SCALES, ScaleName
from vitrail.experiments.verdict import above, difference, over_seeds, together, within

KINDS = ("none", "learned-1d", "sinusoidal-1d", "learned-2d", "relative-1d")
DROP, TIE = 0.01, 0.01


def run(lab: Lab, data: str, scale: ScaleName, command: str) -> Findings:
    """Train each kind from the same settings and seeds."""
    usual = SCALES[scale]
    runs = {
        kind: [Run(Photos(data), {**usual.settings(), "position": kind}, seed) for seed in usual.seeds]
        for kind in KINDS
    }
    return findings(lab.table(runs), data, command)


def findings(results: dict[str, list[Result]], data: str, command: str) -> Findings:
    """From runs of the same seeds for each kind."""
    accuracy = accuracies(results)
    known = [kind for kind in accuracy if kind != "none"]
    gains = {kind: difference(accuracy[kind], accuracy["none"]) for kind in known}
    means = {kind: over_seeds(values) for kind, values in accuracy.items()}
    first = max(known, key=lambda kind: means[kind].mean)
    gaps = {kind: difference(accuracy[first], accuracy[kind]) for kind in known if kind != first}
    least = min(gains, key=lambda kind: gains[kind].low)
    widest = max(gaps, key=lambda kind: gaps[kind].high)
    rows = [
        [kind, means[kind].percent(), "" if kind == "none" else gains[kind].points(), f"{own[0].parameters:,}"]
        for kind, own in results.items()
    ]
    return Findings(
        name="position-embeddings",
        title="Position information",
        source="Article 3.2; ViT appendix D.4, table 8.",
        margins=(
            f"Each kind at the stem, from the same settings and seeds on {data}. Written down before: each kind is "
            f"more than {100 * DROP:.0f} point above none; the kinds tie if each is within {100 * TIE:.0f} point of "
            "the best (95 % t intervals over seeds of the difference)."
        ),
        header=["positions", "test accuracy, %", "above none, points (95 %)", "parameters"],
        rows=rows,
        verdicts=[
            Verdict(
                "Without position information accuracy drops",
                together([above(gain, DROP) for gain in gains.values()]),
                f"the least gain is that of {least}, {gains[least].points()}",
            ),
            Verdict(
                "The kinds tie",
                together([within(gap, TIE) for gap in gaps.values()]),
                f"{first} is the best; {widest} is behind by {gaps[widest].points()}",
            ),
        ],
        draw=lambda: rows_of_seeds("Position information", accuracy),
        command=command,
        results=[result for own in results.values() for result in own],
    )
