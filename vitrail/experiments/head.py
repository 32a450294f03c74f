"""Class token or mean of the patches, each at its own learning rate (ViT appendix D.3, figure 9)."""

from __future__ import annotations

from vitrail.experiments.baseline import AMONG, RATES
from vitrail.experiments.figure import rows_of_seeds
from vitrail.experiments.findings import Findings, Verdict, accuracies
from vitrail.experiments.lab import Lab
from vitrail.experiments.run import Photos, Run
from vitrail.experiments.scale import SCALES, ScaleName
from vitrail.experiments.verdict import difference, over_seeds, within

MARGIN = 0.01
POOLS = {"class token": "class", "mean of the patches": "mean"}


def run(lab: Lab, data: str, scale: ScaleName, command: str) -> Findings:
    """Search the rate once for each head, then train with it."""
    usual = SCALES[scale]
    begun = {label: Run(Photos(data), {**usual.settings(), "pool": pool}) for label, pool in POOLS.items()}
    best = lab.searches(begun, RATES)
    results = lab.table({label: [one.but(seed=seed) for seed in usual.seeds] for label, one in best.items()})
    accuracy = accuracies(results)
    gap = difference(accuracy["class token"], accuracy["mean of the patches"])
    return Findings(
        name="head",
        title="Class token or mean",
        source="Article 4; ViT appendix D.3.",
        margins=(
            f"On {data}, the rate of each searched among {AMONG}, on other pictures with one seed. Written down "
            f"before: they tie if they are within {100 * MARGIN:.0f} point (95 % t interval over seeds)."
        ),
        header=["head", "learning rate", "test accuracy, %"],
        rows=[
            [label, f"{best[label].settings['learning_rate']:g}", over_seeds(values).percent()]
            for label, values in accuracy.items()
        ],
        verdicts=[
            Verdict("Both do as well, each at its own rate", within(gap, MARGIN), f"class less mean: {gap.points()}")
        ],
        draw=lambda: rows_of_seeds("Class token or mean", accuracy),
        command=command,
        pairs={"class token less mean": (results["class token"], results["mean of the patches"])},
        results=[result for own in results.values() for result in own],
    )
