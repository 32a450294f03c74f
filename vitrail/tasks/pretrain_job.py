"""A pretraining run from its settings to its model, begun or gone on with, and what is said of it."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vitrail.atomic import refuse_existing, refuse_unwritable
from vitrail.config import ModelCard, ViTConfig, size_text
from vitrail.data.held import enough, usual_size
from vitrail.data.views import smallest_crop
from vitrail.errors import UserError
from vitrail.recipes.index import recipe as recipe_of
from vitrail.report.accounts import show_accounts
from vitrail.report.terminal import Show, duration, show_evaluation
from vitrail.runtime.device import native_bf16, pick_device
from vitrail.settings import FREE, PretrainSettings
from vitrail.tasks.classifier import download_progress
from vitrail.tasks.features import content_hashes, twins
from vitrail.tasks.pretrain_cost import available, memory, profiled, seconds, seconds_per_step
from vitrail.tasks.pretrain_data import GIGABYTE, Found, Readable, find, read, write_split
from vitrail.tasks.pretrain_folder import (
    MODEL,
    TRAINING,
    Pretrained,
    compare,
    is_begun,
    is_finished,
    last_line,
    read_config,
    usual_pace,
    write_config,
    write_pretrained,
)
from vitrail.tasks.pretrain_plan import (
    Plan,
    architecture_of,
    arguments_of,
    objective_of,
    policy_of,
    preprocessing_of,
    training_of,
    tuned,
    with_head,
)
from vitrail.tasks.pretrain_run import Judge, run
from vitrail.tasks.training import check_views
from vitrail.train.checkpoint import steps_in
from vitrail.train.lock import locked
from vitrail.train.run import CHECKPOINTS
from vitrail.weights.load import load_weights


@dataclass(frozen=True)
class Start:
    """What a model begins as; nothing: random weights."""

    card: ModelCard | None = None
    tensors: Mapping[str, Tensor] | None = None
    name: str = "random weights"


def begin(
    show: Show, folder: Path, settings: PretrainSettings, dry_run: bool, trace: Path | None = None
) -> Pretrained | None:
    """A new run; see ``vitrail.tasks.pretrain.pretrain``."""
    clock = time.perf_counter()
    device = pick_device(settings.device)
    if not dry_run:
        refuse_existing(folder)
        refuse_unwritable(folder)
    recipe = None if settings.recipe is None else recipe_of(settings.recipe)
    objective = objective_of(settings, recipe)
    show.say(f"Finding pictures in {settings.data}.")
    found = find(settings, objective == "supervised")
    for note in found.notes:
        show.warn(note)
    start = _start(show, settings, found.classes)
    config = architecture_of(settings, recipe, start.card, usual_size(found.train))
    config = with_head(config, objective, len(found.classes))
    policy, arguments = policy_of(recipe, objective), arguments_of(recipe, objective, config)

    def optimised(pictures: int) -> tuple[Any, Any, dict[str, Any]]:
        usual = training_of(settings, recipe, objective, config, pictures, native_bf16(device))
        return tuned(usual, policy, arguments, settings.tuning)

    how = preprocessing_of(config.image_size, start.card)
    views = optimised(len(found.train))[1]  # a wrong name should not wait for the pictures
    check_views(views, config)
    data = read(show, found, settings, enough(how.size, smallest_crop(views)), how)
    if found.val and not show.console.quiet:
        train = list(dict.fromkeys(found.train))
        twins(show, train, found.val, content_hashes([*train, *found.val]))
    training, views, arguments = optimised(len(data.train))
    plan = Plan(
        objective=objective,
        arguments=arguments,
        architecture=config,
        preprocessing=how,
        augmentation=None if isinstance(views, tuple) else views,
        distortions=views if isinstance(views, tuple) else (),
        training=training,
        pictures=len(data.train),
        held_out=len(data.val),
        classes=found.classes,
        files=found.digest,
        unreadable=data.unreadable,
    )
    lack = _say_plan(show, plan, found, data, start, device)
    if trace is not None and not lack:
        show_accounts(show, profiled(plan, data, start.tensors, device, trace), trace)
        show.say("Nothing else was written: leave out --profile to begin.")
        return None
    if dry_run:
        show.say(lack or "Nothing was written: leave out --dry-run to begin.")
        return None
    if lack:
        raise UserError(lack)
    write_config(folder, settings, plan)
    return _train(show, folder, settings, plan, found, data, start, device, clock)


def go_on(show: Show, folder: Path, asked: Mapping[str, Any], dry_run: bool) -> Pretrained | None:
    """A run that was begun; see ``vitrail.tasks.pretrain.pretrain``."""
    clock = time.perf_counter()
    settings, plan = read_config(folder)
    compare(folder, settings, asked)
    settings = replace(settings, **{name: asked[name] for name in FREE & asked.keys()})
    plan = replace(plan, training=replace(plan.training, workers=settings.workers))
    if is_finished(folder):
        line = last_line(folder)
        show.say(
            f"{folder} is finished: {line.get('step', plan.training.steps)} steps were made; next, {_next(folder)}."
        )
        return Pretrained(folder, plan.objective, line.get("step", plan.training.steps), plan.pictures, line)
    done = next(iter(steps_in(folder / TRAINING / CHECKPOINTS)), 0)
    pace = usual_pace(folder)
    left = "" if pace is None else f"; at its pace so far, about {duration(seconds(plan, pace, done))} are left"
    show.say(f"Going on with {folder} after step {done} of {plan.training.steps}{left}.")
    if dry_run:
        show.say("Nothing was written: leave out --dry-run to go on.")
        return None
    with locked(folder / TRAINING):
        pass  # another process there should be known of before the pictures are read
    device = pick_device(settings.device)
    found = find(settings, plan.objective == "supervised")
    if found.digest != plan.files:
        before, now = plan.pictures + plan.held_out + len(plan.unreadable), len(found.train) + len(found.val)
        raise UserError(
            f"The pictures in {settings.data} are not those {folder} was begun with ({before} then, {now} now): bring "
            "them back to what they were, or start another run."
        )
    start = _start(show, settings, found.classes)
    shortest = enough(plan.preprocessing.size, smallest_crop(plan.policy))
    data = read(show, found, settings, shortest, plan.preprocessing, plan.unreadable)
    return _train(show, folder, settings, plan, found, data, start, device, clock)


def _start(show: Show, settings: PretrainSettings, classes: tuple[str, ...]) -> Start:
    if settings.weights is None:
        return Start()
    with download_progress(show, settings.weights) as progress:
        loaded = load_weights(
            settings.weights,
            image_size=settings.resolution,
            resampling=settings.resampling,
            architecture=settings.architecture,
            classes=classes,
            progress=progress,
        )
    return Start(loaded.card, loaded.tensors, settings.weights)


def _train(
    show: Show,
    folder: Path,
    settings: PretrainSettings,
    plan: Plan,
    found: Found,
    data: Readable,
    start: Start,
    device: torch.device,
    clock: float,
) -> Pretrained:
    """Train, write the model and say what came out."""
    board = None if settings.tensorboard is None else Path(settings.tensorboard)
    state = run(show, plan, data, start.tensors, device, folder / TRAINING, settings.weights, board)
    judge = Judge.of(plan, data, device)
    evaluation = None if judge is None else judge(state)
    if plan.classes:
        write_split(folder, found)
    write_pretrained(folder, settings, plan, start.card, state.averaged(), state.step)
    minutes = (time.perf_counter() - clock) / 60
    result = Pretrained(folder, plan.objective, state.step, plan.pictures, last_line(folder), evaluation, minutes)
    if evaluation is not None:
        show_evaluation(show, evaluation, [], None)
    loss = result.last.get("loss")
    show.facts(
        [
            ("steps", f"{state.step}, the last with a loss of {loss:.4g}" if loss is not None else str(state.step)),
            ("time", duration(60 * minutes)),
            ("run folder", f"{folder}: the model in {MODEL}/, curves and checkpoints in {TRAINING}/"),
            ("next", _next(folder)),
        ]
    )
    return result


def stopped(folder: Path) -> str:
    """What an interruption left, and how to go on."""
    if not is_begun(folder):
        return "Stopped. Nothing was written."
    if is_finished(folder):
        return f"Stopped. {folder} is finished and holds its model."
    done = next(iter(steps_in(folder / TRAINING / CHECKPOINTS)), 0)
    return f"Stopped after step {done}, which is kept: vitrail pretrain --resume {folder} goes on from there."


def _next(folder: Path) -> str:
    return f"vitrail finetune DATA --weights {folder} --out ANOTHER"


def _say_plan(show: Show, plan: Plan, found: Found, data: Readable, start: Start, device: torch.device) -> str:
    """Say what will be done and how long that takes here, measured; returns why it cannot be done, if so."""
    config, settings = plan.architecture, plan.training
    needed, own, more = memory(plan, data.train.bytes + data.val.bytes)
    free = available(device)
    lack = (
        f"Training needs about {needed / GIGABYTE:.2g} GB of memory, and {free / GIGABYTE:.2g} GB are free: choose a "
        "smaller --batch-size or model, or --set accumulate=N to compute a batch in N pieces."
    )
    if needed <= free:
        lack = ""
        show.say("Timing a few steps.")
        step = seconds_per_step(plan, data, start.tensors, device)
        pace = f"{1 / step:.3g} steps ({settings.batch_size / step:.0f} pictures) a second, measured here"
        taking = f"about {duration(seconds(plan, step))}: {pace}"
    views = f", {len(plan.distortions)} views each" if plan.distortions else ""
    held = f"in memory ({data.train.bytes / GIGABYTE:.2g} GB)" if data.train.pixels is not None else "read each time"
    arguments = ", ".join(f"{name} {value}" for name, value in plan.arguments.items())
    shape = f"{config.summary}, {own / 1e6:.2f} M parameters"
    size = f"{size_text(config.image_size)} pixels"
    if isinstance(config, ViTConfig):
        size = f"{size} in patches of {size_text(config.cell)}: {config.sequence} tokens"
    rate = f"{settings.optimizer}, learning rate {settings.learning_rate:.3g}, {settings.schedule}"
    how = f"{rate}, {'bf16' if settings.bf16 else 'fp32'}"
    epochs = f"{settings.steps / plan.steps_per_epoch:.3g} epochs"
    rows = [
        ("objective", f"{plan.objective} ({arguments})" if arguments else plan.objective),
        ("data", f"{plan.pictures} pictures: {found.which}; {held}"),
        ("model", f"{shape}; {more / 1e6:.2f} M more while training" if more else shape),
        ("input", size),
        ("begins as", start.name),
        ("training", f"{settings.steps} steps of {settings.batch_size} pictures{views}: {epochs}; {how}"),
        (
            "memory",
            f"about {needed / GIGABYTE:.2g} GB, besides Python and its libraries; {free / GIGABYTE:.2g} are free",
        ),
        ("time", "not measured, since memory lacks" if lack else taking),
    ]
    if plan.held_out:
        rows.insert(2, ("held out", f"{plan.held_out} pictures of {len(plan.classes)} classes, to measure on"))
    show.facts(rows)
    return lack
