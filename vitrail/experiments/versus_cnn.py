"""ViT, hybrid, ResNet and Noisy Student by what they cost: compute, minutes, parameters (article 6.2; ViT table 2)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from vitrail.experiments.baseline import affordable, cnn
from vitrail.experiments.figure import curves
from vitrail.experiments.findings import Findings, Verdict
from vitrail.experiments.lab import Lab
from vitrail.experiments.run import Photos, Result, Run
from vitrail.experiments.scale import SCALES, ScaleName
from vitrail.experiments.verdict import above, difference, over_seeds, together
from vitrail.tasks.noisy_student import NOISE

RATES = (3e-4, 1e-3, 3e-3)
BUDGETS = (0.25, 0.5, 1.0)
"""Of the training compute of the ViT's usual steps."""
SEARCHED_AT = 0.25
STEM = {"small": "1x0.5", "medium": "1-1x0.5", "paper": "3-4-9"}
"""Of the hybrid; it has a token for each cell of the stem's map."""
LABELLED = 0.5
"""Of each class for Noisy Student; its teacher labels the rest."""
VIT, HYBRID, RESNET = "ViT", "hybrid", "ResNet"
TEACHER, STUDENT = "ResNet on part of the labels", "Noisy Student, taught by that"
BACK = 3
"""Times a forward pass that a training step takes: once forth, twice back."""


def run(lab: Lab, data: str, scale: ScaleName, command: str) -> Findings:
    """Search each family's rate once, then train each with the same compute, as much of it as the ViT's steps take."""
    usual = SCALES[scale]
    plain = {name: value for name, value in usual.settings().items() if name not in usual.model}
    hybrid = {name: value for name, value in usual.model.items() if name != "patch"}
    families: dict[str, dict[str, Any]] = {
        VIT: dict(usual.model),
        HYBRID: {**hybrid, "stem": STEM[scale]},
        RESNET: cnn(scale),
    }
    photos = Photos(data)
    first = max(1, round(SEARCHED_AT * usual.steps))
    vit = lab.searched(_of(photos, plain, families[VIT], first), RATES)
    compute = lab.result(vit).flops * usual.steps
    runs: dict[tuple[str, float], list[Run]] = {}
    short = {RESNET: affordable(first, scale, lab.classes(data))}
    for family, model in families.items():
        begun = vit if family == VIT else lab.searched(_of(photos, plain, model, short.get(family, first)), RATES)
        cost = lab.result(begun).flops
        for budget in BUDGETS:
            steps = max(1, round(budget * compute / cost))
            settings = {**begun.settings, "steps": steps, "tuning": _looking(begun.settings["tuning"], steps)}
            runs[family, budget] = [Run(photos, settings, seed) for seed in usual.seeds]
    students = _students(lab, data, runs[RESNET, BUDGETS[-1]])
    runs[TEACHER, BUDGETS[-1]] = [own.teacher for own in students if own.teacher is not None]
    runs[STUDENT, BUDGETS[-1]] = students
    return findings(lab.table(runs), data, command)


def _of(photos: Photos, plain: Mapping[str, Any], model: Mapping[str, Any], steps: int) -> Run:
    return Run(photos, {**plain, **model, "steps": steps, "tuning": _looking(plain["tuning"], steps)})


def _looking(tuning: Mapping[str, Any], steps: int) -> dict[str, Any]:
    return {**tuning, "evaluate_every": steps}


def _students(lab: Lab, data: str, like: Sequence[Run]) -> list[Run]:
    """Half of the compute for a teacher on the labelled part, half for a noised student on all of it."""
    every = lab.per_class(data)
    few = max(2, round(LABELLED * every))
    found = []
    for own in like:
        steps = max(1, own.settings["steps"] // 2)
        settings = {**own.settings, "steps": steps, "tuning": _looking(own.settings["tuning"], steps)}
        noisy = {**settings, "tuning": {**settings["tuning"], **NOISE}}
        teacher = Run(Photos(data, few), settings, own.seed)
        found.append(Run(Photos(data, few, unlabelled=every - few), noisy, own.seed, teacher=teacher))
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
    student = difference(accuracy[VIT, last], accuracy[STUDENT, last])
    least = min(mixed)
    spent = {key: sum(map(_compute, own)) / len(own) for key, own in results.items()}
    minutes = {key: sum(one.minutes for one in own) / len(own) for key, own in results.items()}
    for cost in (spent, minutes):  # a student costs what its teacher did, besides
        cost[STUDENT, last] += cost[TEACHER, last]
    return Findings(
        name="versus-cnn",
        title="ViT against CNNs by cost",
        source="Article 6.2; ViT table 2 and figure 5.",
        margins=(
            f"All from random weights on {data}, at the learning rate searched once a family. Every family has the "
            f"same training compute, {', '.join(f'{budget:g}' for budget in leads)} times that of the ViT's usual "
            f"steps. Noisy Student sees {100 * LABELLED:.0f} % of the labels; half of its compute is its teacher's. "
            "Written down before: a lead is a 95 % t interval over seeds above zero."
        ),
        header=[
            "model",
            "begins as",
            "training PFLOP",
            "minutes here",
            "parameters",
            "images seen",
            "test accuracy, %",
        ],
        rows=[
            [
                family,
                "random weights",
                f"{spent[family, budget] / 1e15:.2f}",
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
                together([above(lead) for lead in leads.values()]),
                "; ".join(f"{budget:g}: {lead.points()}" for budget, lead in leads.items()),
            ),
            Verdict(
                "With little compute the hybrid is better than the ViT",
                above(mixed[least]),
                f"{least:g}: {mixed[least].points()}",
            ),
            Verdict("The ViT is better than Noisy Student", above(student), student.points()),
        ],
        draw=lambda: curves(
            "Accuracy by training compute",
            "training PFLOP",
            [spent[VIT, budget] / 1e15 for budget in leads],
            {family: [accuracy[family, budget] for budget in leads] for family in (VIT, HYBRID, RESNET)},
        ),
        command=command,
        results=[result for own in results.values() for result in own],
    )


def _compute(result: Result) -> float:
    """Floating-point operations of a run's steps."""
    return BACK * result.flops * result.seen
