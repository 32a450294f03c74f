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
LONGER = 3
"""Times the usual steps, to see whether a kind that is behind learns its positions late."""
LATE = ("none", "sinusoidal-1d", "relative-1d")
"""Without, the kind that begins with its positions, and the one that has to learn them in every layer."""


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
            "Each kind at the stem, relative ones in every layer's attention, from the same settings and seeds on "
            f"{data}. Written down before: each kind is more than {100 * DROP:.0f} point above none; the kinds tie if "
            f"each is within {100 * TIE:.0f} point of the best (95 % t intervals over seeds of the difference)."
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


def longer(lab: Lab, data: str, scale: ScaleName, command: str) -> Findings:
    """``run`` for the kinds of ``LATE``, and the same ``LONGER`` times as long."""
    usual = SCALES[scale]
    runs: dict[tuple[str, int], list[Run]] = {}
    for times in (1, LONGER):
        steps = times * usual.steps
        settings = usual.settings()
        settings |= {"steps": steps, "tuning": {**settings["tuning"], "evaluate_every": steps}}
        for kind in LATE:
            runs[kind, steps] = [Run(Photos(data), {**settings, "position": kind}, seed) for seed in usual.seeds]
    return longer_findings(lab.table(runs), data, command)


def longer_findings(results: dict[tuple[str, int], list[Result]], data: str, command: str) -> Findings:
    """From runs of the same seeds for each kind, at two numbers of steps."""
    accuracy = {key: [result.accuracy for result in own] for key, own in results.items()}
    none, first, late = LATE
    usual, long = sorted({steps for _, steps in results})
    gain = difference(accuracy[late, long], accuracy[none, long])
    before, after = (
        [one - other for one, other in zip(accuracy[first, steps], accuracy[late, steps], strict=True)]
        for steps in (usual, long)
    )
    shrunk = difference(before, after)
    return Findings(
        name="position-embeddings-longer",
        title="Position information, trained longer",
        source="Why relative positions are behind in the experiment above.",
        margins=(
            "Sinusoids are there from the start; relative positions are learned in every layer, from nearly nothing. "
            f"If that is why they are behind after {usual:,} steps on {data}, they gain once training is {LONGER} "
            "times as long, and the distance shrinks. Written down before: a gain of more than "
            f"{100 * DROP:.0f} point over none; a distance that has shrunk (95 % t intervals over seeds)."
        ),
        header=["positions", "steps", "test accuracy, %", "above none, points (95 %)"],
        rows=[
            [
                kind,
                f"{steps:,}",
                over_seeds(values).percent(),
                "" if kind == none else difference(values, accuracy[none, steps]).points(),
            ]
            for (kind, steps), values in accuracy.items()
        ],
        verdicts=[
            Verdict(f"After {long:,} steps {late} gains over none", above(gain, DROP), gain.points()),
            Verdict(f"{late} comes nearer to {first}", above(shrunk), f"by {shrunk.points()}"),
        ],
        draw=lambda: rows_of_seeds(
            "Position information, trained longer",
            {f"{kind}, {steps:,} steps": values for (kind, steps), values in accuracy.items()},
        ),
        command=command,
        results=[result for own in results.values() for result in own],
    )
