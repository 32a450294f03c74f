"""How well a frozen model tells classes apart after a few pictures of each (ViT section 4.1)."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vitrail.config import Size, parse_size
from vitrail.data.sources import open_dataset
from vitrail.errors import UserError
from vitrail.evaluate.fewshot import fit_least_squares
from vitrail.evaluate.metrics import t_interval
from vitrail.report.terminal import Show
from vitrail.tasks.classifier import Classifier, download_progress
from vitrail.tasks.features import content_hashes, twins
from vitrail.tasks.preparation import compute_features, pooling_of
from vitrail.weights.load import Source, load_weights

SHOTS = (1, 5, 10, 25)


@dataclass(frozen=True)
class Shots:
    """What so many pictures of each class give."""

    shots: int
    accuracies: tuple[float, ...]
    """On the held-out pictures, for each draw."""
    accuracy: float
    """Their mean."""
    interval: tuple[float, float]
    """95 %, Student's t over the draws."""


@dataclass(frozen=True)
class FewShot:
    """For each number of shots."""

    rows: tuple[Shots, ...]
    classes: int
    judged: int
    """Held-out pictures."""

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON values."""
        return {"classes": self.classes, "judged": self.judged, "shots": [asdict(row) for row in self.rows]}


def few_shot(
    model: Source,
    data: str | Path,
    shots: Sequence[int] = SHOTS,
    seeds: int = 5,
    *,
    resolution: int | str | Size | None = None,
    architecture: str | None = None,
    batch_size: int = 32,
    device: str | None = None,
    quiet: bool = True,
) -> FewShot:
    """Draw a few pictures of each class, fit least squares on their features, judge by all held-out pictures.

    A feature is the model's last class token, or the mean of its patches where it has none; the pictures of a larger
    number of shots hold those of a smaller one.

    Args:
        model: whatever ``vitrail.load`` takes.
        data: whatever ``vitrail.finetune`` takes.
        shots: pictures of each class to learn from.
        seeds: draws, 2 or more for an interval.

    Raises:
        UserError: a class has fewer pictures, or the data or the model are not usable.
    """
    show = Show(quiet)
    wanted = sorted(set(shots))
    if not wanted or wanted[0] < 1 or seeds < 1:
        raise UserError("Shots and seeds are whole numbers from 1 on.")
    dataset = open_dataset(data)
    with download_progress(show, str(model)) as progress:
        size = None if resolution is None else parse_size(resolution)
        loaded = load_weights(model, image_size=size, architecture=architecture, classes=(), progress=progress)
    classifier = Classifier(loaded, device)
    samples = [*dataset.train, *dataset.val]
    digests = content_hashes(sample.path for sample in samples)
    twins(show, [sample.path for sample in dataset.train], [sample.path for sample in dataset.val], digests)
    extracted, _ = compute_features(show, classifier, samples, digests, pooling_of(classifier), batch_size)
    if extracted.failures:
        position, reason = extracted.failures[0]
        show.warn(
            f"{len(extracted.failures)} pictures cannot be read and are skipped, such as {samples[position].path}: "
            f"{reason}"
        )
    features = extracted.features[:, -1, 0]  # (n, D)
    labels = np.array([samples[position].label for position in extracted.kept])
    first = np.array([position < len(dataset.train) for position in extracted.kept])
    if first.all():
        raise UserError("None of the held-out pictures can be read, so nothing could be judged: mend them first.")
    places = {name: np.flatnonzero(first & (labels == label)).tolist() for label, name in enumerate(dataset.classes)}
    scarcest = min(places, key=lambda name: len(places[name]))
    if len(places[scarcest]) < wanted[-1]:
        raise UserError(
            f"The class {scarcest!r} has {len(places[scarcest])} pictures to learn from, fewer than {wanted[-1]} "
            "shots: ask for fewer."
        )
    found: dict[int, list[float]] = {count: [] for count in wanted}
    for seed in range(seeds):
        for name, own in places.items():
            random.Random(f"{seed} {name}").shuffle(own)
        for count in wanted:
            drawn = np.array([place for own in places.values() for place in own[:count]])
            fitted = fit_least_squares(features[drawn], labels[drawn], len(dataset.classes))
            right = fitted.logits(features[~first]).argmax(axis=1) == labels[~first]
            found[count].append(float(right.mean()))
    rows = tuple(Shots(count, tuple(own), float(np.mean(own)), t_interval(own)) for count, own in found.items())
    return FewShot(rows, len(dataset.classes), int((~first).sum()))
