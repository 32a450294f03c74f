"""Labelled pictures in, a classifier out: a linear probe of a pretrained model, and training from there."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from vitrail import __version__
from vitrail.atomic import refuse_existing, refuse_unwritable
from vitrail.cache import cache_dir
from vitrail.config import HeadConfig, Part, Resampling, Size, parse_size, size_text
from vitrail.cost import flops, parameters
from vitrail.data.read import UnreadableImage
from vitrail.data.sources import Dataset, Sample, open_dataset
from vitrail.errors import UserError
from vitrail.evaluate.metrics import evaluate_logits
from vitrail.evaluate.probe import Probe, fit_probe
from vitrail.report.terminal import MOST_ROWS, Show, duration, percent, show_evaluation
from vitrail.settings import FinetuneSettings, TrainSettings
from vitrail.tasks.classifier import Classifier, download_progress
from vitrail.tasks.features import Extracted, FeatureCache, cache_folder, content_hashes, extract, measured_speed
from vitrail.tasks.findings import find
from vitrail.tasks.report import write_report
from vitrail.tasks.run_folder import Finetuned, write_run
from vitrail.tasks.training import Trained, choose_method, classify, lowest_trained, train_classifier, tune
from vitrail.weights.load import Loaded, load_weights
from vitrail.weights.report import Fate, LoadReport

PROBED_LAYERS = 4
"""How many of the last blocks the probe may choose from, as in DINOv2's linear evaluation."""


def finetune(
    data: str | Path,
    out: str | Path,
    *,
    weights: str | Path = "dinov2-small",
    architecture: str | None = None,
    method: str = "auto",
    epochs: int | None = None,
    resolution: int | str | Size | None = None,
    resampling: Resampling = "bicubic-corner",
    val_fraction: float = 0.2,
    seed: int = 0,
    batch_size: int = 32,
    device: str | None = None,
    max_unreadable: float = 0.1,
    tensorboard: str | Path | None = None,
    tuning: Mapping[str, float] | None = None,
    quiet: bool = False,
) -> Finetuned:
    """Train a classifier of labelled pictures and write it to a run folder.

    The pretrained model's features of every picture are computed once and kept in the cache; a
    regularised logistic regression on them, as many layers and as strong a regularisation as
    cross-validation favours, becomes the model's head. ``full`` and ``layers:K`` then train the
    model itself from there (probing first keeps the features from being spoilt by a random head,
    Kumar et al., 2202.10054).

    Args:
        data: a folder of {train,val}/<class>/ or <class>/, a CSV with path,label, or a built-in set.
        out: the run folder to make.
        weights, architecture, method, epochs, resolution, resampling, val_fraction, seed, batch_size,
        device, max_unreadable, tensorboard, tuning: see ``FinetuneSettings``.
        quiet: show nothing while working.

    Raises:
        UserError: the data, the weights or the settings are not usable, ``out`` exists, or the disk is
            full; nothing is left behind at ``out``.
    """
    start = time.perf_counter()
    size = None if resolution is None else parse_size(resolution)
    settings = FinetuneSettings(
        data=str(data),
        weights=str(weights),
        architecture=architecture,
        method=method,
        epochs=epochs,
        resolution=size,
        resampling=resampling,
        val_fraction=val_fraction,
        seed=seed,
        batch_size=batch_size,
        device=device,
        max_unreadable=max_unreadable,
        tensorboard=None if tensorboard is None else str(tensorboard),
        tuning=dict(tuning or {}),
    )
    tune(TrainSettings(1), settings.tuning)  # a wrong name should not wait for the features
    show, folder = Show(quiet), Path(out)
    refuse_existing(folder)
    refuse_unwritable(folder)
    refuse_unwritable(cache_dir())
    show.say(f"Reading {data} and loading {weights}.")
    dataset = open_dataset(data, val_fraction, seed)
    with download_progress(show, settings.weights) as progress:
        loaded = load_weights(
            settings.weights,
            image_size=size,
            resampling=resampling,
            architecture=architecture,
            classes=(),
            progress=progress,
        )
    classifier = Classifier(loaded, device)
    if settings.method.startswith("layers:"):
        lowest_trained(settings.method, classifier.card.architecture.encoder.layers)
    try:
        result, loaded = _work(show, settings, dataset, classifier, loaded, folder)
        result = replace(result, minutes=(time.perf_counter() - start) / 60)
        write_run(folder, settings, dataset, loaded, result)
        report = _report(folder, show)
    except KeyboardInterrupt:
        show.say(_stopped(folder))
        raise
    _conclude(show, result, report)
    return result


