"""Labelled pictures in, a classifier out: a classifier on a pretrained model's features, and training from there."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from vitrail.atomic import new_folder, refuse_existing, refuse_unwritable
from vitrail.cache import cache_dir
from vitrail.config import Resampling, Size, ViTConfig, parse_size
from vitrail.config import architecture as named
from vitrail.data.held import usual_size
from vitrail.data.sources import Dataset, open_dataset
from vitrail.errors import UserError
from vitrail.report.terminal import Show, duration, show_evaluation
from vitrail.settings import FinetuneSettings, TrainSettings
from vitrail.tasks.begun import TRAINING, begin, read_begun, unfinished, with_asked
from vitrail.tasks.classifier import Classifier, download_progress
from vitrail.tasks.preparation import Prepared, prepare, show_photos
from vitrail.tasks.pretrain_plan import size_of_small
from vitrail.tasks.report import write_report
from vitrail.tasks.run_folder import Finetuned, judged, write_asked, write_results
from vitrail.tasks.trained_run import train_run
from vitrail.tasks.training import UNTRAINED, check_method, course, tune
from vitrail.train import checkpoint
from vitrail.train.loop import check_pieces
from vitrail.train.run import CHECKPOINTS
from vitrail.weights.load import load_weights


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
    tuning: Mapping[str, Any] | None = None,
    quiet: bool = False,
) -> Finetuned:
    """Train a classifier of labelled pictures and write it to a run folder.

    The pretrained model's features of every picture are computed once and kept in the cache; a
    regularised logistic regression on them, as many layers and as strong a regularisation as
    cross-validation favours, becomes the model's head. ``full``, ``layers:K`` and ``lora`` then train the
    model itself from there (probing first keeps the features from being spoilt by a random head,
    Kumar et al., 2202.10054); ``resume`` goes on with a training that was interrupted. ``knn`` lets the
    nearest features vote and writes no model.

    Args:
        data: a folder of {train,val}/<class>/ or <class>/, a CSV with path,label, or a built-in set.
        out: the run folder to make.
        weights, architecture, method, epochs, resolution, resampling, val_fraction, seed, batch_size,
        device, max_unreadable, tensorboard, tuning: see ``FinetuneSettings``.
        quiet: show nothing while working.

    Raises:
        UserError: the data, the weights or the settings are not usable, ``out`` exists, or the disk is
            full; before training nothing is left behind at ``out``.
    """
    settings = FinetuneSettings(
        data=str(data),
        weights=str(weights),
        architecture=architecture,
        method=method,
        epochs=epochs,
        resolution=None if resolution is None else parse_size(resolution),
        resampling=resampling,
        val_fraction=val_fraction,
        seed=seed,
        batch_size=batch_size,
        device=device,
        max_unreadable=max_unreadable,
        tensorboard=None if tensorboard is None else str(tensorboard),
        tuning=dict(tuning or {}),
    )
    return run(settings, out, quiet)


def run(settings: FinetuneSettings, out: str | Path, quiet: bool = False) -> Finetuned:
    """``finetune`` with its settings in one piece."""
    folder, show, start = Path(out), Show(quiet), time.perf_counter()
    if unfinished(folder):
        raise UserError(
            f"{folder} holds a run that was interrupted: vitrail finetune --resume {folder} goes on with it; "
            "or choose another place."
        )
    refuse_existing(folder)
    refuse_unwritable(folder)
    refuse_unwritable(cache_dir())
    dataset, classifier = opened(settings, show)
    show_photos(show, dataset, classifier)
    try:
        prepared = prepare(show, settings, dataset, classifier)
        show.say(f"Method {prepared.method}: {prepared.why}.")
        if prepared.method in UNTRAINED:
            result = _untrained(settings, folder, prepared, start)
        else:
            how = course(settings, prepared.method, len(prepared.findings.train), classifier.predictor.bf16)
            begin(folder, settings, prepared, how, (time.perf_counter() - start) / 60)
            del prepared, classifier  # their memory is the training's from here on
            result = train_run(folder, read_begun(folder), time.perf_counter(), show)
        report = _report(folder, show)
    except KeyboardInterrupt:
        show.say(_stopped(folder))
        raise
    _conclude(show, result, report)
    return result


def resume(folder: str | Path, asked: FinetuneSettings | None = None, quiet: bool = False) -> Finetuned:
    """Go on with a run that was interrupted while it trained; it ends as it would have without, to the bit.

    Args:
        folder: the run folder; all settings are in it.
        asked: settings given again, of which those that are not the usual ones must be the run's, but for
            ``device`` and ``tensorboard``, and in ``tuning`` workers, keep and checkpoint_minutes.
        quiet: show nothing while working.

    Raises:
        UserError: there is no such run, it is complete, a setting differs, a photo has changed, or another
            process is at it.
    """
    folder, show, start = Path(folder), Show(quiet), time.perf_counter()
    begun = read_begun(folder)
    if asked is not None:
        begun = with_asked(begun, asked, folder)
    try:
        result = train_run(folder, begun, start, show)
        report = _report(folder, show)
    except KeyboardInterrupt:
        show.say(_stopped(folder))
        raise
    _conclude(show, result, report)
    return result


def opened(settings: FinetuneSettings, show: Show) -> tuple[Dataset, Classifier]:
    """The photos and the pretrained model, once the settings are known to fit it."""
    # A wrong name should not wait for the features; a setting that needs another one gets it from the usual.
    training, augmentation, _ = tune(TrainSettings(1, evaluate_every=1, checkpoint_every=1), settings.tuning)
    show.say(f"Reading {settings.data} and loading {settings.weights}.")
    dataset = open_dataset(settings.data, settings.val_fraction, settings.seed)
    size = settings.resolution
    cnn = settings.architecture is not None and not isinstance(named(settings.architecture), ViTConfig)
    if size is None and settings.weights == "none" and cnn:
        size = size_of_small(usual_size([sample.path for sample in dataset.train]))
    with download_progress(show, settings.weights) as progress:
        loaded = load_weights(
            settings.weights,
            image_size=size,
            resampling=settings.resampling,
            architecture=settings.architecture,
            classes=(),
            progress=progress,
        )
    classifier = Classifier(loaded, settings.device)
    check_pieces(classifier.model, training)
    check_method(settings.method, augmentation, classifier.card.architecture)
    return dataset, classifier


def _untrained(settings: FinetuneSettings, folder: Path, prepared: Prepared, start: float) -> Finetuned:
    """Write the run of a method that leaves the model as it is, all of it or nothing."""
    found, loaded = prepared.findings, prepared.loaded
    loaded = replace(loaded, card=replace(loaded.card, temperature=found.temperature))
    result = replace(
        judged(folder, prepared.dataset.classes, found),
        method=prepared.method,
        split=prepared.dataset.split,
        probe=prepared.probe,
        neighbours=prepared.neighbours,
        minutes=(time.perf_counter() - start) / 60,
        images_per_second=prepared.images_per_second,
        unreadable=prepared.unreadable,
    )
    with new_folder(folder) as beside:
        write_asked(beside, settings, prepared.dataset, loaded.report, None)
        write_results(beside, result, loaded, prepared.dataset.notes)
    return result


def _report(folder: Path, show: Show) -> Path:
    """Write the report; if that fails, the sentence is about a run folder that is there already."""
    try:
        return write_report(folder, show)
    except UserError as error:
        cause = error.__cause__.strerror if isinstance(error.__cause__, OSError) else error
        raise UserError(
            f"{folder} holds all results, but its report could not be written ({cause}): "
            f"mend that, and run vitrail report {folder}."
        ) from error


def _stopped(folder: Path) -> str:
    """What an interruption left, and how to go on."""
    if unfinished(folder):
        steps = checkpoint.steps_in(folder / TRAINING / CHECKPOINTS)
        return f"Stopped after step {steps[0] if steps else 0}: vitrail finetune --resume {folder} goes on from there."
    if os.path.exists(folder / "metrics.jsonl"):
        return f"Stopped. {folder} holds the model and all results; vitrail report {folder} writes its report."
    return "Stopped. Nothing was written; the features computed so far are kept, so the same command goes on."


def _conclude(show: Show, result: Finetuned, report: Path) -> None:
    """Say what came out and where it is."""
    show_evaluation(show, result.evaluation, [], result.images_per_second)
    found = result.findings
    across = sum(pair.first < len(found.train) <= pair.second for pair in found.pairs)
    if found.suspects:
        show.warn(f"{len(found.suspects)} training photos are likely mislabelled: look at them in the report.")
    if across:
        show.warn(f"{across} held-out photos nearly equal one that is trained on, so the result may flatter.")
    facts = []
    if result.probe is not None:
        parts = " and ".join(result.probe.parts)
        facts.append(("head", f"{parts} of the last {result.probe.layers} layers, as cross-validation favours"))
    if result.neighbours is not None:
        facts.append(("neighbours", f"{result.neighbours.k}, as leaving each photo out in turn favours"))
    if result.trained is not None:
        facts.append(("trained", f"{result.trained.parameters:,} numbers"))
    facts += [
        ("time", duration(60 * result.minutes)),
        ("run folder", str(result.folder)),
        ("report", str(report)),
    ]
    if result.neighbours is None:
        facts.append(("next", f"vitrail predict {result.folder} PHOTO..."))
    else:
        facts.append(("model", "none: kNN only says how good the features are; --method probe writes one"))
    show.facts(facts)
