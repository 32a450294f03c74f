"""Patch size: smaller patches are more tokens, more work and, up to a point, better (article 2.2; claim 8)."""

from __future__ import annotations

from functools import partial
from itertools import pairwise

from vitrail.cost import embedding_flops
from vitrail.experiments.baseline import vit
from vitrail.experiments.figure import curves
from vitrail.experiments.findings import Findings, Verdict, accuracies
from vitrail.experiments.lab import Lab
from vitrail.experiments.run import Photos, Run
from vitrail.experiments.scale import SCALES, ScaleName
from vitrail.experiments.verdict import above, difference, over_seeds, together

SIZES = {"small": (16, 8, 4), "medium": (16, 8, 4, 2), "paper": (32, 16)}
MARGIN = 0.01


def run(lab: Lab, data: str, scale: ScaleName, command: str) -> Findings:
    """Train the same model on patches of different sizes."""
    usual = SCALES[scale]
    runs = {
        str(size): [Run(Photos(data), {**usual.settings(), "patch": size}, seed) for seed in usual.seeds]
        for size in SIZES[scale]
    }
    results = lab.table(runs)
    accuracy = accuracies(results)
    sizes = list(results)
    steps = {(large, small): difference(accuracy[small], accuracy[large]) for large, small in pairwise(sizes)}
    cost = {size: own[0].flops for size, own in results.items()}
    tokens = {size: own[0].tokens for size, own in results.items()}
    classes = lab.classes(data)
    encoder = {size: cost[size] - embedding_flops(vit(scale, classes, patch=int(size))) for size in sizes}
    ratios = [
        (tokens[small] / tokens[large], cost[small] / cost[large], encoder[small] / encoder[large])
        for large, small in steps
    ]
    return Findings(
        name="patch-size",
        title="Patch size",
        source="Article 2.2; ViT section 3.1.",
        margins=(
            f"The same model and steps on {data}. Written down before: each halving of the patch gains more than "
            f"{100 * MARGIN:.0f} point (95 % t interval over seeds)."
        ),
        header=["patch", "tokens", "GFLOP an image", "minutes a run", "test accuracy, %"],
        rows=[
            [
                size,
                f"{own[0].tokens}",
                f"{own[0].flops / 1e9:.3g}",
                f"{sum(one.minutes for one in own) / len(own):.1f}",
                over_seeds(accuracy[size]).percent(),
            ]
            for size, own in results.items()
        ],
        verdicts=[
            Verdict(
                "Smaller patches are better at the same steps",
                together(partial(above, margin=MARGIN), steps.values()),
                "; ".join(f"{large} to {small}: {step.points()}" for (large, small), step in steps.items()),
            ),
            Verdict(
                "The work grows at least as the number of tokens does",
                "holds" if all(work >= more for more, work, _ in ratios) else "does not hold",
                "; ".join(f"{more:.2f} times the tokens, {work:.2f} times the work" for more, work, _ in ratios),
            ),
            Verdict(
                "Why, added when that was seen: the patch embedding costs the same at every size; without it work does",
                "holds" if all(work >= more for more, _, work in ratios) else "does not hold",
                "; ".join(f"{work:.2f} times" for _, _, work in ratios),
            ),
        ],
        draw=lambda: curves(
            {
                "Patch size": (
                    "GFLOP an image",
                    {"ViT": ([cost[size] / 1e9 for size in sizes], [accuracy[size] for size in sizes])},
                )
            }
        ),
        command=command,
        pairs={f"{small} less {large}": (results[small], results[large]) for large, small in steps},
        results=[result for own in results.values() for result in own],
    )
