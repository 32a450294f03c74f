"""ViT, hybrid, ResNet and Noisy Student by what they cost: compute, minutes, parameters (article 6.2; ViT table 2)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from vitrail.experiments.baseline import AMONG, RATES, SEARCHED_AT, cnn, looking, resnets, supervised
from vitrail.experiments.figure import curves
from vitrail.experiments.findings import Findings, Verdict
from vitrail.experiments.lab import Lab
from vitrail.experiments.run import Photos, Result, Run
from vitrail.experiments.scale import SCALES, ScaleName
from vitrail.experiments.verdict import above, difference, over_seeds, together
from vitrail.tasks.noisy_student import NOISE

HALF = 0.5
BUDGETS = (0.25, HALF, 1.0)
"""Of the training compute of the ViT's usual steps."""
STEM = {"small": "1x0.5", "medium": "1-1x0.5", "paper": "3-4-9"}
"""Of the hybrid; it has a token for each cell of the stem's map."""
LABELLED = 0.5
"""Of each class for Noisy Student; its teacher labels the rest."""
VIT, HYBRID, RESNET = "ViT", "hybrid", "ResNet"
TEACHER, STUDENT = "ResNet on part of the labels", "Noisy Student, taught by that"
CALM, TRUE = "the same without noise", "the same of the true labels"
"""Added when the student was seen to be behind its teacher, to tell the noise's share of it from the labels'."""
BACK = 3
"""Times a forward pass that a training step takes: once forth, twice back."""


def run(lab: Lab, data: str, scale: ScaleName, command: str) -> Findings:
    """Search each family's rate once, then train each with the same compute, as much of it as the ViT's steps take."""
    usual = SCALES[scale]
    hybrid = {name: value for name, value in usual.model.items() if name != "patch"}
    families: dict[str, dict[str, Any]] = {
        VIT: dict(usual.model),
        HYBRID: {**hybrid, "stem": STEM[scale]},
        RESNET: cnn(scale),
    }
    photos = Photos(data)
    first = max(1, round(SEARCHED_AT * usual.steps))
    begun = {
        family: Run(photos, supervised(scale, model, first)) for family, model in families.items() if family != RESNET
    }
    searched = {**lab.searches(begun, RATES), RESNET: resnets(lab, data, scale)}
    compute = lab.result(searched[VIT]).flops * usual.steps
    runs: dict[tuple[str, float], list[Run]] = {}
    for family, best in searched.items():
        cost = lab.result(best).flops
        for budget in BUDGETS:
            long = _as_long(best, round(budget * compute / cost))
            runs[family, budget] = [long.but(seed=seed) for seed in usual.seeds]
    for part, own in _students(lab, data, runs[RESNET, BUDGETS[-1]]).items():
        runs[part, BUDGETS[-1]] = own
    return findings(lab.table(runs), data, command)


def _as_long(run: Run, steps: int) -> Run:
    steps = max(1, steps)
    return run.but(steps=steps, tuning=looking(run.settings["tuning"], steps))


