"""Position information: none against all kinds of it (article 3.2, ViT appendix D.4 and table 8)."""

from __future__ import annotations

from functools import partial

from vitrail.experiments.figure import rows_of_seeds
from vitrail.experiments.findings import Findings, Verdict, accuracies
from vitrail.experiments.lab import Lab
from vitrail.experiments.run import Photos, Result, Run
from vitrail.experiments.scale import SCALES, ScaleName
from vitrail.experiments.verdict import above, difference, over_seeds, together, within

KINDS = ("none", "learned-1d", "sinusoidal-1d", "learned-2d", "relative-1d")
EVERYWHERE = tuple(f"{kind}:{place}" for kind in ("learned-1d", "learned-2d") for place in ("every-layer", "shared"))
"""Table 8's other places, at each layer its own positions or all the same, where an accelerator has the time."""
DROP, TIE = 0.01, 0.01
LONGER = 3
"""Times the usual steps, to see whether a kind that is behind learns its positions late."""
LATE = ("none", "sinusoidal-1d", "learned-1d", "relative-1d")
"""Without, the kind that begins with its positions, and those that learn them, at the stem and in every layer."""


def run(lab: Lab, data: str, scale: ScaleName, command: str) -> Findings:
    """Train each kind from the same settings and seeds."""
    usual = SCALES[scale]
    runs = {
        kind: [Run(Photos(data), {**usual.settings(), "position": kind}, seed) for seed in usual.seeds]
        for kind in (KINDS if scale == "small" else (*KINDS, *EVERYWHERE))
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
            f"Each kind at the stem{', or where it says' if any(':' in kind for kind in known) else ''}, relative ones "
            f"in every layer's attention, from the same settings and seeds on {data}. Written down before: each kind "
            f"is more than {100 * DROP:.0f} point above none; the kinds tie if each is within {100 * TIE:.0f} point of "
            "the best (95 % t intervals over seeds of the difference)."
        ),
        header=["positions", "test accuracy, %", "above none, points (95 %)", "parameters"],
        rows=rows,
        verdicts=[
            Verdict(
                "Without position information accuracy drops",
                together(partial(above, margin=DROP), gains.values()),
                f"the least gain is that of {least}, {gains[least].points()}",
            ),
            Verdict(
                "The kinds tie",
                together(partial(within, margin=TIE), gaps.values()),
                f"{first} is the best; {widest} is behind by {gaps[widest].points()}",
            ),
        ],
        draw=lambda: rows_of_seeds("Position information", accuracy),
        command=command,
        pairs={
            **{f"{kind} less none": (results[kind], results["none"]) for kind in known},
            f"{first} less {widest}": (results[first], results[widest]),
        },
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
    none, first, *late = LATE
    usual, long = sorted({steps for _, steps in results})
    gains = {kind: difference(accuracy[kind, long], accuracy[none, long]) for kind in late}

    def behind(kind: str, steps: int) -> list[float]:
        return [one - other for one, other in zip(accuracy[first, steps], accuracy[kind, steps], strict=True)]

    shrunk = {kind: difference(behind(kind, usual), behind(kind, long)) for kind in late}
    return Findings(
        name="position-embeddings-longer",
        title="Position information, trained longer",
        source="Why learned positions, and relative ones most, are behind in the experiment above.",
        margins=(
            "Sinusoids are there from the start; the others are learned from nearly nothing, relative ones in every "
            f"layer. If that is why they are behind after {usual:,} steps on {data}, they gain once training is "
            f"{LONGER} times as long, and the distance shrinks. Written down before: a gain of more than "
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
            *(
                Verdict(f"After {long:,} steps {kind} gains over none", above(gain, DROP), gain.points())
                for kind, gain in gains.items()
            ),
            *(
                Verdict(f"{kind} comes nearer to {first}", above(one), f"by {one.points()}")
                for kind, one in shrunk.items()
            ),
        ],
        draw=lambda: rows_of_seeds(
            "Position information, trained longer",
            {f"{kind}, {steps:,} steps": values for (kind, steps), values in accuracy.items()},
        ),
        command=command,
        pairs={
            f"{kind} less {other}, {steps:,} steps": (results[kind, steps], results[other, steps])
            for kind in late
            for steps in (usual, long)
            for other in (none, first)
        },
        results=[result for own in results.values() for result in own],
    )
