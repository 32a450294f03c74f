"""All that training changes: what a checkpoint must hold for a run to go on as if it had never stopped."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from vitrail.errors import UserError
from vitrail.record import from_dict, to_dict
from vitrail.settings import TrainSettings
from vitrail.train.average import WeightAverage
from vitrail.train.guard import Guard
from vitrail.train.interrupts import held
from vitrail.train.optimizer import optimizer_of
from vitrail.train.schedule import steps_of


@dataclass
class Decisions:
    """What was found while running, and what follows from it."""

    rate_factor: float = 1.0
    """What the learning rate is multiplied by: halved whenever the run goes back."""
    rollbacks: int = 0
    evaluated: int = 0
    """The step of the last evaluation."""
    best: float | None = None
    """The highest score of an evaluation, and its step."""
    best_step: int = 0
    since_best: int = 0
    """Evaluations since then."""
    guard: Guard = field(default_factory=Guard)

    def judge(self, step: int, score: float) -> bool:
        """Take in an evaluation's score; whether it is the best so far."""
        self.evaluated = step
        better = not math.isnan(score) and (self.best is None or score > self.best)
        if better:
            self.best, self.best_step, self.since_best = score, step, 0
        else:
            self.since_best += 1
        return better


@dataclass
class State:
    """A model and an objective's modules while they are trained, after ``step`` steps."""

    model: nn.Module
    learner: nn.ModuleDict
    """The model as ``model``, the objective's modules as ``objective``: all that has weights."""
    optimizer: torch.optim.Optimizer
    average: WeightAverage
    step: int = 0
    decisions: Decisions = field(default_factory=Decisions)
    _before: dict[str, Tensor] | None = field(default_factory=dict)
    """Buffers as they were before the step that is under way; None while it changes everything."""

    @classmethod
    def start(
        cls,
        model: nn.Module,
        modules: nn.ModuleDict,
        settings: TrainSettings,
        depth: Callable[[str], int] | None = None,
        top: int = 0,
    ) -> State:
        """Before the first step; ``depth`` and ``top`` as in ``optimizer_of``, for layer-wise rates."""
        learner = nn.ModuleDict({"model": model, "objective": modules})
        optimizer = optimizer_of(model, settings, depth, top, modules)
        return cls(model, learner, optimizer, WeightAverage(learner, steps_of(settings.average, settings.steps)))

    def begin(self) -> None:
        """A step begins: note what forward passes may change (a batch norm's statistics)."""
        self._before = {name: buffer.clone() for name, buffer in self.learner.named_buffers()}

    @contextmanager
    def changing(self) -> Iterator[None]:
        """The step is taken: from here to the end of the block it cannot be undone, nor is it interrupted."""
        with held():
            self._before = None
            yield
            self._before = {}

    def undo(self) -> bool:
        """Be again as before the step under way, if that can be."""
        if self._before is None:
            return False
        for name, buffer in self.learner.named_buffers():
            if name in self._before:
                buffer.copy_(self._before[name])
        return True

    def ended(self, settings: TrainSettings) -> bool:
        """Whether no step is left, or evaluations have not become better for long enough."""
        stale = 0 < settings.patience <= self.decisions.since_best
        return stale or self.step >= settings.steps

    def averaged(self) -> dict[str, Tensor]:
        """The model's state dict with the averaged weights in place; its tensors go on changing."""
        prefix = "model."
        whole = self.average.state(self.learner)
        return {name.removeprefix(prefix): tensor for name, tensor in whole.items() if name.startswith(prefix)}

    def tensors(self) -> dict[str, Tensor]:
        """All tensors under names that begin with ``weights``, ``average`` or ``optimizer`` and the kind of state."""
        named = {f"weights.{name}": tensor for name, tensor in self.learner.state_dict().items()}
        named |= {f"average.{name}": tensor for name, tensor in self.average.weights.items()}
        for name, parameter in self.learner.named_parameters():
            for kind, value in self.optimizer.state.get(parameter, {}).items():
                if value is not None:  # SGD's momentum before the first step
                    named[f"optimizer.{kind}.{name}"] = value
        return named

    def facts(self) -> dict[str, Any]:
        """The rest, as plain JSON values."""
        return {"decisions": to_dict(self.decisions)}

    @torch.no_grad()
    def restore(self, step: int, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> None:
        """Become what ``tensors`` and ``facts`` were taken from, to the bit.

        Raises:
            UserError: they are another model's; then nothing has changed.
        """
        parameters = dict(self.learner.named_parameters(remove_duplicate=False))
        held = {**parameters, **dict(self.learner.named_buffers(remove_duplicate=False))}
        weights = {name: held[name] for name in self.learner.state_dict()}
        expected = {f"weights.{name}": tensor for name, tensor in weights.items()}
        expected |= {f"average.{name}": tensor for name, tensor in self.average.weights.items()}
        _check(expected, {name: tensor for name, tensor in tensors.items() if not name.startswith("optimizer.")})
        self._before = None
        for name, tensor in expected.items():
            saved = tensors[name]
            if saved.stride() != tensor.stride():
                tensor.data = saved.to(tensor.device, copy=True)
            else:
                tensor.copy_(saved)
        fused = {id(p): group.get("fused") for group in self.optimizer.param_groups for p in group["params"]}
        self.optimizer.state.clear()
        for full, tensor in tensors.items():
            if full.startswith("optimizer."):
                _, kind, name = full.split(".", 2)
                parameter = parameters[name]
                there = "cpu" if kind == "step" and not fused[id(parameter)] else parameter.device
                # A copy: what was read from a file need not lie in memory as torch would have it.
                self.optimizer.state[parameter][kind] = tensor.to(there, copy=True)
        self.step = step
        self.decisions = from_dict(Decisions, facts["decisions"], "the checkpoint")
        self._before = {}


def _check(expected: Mapping[str, Tensor], saved: Mapping[str, Tensor]) -> None:
    if unknown := sorted(set(expected) ^ set(saved)):
        where = "lacks" if unknown[0] in expected else "also holds"
        raise UserError(f"The checkpoint is of another model: it {where} {unknown[0]}; take another run folder.")
    for name, tensor in expected.items():
        if (tensor.shape, tensor.dtype) != (saved[name].shape, saved[name].dtype):
            raise UserError(
                f"The checkpoint is of another model: its {name} is {list(saved[name].shape)} of {saved[name].dtype}, "
                f"not {list(tensor.shape)} of {tensor.dtype}; take another run folder."
            )
