"""Pictures in, a model that knows them out: pretraining by any objective, gone on with wherever it stopped."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from vitrail.config import Resampling, Size, parse_size
from vitrail.errors import UserError
from vitrail.report.terminal import Show
from vitrail.settings import FREE, PretrainSettings
from vitrail.tasks.pretrain_folder import Pretrained, is_begun
from vitrail.tasks.pretrain_job import begin, go_on, stopped


def pretrain(
    data: str | Path | None = None,
    out: str | Path | None = None,
    *,
    objective: str | None = None,
    resume: str | Path | None = None,
    weights: str | Path | None = None,
    architecture: str | None = None,
    layers: int | None = None,
    width: int | None = None,
    heads: int | None = None,
    patch: int | None = None,
    resolution: int | str | Size | None = None,
    resampling: Resampling | None = None,
    stem: str | None = None,
    position: str | None = None,
    pool: str | None = None,
    dropout: float | None = None,
    drop_path: float | None = None,
    epochs: int | None = None,
    steps: int | None = None,
    batch_size: int | None = None,
    learning_rate: float | None = None,
    val_fraction: float | None = None,
    max_unreadable: float | None = None,
    seed: int | None = None,
    workers: int | None = None,
    checkpoint_every: int | None = None,
    recipe: str | None = None,
    device: str | None = None,
    tensorboard: str | Path | None = None,
    memory: float | None = None,
    tuning: Mapping[str, Any] | None = None,
    dry_run: bool = False,
    profile: str | Path | None = None,
    quiet: bool = False,
) -> Pretrained | None:
    """Train a ViT or a CNN on pictures, with or without labels, and leave an ordinary model in a run folder.

    A run that was stopped, in whatever way, goes on from its last checkpoint and ends with the same weights,
    to the bit: with ``resume``, or by the same call again.

    Args:
        data: any folder of pictures, a CSV with a column path, or a built-in set; to learn labels, what
            ``finetune`` takes.
        out: the run folder.
        objective: ``masked-patches``, ``mae``, ``moco``, ``dino`` or ``supervised``.
        resume: a run folder to go on with; all settings are the run's.
        weights, architecture, layers, width, heads, patch, stem, resolution, resampling, position, pool, dropout,
        drop_path, epochs, steps, batch_size, learning_rate, val_fraction, max_unreadable, seed, workers,
        checkpoint_every, recipe, device, tensorboard, memory, tuning: see ``PretrainSettings``; None: its default.
        dry_run: say what would be done and how long it would take, and write nothing.
        profile: say that and where the time of a step goes, and write a trace of some steps to this file alone.
        quiet: show nothing while working.

    Returns:
        What the run gave; None of a dry run or a profile.

    Raises:
        UserError: the data or the settings are not usable, the run is another's, the loss is lost, or the
            disk is full; the checkpoints stay as they are.
    """
    given = {
        "data": None if data is None else str(data),
        "objective": objective,
        "weights": None if weights is None else str(weights),
        "architecture": architecture,
        "layers": layers,
        "width": width,
        "heads": heads,
        "patch": patch,
        "resolution": None if resolution is None else parse_size(resolution),
        "resampling": resampling,
        "stem": stem,
        "position": position,
        "pool": pool,
        "dropout": dropout,
        "drop_path": drop_path,
        "epochs": epochs,
        "steps": steps,
        "batch_size": batch_size,
        "learning_rate": learning_rate,
        "val_fraction": val_fraction,
        "max_unreadable": max_unreadable,
        "seed": seed,
        "workers": workers,
        "checkpoint_every": checkpoint_every,
        "recipe": recipe,
        "device": device,
        "tensorboard": None if tensorboard is None else str(tensorboard),
        "memory": memory,
        "tuning": dict(tuning) if tuning else None,
    }
    asked: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    show = Show(quiet)
    folder = _folder(out, resume)
    try:
        if profile is not None and (resume is not None or is_begun(folder)):
            raise UserError(f"{folder} is begun already: profile it as another run, with another --out.")
        if resume is not None:
            return go_on(show, folder, asked, dry_run)
        if data is None:
            raise UserError("The data are missing: name a folder of pictures, or a run to --resume.")
        settings = PretrainSettings(**asked)
        if is_begun(folder):
            whole = {entry.name: getattr(settings, entry.name) for entry in fields(settings) if entry.name not in FREE}
            return go_on(show, folder, {**whole, **{name: asked[name] for name in FREE & asked.keys()}}, dry_run)
        return begin(show, folder, settings, dry_run or profile is not None, None if profile is None else Path(profile))
    except KeyboardInterrupt:
        show.say(stopped(folder))
        raise


def _folder(out: str | Path | None, resume: str | Path | None) -> Path:
    """The run folder; not where a process stands, which is what no name would mean."""
    if resume is not None and out is not None and Path(out) != Path(resume):
        raise UserError(f"A run goes on in its own folder, {resume}: leave out --out {out}.")
    chosen = out if resume is None else resume
    if chosen is None:
        raise UserError("The run folder is missing: name it with --out.")
    return Path(chosen)
