"""A loss that is lost: stop, or go back; interrupted or not, the same way."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.train.toys import Killed, Modular, Step, run, same, stop_at
from vitrail.errors import UserError
from vitrail.settings import TrainSettings
from vitrail.train import checkpoint
from vitrail.train.guard import IN_A_ROW, WINDOW, Guard

SETTINGS = TrainSettings(
    44, 8, learning_rate=1e-3, warmup=0.0, average=0.2, checkpoint_every=6, on_spike="rollback", keep=2
)


SHORT = replace(SETTINGS, steps=14, checkpoint_every=4)
"""NaN at step 11, and back to 8."""


class Fragile(Modular):
    """NaN at step 40, unless the rate was lowered: the distance travelled tells."""

    def __init__(self, at: int = 40, limit: float = 0.0) -> None:
        super().__init__()
        self.at, self.limit = at, limit
        self.modules["memory"] = Memory()

    def loss(self, model: nn.Module, *rest: Any) -> tuple[Tensor, dict[str, float]]:
        loss, metrics = super().loss(model, *rest)
        memory: Memory = self.modules["memory"]  # type: ignore[assignment]
        lost = int(memory.steps) + 1 == self.at and float(memory.travelled) > self.limit
        return loss * float("nan") if lost else loss, metrics

    def after_step(self, model: nn.Module, progress: float) -> None:
        super().after_step(model, progress)
        memory: Memory = self.modules["memory"]  # type: ignore[assignment]
        weight = model.classifier.weight.detach()  # type: ignore[union-attr]
        if int(memory.steps):
            memory.travelled += (weight - memory.last).norm()
        memory.last.copy_(weight)
        memory.steps += 1


class Memory(nn.Module):
    """Part of the checkpoint, as any module's buffers are."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("steps", torch.tensor(0))
        self.register_buffer("travelled", torch.tensor(0.0))
        self.register_buffer("last", torch.zeros(3, 96))


def limit(settings: TrainSettings, at: int, before: int) -> float:
    """A distance that is passed by step ``at`` at the full rate, and not at half of it after step ``before``."""
    objective, far = Fragile(limit=float("inf")), list[float]()
    run(
        replace(settings, on_spike="stop", steps=settings.steps),
        tell=lambda step: far.append(float(objective.modules["memory"].travelled)),  # type: ignore[arg-type]
        objective=objective,
    )
    return far[before - 1] + 0.8 * (far[at - 2] - far[before - 1])


@pytest.fixture(scope="module")
def short() -> float:
    """For ``SHORT``."""
    return limit(SHORT, 11, 8)


def test_nan_at_step_40_stops_with_a_sentence_and_leaves_good_checkpoints(tmp_path: Path) -> None:
    settings = replace(SETTINGS, on_spike="stop")
    with pytest.raises(UserError, match=r"^The loss became nan at step 40: lower the learning rate .*from before\.$"):
        run(settings, tmp_path, objective=Fragile())
    found = checkpoint.latest(tmp_path / "checkpoints", pytest.fail)
    assert found is not None
    assert found.step == 36
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 39, "all that led there can be seen"
    assert all(bool(tensor.isfinite().all()) for tensor in found.tensors.values())


def test_nan_at_step_40_goes_back_and_says_so(tmp_path: Path) -> None:
    warnings: list[str] = []
    steps: list[Step] = []
    fragile = Fragile(limit=limit(SETTINGS, 40, 36))
    state = run(SETTINGS, tmp_path, steps.append, objective=fragile, warnings=warnings)
    assert warnings == ["At step 40 the loss became nan: back to step 36, with 0.5 times the learning rate."]
    assert [step.done for step in steps] == [*range(1, 40), *range(37, 45)]
    assert steps[39].learning_rate == pytest.approx(steps[36].learning_rate / 2)
    assert (state.step, state.decisions.rollbacks, state.decisions.rate_factor) == (44, 1, 0.5)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line for line in lines if "back_from" in line] == [
        {"step": 36, "back_from": 40, "cause": "the loss became nan", "rate_factor": 0.5}
    ]


def test_going_back_and_being_killed_is_going_back(tmp_path: Path, short: float) -> None:
    """Killed, or stopped by Ctrl-C, before the fall, on the way back, after it, and after the next checkpoint."""
    whole = run(SHORT, tmp_path / "whole", objective=Fragile(11, short))
    for error in (Killed, KeyboardInterrupt):
        for call in (9, 10, 11, 14):
            folder, calls = tmp_path / f"{error.__name__}{call}", 0

            def tell(step: Step, error: type[BaseException] = error, call: int = call) -> None:
                nonlocal calls
                calls += 1
                if calls == call:
                    raise error

            with pytest.raises(error):
                run(SHORT, folder, tell, objective=Fragile(11, short))
            same(run(SHORT, folder, objective=Fragile(11, short)), whole)
            assert (folder / "metrics.jsonl").read_bytes() == (tmp_path / "whole/metrics.jsonl").read_bytes()


