"""Position information: none against all kinds of it (article 3.2, ViT appendix D.4 and table 8)."""

from __future__ import annotations

from typing import Any

from vitrail.analyze import canvas
from vitrail.experiments.findings import Findings, Verdict
from vitrail.experiments.lab import Lab
from vitrail.experiments.run import Photos, Result, Run
from vitrail.experiments.scale import SCALES, ScaleName
from vitrail.experiments.verdict import Estimate, above, difference, over_seeds, together, within

KINDS = ("none", "learned-1d", "sinusoidal-1d", "learned-2d", "relative-1d")
DROP, TIE = 0.01, 0.01


def run(lab: Lab, data: str, scale: ScaleName, command: str) -> Findings:
    """Train each kind from the same settings and seeds."""
    usual = SCALES[scale]
    runs = {
        kind: [Run(Photos(data), {**usual.settings(), "position": kind}, seed) for seed in usual.seeds]
        for kind in KINDS
    }
    every = lab.results([one for own in runs.values() for one in own])
    by_key = dict(zip((one.key for own in runs.values() for one in own), every, strict=True))
    results = {kind: [by_key[one.key] for one in own] for kind, own in runs.items()}
    return findings(results, data, command)


def findings(results: dict[str, list[Result]], data: str, command: str) -> Findings:
    """From runs of the same seeds for each kind."""
    accuracy = {kind: [_accuracy(result) for result in own] for kind, own in results.items()}
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
        draw=lambda: figure(accuracy, means),
        command=command,
        results=[result for own in results.values() for result in own],
    )


@canvas.styled
def figure(accuracy: dict[str, list[float]], means: dict[str, Estimate]) -> Any:
    """A row for each kind: every seed, and the mean."""
    drawn, axes = canvas.figure(1, 1, size=(5.5, 2.6))
    for row, (kind, values) in enumerate(accuracy.items()):
        axes[0].plot([100 * value for value in values], [row] * len(values), "o", color=canvas.BLUE, ms=5, alpha=0.6)
        axes[0].plot([100 * means[kind].mean], [row], "|", color=canvas.BLUE, ms=16)
    axes[0].set_yticks(range(len(accuracy)), list(accuracy))
    axes[0].invert_yaxis()
    axes[0].set(title="Position information", xlabel="test accuracy, %")
    return drawn


def _accuracy(result: Result) -> float:
    assert result.test_accuracy is not None
    return result.test_accuracy
