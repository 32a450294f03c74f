"""Masked patches before few labels, against none and against labels before (ViT sections 4.6 and B.1.2)."""

from __future__ import annotations

from vitrail.experiments.baseline import AMONG, RATES, supervised
from vitrail.experiments.figure import rows_of_seeds
from vitrail.experiments.findings import Findings, Verdict, accuracies
from vitrail.experiments.lab import Lab
from vitrail.experiments.run import Photos, Run
from vitrail.experiments.scale import SCALES, ScaleName
from vitrail.experiments.verdict import above, difference, over_seeds

MARGIN = 0.0
PER_CLASS = 200
SHORT = 4
"""Fine-tuning takes the usual steps divided by this."""


def run(lab: Lab, data: str, scale: ScaleName, command: str) -> Findings:
    """Pretrain once in each way; fine-tune on few labels, the rate searched for each."""
    lab.need(data, PER_CLASS)
    usual = SCALES[scale]
    plain = usual.settings()
    without = {name: value for name, value in plain.items() if name not in ("objective", "tuning")}
    steps = usual.steps // SHORT
    starts = {
        "random weights": None,
        "masked patches": Run(Photos(data, labels=False), {**without, "objective": "masked-patches", **usual.masked}),
        "all labels": Run(Photos(data), plain),
    }
    few = Photos(data, PER_CLASS)
    begun = {
        label: Run(few, supervised(scale, usual.model if start is None else {}, steps), start=start)
        for label, start in starts.items()
    }
    best = lab.searches(begun, RATES)
    results = lab.table({label: [one.but(seed=seed) for seed in usual.seeds] for label, one in best.items()})
    accuracy = accuracies(results)
    gain = difference(accuracy["masked patches"], accuracy["random weights"])
    behind = difference(accuracy["all labels"], accuracy["masked patches"])
    return Findings(
        name="masking",
        title="Masked patches before few labels",
        source="ViT sections 4.6 and B.1.2: 79.9 %, 2 points over scratch and 4 behind supervised pretraining.",
        margins=(
            f"{PER_CLASS} labels a class of {data} after pretraining on all its training pictures, once each, for "
            f"{'steps of its own' if usual.masked else 'the same steps'}; {steps} steps of fine-tuning, the rate of "
            f"each searched among {AMONG}. Written down before: a gain is a 95 % t interval over the seeds of "
            "fine-tuning above zero."
        ),
        header=["begins as", "learning rate", "test accuracy, %"],
        rows=[
            [label, f"{best[label].settings['learning_rate']:g}", over_seeds(values).percent()]
            for label, values in accuracy.items()
        ],
        verdicts=[
            Verdict("Masked patches gain over random weights", above(gain, MARGIN), gain.points()),
            Verdict("Labels, where there are all, are the better teacher", above(behind, MARGIN), behind.points()),
        ],
        draw=lambda: rows_of_seeds("Masked patches before few labels", accuracy),
        command=command,
        pairs={
            "masked patches less random weights": (results["masked patches"], results["random weights"]),
            "all labels less masked patches": (results["all labels"], results["masked patches"]),
        },
        results=[result for own in results.values() for result in own],
    )