def _report(folder: Path, show: Show) -> Path:
    """Write the report; if that fails, the sentence is about a run folder that is there already."""
    try:
        return write_report(folder, show)
    except UserError as error:
        cause = error.__cause__.strerror if isinstance(error.__cause__, OSError) else error
        raise UserError(
            f"{folder} holds the model and all results, but its report could not be written ({cause}): "
            f"mend that, and run vitrail report {folder}."
        ) from error


def _stopped(folder: Path) -> str:
    """What an interruption left, and how to go on."""
    if (folder / "model").exists():
        return f"Stopped. {folder} holds the model and all results; vitrail report {folder} writes its report."
    return "Stopped. Nothing was written; the features computed so far are kept, so the same command goes on."


def _work(
    show: Show, settings: FinetuneSettings, dataset: Dataset, classifier: Classifier, loaded: Loaded, folder: Path
) -> tuple[Finetuned, Loaded]:
    """Everything between opening and writing: features, probe, training, judging."""
    pooling = _probe_head(classifier)
    samples = [*dataset.train, *dataset.val]
    digests = content_hashes(sample.path for sample in samples)
    _plan(show, dataset, classifier)
    twins = _twins(show, dataset, digests)
    extracted, speed = _features(show, classifier, samples, digests, pooling, settings)
    _check_readable(show, dataset, samples, extracted, settings)
    kept = [samples[position] for position in extracted.kept]
    labels = np.array([sample.label for sample in kept])
    training = np.array([position < len(dataset.train) for position in extracted.kept])
    with show.progress("Cross-validating the probe", unit="fit") as advance:
        probe = fit_probe(extracted.features[training], labels[training], pooling.parts, settings.seed, advance)
    loaded = _with_head(classifier, loaded, probe, dataset)
    logits = probe.logits(extracted.features[~training])
    train = [sample for sample, trained_on in zip(kept, training, strict=True) if trained_on]
    val = [sample for sample, trained_on in zip(kept, training, strict=True) if not trained_on]
    method, why = choose_method(settings, len(train), len(dataset.classes), speed)
    show.say(f"Method {method}: {why}.")
    trained: Trained | None = None
    if method != "probe":
        finetuned = Classifier(loaded, settings.device)
        trained = train_classifier(show, finetuned.runner, finetuned.card.preprocessing, train, val, method, settings)
        loaded = _after_training(loaded, trained, method)
        logits = classify(
            Classifier(loaded, settings.device).runner, loaded.card.preprocessing, val, settings.batch_size
        )
    ordered = np.concatenate([extracted.features[training], extracted.features[~training]])
    found = find(probe, ordered, logits, train, val, twins, trained is not None, settings.seed)
    loaded = replace(loaded, card=replace(loaded.card, temperature=found.temperature))
    result = Finetuned(
        folder=folder,
        method=method,
        split=dataset.split,
        evaluation=evaluate_logits(logits, labels[~training], dataset.classes, found.temperature),
        unscaled=evaluate_logits(logits, labels[~training], dataset.classes).calibration_error,
        probe=probe,
        trained=trained,
        findings=found,
        minutes=0.0,
        images_per_second=extracted.computed / extracted.seconds if extracted.computed else None,
        unreadable=[(samples[position].path, reason) for position, reason in extracted.failures],
    )
    return result, loaded


def _probe_head(classifier: Classifier) -> HeadConfig:
    config = classifier.card.architecture
    parts: tuple[Part, ...] = ("class", "mean") if "class" in config.tokens else ("mean",)
    return HeadConfig(parts, layers=min(PROBED_LAYERS, config.encoder.layers), norm=config.head.norm)


def _plan(show: Show, dataset: Dataset, classifier: Classifier) -> None:
    """Say what will happen before it does."""
    config, counts = classifier.card.architecture, dataset.counts()
    rows = [[name, str(train), str(val)] for name, (train, val) in counts.items()]
    if len(rows) > MOST_ROWS:
        rows = [*rows[:MOST_ROWS], [f"... {len(rows) - MOST_ROWS} more classes"]]
    total = ["all", str(len(dataset.train)), str(len(dataset.val))]
    show.table(["class", "train", "held out"], [*rows, total])
    for note in dataset.notes:
        show.warn(note)
    size = f"{parameters(config) / 1e6:.1f} M parameters, {size_text(config.image_size)} pixels"
    effort = f"{config.sequence} tokens and {flops(config) / 1e9:.1f} GFLOP an image in {classifier.runner.precision}"
    show.facts(
        [
            ("split", dataset.split),
            ("weights", classifier.report.summary()),
            ("model", f"{size}, {effort}"),
        ]
    )


