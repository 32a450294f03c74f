"""What a planned pretraining run takes, in memory and, measured here, in time."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from vitrail.config import transformer
from vitrail.cost import flops, training_bytes
from vitrail.data.views import Views
from vitrail.model.build import blank
from vitrail.objectives.mae import MAE
from vitrail.tasks.pretrain_data import Readable
from vitrail.tasks.pretrain_plan import Plan
from vitrail.tasks.pretrain_run import made, state_of
from vitrail.train.loop import Step, train
from vitrail.train.profile import STEPS, Accounts, Profiler

TIMED = 4
"""Steps that are timed, of which the first, which warms up, does not count."""
PATIENCE = 15.0
"""Seconds after which timing ends, whatever was done."""
TRIED = 1.5e12
"""Floating-point operations a timed step may take; where a step takes more, a part of its batch is timed."""
LEARNS = 3
"""How many times a forward pass a step takes."""


def memory(plan: Plan, held: int) -> tuple[float, int, int]:
    """Bytes that training takes, about: pictures held, weights, gradients, their moments, averages, activations.

    Returns:
        These, and how many numbers are learned of the model and, besides it, held by the objective.
    """
    settings, config = plan.training, plan.architecture
    with blank():  # counted, not made
        model, objective = made(plan)
    own = [parameter.numel() for parameter in model.parameters()]
    more = [parameter.numel() for parameter in objective.modules.parameters()]
    every = [*model.parameters(), *objective.modules.parameters()]
    trained = sum(parameter.numel() for parameter in every if parameter.requires_grad)
    moments = 2 if settings.optimizer == "adamw" else 1
    numbers = sum(own) + sum(more) + trained * (1 + moments + (settings.average > 0))
    # float32 throughout: under autocast the sums between blocks, norms and attention stay in it.
    sample = float(training_bytes(config)) * max(1, len(plan.distortions))
    if isinstance(objective, MAE):
        config = transformer(config, "MAE")
        seen = len(config.tokens) + objective.visible
        width = plan.arguments["width"]
        blocks = replace(config.encoder, layers=plan.arguments["layers"], width=width, heads=1, mlp_width=4 * width)
        drawing = replace(config, encoder=blocks, position=replace(config.position, kind="none", place="stem"))
        sample = sample * seen / config.sequence + training_bytes(drawing)
    needed = held + 4.0 * numbers + sample * -(-settings.batch_size // settings.accumulate)
    return needed, sum(own), sum(more)


def available(device: torch.device) -> float:
    """Bytes of memory that are free there; infinite where nobody says."""
    if device.type == "cuda":
        return float(torch.cuda.mem_get_info(device)[0])
    with suppress(OSError, ValueError, IndexError):
        for line in Path("/proc/meminfo").read_text("ascii").splitlines():
            if line.startswith("MemAvailable:"):
                return 1024.0 * int(line.split()[1])
    return float("inf")


class _Enough(Exception):
    """Steps enough were timed."""


def seconds_per_step(plan: Plan, data: Readable, tensors: Mapping[str, Tensor] | None, device: torch.device) -> float:
    """How long a step takes here, from a few steps of a run that is thrown away."""
    times = [time.perf_counter()]
    first = 1 if plan.training.compile else 0  # a compiled model's first step takes as long as the compiler does

    def tell(step: Step) -> None:
        times.append(time.perf_counter())
        if len(times) > TIMED or times[-1] - times[first] > PATIENCE:
            raise _Enough

    with suppress(_Enough):
        _take(plan, data, tensors, device, TIMED, tell)
    taken = np.diff(times)
    return float(np.median(taken[1:] if len(taken) > 1 else taken)) * plan.training.batch_size / _timed_batch(plan)


def profiled(
    plan: Plan, data: Readable, tensors: Mapping[str, Tensor] | None, device: torch.device, trace: Path
) -> Accounts:
    """Where the time of a step goes here, from a few steps of a run that is thrown away; ``trace`` is written.

    Raises:
        UserError: it cannot be written.
    """
    profiler = Profiler(device, plan.training.bf16)

    def tell(step: Step) -> None:
        follow(step)
        if step.done == STEPS:
            raise _Enough

    with suppress(_Enough), profiler as follow:
        _take(plan, data, tensors, device, STEPS, tell)
    profiler.write(trace)
    return profiler.accounts()


def _take(
    plan: Plan,
    data: Readable,
    tensors: Mapping[str, Tensor] | None,
    device: torch.device,
    least: int,
    tell: Callable[[Step], None],
) -> None:
    """Steps of a run that is thrown away, ``least`` or as many as the plan has."""
    steps = max(plan.training.steps, least)
    settings = replace(plan.training, steps=steps, batch_size=_timed_batch(plan), on_spike="stop", spike=0)
    state, objective = state_of(plan, tensors, device)
    views = Views(data.train, plan.preprocessing, plan.policy)
    train(state, objective, views, data.labels, settings, device, tell=tell)


def _timed_batch(plan: Plan) -> int:
    """A whole batch, or what of it a step can take in good time."""
    sample = LEARNS * flops(plan.architecture) * max(1, len(plan.distortions))
    return min(plan.training.batch_size, max(4, int(TRIED / sample) // 2 * 2))


def seconds(plan: Plan, step: float, done: int = 0) -> float:
    """What steps after ``done`` and the evaluations among them take; an evaluated picture has no backward pass."""
    left, every = plan.training.steps - done, plan.training.evaluate_every
    looks = -(-left // every) if every else 1
    return left * step + looks * plan.held_out * step / plan.training.batch_size / LEARNS