def test_killed_while_it_goes_back_it_goes_back(tmp_path: Path, short: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C at step 9 leaves a checkpoint beyond the one to go back to; then killed before it is removed."""
    whole = run(SHORT, tmp_path / "whole", objective=Fragile(11, short))
    with pytest.raises(KeyboardInterrupt):
        run(SHORT, tmp_path / "a", stop_at(9, KeyboardInterrupt), objective=Fragile(11, short))

    def killed(folder: Path, step: int) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "remove", killed)
        with pytest.raises(Killed):
            run(replace(SHORT, keep=9), tmp_path / "a", objective=Fragile(11, short))
    same(run(SHORT, tmp_path / "a", objective=Fragile(11, short)), whole)
    assert (tmp_path / "a/metrics.jsonl").read_bytes() == (tmp_path / "whole/metrics.jsonl").read_bytes()


def test_it_goes_back_a_few_times_only(tmp_path: Path) -> None:
    warnings: list[str] = []
    with pytest.raises(UserError, match="At step 8 the loss became nan, after going back 3 times: lower"):
        run(replace(SETTINGS, steps=10), tmp_path, objective=Fragile(at=8), warnings=warnings)
    assert [warning.split(",")[1] for warning in warnings] == [
        f" with {factor} times the learning rate." for factor in ("0.5", "0.25", "0.125")
    ]


def test_it_can_go_back_to_the_start(tmp_path: Path) -> None:
    steps: list[Step] = []
    with pytest.raises(UserError, match="after going back 3 times"):
        run(replace(SETTINGS, steps=10), tmp_path, steps.append, objective=Fragile(at=3))
    assert [step.done for step in steps] == [1, 2] * 4


def feed(guard: Guard, losses: list[float], settings: TrainSettings) -> list[str]:
    causes = []
    for loss in losses:
        causes.append(guard.cause(loss, 1.0, settings))
        if not causes[-1]:
            guard.accept(loss, settings)
    return causes


def test_a_loss_beyond_its_usual_for_some_steps_is_lost() -> None:
    settings = TrainSettings(100, spike=4.0)
    guard = Guard()
    assert not any(feed(guard, [1.0] * 20 + [5.0] * (IN_A_ROW - 1) + [1.0] + [5.0] * (IN_A_ROW - 1), settings))
    assert guard.suspect == IN_A_ROW - 1
    assert guard.cause(5.0, 1.0, settings) == "the loss has been beyond 4 times its usual 1 for 5 steps"
    assert guard.cause(3.9, 1.0, settings) == ""
    assert not any(feed(Guard(), [1.0] * 20 + [5.0] * 50, replace(settings, spike=0.0)))
    assert not any(feed(Guard(), [1.0] * 10 + [50.0] * 10, settings)), "too early to tell"


def test_numbers_that_are_none_are_lost_at_once_and_the_memory_is_short() -> None:
    guard, settings = Guard(), TrainSettings(100)
    assert guard.cause(float("inf"), 1.0, settings) == "the loss became inf"
    assert guard.cause(1.0, float("nan"), settings) == "the gradient's norm became nan"
    feed(guard, [float(number) for number in range(200, 0, -1)], settings)
    assert guard.losses == [float(number) for number in range(WINDOW, 0, -1)]


def test_a_checkpoint_in_doubt_is_not_gone_back_to(tmp_path: Path) -> None:
    """The loss is beyond its usual from step 23 to 26, a checkpoint falls on 24, and at 27 it is lost."""

    class Spiking(Modular):
        def loss(self, *arguments: Any) -> tuple[Tensor, dict[str, float]]:
            loss, metrics = super().loss(*arguments)
            return loss * (1000.0 if 23 <= seen[0] + 1 <= 27 else 1.0), metrics

        def after_step(self, model: nn.Module, progress: float) -> None:
            super().after_step(model, progress)
            seen[0] += 1

    seen = [0]
    warnings: list[str] = []
    run(replace(SETTINGS, steps=30, spike=50.0), tmp_path, objective=Spiking(), warnings=warnings)
    assert len(warnings) == 1
    assert warnings[0].startswith("At step 27 the loss has been beyond 50 times its usual")
    assert "back to step 18" in warnings[0]