def _features(
    show: Show,
    classifier: Classifier,
    samples: Sequence[Sample],
    digests: Sequence[str | UnreadableImage],
    pooling: HeadConfig,
    settings: FinetuneSettings,
) -> tuple[Extracted, float]:
    """The features, and the speed of the forward pass measured here, in images a second."""
    how = classifier.card.preprocessing
    cache = FeatureCache(cache_folder(cache_dir() / "features", classifier.runner, how, pooling))
    missing = len({digest for digest in digests if isinstance(digest, str)} - set(cache.places))
    paths = [sample.path for sample in samples]
    speed = measured_speed(classifier.runner, how, paths, settings.batch_size)
    if missing:
        length = duration(missing / speed)
        show.say(f"{missing} images to compute at {speed:.1f} a second here: about {length}, and then the probe.")
    else:
        show.say(f"The features of these pictures are all in {cache.folder} already.")
    with (show if missing else Show(quiet=True)).progress("Computing features") as advance:
        found = extract(classifier.runner, how, paths, digests, cache, pooling, settings.batch_size, advance)
    return found, speed


def _twins(show: Show, dataset: Dataset, digests: Sequence[str | UnreadableImage]) -> list[tuple[Sample, Sample]]:
    """Find and name pictures that stand in both parts, which make the result look better than it is."""
    train = {digest: sample for digest, sample in zip(digests, dataset.train, strict=False) if isinstance(digest, str)}
    held_out = zip(digests[len(dataset.train) :], dataset.val, strict=True)
    twins = [(train[digest], sample) for digest, sample in held_out if isinstance(digest, str) and digest in train]
    if twins:
        named = "; ".join(f"{one.path} = {other.path}" for one, other in twins[:5])
        more = f"; and {len(twins) - 5} more" if len(twins) > 5 else ""
        show.warn(f"{len(twins)} held-out pictures are also trained on, so the result flatters: {named}{more}.")
    return twins


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


def _with_head(classifier: Classifier, loaded: Loaded, probe: Probe, dataset: Dataset) -> Loaded:
    """The model with the probe as its head: an ordinary model from here on."""
    head = HeadConfig(probe.parts, probe.layers, loaded.card.architecture.head.norm, len(dataset.classes))
    card = replace(
        loaded.card,
        architecture=loaded.card.architecture.with_head(head),
        class_names=dataset.classes,
        provenance={**loaded.card.provenance, "finetuned": "probe", "vitrail": __version__},
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
    fates = [*loaded.report.fates, *(Fate(f"classifier.{kind}", "new", "the probe") for kind in ("weight", "bias"))]
    return Loaded(card, tensors, LoadReport(loaded.report.source, tuple(fates)))


def _after_training(loaded: Loaded, trained: Trained, method: str) -> Loaded:
    """The model with the weights that training gave."""
    card = replace(loaded.card, provenance={**loaded.card.provenance, "finetuned": method})
    return Loaded(card, {**loaded.tensors, **trained.tensors}, loaded.report)


def _conclude(show: Show, result: Finetuned, report: Path) -> None:
    """Say what came out and where it is."""
    show_evaluation(show, result.evaluation, [], result.images_per_second)
    found = result.findings
    across = sum(pair.first < len(found.train) <= pair.second for pair in found.pairs)
    if found.suspects:
        show.warn(f"{len(found.suspects)} training photos are likely mislabelled: look at them in the report.")
    if across:
        show.warn(f"{across} held-out photos nearly equal one that is trained on, so the result may flatter.")
    parts = " and ".join(result.probe.parts)
    show.facts(
        [
            ("head", f"{parts} of the last {result.probe.layers} layers, as cross-validation favours"),
            ("time", duration(60 * result.minutes)),
            ("run folder", str(result.folder)),
            ("report", str(report)),
            ("next", f"vitrail predict {result.folder} PHOTO..."),
        ]
    )
