"""The one training loop: it knows no model and no objective.

All randomness is a function of the seed and the place: a view's of (epoch, sample), a mask's or a mix's
too, a step's of (step, piece). So what a step does follows from the settings and the ``State`` before it,
and a run that was stopped anywhere goes on from a checkpoint to where it would have gone, bit for bit.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vitrail.data.order import generator
from vitrail.errors import UserError
from vitrail.objectives.objective import Objective
from vitrail.record import to_dict
from vitrail.settings import TrainSettings
from vitrail.train.feed import Batch, View, batches_from
from vitrail.train.interrupts import held
from vitrail.train.run import Run, running
from vitrail.train.schedule import rate_share
from vitrail.train.state import State

Evaluate = Callable[[State], tuple[float, Mapping[str, float]]]
"""A score, the higher the better, and numbers to log."""


@dataclass(frozen=True)
class Step:
    """What one step gave."""

    done: int
    """Steps behind us."""
    epoch: int
    """Counted from 0."""
    loss: float
    metrics: dict[str, float]
    """What the objective tells of the batch."""
    images: int
    learning_rate: float
    gradient_norm: float
    """Before clipping."""


def train(
    state: State,
    objective: Objective[Any],
    view: View,
    labels: Tensor,
    settings: TrainSettings,
    device: torch.device,
    *,
    folder: Path | None = None,
    about: Mapping[str, Any] | None = None,
    evaluate: Evaluate | None = None,
    tell: Callable[[Step], None] = lambda step: None,
    warn: Callable[[str], None] = lambda sentence: None,
) -> None:
    """Train ``state`` in place to its end, from the last checkpoint in ``folder`` if there is one.

    Ctrl-C leaves a checkpoint of the last step.

    Args:
        state: as it was before the first step, with the model on ``device``.
        view: reads a sample and makes the objective's view of it; called from threads, or sent to
            ``settings.workers`` processes.
        labels: (n,), one a sample.
        folder: where checkpoints and logs are kept; None: nowhere.
        about: what else determines the result (model, data, augmentation), as plain JSON values; a
            run goes on only with the same.
        tell: called after every step.
        warn: called with a sentence now and then.

    Raises:
        UserError: the loss is lost, the folder is in use or of another run, or the disk is full.
    """
    if objective.in_batch and (settings.accumulate > 1 or settings.repeats > 1):
        raise UserError(
            "This objective compares the samples of a batch, so none may be cut and no sample may stand in it twice: "
            "set accumulate and repeats to 1."
        )
    check_pieces(state.model, settings)
    if settings.on_spike == "rollback" and folder is None:
        raise UserError("Going back to a checkpoint needs a folder for them: name one.")
    data = hashlib.sha256(labels.cpu().numpy().tobytes()).hexdigest()[:16]
    about = {"settings": to_dict(settings), "samples": len(labels), "labels": data, **(about or {})}
    with running(folder, settings, about, warn) as run:
        run.resume(state)
        try:
            _settle(state, settings, run, evaluate)
            while not state.ended(settings):
                with closing(batches_from(state.step, view, len(labels), settings)) as batches:
                    for batch in batches:
                        start = time.perf_counter()
                        state.begin()
                        step, cause = _gradient(state, objective, batch, labels, settings, device)
                        if cause:
                            break
                        with state.changing():
                            _descend(state, objective, step, settings)
                            seconds = time.perf_counter() - start
                            run.log(_line(step), {"seconds": seconds, "images_per_second": step.images / seconds})
                        _settle(state, settings, run, evaluate)
                        tell(step)
                        if state.ended(settings):
                            return
                _lost(state, settings, run, cause, step.learning_rate)
        except KeyboardInterrupt:
            if state.undo():
                run.save(state)
            raise


def check_pieces(model: nn.Module, settings: TrainSettings) -> None:
    """Raise UserError if batches are to be computed in pieces by a model that standardises by its batch."""
    if settings.accumulate > 1 and any(isinstance(part, nn.BatchNorm2d) for part in model.modules()):
        raise UserError(
            "The model has BatchNorm, to which a batch in pieces is other batches: set accumulate to 1, or choose a "
            "model with GroupNorm or LayerNorm."
        )


def _gradient(
    state: State,
    objective: Objective[Any],
    batch: Batch,
    labels: Tensor,
    settings: TrainSettings,
    device: torch.device,
) -> tuple[Step, str]:
    """The gradient of a batch's mean loss, piece by piece, clipped; and why it must not be followed, if so."""
    epoch, places, views = batch
    rate = settings.learning_rate * rate_share(state.step, settings) * state.decisions.rate_factor
    state.learner.train()
    state.optimizer.zero_grad(set_to_none=True)
    total, metrics = 0.0, dict[str, float]()
    for number, (piece, images) in enumerate(views):
        share = len(piece) / len(places)
        torch.manual_seed(int(generator(settings.seed, "step", state.step, number).integers(2**63)))
        chances = [generator(settings.seed, "sample", epoch, place) for place in piece]
        with torch.autocast(device.type, torch.bfloat16, enabled=settings.bf16):
            loss, told = objective.loss(
                state.model,
                images.to(device),
                labels[torch.tensor(piece) % len(labels)].to(device),
                chances,
            )
        (loss * share).backward()  # type: ignore[no-untyped-call]
        total += share * loss.item()
        for name, value in told.items():
            metrics[name] = metrics.get(name, 0.0) + share * value
    norm = nn.utils.clip_grad_norm_(state.learner.parameters(), settings.clip or float("inf")).item()
    step = Step(state.step + 1, epoch, total, metrics, len(places), rate, norm)
    return step, state.decisions.guard.cause(total, norm, settings)


def _descend(state: State, objective: Objective[Any], step: Step, settings: TrainSettings) -> None:
    """Follow the gradient: all that a step changes, changes here."""
    for group in state.optimizer.param_groups:
        group["lr"] = step.learning_rate * group["share"]
    state.optimizer.step()
    state.average.update(state.learner, step.done)
    objective.after_step(state.model, step.done / settings.steps)
    state.decisions.guard.accept(step.loss, settings)
    state.step = step.done


def _settle(state: State, settings: TrainSettings, run: Run, evaluate: Evaluate | None) -> None:
    """Between two steps: evaluate and write a checkpoint, where they are due and not done yet."""
    last, every = state.step == settings.steps, settings.evaluate_every
    due = last or (every > 0 and state.step % every == 0)
    best = False
    if evaluate is not None and due and state.decisions.evaluated < state.step:
        score, numbers = evaluate(state)
        with held():
            best = state.decisions.judge(state.step, score)
            run.log({"step": state.step, "score": score, **numbers})
    run.settle(state, urgent=best or state.ended(settings))


class Diverged(UserError):
    """The loss became no number, or leapt, and training does not go on by itself."""


def _lost(state: State, settings: TrainSettings, run: Run, cause: str, rate: float) -> None:
    """Go back, or stop with a sentence."""
    if settings.on_spike == "rollback":
        with held():
            run.roll_back(state, cause)
        return
    kept = f" The checkpoints in {run.folder} are from before." if run.folder is not None else ""
    raise Diverged(
        f"{cause[0].upper()}{cause[1:]} at step {state.step + 1}: lower the learning rate ({rate:.1e} there).{kept}"
    )


def _line(step: Step) -> dict[str, Any]:
    return {
        "step": step.done,
        "epoch": step.epoch,
        "loss": step.loss,
        **step.metrics,
        "learning_rate": step.learning_rate,
        "gradient_norm": step.gradient_norm,
    }
