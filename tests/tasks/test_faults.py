"""What may go wrong while a run trains or goes on: a sentence for each, and nothing of the run is lost."""

from __future__ import annotations

import errno
import json
import re
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

import vitrail
from tests.tasks.conftest import paint
from tests.tasks.interrupted import HOW, Killed, same
from vitrail import atomic
from vitrail.errors import UserError
from vitrail.settings import FinetuneSettings
from vitrail.tasks.finetune import Finetuned, resume
from vitrail.train import feed, loop
from vitrail.train.run import Run


@pytest.mark.parametrize(
    ("asked", "sentence"),
    [
        ({"epochs": 3}, "was begun with epochs = 2, not 3"),
        ({"method": "lora"}, "was begun with method = 'full', not 'lora'"),
        ({"data": "elsewhere"}, "was begun with data = "),
        ({"tuning": {"learning_rate": 0.5}}, "was begun with learning_rate = 0.0001, not 0.5"),
        ({"tuning": {"optimizer": "sgd"}}, "was begun with optimizer = 'adamw', not 'sgd'"),
        ({"tuning": {"keep": 0}}, "keep must be at least 1"),
    ],
)
def test_another_setting_is_named(begun: Path, asked: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UserError, match=re.escape(sentence)):
        resume(begun, FinetuneSettings(**{"data": "", **asked}), quiet=True)


def test_what_makes_no_difference_may_differ(begun: Path, intact: Finetuned, photos: Path) -> None:
    tuning = {"keep": 3, "workers": 0, "accumulate": 2, "on_spike": "rollback"}
    resume(begun, FinetuneSettings(str(photos), epochs=2, device="cpu", tuning=tuning), quiet=True)
    same(begun, intact.folder)


@pytest.mark.parametrize("section", ["training", "augmentation"])
def test_a_configuration_that_was_changed_is_named(begun: Path, section: str) -> None:
    name, value = {"training": ("learning_rate", 0.5), "augmentation": ("mixup", 0.9)}[section]
    about = yaml.safe_load((begun / "config.yaml").read_text())
    about[section][name] = value
    (begun / "config.yaml").write_text(yaml.safe_dump(about))
    with pytest.raises(UserError, match=rf"was trained with \w+\.{name} = .*, not {value}"):
        resume(begun, quiet=True)
    about[section]["nonsense"] = 1
    (begun / "config.yaml").write_text(yaml.safe_dump(about))
    with pytest.raises(UserError, match=f"section '{section}' has a field 'nonsense'"):
        resume(begun, quiet=True)


def test_a_photo_that_was_changed_is_named(photos: Path, weights: Path, stop_after: Any, tmp_path: Path) -> None:
    for number in range(3):
        for label, colour in enumerate([(200, 0, 0), (0, 0, 200)]):
            for part in ("train", "val"):
                paint(tmp_path / "data" / part / str(label) / f"{number}.png", colour, seed=10 * number + label)
    stop_after(1, Killed)
    with pytest.raises(Killed):
        vitrail.finetune(tmp_path / "data", tmp_path / "run", weights=weights, **HOW)
    changed = tmp_path / "data" / "train" / "1" / "2.png"
    kept = changed.read_bytes()
    paint(changed, (0, 200, 0), seed=99)
    with pytest.raises(UserError, match=r"2\.png has changed since the run began: put the former picture back"):
        resume(tmp_path / "run", quiet=True)
    changed.unlink()
    with pytest.raises(UserError, match=r"2\.png could be read when the run began and no longer can"):
        resume(tmp_path / "run", quiet=True)
    changed.write_bytes(kept)
    assert resume(tmp_path / "run", quiet=True).trained_on == 6


def test_a_damaged_checkpoint_costs_only_the_steps_since_the_one_before(
    begun: Path, intact: Finetuned, capsys: pytest.CaptureFixture[str]
) -> None:
    file = begun / "training" / "checkpoints" / "step-00000004" / "tensors.safetensors"
    file.write_bytes(file.read_bytes()[:-8] + bytes(8))
    resume(begun)
    assert "is damaged" in capsys.readouterr().err
    same(begun, intact.folder)


