"""A fine-tuning run that is interrupted anywhere ends as one that is not, and nothing of it is lost on the way."""

from __future__ import annotations

import errno
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

import vitrail
from tests.tasks.conftest import paint
from vitrail import atomic
from vitrail.errors import UserError
from vitrail.settings import FinetuneSettings
from vitrail.tasks import finetune as task
from vitrail.tasks import trained_run, training
from vitrail.tasks.finetune import Finetuned, resume
from vitrail.train import loop
from vitrail.train.lock import locked
from vitrail.train.run import Run

STEPS = 6
HOW: dict[str, Any] = {"method": "full", "epochs": 2, "batch_size": 8, "quiet": True}
TUNING = {"checkpoint_every": 2, "on_spike": "rollback", "accumulate": 2, "evaluate_every": 3}
LEFT = {"config.yaml", "metrics.jsonl", "model", "report.html", "weights.json", "training", "split.csv"}
TABLES = {"predictions.csv", "suspects.csv", "near_duplicates.csv"}


class Killed(BaseException):
    """What SIGKILL is to a test: nothing may be saved because of it."""


@pytest.fixture
def go(photos: Path, weights: Path) -> Any:
    """Fine-tune in some folder."""

    def run(out: Path, **options: Any) -> Finetuned:
        return vitrail.finetune(photos, out, weights=weights, **{**HOW, "tuning": TUNING, **options})

    return run


@pytest.fixture(scope="module")
def whole(photos: Path, weights: Path, tmp_path_factory: pytest.TempPathFactory) -> Finetuned:
    """The uninterrupted run."""
    out = tmp_path_factory.mktemp("whole") / "run"
    return vitrail.finetune(photos, out, weights=weights, tuning=TUNING, **HOW)


