"""A planned pretraining run in the one loop: begun, trained, judged."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vitrail.config import Preprocessing
from vitrail.data.ahead import ahead
from vitrail.data.held import Pictures
from vitrail.data.preprocess import preprocess
from vitrail.data.views import Views
from vitrail.evaluate.metrics import Evaluation, evaluate_logits
from vitrail.model.build import Model, build
from vitrail.model.compiling import compile_blocks
from vitrail.objectives.objective import Objective
from vitrail.record import to_dict
from vitrail.report.board import tensorboard
from vitrail.report.terminal import Show
from vitrail.runtime.predictor import Predictor
from vitrail.tasks.pretrain_data import Readable
from vitrail.tasks.pretrain_plan import HIDING, KINDS, Plan
from vitrail.train.checkpoint import steps_in
from vitrail.train.loop import Evaluate, Step, train
from vitrail.train.run import CHECKPOINTS
from vitrail.train.state import State

POINTS = 1000
"""Points of a curve in TensorBoard."""
RECENT = 20
"""Steps whose mean loss is shown."""


def made(plan: Plan) -> tuple[Model, Objective[Any]]:
    """A random model and its objective."""
    model = build(plan.architecture, plan.training.seed)
    return model, _objective(plan, model)


def state_of(plan: Plan, tensors: Mapping[str, Tensor] | None, device: torch.device) -> tuple[State, Objective[Any]]:
    """Model, objective and optimiser as they are before the first step.

    Args:
        tensors: of a model to go on from, what does not belong to this one left aside; None: random ones.
    """
    model = build(plan.architecture, plan.training.seed)
    if tensors is not None:
        model.load_state_dict({name: tensors[name] for name in model.state_dict()})
    objective = _objective(plan, model.to(device))  # some copy the model as it is now
    objective.modules.to(device)
    state = State.start(model, objective.modules, plan.training, model.depth, plan.architecture.layers + 1)
    if plan.training.compile:
        compile_blocks(state.learner)
    return state, objective


def _objective(plan: Plan, model: Model) -> Objective[Any]:
    kind = KINDS[plan.objective][0]
    if plan.objective == "supervised":
        return kind(plan.preprocessing, plan.policy, **plan.arguments)
    subject = plan.architecture if plan.objective in HIDING else model
    return kind(subject, plan.preprocessing, plan.policy, **plan.arguments, seed=plan.training.seed)


@dataclass(frozen=True)
class Judge:
    """Held-out pictures, and a copy of the model to look at them with."""

    predictor: Predictor
    how: Preprocessing
    pictures: Pictures
    """As the model is shown them, but for standardising."""
    labels: np.ndarray
    classes: tuple[str, ...]
    batch_size: int

    @classmethod
    def of(cls, plan: Plan, data: Readable, device: torch.device) -> Judge | None:
        """None where nothing is held out."""
        if not len(data.val):
            return None
        predictor = Predictor(build(plan.architecture).to(device).eval(), device, plan.training.bf16)
        labels = data.val_labels.numpy()
        return cls(predictor, plan.preprocessing, data.val, labels, plan.classes, plan.training.batch_size)

    def __call__(self, state: State) -> Evaluation:
        """What the averaged weights make of them."""
        self.predictor.model.load_state_dict(state.averaged())
        logits, waiting = [], list[Tensor]()
        numbers = range(len(self.pictures))
        with closing(ahead(numbers, partial(_prepared, self.pictures, self.how), 2 * self.batch_size)) as images:
            for number, image in zip(numbers, images, strict=True):
                waiting.append(image)
                if len(waiting) == self.batch_size or number == numbers[-1]:
                    logits.append(self.predictor.logits(torch.stack(waiting))[1].numpy())
                    waiting.clear()
        return evaluate_logits(np.concatenate(logits), self.labels, self.classes)

    def score(self, state: State) -> tuple[float, dict[str, float]]:
        """Accuracy, twice: to judge by, and to log."""
        accuracy = self(state).top1
        return accuracy, {"val_accuracy": accuracy}


def _prepared(pictures: Pictures, how: Preprocessing, number: int) -> Tensor:
    return preprocess(pictures(number), replace(how, fit="squash", crop_fraction=1.0))  # it has its size already


def run(
    show: Show,
    plan: Plan,
    data: Readable,
    tensors: Mapping[str, Tensor] | None,
    device: torch.device,
    folder: Path,
    weights: str | None,
    board: Path | None,
) -> State:
    """Train in ``folder``, from where it stands; the state at the end.

    Raises:
        UserError: see ``vitrail.train.loop.train``.
    """
    state, objective = state_of(plan, tensors, device)
    judge = Judge.of(plan, data, device)
    views = Views(data.train, plan.preprocessing, plan.policy)
    about = {**to_dict(plan), "weights": weights}
    del about["training"]
    evaluate: Evaluate | None = None if judge is None else judge.score
    settings = plan.training
    every = max(1, settings.steps // POINTS)
    before = next(iter(steps_in(folder / CHECKPOINTS)), 0)
    recent: deque[tuple[float, float, Step]] = deque(maxlen=RECENT)
    clock = time.perf_counter()
    with tensorboard(board) as write, show.training(settings.steps, before) as advance:

        def tell(step: Step) -> None:
            nonlocal clock
            before, clock = clock, time.perf_counter()
            recent.append((before, clock, step))
            loss = sum(made.loss for _, _, made in recent) / len(recent)
            rate = sum(made.images for _, _, made in recent) / (clock - recent[0][0])
            advance(step.done, loss, step.metrics.get("accuracy"), rate)
            if step.done % every == 0:
                numbers = {"loss": step.loss, **step.metrics, "learning_rate": step.learning_rate}
                write(step.done, {**numbers, "images_per_second": rate})

        train(
            state,
            objective,
            views,
            data.labels,
            settings,
            device,
            folder=folder,
            about=about,
            evaluate=evaluate,
            tell=tell,
            warn=show.warn,
        )
    return state
