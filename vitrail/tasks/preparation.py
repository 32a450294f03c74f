"""Everything before a model is trained: its photos and their features, a classifier on those, and what they tell."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from vitrail import __version__
from vitrail.cache import cache_dir
from vitrail.config import HeadConfig, Part, ViTConfig, size_text
from vitrail.cost import flops, parameters
from vitrail.data.read import UnreadableImage
from vitrail.data.sources import Dataset, Sample
from vitrail.errors import UserError
from vitrail.evaluate.knn import Neighbours, fit_neighbours
from vitrail.evaluate.probe import Probe, fit_probe, out_of_fold
from vitrail.report.terminal import MOST_ROWS, Show, duration, percent
from vitrail.settings import FinetuneSettings
from vitrail.tasks.classifier import Classifier
from vitrail.tasks.features import Extracted, FeatureCache, cache_folder, content_hashes, extract, measured_speed, twins
from vitrail.tasks.findings import Findings, find
from vitrail.tasks.training import choose_method
from vitrail.weights.load import Loaded
from vitrail.weights.report import Fate, LoadReport

PROBED_LAYERS = 4
"""How many of the last blocks the probe may choose from, as in DINOv2's linear evaluation."""


@dataclass(frozen=True)
class Prepared:
    """What is known before a model is trained, and all there is to know where none is."""

    dataset: Dataset
    loaded: Loaded
    """The model, with the probe for its head; for kNN as it came."""
    method: str
    """As chosen."""
    why: str
    """The reason, in a clause."""
    probe: Probe | None
    """None: kNN."""
    neighbours: Neighbours | None
    """For kNN alone."""
    findings: Findings
    """Of the probe, or of kNN."""
    digests: list[str]
    """Content hashes of the photos of ``findings.train`` and then ``findings.val``."""
    unreadable: list[tuple[Path, str]]
    images_per_second: float | None
    """Photos read and run through the model a second for features; None: all were in the cache."""


def prepare(show: Show, settings: FinetuneSettings, dataset: Dataset, classifier: Classifier) -> Prepared:
    """Compute features, fit the probe or the neighbours on them, and choose the method.

    Raises:
        UserError: too much is unreadable, or the disk is full.
    """
    pooling = pooling_of(classifier)
    samples = [*dataset.train, *dataset.val]
    digests = content_hashes(sample.path for sample in samples)
    pairs = twins(show, [sample.path for sample in dataset.train], [sample.path for sample in dataset.val], digests)
    extracted, speed = compute_features(show, classifier, samples, digests, pooling, settings.batch_size)
    _check_readable(show, dataset, samples, extracted, settings)
    kept = [samples[position] for position in extracted.kept]
    labels = np.array([sample.label for sample in kept])
    first = np.array([position < len(dataset.train) for position in extracted.kept])
    train = [sample for sample, trained_on in zip(kept, first, strict=True) if trained_on]
    val = [sample for sample, trained_on in zip(kept, first, strict=True) if not trained_on]
    # Those of train stand before those of val already.
    known, held_out = extracted.features[first], extracted.features[~first]
    method, why = choose_method(settings, len(train), len(dataset.classes), speed)
    probe, neighbours = None, None
    if method == "knn":
        last = known[:, -1, 0], held_out[:, -1, 0]  # DINO's: of the last layer the class token, if there is one
        with show.progress("Leaving each photo out in turn") as advance:
            neighbours = fit_neighbours(last[0], labels[first], len(dataset.classes), progress=advance)
        logits, unseen, loaded = neighbours.logits(last[1]), neighbours.unseen(), _source(classifier)
    else:
        with show.progress("Cross-validating the probe", unit="fit") as advance:
            probe = fit_probe(known, labels[first], pooling.parts, settings.seed, advance)
        logits, unseen = probe.logits(held_out), out_of_fold(known, labels[first], probe, settings.seed)
        loaded = with_head(classifier, probe, dataset)
    both = [(dataset.train[one], dataset.val[other]) for one, other in pairs]
    found = find(unseen, extracted.features, logits, train, val, both)
    if neighbours is not None:
        # A few votes are no probabilities to doubt a label by: of weak features they would name a fifth of all photos.
        found = replace(found, suspects=[])
    return Prepared(
        dataset=dataset,
        loaded=loaded,
        method=method,
        why=why,
        probe=probe,
        neighbours=neighbours,
        findings=found,
        digests=[str(digests[position]) for position in extracted.kept],
        unreadable=[(samples[position].path, reason) for position, reason in extracted.failures],
        images_per_second=extracted.computed / extracted.seconds if extracted.computed else None,
    )


def pooling_of(classifier: Classifier) -> HeadConfig:
    """Which features are computed."""
    config = classifier.card.architecture
    parts: tuple[Part, ...] = ("class", "mean") if "class" in config.tokens else ("mean",)
    # Earlier maps of a CNN are of other widths.
    layers = min(PROBED_LAYERS, config.layers) if isinstance(config, ViTConfig) else 1
    return HeadConfig(parts, layers=layers, norm=config.head.norm)