@pytest.fixture
def stop(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Raise an error after a step, once."""

    def at(step: int, error: type[BaseException]) -> None:
        original = loop._settle

        def settle(state: Any, *rest: Any) -> None:
            if state.step == step:
                monkeypatch.setattr(loop, "_settle", original)
                raise error
            original(state, *rest)

        monkeypatch.setattr(loop, "_settle", settle)

    return at


def same(one: Path, other: Path) -> None:
    """Weights and everything that is said of them, byte for byte; only times and the page with them may differ."""
    assert {path.name for path in one.iterdir()} == {path.name for path in other.iterdir()}
    names = [*("config.yaml", "weights.json", "split.csv", "metrics.jsonl", "training/metrics.jsonl"), *sorted(TABLES)]
    for name in (*names, "model/model.safetensors", "model/config.json"):
        assert (one / name).read_bytes() == (other / name).read_bytes(), name


def numbers(result: Finetuned) -> dict[str, Any]:
    """A result without its times."""
    return {
        name: value
        for name, value in result.to_dict().items()
        if name not in ("minutes", "images_per_second", "training_images_per_second", "folder")
    }


def test_what_a_run_that_trains_leaves(whole: Finetuned) -> None:
    assert {path.name for path in whole.folder.iterdir()} == LEFT | TABLES
    assert {path.name for path in (whole.folder / "training").iterdir()} == {"metrics.jsonl", "timing.jsonl"}
    lines = [json.loads(line) for line in (whole.folder / "training" / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "loss" in line] == list(range(1, STEPS + 1))
    assert [line["step"] for line in lines if "score" in line] == [3, 6]
    times = [json.loads(line) for line in (whole.folder / "training" / "timing.jsonl").read_text().splitlines()]
    assert len(times) == STEPS + 1
    assert times[-1]["minutes"] == whole.minutes
    assert "minutes" not in (whole.folder / "metrics.jsonl").read_text()
    assert whole.trained is not None
    assert [line["val_accuracy"] for line in whole.trained.epochs][-1] == whole.evaluation.top1
    assert "time" in (whole.folder / "report.html").read_text(), "the page finds the time where it is kept"


@pytest.mark.parametrize(
    ("step", "error"),
    [*((step, Killed) for step in (0, 3, 4, STEPS)), *((step, KeyboardInterrupt) for step in (0, 1, 3, STEPS))],
)
def test_stopped_at_any_step_it_ends_the_same(
    step: int, error: type[BaseException], go: Any, stop: Any, whole: Finetuned, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    stop(step, error)
    with pytest.raises(error):
        go(out)
    assert (out / "config.yaml").is_file()
    assert not (out / "model").exists()
    result = resume(out, quiet=True)
    same(out, whole.folder)
    assert numbers(result) == numbers(whole)


@pytest.mark.parametrize("step", ["classify", "write_results", "move_into", "_note_times", "complete", "write_report"])
def test_stopped_after_training_it_ends_the_same(
    step: str, go: Any, whole: Finetuned, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "run"

    def killed(*_: Any, **__: Any) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(task if step == "write_report" else trained_run, step, killed)
        with pytest.raises(Killed):
            go(out)
    if step == "write_report":
        with pytest.raises(UserError, match="is complete, so nothing is left to do: vitrail report"):
            resume(out, quiet=True)
    else:
        resume(out, quiet=True)
        same(out, whole.folder)


@pytest.mark.skipif(sys.platform == "win32", reason="there is no SIGKILL")
def test_a_killed_process_is_gone_on_with(whole: Finetuned, photos: Path, weights: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    script = (
        "import os, signal, sys, vitrail; from vitrail.train.run import Run; log = Run.log\n"
        "def dying(self, line, *rest):\n"
        "    log(self, line, *rest)\n"
        "    if line['step'] == 5: os.kill(os.getpid(), signal.SIGKILL)\n"
        "Run.log = dying\n"
        f"vitrail.finetune(sys.argv[1], sys.argv[2], weights=sys.argv[3], tuning={TUNING!r}, **{HOW!r})"
    )
    words = [sys.executable, "-c", script, str(photos), str(out), str(weights)]
    environment = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())}
    assert subprocess.run(words, env=environment, check=False).returncode == -signal.SIGKILL
    assert (out / "training" / "checkpoints" / "step-00000004").is_dir()
    resume(out, quiet=True)
    same(out, whole.folder)


def test_what_was_decided_is_not_decided_again(
    go: Any, stop: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither the method, which follows from a measured speed, nor the probe, nor how long to train."""
    out = tmp_path / "run"
    monkeypatch.setattr(training, "FEW", 1)
    stop(3, Killed)
    with pytest.raises(Killed):
        go(out, method="auto")

    def never(*_: Any, **__: Any) -> None:
        raise AssertionError

    for name in ("prepare", "course", "opened"):
        monkeypatch.setattr(task, name, never)
    result = resume(out, quiet=True)
    assert result.method == "full"
    assert result.probe is not None
    assert yaml.safe_load((out / "config.yaml").read_text())["finetune"]["method"] == "auto"


def test_a_run_that_is_there_is_refused_and_says_how_to_go_on(go: Any, stop: Any, tmp_path: Path) -> None:
    out = tmp_path / "run"
    stop(3, Killed)
    with pytest.raises(Killed):
        go(out)
    with pytest.raises(UserError, match=f"vitrail finetune --resume {re.escape(str(out))} goes on with it"):
        go(out)
    with pytest.raises(UserError, match=r"holds no model: .* --resume"):
        vitrail.load(out)
    resume(out, quiet=True)
    with pytest.raises(UserError, match="exists already"):
        go(out)
    with pytest.raises(UserError, match="is complete, so nothing is left to do"):
        resume(out, quiet=True)


def test_there_must_be_a_run(photos: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="There is no run folder"):
        resume(tmp_path / "nowhere")
    (tmp_path / "training" / "checkpoints").mkdir(parents=True)
    with pytest.raises(UserError, match="holds no run that could go on"):
        resume(tmp_path)
    assert (tmp_path / "training" / "checkpoints").is_dir(), "what is not ours is left alone"


def test_a_second_process_is_refused(go: Any, stop: Any, tmp_path: Path) -> None:
    out = tmp_path / "run"
    stop(1, Killed)
    with pytest.raises(Killed):
        go(out)
    with locked(out), pytest.raises(UserError, match=f"is being trained in by process {os.getpid()}"):
        resume(out, quiet=True)


@pytest.fixture
def begun(go: Any, stop: Any, tmp_path: Path) -> Path:
    """A run stopped after a checkpoint at step 4."""
    stop(5, Killed)
    with pytest.raises(Killed):
        go(tmp_path / "begun")
    return tmp_path / "begun"


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


def test_what_makes_no_difference_may_differ(begun: Path, whole: Finetuned, photos: Path) -> None:
    tuning = {"keep": 3, "workers": 0, "accumulate": 2, "on_spike": "rollback"}
    resume(begun, FinetuneSettings(str(photos), epochs=2, device="cpu", tuning=tuning), quiet=True)
    same(begun, whole.folder)


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


def test_a_photo_that_was_changed_is_named(photos: Path, weights: Path, stop: Any, tmp_path: Path) -> None:
    for number in range(3):
        for label, colour in enumerate([(200, 0, 0), (0, 0, 200)]):
            for part in ("train", "val"):
                paint(tmp_path / "data" / part / str(label) / f"{number}.png", colour, seed=10 * number + label)
    stop(1, Killed)
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
    begun: Path, whole: Finetuned, capsys: pytest.CaptureFixture[str]
) -> None:
    file = begun / "training" / "checkpoints" / "step-00000004" / "tensors.safetensors"
    file.write_bytes(file.read_bytes()[:-8] + bytes(8))
    resume(begun)
    assert "is damaged" in capsys.readouterr().err
    same(begun, whole.folder)


def test_a_full_disk_costs_nothing(go: Any, whole: Finetuned, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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
    same(out, whole.folder)


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


def test_a_worker_that_was_killed_is_a_sentence(begun: Path, whole: Finetuned, monkeypatch: pytest.MonkeyPatch) -> None:
    def killed(*_: Any, **__: Any) -> Iterator[Any]:
        raise UserError("A process that prepares pictures was killed: run the same command again, with fewer workers.")
        yield

    with monkeypatch.context() as patch:
        patch.setattr(loop, "ahead", killed)
        with pytest.raises(UserError, match=r"killed: run vitrail finetune --resume .*begun, with fewer workers"):
            resume(begun, quiet=True)
    resume(begun, quiet=True)
    same(begun, whole.folder)


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