def test_a_full_disk_costs_nothing(go: Any, intact: Finetuned, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At a checkpoint, and when the results are written."""
    out, flush = tmp_path / "run", atomic._flush

    def full(where: str) -> Any:
        def flushing(path: Path) -> None:
            if where in str(path):
                raise OSError(errno.ENOSPC, "No space left on device")
            flush(path)

        return flushing

    monkeypatch.setattr(atomic, "_flush", full("step-00000004"))
    with pytest.raises(
        UserError, match=r"disk is full while writing .*step-00000004: free .* vitrail finetune --resume"
    ):
        go(out)
    monkeypatch.setattr(atomic, "_flush", full("training/.results"))
    with pytest.raises(UserError, match=r"disk is full while writing .*results: free .* vitrail finetune --resume"):
        resume(out, quiet=True)
    monkeypatch.setattr(atomic, "_flush", flush)
    resume(out, quiet=True)
    same(out, intact.folder)


@pytest.mark.parametrize("on_spike", ["stop", "rollback"])
def test_a_loss_that_is_no_number_at_step_40(
    on_spike: str, go: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, gradient, fallen = tmp_path / "run", loop._gradient, []

    def spoilt(state: Any, *rest: Any) -> Any:
        step, cause = gradient(state, *rest)
        if step.done == 40 and not fallen:
            fallen.append(step.done)
            return step, "the loss became nan"
        return step, cause

    monkeypatch.setattr(loop, "_gradient", spoilt)
    options = {"epochs": 14, "tuning": {"on_spike": on_spike, "checkpoint_every": 5, "evaluate_every": 100}}
    if on_spike == "stop":
        with pytest.raises(
            UserError, match=r"The loss became nan at step 40: lower the learning rate .* are from before"
        ):
            go(out, **options)
        assert (out / "training" / "checkpoints" / "step-00000035").is_dir()
    else:
        result = go(out, **options)
        lines = [json.loads(line) for line in (out / "training" / "metrics.jsonl").read_text().splitlines()]
        (back,) = (line for line in lines if "back_from" in line)
        assert (back["step"], back["back_from"], back["rate_factor"]) == (35, 40, 0.5)
        assert result.trained is not None
        assert [line["step"] for line in result.trained.epochs] == list(range(3, 43, 3))


def test_a_worker_that_was_killed_is_a_sentence(
    begun: Path, intact: Finetuned, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*_: Any, **__: Any) -> Iterator[Any]:
        raise UserError("A process that prepares pictures was killed: run the same command again, with fewer workers.")
        yield

    with monkeypatch.context() as patch:
        patch.setattr(feed, "ahead", killed)
        with pytest.raises(UserError, match=r"killed: run vitrail finetune --resume .*begun, with fewer workers"):
            resume(begun, quiet=True)
    resume(begun, quiet=True)
    same(begun, intact.folder)


def test_ctrl_c_says_how_to_go_on(
    begun: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    original = Run.log

    def interrupted(self: Any, line: Any, *rest: Any) -> None:
        original(self, line, *rest)
        if line["step"] == 5 and "loss" in line:
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(Run, "log", interrupted)
    with pytest.raises(KeyboardInterrupt):
        resume(begun)
    assert f"Stopped after step 5: vitrail finetune --resume {begun} goes on" in " ".join(
        capsys.readouterr().err.split()
    )


def test_patience_takes_the_best_weights(
    photos: Path, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The looks are made to be best at step 2; those after it are worse, and the run ends when patience does."""
    seen: list[dict[str, torch.Tensor]] = []
    original = loop._settle

    def settle(state: Any, settings: Any, run: Any, evaluate: Any) -> None:
        if state.step == 2 and state.decisions.evaluated < 2:
            seen.append({name: tensor.clone() for name, tensor in state.averaged().items()})
        original(state, settings, run, lambda now: (1.0 if now.step == 2 else 0.5, {}))

    monkeypatch.setattr(loop, "_settle", settle)
    options = {**HOW, "epochs": 10, "tuning": {"evaluate_every": 1, "patience": 3}}
    result = vitrail.finetune(photos, tmp_path / "run", weights=weights, **options)
    assert result.trained is not None
    assert result.trained.epochs[-1]["step"] == 5
    for name, tensor in result.trained.tensors.items():
        assert torch.equal(tensor, seen[0][name]), name
    assert "said when to stop" in (result.folder / "report.html").read_text()
