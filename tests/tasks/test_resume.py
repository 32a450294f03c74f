"""A fine-tuning run that is interrupted anywhere ends as one that is not, and nothing of it is lost on the way."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

import vitrail
from tests.tasks.interrupted import HOW, LEFT, STEPS, TABLES, TUNING, Killed, numbers, same
from vitrail.errors import UserError
from vitrail.tasks import finetune as task
from vitrail.tasks import trained_run, training
from vitrail.tasks.finetune import Finetuned, resume
from vitrail.train.lock import locked


def test_what_a_run_that_trains_leaves(intact: Finetuned) -> None:
    assert {path.name for path in intact.folder.iterdir()} == LEFT | TABLES
    assert {path.name for path in (intact.folder / "training").iterdir()} == {"metrics.jsonl", "timing.jsonl"}
    lines = [json.loads(line) for line in (intact.folder / "training" / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "loss" in line] == list(range(1, STEPS + 1))
    assert [line["step"] for line in lines if "score" in line] == [3, 6]
    times = [json.loads(line) for line in (intact.folder / "training" / "timing.jsonl").read_text().splitlines()]
    assert len(times) == STEPS + 1
    assert times[-1]["minutes"] == intact.minutes
    assert "minutes" not in (intact.folder / "metrics.jsonl").read_text()
    assert intact.trained is not None
    assert [line["val_accuracy"] for line in intact.trained.epochs][-1] == intact.evaluation.top1
    assert "time" in (intact.folder / "report.html").read_text(), "the page finds the time where it is kept"


@pytest.mark.parametrize(
    ("step", "error"),
    [*((step, Killed) for step in (0, 3, 4, STEPS)), *((step, KeyboardInterrupt) for step in (0, 1, 3, STEPS))],
)
def test_stopped_at_any_step_it_ends_the_same(
    step: int, error: type[BaseException], go: Any, stop_after: Any, intact: Finetuned, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    stop_after(step, error)
    with pytest.raises(error):
        go(out)
    assert (out / "config.yaml").is_file()
    assert not (out / "model").exists()
    result = resume(out, quiet=True)
    same(out, intact.folder)
    assert numbers(result) == numbers(intact)


@pytest.mark.parametrize("step", ["classify", "write_results", "move_into", "_note_times", "complete", "write_report"])
def test_stopped_after_training_it_ends_the_same(
    step: str, go: Any, intact: Finetuned, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
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
        same(out, intact.folder)


@pytest.mark.skipif(sys.platform == "win32", reason="there is no SIGKILL")
def test_a_killed_process_is_gone_on_with(intact: Finetuned, photos: Path, weights: Path, tmp_path: Path) -> None:
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
    same(out, intact.folder)


def test_what_was_decided_is_not_decided_again(
    go: Any, stop_after: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither the method, which follows from a measured speed, nor the probe, nor how long to train."""
    out = tmp_path / "run"
    monkeypatch.setattr(training, "FEW", 1)
    stop_after(3, Killed)
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


def test_a_run_that_is_there_is_refused_and_says_how_to_go_on(go: Any, stop_after: Any, tmp_path: Path) -> None:
    out = tmp_path / "run"
    stop_after(3, Killed)
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


def test_a_second_process_is_refused(go: Any, stop_after: Any, tmp_path: Path) -> None:
    out = tmp_path / "run"
    stop_after(1, Killed)
    with pytest.raises(Killed):
        go(out)
    with locked(out), pytest.raises(UserError, match=f"is being trained in by process {os.getpid()}"):
        resume(out, quiet=True)
