"""A student on many pictures that its teacher labelled, with noise (Noisy Student, 1911.04252; ViT table 2)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from vitrail.experiments.baseline import AMONG, RATES, affordable, cnn, looking, supervised
from vitrail.experiments.figure import rows_of_seeds
from vitrail.experiments.findings import Findings, Verdict
from vitrail.experiments.lab import Lab
from vitrail.experiments.run import Photos, Result, Run
from vitrail.experiments.scale import SCALES, ScaleName
from vitrail.experiments.verdict import above, difference, over_seeds
from vitrail.tasks.noisy_student import NOISE

PICTURES: dict[ScaleName, tuple[int, int]] = {"small": (200, 2000), "medium": (200, 2000), "paper": (130, 520)}
"""Of each class, with labels and without; of ImageNet's smallest class that is a fifth and the rest."""
SHORT = 4
"""A teacher takes the usual steps divided by this, a student all of them: it has more pictures to learn from."""
PATHS = {"dropout": 0.1, "drop_path": 0.1}
"""Noise in a Transformer student (1911.04252, section 3.1, has 0.5 and 0.2 for a far larger CNN); a CNN has none."""
TEACHER, LONG, STUDENT = "teacher", "trained as long on the labels", "student"
TRUE, CALM, BOTH = "student of the true labels", "student without noise", "student of the true labels, without noise"
"""Added when the students were seen to lose, to tell the labels' share of it from the noise's."""
WHY = {TRUE: "with the true labels", CALM: "without noise", BOTH: "with the true labels and without noise"}


def run(lab: Lab, data: str, scale: ScaleName, command: str) -> Findings:
    """A teacher, a student of its size, and the same model trained on the labels alone as long as the student.

    Then what the student would be with the true labels in place of the teacher's, and without noise.
    """
    labelled, unlabelled = PICTURES[scale]
    lab.need(data, labelled + unlabelled)
    usual = SCALES[scale]
    families: dict[str, tuple[dict[str, Any], int]] = {
        "ViT": (dict(usual.model), usual.steps),
        "ResNet": (cnn(scale), affordable(usual.steps, scale, lab.classes(data))),
    }
    few, all_of_them = Photos(data, labelled), Photos(data, labelled, unlabelled=unlabelled)
    every_label = Photos(data, labelled + unlabelled)
    runs: dict[tuple[str, str], list[Run]] = {}
    for family, (model, whole) in families.items():
        steps = max(1, whole // SHORT)
        best = lab.searched(Run(few, supervised(scale, model, steps)), RATES)
        noise = PATHS if family == "ViT" else {}
        clean = looking(best.settings["tuning"], whole)
        long = best.but(steps=whole, tuning={**clean, **NOISE}, **noise)
        teachers = [best.but(seed=seed) for seed in usual.seeds]
        runs[family, TEACHER] = teachers
        runs[family, LONG] = [long.but(seed=seed) for seed in usual.seeds]
        still = {"dropout": 0.0} if "recipe" in best.settings else {}  # a recipe may have some
        calm = best.but(steps=whole, tuning=clean, **still)
        runs[family, STUDENT] = [Run(all_of_them, long.settings, own.seed, teacher=own) for own in teachers]
        runs[family, TRUE] = [Run(every_label, long.settings, seed) for seed in usual.seeds]
        runs[family, CALM] = [Run(all_of_them, calm.settings, own.seed, teacher=own) for own in teachers]
        runs[family, BOTH] = [Run(every_label, calm.settings, seed) for seed in usual.seeds]
    return findings(lab.table(runs), PICTURES[scale], data, command)


def findings(
    results: Mapping[tuple[str, str], Sequence[Result]], pictures: tuple[int, int], data: str, command: str
) -> Findings:
    """From runs of the same seeds for each family and part, on pictures of each class with labels and without."""
    accuracy = {key: [result.accuracy for result in own] for key, own in results.items()}
    families = list(dict.fromkeys(family for family, _ in results))
    gains = {
        (family, other): difference(accuracy[family, STUDENT], accuracy[family, other])
        for family in families
        for other in (TEACHER, LONG, *WHY)
    }
    why = {
        (part, family): [difference(accuracy[family, part], accuracy[family, other]) for other in (STUDENT, TEACHER)]
        for part in WHY
        for family in families
    }
    return Findings(
        name="noisy-student",
        title="Noisy Student",
        source="Article 6.2; 1911.04252; ViT table 2.",
        margins=(
            f"{pictures[0]} labels a class of {data}, {pictures[1]} pictures a class without; the teacher's labels are "
            "soft, those surer than 0.3, of each class as many as come. Student and teacher are of one size and learn "
            f"at the rate that was searched for the teacher, among {AMONG}; the ResNet's runs take the compute of the "
            "ViT's. The same model is trained on the labels alone for the student's steps, with its noise. Written "
            "down before: a gain is a 95 % t interval over seeds above zero."
        ),
        header=["model", "trained as", "steps", "test accuracy, %", "student less this, points (95 %)"],
        rows=[
            [
                family,
                part,
                f"{own[0].run['settings']['steps']:,}",
                over_seeds(accuracy[family, part]).percent(),
                "" if part == STUDENT else gains[family, part].points(),
            ]
            for (family, part), own in results.items()
        ],
        verdicts=[
            Verdict(f"The {family} student gains over {what}", above(gains[family, part]), gains[family, part].points())
            for family in families
            for part, what in ((TEACHER, "its teacher"), (LONG, "its like trained as long on the labels"))
        ]
        + [
            Verdict(
                f"Why, added when that was seen: {WHY[part]}, the {family} student is better",
                above(better),
                f"{better.points()}; less its teacher {gain.points()}",
            )
            for (part, family), (better, gain) in why.items()
        ],
        draw=lambda: rows_of_seeds(
            "Noisy Student", {f"{family}: {part}": values for (family, part), values in accuracy.items()}
        ),
        command=command,
        pairs={
            f"{family}, {one} less {other}": (results[family, one], results[family, other])
            for family in families
            for one, others in ((STUDENT, (TEACHER, LONG)), *((part, (STUDENT, TEACHER)) for part in WHY))
            for other in others
        },
        results=[result for own in results.values() for result in own],
    )
