"""Locality and translation equivariance: a ViT with each kind of positions against a ResNet, before and after training.

Article 6.2.1.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import torch

from vitrail.analyze.equivariance import equivariance
from vitrail.analyze.maps import feature_maps
from vitrail.analyze.receptive import receptive_field
from vitrail.config import ModelCard, Size
from vitrail.data.batches import batches
from vitrail.data.listing import images_below
from vitrail.experiments.baseline import AMONG, affordable, looking, resnets, vit
from vitrail.experiments.figure import rows_of_seeds
from vitrail.experiments.findings import Findings, Verdict
from vitrail.experiments.lab import Lab
from vitrail.experiments.positions import KINDS
from vitrail.experiments.run import Photos, Result, Run, test_folder
from vitrail.experiments.scale import SCALES, ScaleName
from vitrail.experiments.verdict import Estimate, above, difference, over_seeds, together
from vitrail.model.build import Model, build
from vitrail.tasks.classifier import Classifier

SHIFT = 0.25
"""Of the picture's side that it is moved by: whole cells of every map, where sides are multiples of 32."""
PICTURES, LOOKED_AT = 128, 32
"""Test pictures that are moved, and those whose receptive fields are looked at."""
WITHIN = 0.5
"""Of a ViT's patch, that pictures are moved by too: added when the ResNet was seen to do worse by whole patches."""
WHOLE, PART, INSIDE = "a quarter of a side", "half a patch", ", borders left out"
RESNET, USUAL = "ResNet", "learned-1d"
Measures = Mapping[str, float]


