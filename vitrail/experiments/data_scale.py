"""How much data: ViT and ResNet on shares of it, from scratch and pretrained (article 6.2.2; ViT figure 3)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from vitrail.errors import UserError
from vitrail.experiments.baseline import AMONG, RATES, affordable, cnn, looking, supervised
from vitrail.experiments.figure import curves
from vitrail.experiments.findings import Findings, Verdict
from vitrail.experiments.lab import Lab
from vitrail.experiments.run import Photos, Result, Run
from vitrail.experiments.scale import SCALES, ScaleName
from vitrail.experiments.verdict import Estimate, above, difference, over_seeds, together

SHARES = (0.01, 0.03, 0.1, 0.3, 1.0)
FEW = (0.01, 0.03)
SEARCHED_AT = 0.1
SHORT, EPOCHS = 2, 4
"""Steps at equal compute are the usual ones divided by this; epochs where those are equal."""
VIT, RESNET, PRETRAINED = "ViT", "ResNet", "ViT, pretrained without labels"
LONGER = 8
LATER = f"{PRETRAINED}, {LONGER} times as long"
"""Added when the pretrained ViT was seen to be behind with few labels: whether it had learned too little before."""
COMPUTE, REPEATED = "equal compute", "equal epochs"
TAUGHT = "equal compute, after as many steps without labels"
MORE = f"equal compute, after {LONGER} times as many steps without labels"
LARGE = f"the compute of the ResNet's {EPOCHS} epochs"
"""Added when the ResNet's lead was seen to fall at equal compute and to grow at equal epochs: with all data, whether it
falls where there is compute for more than one look at them."""


def run(lab: Lab, data: str, scale: ScaleName, command: str) -> Findings:
    """Search each family's rate once; train on each share, at equal compute and at equal epochs."""
    usual = SCALES[scale]
    every = lab.per_class(data)
    counts = {share: max(2, round(share * every)) for share in SHARES}
    if len(set(counts.values())) < len(counts):
        raise UserError(
            f"{lab.data / data} has {every} pictures of a class to learn from, too few for shares of "
            f"{', '.join(f'{100 * share:g} %' for share in SHARES)} to differ: bring more."
        )
    steps = max(1, usual.steps // SHORT)
    pieces = {name: value for name, value in (usual.tuning or {}).items() if name == "accumulate"}
    start = Run(Photos(data, labels=False), supervised(scale, usual.bare, steps, objective="mae", tuning=pieces))
    few = Photos(data, counts[SEARCHED_AT])
    fewer = affordable(steps, scale, lab.classes(data))
    begun = {
        VIT: Run(few, supervised(scale, usual.model, steps)),
        RESNET: Run(few, supervised(scale, cnn(scale), fewer)),
        PRETRAINED: Run(few, supervised(scale, {}, steps), start=start),
    }
    searched = lab.searches(begun, RATES)
    runs: dict[tuple[str, str, float], list[Run]] = {}
    for share, count in counts.items():
        for name, one in searched.items():
            repeated = max(1, round(EPOCHS * count * lab.classes(data) / usual.batch_size))
            budgets = {COMPUTE: one.settings["steps"], REPEATED: repeated}
            if name == PRETRAINED:
                budgets = {TAUGHT: one.settings["steps"]}
            for budget, own in budgets.items():
                long = one.but(steps=own, tuning=looking(one.settings["tuning"], own))
                runs[budget, name, share] = [
                    Run(Photos(data, count), long.settings, seed, one.start) for seed in usual.seeds
                ]
    most = max(counts)
    again = runs[REPEATED, RESNET, most][0].settings["steps"]
    as_much = round(again * steps / fewer)
    long = searched[VIT].but(steps=as_much, tuning=looking(searched[VIT].settings["tuning"], as_much))
    runs[LARGE, VIT, most] = [Run(Photos(data, counts[most]), long.settings, seed) for seed in usual.seeds]
    pretrained = searched[PRETRAINED]
    longer = start.but(steps=LONGER * steps)
    for share in FEW:
        runs[MORE, LATER, share] = [
            Run(Photos(data, counts[share]), pretrained.settings, seed, longer) for seed in usual.seeds
        ]
    return findings(lab.table(runs), counts, searched, data, command)


def findings(
    results: Mapping[tuple[str, str, float], Sequence[Result]],
    counts: Mapping[float, int],
    searched: Mapping[str, Run],
    data: str,
    command: str,
) -> Findings:
    """From runs of the same seeds for each budget, model and share."""
    accuracy = {key: [result.accuracy for result in own] for key, own in results.items()}

    def lead(one: str, other: str, share: float) -> Estimate:
        return difference(accuracy[_budget(one), one, share], accuracy[_budget(other), other, share])

    def ahead(share: float, ours: str, theirs: str) -> list[float]:
        """By how much the ResNet is, a seed after the other, each at a budget."""
        pairs = zip(accuracy[ours, RESNET, share], accuracy[theirs, VIT, share], strict=True)
        return [one - other for one, other in pairs]

    least, most = min(counts), max(counts)
    budgets = (COMPUTE, REPEATED)
    few = {budget: {share: over_seeds(ahead(share, budget, budget)) for share in FEW} for budget in budgets}
    caught = {budget: difference(ahead(least, budget, budget), ahead(most, budget, budget)) for budget in budgets}
    passed = {budget: over_seeds([-one for one in ahead(most, budget, budget)]) for budget in budgets}
    larger = difference(ahead(most, REPEATED, LARGE), ahead(most, COMPUTE, COMPUTE))
    steps = {budget: results[budget, VIT, most][0].run["settings"]["steps"] for budget in (COMPUTE, LARGE)}
    taught = {share: lead(PRETRAINED, RESNET, share) for share in FEW}
    gained = {share: lead(LATER, PRETRAINED, share) for share in FEW}
    later = {share: lead(LATER, RESNET, share) for share in FEW}
    rates = ", ".join(f"{name} {run.settings['learning_rate']:g}" for name, run in searched.items())
    return Findings(
        name="data-scale",
        title="How much data",
        source="Article 6.2.2; ViT figures 3 and 4.",
        margins=(
            f"On shares of {data}, from random weights but for the pretrained ViT (MAE on all training pictures, no "
            f"labels, for as many steps as follow, or {LONGER} times as many, once each: intervals are those of the "
            f"steps that follow). Learning rates searched once a family, with {100 * SEARCHED_AT:g} % of the data, "
            f"among {AMONG}: {rates}. Equal compute: as many steps as cost what the ViT's do, those before them not "
            f"counted; equal epochs: {EPOCHS}. Written down before: a lead counts if its 95 % t interval over seeds "
            "lies above zero. Added afterwards: the verdicts at equal epochs."
        ),
        header=["budget", "model", *(f"{100 * share:g} % ({count} a class)" for share, count in counts.items())],
        rows=[
            [
                budget,
                name,
                *(
                    over_seeds(accuracy[key]).percent() if (key := (budget, name, share)) in accuracy else ""
                    for share in counts
                ),
            ]
            for budget, name in dict.fromkeys((budget, name) for budget, name, _ in results)
        ],
        verdicts=[
            *(
                verdict
                for budget in budgets
                for verdict in (
                    Verdict(
                        f"At {budget}, on little data the ResNet wins",
                        together(above, few[budget].values()),
                        "; ".join(f"{100 * share:g} %: {one.points()}" for share, one in few[budget].items()),
                    ),
                    Verdict(
                        f"At {budget}, with more data the ViT catches up",
                        above(caught[budget]),
                        f"the ResNet's lead falls by {caught[budget].points()} from {100 * least:g} % to "
                        f"{100 * most:g} %",
                    ),
                    Verdict(
                        f"At {budget}, with all data the ViT is ahead", above(passed[budget]), passed[budget].points()
                    ),
                )
            ),
            Verdict(
                f"Why, added when that was seen: with all data and {LARGE}, the ResNet's lead is larger than at "
                f"{COMPUTE} of {steps[COMPUTE]:,} steps",
                above(larger),
                f"by {larger.points()}; there it is {over_seeds(ahead(most, REPEATED, LARGE)).points()}, the ViT "
                f"taking {steps[LARGE]:,} steps",
            ),
            Verdict(
                "Pretrained, the ViT wins with few labels, its steps without labels not counted",
                together(above, taught.values()),
                "; ".join(f"{100 * share:g} %: {one.points()}" for share, one in taught.items()),
            ),
            Verdict(
                f"Why, added when that was seen: with {LONGER} times as many steps without labels it is better",
                together(above, gained.values()),
                "; ".join(
                    f"{100 * share:g} %: {one.points()}, less the ResNet {later[share].points()}"
                    for share, one in gained.items()
                ),
            ),
        ],
        draw=lambda: curves(
            {
                title: (
                    "training pictures a class",
                    {
                        name: (
                            [count for share, count in counts.items() if (budget, name, share) in accuracy],
                            [accuracy[budget, name, share] for share in counts if (budget, name, share) in accuracy],
                        )
                        for name, budget in shown
                    },
                )
                for title, shown in (
                    ("Equal compute", ((VIT, COMPUTE), (RESNET, COMPUTE), (PRETRAINED, TAUGHT), (LATER, MORE))),
                    (f"Equal epochs, {EPOCHS}", ((VIT, REPEATED), (RESNET, REPEATED))),
                )
            }
        ),
        command=command,
        pairs={
            **{
                f"{RESNET} less {VIT}, {budget}, {100 * share:g} %": (
                    results[budget, RESNET, share],
                    results[budget, VIT, share],
                )
                for budget in budgets
                for share in (*FEW, most)
            },
            f"{RESNET} less {VIT}, {LARGE}, {100 * most:g} %": (
                results[REPEATED, RESNET, most],
                results[LARGE, VIT, most],
            ),
            **{
                f"{one} less {other}, {100 * share:g} %": (
                    results[_budget(one), one, share],
                    results[_budget(other), other, share],
                )
                for one, other in ((PRETRAINED, RESNET), (LATER, PRETRAINED))
                for share in FEW
            },
        },
        results=[result for own in results.values() for result in own],
    )


def _budget(name: str) -> str:
    """That is the same for all, but for what was done without labels."""
    return {PRETRAINED: TAUGHT, LATER: MORE}.get(name, COMPUTE)
