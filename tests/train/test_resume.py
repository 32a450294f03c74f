"""Interrupted is uninterrupted, to the bit, wherever a run is stopped."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.train import toys
from tests.train.toys import ALL_ON, LABELS, Killed, Modular, Step, run, same, stop_at
from vitrail.errors import UserError
from vitrail.settings import TrainSettings
from vitrail.train.run import begun_with
from vitrail.train.state import State

KINDS = {
    "adamw": ALL_ON,
    "sgd, linear, repeated views": replace(
        ALL_ON, optimizer="sgd", schedule="linear", learning_rate=0.05, accumulate=1, repeats=2
    ),
    "no average, no clipping": replace(ALL_ON, average=0, clip=None, schedule="rsqrt", warmup=2, betas=(0.8, 0.9)),
    "bf16": replace(ALL_ON, bf16=True, batch_size=7),
}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[State, bytes]]:
    """Uninterrupted runs, and what they logged."""
    found = {}
    for kind, settings in KINDS.items():
        folder = tmp_path_factory.mktemp("whole")
        found[kind] = run(settings, folder), (folder / "metrics.jsonl").read_bytes()
    return found


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("error", [Killed, KeyboardInterrupt])
def test_stopped_after_every_step_it_ends_the_same(
    kind: str, error: type[BaseException], whole: dict[str, tuple[State, bytes]], tmp_path: Path
) -> None:
    for step in range(1, ALL_ON.steps + 1) if (kind, error) == ("adamw", Killed) else (1, 4, 8):
        folder = tmp_path / str(step)
        with pytest.raises(error):
            run(KINDS[kind], folder, stop_at(step, error))
        steps: list[Step] = []
        state = run(KINDS[kind], folder, steps.append)
        if step < ALL_ON.steps and error is KeyboardInterrupt:
            assert steps[0].done == step + 1, "Ctrl-C loses no step"
        same(state, whole[kind][0])
        assert (folder / "metrics.jsonl").read_bytes() == whole[kind][1]
        assert (folder / "timing.jsonl").read_bytes().count(b"\n") == ALL_ON.steps


def test_stopped_after_each_step_in_turn_it_ends_the_same(
    whole: dict[str, tuple[State, bytes]], tmp_path: Path
) -> None:
    for step in range(1, ALL_ON.steps + 1):
        with pytest.raises(KeyboardInterrupt):
            run(ALL_ON, tmp_path, stop_at(step, KeyboardInterrupt))
    same(run(ALL_ON, tmp_path), whole["adamw"][0])
    assert (tmp_path / "metrics.jsonl").read_bytes() == whole["adamw"][1]


@pytest.mark.parametrize("where", ["views", "loss", "evaluate", "after_step"])
@pytest.mark.parametrize("call", [1, 4, 7])
def test_ctrl_c_in_the_middle_of_a_step_is_as_harmless(
    where: str, call: int, whole: dict[str, tuple[State, bytes]], tmp_path: Path
) -> None:
    """In the loss, when batch norm has changed its statistics; in an evaluation; where nothing can be undone."""
    calls = 0

    def interrupted(*_: Any) -> None:
        nonlocal calls
        calls += 1
        if calls == call:
            raise KeyboardInterrupt

    class Interrupted(Modular):
        def loss(self, *arguments: Any) -> Any:
            result = super().loss(*arguments)
            if where == "loss":
                interrupted()
            return result

        def after_step(self, *arguments: Any) -> None:
            super().after_step(*arguments)
            if where == "after_step":
                interrupted()

    def evaluate(state: State) -> tuple[float, dict[str, float]]:
        if where == "evaluate":
            interrupted()
        return toys.score(state)

    if where == "views":
        objective = Modular()
        state = toys.begin(ALL_ON, objective)
        view = toys.View()

        def view_or_not(sample: int, chance: np.random.Generator) -> torch.Tensor:
            if sample == call:
                raise KeyboardInterrupt
            return view(sample, chance)

        with pytest.raises(KeyboardInterrupt):
            toys.train(state, objective, view_or_not, LABELS, ALL_ON, torch.device("cpu"), folder=tmp_path)
        assert not any((tmp_path / "checkpoints").glob(".*")), "nothing half-written is left"
    else:
        try:
            run(ALL_ON, tmp_path, objective=Interrupted(), evaluate=evaluate)
        except KeyboardInterrupt:
            assert calls == call
    same(run(ALL_ON, tmp_path), whole["adamw"][0])
    assert (tmp_path / "metrics.jsonl").read_bytes() == whole["adamw"][1]


@pytest.mark.parametrize(
    ("changed", "about", "words"),
    [
        (replace(ALL_ON, learning_rate=1e-3), None, r"settings\.learning_rate = 0\.003, not 0\.001"),
        (replace(ALL_ON, betas=(0.9, 0.95)), None, r"settings\.betas = \[0\.9, 0\.999\], not \[0\.9, 0\.95\]"),
        (ALL_ON, {"data": "other"}, r"data = 'photos', not 'other'"),
        (ALL_ON, {}, r"data = 'photos', not None"),
        (ALL_ON, {"data": "photos", "model": {"width": 3}}, r"model\.width = None, not 3"),
    ],
)
def test_another_run_is_not_gone_on_with(
    changed: TrainSettings, about: dict[str, Any] | None, words: str, tmp_path: Path
) -> None:
    about = {"data": "photos"} if about is None else about
    with pytest.raises(Killed):
        run(ALL_ON, tmp_path, stop_at(4), about={"data": "photos"})
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file() and path.name != ".lock"}
    with pytest.raises(UserError, match=words):
        run(changed, tmp_path, about=about)
    assert before == {path: path.read_bytes() for path in before}, "nothing is lost"


def test_what_a_run_was_begun_with_can_be_asked_for(tmp_path: Path) -> None:
    assert begun_with(tmp_path, pytest.fail) is None
    with pytest.raises(Killed):
        run(ALL_ON, tmp_path, stop_at(4), about={"method": "full"})
    found = begun_with(tmp_path, pytest.fail)
    assert found is not None
    assert (found["method"], found["settings"]["steps"], found["samples"]) == ("full", ALL_ON.steps, 21)


def test_what_the_result_does_not_depend_on_may_change(whole: dict[str, tuple[State, bytes]], tmp_path: Path) -> None:
    with pytest.raises(Killed):
        run(ALL_ON, tmp_path, stop_at(4))
    same(run(replace(ALL_ON, keep=5, checkpoint_minutes=1e-9), tmp_path), whole["adamw"][0])


def test_other_labels_and_another_model_are_another_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(Killed):
        run(ALL_ON, tmp_path, stop_at(4))
    smaller = replace(toys.CONFIG, encoder=replace(toys.CONFIG.encoder, mlp_width=24))
    with pytest.raises(UserError, match=r"another model: its weights\.model\.encoder\.blocks\.0\.mlp\.\S+ is \[48"):
        run(ALL_ON, tmp_path, config=smaller)
    monkeypatch.setattr(toys, "LABELS", LABELS.roll(1))
    with pytest.raises(UserError, match="was trained with labels = "):
        run(ALL_ON, tmp_path)


def test_another_machine_is_warned_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(Killed):
        run(ALL_ON, tmp_path, stop_at(4))
    monkeypatch.setattr(torch, "get_num_threads", lambda: 99)
    warnings: list[str] = []
    run(ALL_ON, tmp_path, warnings=warnings)
    assert len(warnings) == 1
    assert "may differ in the last digits" in warnings[0]


def test_lost_lines_of_the_log_are_warned_of(tmp_path: Path) -> None:
    with pytest.raises(Killed):
        run(ALL_ON, tmp_path, stop_at(4))
    (tmp_path / "metrics.jsonl").write_text("")
    warnings: list[str] = []
    run(ALL_ON, tmp_path, warnings=warnings)
    assert len(warnings) == 1
    assert "metrics.jsonl has lost lines" in warnings[0]