def _students(lab: Lab, data: str, like: Sequence[Run]) -> dict[str, list[Run]]:
    """Half of the compute for a teacher on the labelled part, half for a noised student on all of it."""
    every = lab.per_class(data)
    few = max(2, round(LABELLED * every))
    found: dict[str, list[Run]] = {part: [] for part in (TEACHER, STUDENT, CALM, TRUE)}
    for own in like:
        half = _as_long(own, own.settings["steps"] // 2)
        noisy = half.but(tuning={**half.settings["tuning"], **NOISE})
        teacher = Run(Photos(data, few), half.settings, own.seed)
        both = Photos(data, few, unlabelled=every - few)
        found[TEACHER].append(teacher)
        found[STUDENT].append(Run(both, noisy.settings, own.seed, teacher=teacher))
        found[CALM].append(Run(both, half.settings, own.seed, teacher=teacher))
        found[TRUE].append(noisy)
    return found


def findings(results: Mapping[tuple[str, float], Sequence[Result]], data: str, command: str) -> Findings:
    """From runs of the same seeds for each family and budget."""
    accuracy = {key: [result.accuracy for result in own] for key, own in results.items()}
    leads = {
        budget: difference(accuracy[VIT, budget], accuracy[RESNET, budget])
        for family, budget in results
        if family == VIT
    }
    mixed = {
        budget: difference(accuracy[HYBRID, budget], accuracy[VIT, budget])
        for family, budget in results
        if family == HYBRID
    }
    last = max(leads)
    least = min(mixed)
    spent = {key: sum(map(_compute, own)) / len(own) for key, own in results.items()}
    minutes = {key: sum(one.minutes for one in own) / len(own) for key, own in results.items()}
    for cost in (spent, minutes):  # a student costs what its teacher did, besides
        for part in (STUDENT, CALM):
            cost[part, last] += cost[TEACHER, last]
    # As many steps on all labels, without noise, is what the student would be with both.
    beside = {STUDENT: (STUDENT, last), "its teacher": (TEACHER, last), "ResNet of as many steps": (RESNET, HALF)}
    why = {
        what: {name: difference(accuracy[part, last], accuracy[other]) for name, other in beside.items()}
        for part, what in ((CALM, "without noise"), (TRUE, "with the true labels"))
    }
    return Findings(
        name="versus-cnn",
        title="ViT against CNNs by cost",
        source="Article 6.2; ViT table 2 and figure 5.",
        margins=(
            f"All from random weights on {data}, at the learning rate searched once a family, with "
            f"{100 * SEARCHED_AT:g} % of the compute, among {AMONG}. Every family has the same training compute, "
            f"{', '.join(f'{budget:g}' for budget in leads)} times that of the ViT's usual steps. Noisy Student sees "
            f"{100 * LABELLED:.0f} % of the labels, and half of its compute is its teacher's: it stands beside the "
            "others and is not held against them, which see all labels; its teacher's labels are soft, those surer "
            "than 0.3, of each class as many as come. Written down before: a lead is a 95 % t interval over seeds "
            "above zero."
        ),
        header=[
            "model",
            "begins as",
            "labels",
            "training TFLOP",
            "minutes here",
            "parameters",
            "images seen",
            "test accuracy, %",
        ],
        rows=[
            [
                family,
                "random weights",
                f"{100 * LABELLED:g} %" if family in (TEACHER, STUDENT, CALM) else "all",
                f"{spent[family, budget] / 1e12:,.0f}",
                f"{minutes[family, budget]:.1f}",
                f"{own[0].parameters:,}",
                f"{own[0].seen:,}",
                over_seeds(accuracy[family, budget]).percent(),
            ]
            for (family, budget), own in results.items()
        ],
        verdicts=[
            Verdict(
                "With the same training compute the ViT is better than the ResNet",
                together(above, leads.values()),
                "; ".join(f"{budget:g}: {lead.points()}" for budget, lead in leads.items()),
            ),
            Verdict(
                "With little compute the hybrid is better than the ViT",
                above(mixed[least]),
                f"{least:g}: {mixed[least].points()}",
            ),
            *(
                Verdict(
                    f"Why the student is behind its teacher, added when that was seen: {what} it is better",
                    above(own[STUDENT]),
                    "; ".join(
                        lead.points() if name == STUDENT else f"less {name} {lead.points()}"
                        for name, lead in own.items()
                    ),
                )
                for what, own in why.items()
            ),
        ],
        draw=lambda: curves(
            {
                f"By {along}": (
                    along,
                    {
                        f"{family} ({results[family, last][0].parameters / 1e6:.2f} M)": (
                            [cost[family, budget] / scale for budget in leads if (family, budget) in results],
                            [accuracy[family, budget] for budget in leads if (family, budget) in results],
                        )
                        for family in (VIT, HYBRID, RESNET, TEACHER, STUDENT)
                    },
                )
                for along, cost, scale in (("training TFLOP", spent, 1e12), ("minutes of training here", minutes, 1.0))
            }
        ),
        command=command,
        pairs={
            **{f"ViT less ResNet, {budget:g}": (results[VIT, budget], results[RESNET, budget]) for budget in leads},
            f"hybrid less ViT, {least:g}": (results[HYBRID, least], results[VIT, least]),
            **{
                f"{part} less {name}": (results[part, last], results[other])
                for part in (CALM, TRUE)
                for name, other in beside.items()
            },
        },
        results=[result for own in results.values() for result in own],
    )


def _compute(result: Result) -> float:
    """Floating-point operations of a run's steps."""
    return BACK * result.flops * result.seen