def run(lab: Lab, data: str, scale: ScaleName, command: str) -> Findings:
    """Measure the models of ``position-embeddings`` and a ResNet of as much compute, as they begin and as they end."""
    usual = SCALES[scale]
    runs = {
        kind: [Run(Photos(data), {**usual.settings(), "position": kind}, seed) for seed in usual.seeds]
        for kind in KINDS
    }
    steps = affordable(usual.steps, scale, lab.classes(data))
    resnet = resnets(lab, data, scale)
    resnet = resnet.but(steps=steps, tuning=looking(resnet.settings["tuning"], steps))
    runs[RESNET] = [resnet.but(seed=seed) for seed in usual.seeds]
    results = lab.table(runs)
    pictures = sorted(images_below(test_folder(lab.data / data)))
    shown = pictures[:: max(1, len(pictures) // PICTURES)][:PICTURES]
    # What is measured is named by how: with other numbers it is measured again.
    what = f"inductive-bias-{SHIFT:g}-{PICTURES}-{LOOKED_AT}-spread"
    measured = {
        name: [lab.measured(run, what, partial(both, seed=run.seed, pictures=shown)) for run in own]
        for name, own in runs.items()
    }
    patch = vit(scale, lab.classes(data)).patch[0]
    why = f"inductive-bias-why-{SHIFT:g}-{WITHIN:g}-{PICTURES}"
    apart = {
        name: [lab.measured(run, why, partial(moved, patch=patch, pictures=shown)) for run in own]
        for name, own in runs.items()
    }
    beyond = f"inductive-bias-beyond-{LOOKED_AT}"
    looked = [lab.measured(run, beyond, partial(own_and_beyond, seed=run.seed, pictures=shown)) for run in runs[USUAL]]
    return findings(measured, apart, looked, results, data, command)


def both(classifier: Classifier, seed: int, pictures: Sequence[Path]) -> dict[str, float]:
    """A model as it is and, random, as it began."""
    card = classifier.card
    fresh = build(card.architecture, seed)
    found = {f"trained, {name}": value for name, value in _measured(classifier.model, card, pictures).items()}
    return found | {f"random, {name}": value for name, value in _measured(fresh, card, pictures).items()}


def own_and_beyond(classifier: Classifier, seed: int, pictures: Sequence[Path]) -> dict[str, float]:
    """Of the last layer's receptive field, as a model begins and as it ends: its own patch's share, and the rest."""
    card = classifier.card
    size = card.architecture.image_size
    images = _larger(card, size, round(SHIFT * size[0]), pictures[:LOOKED_AT])
    found: dict[str, float] = {}
    for when, model in (("random", build(card.architecture, seed)), ("trained", classifier.model)):
        seen = receptive_field(feature_maps(model.cpu().eval()), images, size)
        found[f"{when}, own share"] = float(seen.own_share()[-1])
        found[f"{when}, spread beyond"] = float(seen.spread_beyond()[-1] / seen.uniform_spread()[-1])
    return found


def moved(classifier: Classifier, patch: int, pictures: Sequence[Path]) -> dict[str, float]:
    """A trained model's error where pictures move by ``SHIFT`` or within a patch, with the borders or without."""
    card = classifier.card
    size = card.architecture.image_size
    shifts = {WHOLE: round(SHIFT * size[0]), PART: max(1, round(WITHIN * patch))}
    images = _larger(card, size, max(shifts.values()), pictures)
    maps = feature_maps(classifier.model.cpu().eval())
    return {
        f"{what}{where}": float(equivariance(maps, images, [shift], size, margin=margin).interval()[0][-1, 0])
        for what, shift in shifts.items()
        for where, margin in (("", 0), (INSIDE, None))
        if what == PART or where  # as it is, the first is measured with the rest
    }


def _larger(card: ModelCard, size: Size, shift: int, pictures: Sequence[Path]) -> torch.Tensor:
    """Pictures with room to be moved in, (B, C, H + shift, W + shift)."""
    larger = card.preprocessing.at((size[0] + shift, size[1] + shift))
    return torch.cat([batch.images for batch in batches(pictures, larger, 32)])


def _measured(model: Model, card: ModelCard, pictures: Sequence[Path]) -> dict[str, float]:
    size = card.architecture.image_size
    shift = round(SHIFT * size[0])
    images = _larger(card, size, shift, pictures)
    maps = feature_maps(model.cpu().eval())
    along = equivariance(maps, images, [shift], size, margin=0)
    seen = receptive_field(maps, images[:LOOKED_AT], size)
    return {
        "error": float(along.interval()[0][-1, 0]),
        "first spread": float(seen.spread()[0] / seen.uniform_spread()[0]),
        "last spread": float(seen.spread()[-1] / seen.uniform_spread()[-1]),
    }


def findings(
    measured: Mapping[str, Sequence[Measures]],
    along: Mapping[str, Sequence[Measures]],
    looked: Sequence[Measures],
    results: Mapping[str, Sequence[Result]],
    data: str,
    command: str,
) -> Findings:
    """From the same seeds for each model: ``both`` and ``moved`` of each, ``own_and_beyond`` of the usual one."""

    def values(name: str, what: str) -> list[float]:
        return _each(measured[name], what)

    vits = [name for name in measured if name != RESNET]
    apart = {name: difference(values(name, "trained, error"), values(RESNET, "trained, error")) for name in vits}
    wider = {
        name: difference(values(name, "random, first spread"), values(RESNET, "random, first spread")) for name in vits
    }
    ways = (f"{WHOLE}{INSIDE}", PART, f"{PART}{INSIDE}")
    why = {way: {name: difference(_each(along[name], way), _each(along[RESNET], way)) for name in vits} for way in ways}
    learned = difference(values(USUAL, "random, last spread"), values(USUAL, "trained, last spread"))
    beyond = difference(_each(looked, "random, spread beyond"), _each(looked, "trained, spread beyond"))
    nearest, narrowest = min(apart, key=lambda name: apart[name].low), min(wider, key=lambda name: wider[name].low)
    return Findings(
        name="inductive-bias",
        title="Locality and translation equivariance",
        source="Article 6.2.1.",
        margins=(
            f"Error: how far the last map is from moving along when a test picture of {data} moves by a quarter of "
            "its side; 0 is perfect, 1 as different as unrelated cells. Spread: root mean square distance of a "
            "receptive field's energy (squared gradient) from the cell it belongs to, to that if every pixel counted "
            f"alike. The ResNet is trained for as much compute as a ViT, its rate searched among {AMONG}. Written down "
            "before: a difference is a 95 % t interval over seeds that leaves out zero. Changed afterwards: the spread "
            "was the radius that holds half of the energy, which jumps from one pixel's distance to the next and was "
            "the same for every seed; the ResNet had the ViT's rate. Added afterwards, for trained models: moves by "
            "half of a ViT's patch, where unrelated cells would differ by about 0.75, and errors without the cells at "
            "the borders, a quarter of the map at each."
        ),
        header=[
            "model",
            "error: random",
            "trained",
            "spread, first layer: random",
            "trained",
            "last layer: random",
            "trained",
            *(f"error, by {way}" for way in ways),
            "test accuracy, %",
        ],
        rows=[
            [
                name,
                *(
                    _plain(values(name, f"{when}, {what}"))
                    for what in ("error", "first spread", "last spread")
                    for when in ("random", "trained")
                ),
                *(_plain(_each(along[name], way)) for way in ways),
                over_seeds([result.accuracy for result in results[name]]).percent(),
            ]
            for name in measured
        ],
        verdicts=[
            Verdict(
                "Trained, the ResNet moves along with the picture better than any ViT",
                together(above, apart.values()),
                f"the nearest is the ViT with positions {nearest!r}, by {_signed(apart[nearest])}",
            ),
            Verdict(
                "The ResNet's first layers are more local than any ViT's, before anything is learned",
                together(above, wider.values()),
                f"the nearest is the ViT with positions {narrowest!r}, by {_signed(wider[narrowest])} of the uniform "
                "spread",
            ),
            Verdict(
                "A ViT becomes more local as it learns (last layer)",
                above(learned),
                f"{USUAL}, random less trained: {_signed(learned)}",
            ),
            Verdict(
                "Why, added when that was seen: it begins with its own patch; of the rest, a trained ViT's last layer "
                "is more local",
                above(beyond),
                f"{USUAL}: the patch itself has {_plain(_each(looked, 'random, own share'))} of the energy at random, "
                f"{_plain(_each(looked, 'trained, own share'))} trained; spread of the rest, random less trained: "
                f"{_signed(beyond)}",
            ),
            *(
                Verdict(
                    f"Why, added when that was seen: by {way}, the trained ResNet moves along better than any ViT",
                    together(above, own.values()),
                    "; ".join(f"{name} {_signed(one)}" for name, one in own.items()),
                )
                for way, own in why.items()
            ),
        ],
        draw=lambda: rows_of_seeds(
            "Error of moving along, trained",
            {name: values(name, "trained, error") for name in measured},
            label="error (0: equivariant, 1: unrelated)",
            times=1,
        ),
        command=command,
        results=[result for own in results.values() for result in own],
    )


def _each(found: Sequence[Measures], what: str) -> list[float]:
    return [one[what] for one in found]


def _plain(values: Sequence[float]) -> str:
    found = over_seeds(values)
    return f"{found.mean:.2f} ± {found.high - found.mean:.2f}"


def _signed(estimate: Estimate) -> str:
    return f"{estimate.mean:+.2f} ({estimate.low:+.2f} to {estimate.high:+.2f})"