def show_photos(show: Show, dataset: Dataset, classifier: Classifier) -> None:
    """Say what will be worked on before it is."""
    config, counts = classifier.card.architecture, dataset.counts()
    rows = [[name, str(train), str(val)] for name, (train, val) in counts.items()]
    if len(rows) > MOST_ROWS:
        rows = [*rows[:MOST_ROWS], [f"... {len(rows) - MOST_ROWS} more classes"]]
    total = ["all", str(len(dataset.train)), str(len(dataset.val))]
    show.table(["class", "train", "held out"], [*rows, total])
    for note in dataset.notes:
        show.warn(note)
    size = f"{parameters(config) / 1e6:.1f} M parameters, {size_text(config.image_size)} pixels"
    tokens = f"{config.sequence} tokens and " if config.sequence else ""
    effort = f"{tokens}{flops(config) / 1e9:.1f} GFLOP an image in {classifier.predictor.precision}"
    show.facts(
        [
            ("split", dataset.split),
            ("weights", classifier.report.summary()),
            ("model", f"{size}, {effort}"),
        ]
    )


def compute_features(
    show: Show,
    classifier: Classifier,
    samples: Sequence[Sample],
    digests: Sequence[str | UnreadableImage],
    pooling: HeadConfig,
    batch_size: int,
) -> tuple[Extracted, float]:
    """The features, from the cache where they are, and the speed of the forward pass measured here, images a second."""
    how = classifier.card.preprocessing
    cache = FeatureCache(cache_folder(cache_dir() / "features", classifier.predictor, how, pooling))
    missing = len({digest for digest in digests if isinstance(digest, str)} - set(cache.places))
    paths = [sample.path for sample in samples]
    speed = measured_speed(classifier.predictor, how, paths, batch_size)
    if missing:
        length = duration(missing / speed)
        show.say(f"{missing} images to compute at {speed:.1f} a second here: about {length}.")
    else:
        show.say(f"The features of these pictures are all in {cache.folder} already.")
    with (show if missing else Show(quiet=True)).progress("Computing features") as advance:
        found = extract(classifier.predictor, how, paths, digests, cache, pooling, batch_size, advance)
    return found, speed


def _check_readable(
    show: Show, dataset: Dataset, samples: Sequence[Sample], extracted: Extracted, settings: FinetuneSettings
) -> None:
    """Name the unreadable files; stop if they are too many, or if they leave a class without pictures.

    Raises:
        UserError: as said.
    """
    failed = [f"{samples[position].path} ({reason})" for position, reason in extracted.failures]
    if failed:
        more = f"; and {len(failed) - 5} more" if len(failed) > 5 else ""
        show.warn(
            f"{len(failed)} of {len(samples)} pictures cannot be read and are skipped: {'; '.join(failed[:5])}{more}."
        )
    if len(failed) > settings.max_unreadable * len(samples):
        raise UserError(
            f"{len(failed)} of {len(samples)} pictures cannot be read, such as {failed[0]}: mend or remove them, or "
            f"allow more than {percent(settings.max_unreadable)} with --max-unreadable."
        )
    left = Counter(samples[position].label for position in extracted.kept if position < len(dataset.train))
    for label, name in enumerate(dataset.classes):
        if left[label] < 2:
            raise UserError(
                f"The class {name!r} has {left[label]} readable pictures to train on: it needs at least two."
            )
    if not any(position >= len(dataset.train) for position in extracted.kept):
        raise UserError(
            "None of the held-out pictures can be read, so the result could not be judged: mend them first."
        )


def with_head(classifier: Classifier, probe: Probe, dataset: Dataset) -> Loaded:
    """The model with the probe as its head: an ordinary model from here on."""
    head = HeadConfig(probe.parts, probe.layers, classifier.card.architecture.head.norm, len(dataset.classes))
    card = replace(
        classifier.card,
        architecture=classifier.card.architecture.with_head(head),
        class_names=dataset.classes,
        provenance={**classifier.card.provenance, "finetuned": "probe", "vitrail": __version__},
    )
    tensors = {
        # Another pooling's own tensors and the pretraining head have no place before the probe.
        **{
            name: tensor
            for name, tensor in classifier.model.state_dict().items()
            if not name.startswith(("pooling.", "prelogits."))
        },
        "classifier.weight": torch.from_numpy(probe.weight).float(),
        "classifier.bias": torch.from_numpy(probe.bias).float(),
    }
    report = classifier.report
    fates = [*report.fates, *(Fate(f"classifier.{kind}", "new", "the probe") for kind in ("weight", "bias"))]
    return Loaded(card, tensors, LoadReport(report.source, tuple(fates)))


def _source(classifier: Classifier) -> Loaded:
    return Loaded(classifier.card, classifier.model.state_dict(), classifier.report)
