"""``vitrail finetune``: a plan without a run, and going on after an interruption."""

from __future__ import annotations

import json
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image

from vitrail.cli.main import main
from vitrail.train.run import Run

TOY = ("--weights", "none", "--architecture", "ViT-Ti/16", "--resolution", "32", "--epochs", "2", "--batch-size", "8")
LAST = ("--method", "layers:1", "--set", "checkpoint_every=1", "--set", "optimizer=sgd")


@pytest.fixture
def vitrail(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[int, str, str]]:
    """Type ``vitrail`` and some words; exit code, standard output, standard error."""

    def run(*words: object) -> tuple[int, str, str]:
        before = signal.getsignal(signal.SIGTERM)
        monkeypatch.setattr(sys, "argv", ["vitrail", *map(str, words)])
        try:
            with pytest.raises(SystemExit) as stopped:
                main()
        finally:
            signal.signal(signal.SIGTERM, before)
        seen = capfd.readouterr()
        assert "Traceback" not in seen.err
        return int(stopped.value.code or 0), seen.out, " ".join(seen.err.split())

    return run


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    for label, name in enumerate(("dark", "light")):
        for number in range(10):
            pixels = np.random.default_rng(number).integers(0, 60, (32, 32, 3)) + 120 * label
            (folder / name).mkdir(exist_ok=True)
            Image.fromarray(pixels.astype(np.uint8)).save(folder / name / f"{number}.png")
    return folder


def test_a_plan_is_shown_and_nothing_is_written(vitrail: Any, data: Path, tmp_path: Path) -> None:
    words = ("finetune", data, *TOY, *LAST, "--dry-run")
    code, out, err = vitrail(*words)
    assert (code, out) == (0, "")
    for expected in ("Nothing was written", "MiB", "4 steps (2 epochs)", "images a second, measured"):
        assert expected in err, expected
    code, out, _ = vitrail(*words, "--json")
    assert (code, json.loads(out)["steps"]) == (0, 4)
    code, out, err = vitrail(*words, "--quiet")
    assert (code, out.startswith("layers:1: about "), err) == (0, True, "")
    assert not list(tmp_path.iterdir())


def test_a_profile_is_shown_and_its_trace_is_all_that_is_written(vitrail: Any, data: Path, tmp_path: Path) -> None:
    trace = tmp_path / "trace.json"
    code, out, err = vitrail("finetune", data, *TOY, *LAST, "--profile", trace)
    assert (code, out) == (0, "")
    for expected in ("matrix products", "GFLOP/s", "4 steps (2 epochs)", "Nothing but the trace was written"):
        assert expected in err, expected
    assert json.loads(trace.read_text())["traceEvents"]
    assert list(tmp_path.iterdir()) == [trace]
    code, out, err = vitrail("finetune", data, *TOY, "--method", "probe", "--profile", trace)
    assert (code, out) == (2, "")
    assert "trains in no steps" in err


def test_ctrl_c_exits_130_and_the_run_goes_on(
    vitrail: Any, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, words = tmp_path / "run", ("finetune", data, *TOY, *LAST)
    original = Run.log

    def interrupted(self: Any, line: Any, *rest: Any) -> None:
        original(self, line, *rest)
        if line["step"] == 2 and "loss" in line:
            signal.raise_signal(signal.SIGINT)

    with monkeypatch.context() as patch:
        patch.setattr(Run, "log", interrupted)
        code, _, err = vitrail(*words, "--out", out)
    assert code == 130
    assert f"Stopped after step 2: vitrail finetune --resume {out} goes on from there." in err
    code, _, err = vitrail(*words, "--out", out, "--quiet")
    assert code == 2
    assert f"holds a run that was interrupted: vitrail finetune --resume {out} goes on with it" in err
    code, _, err = vitrail("finetune", "--resume", out, "--epochs", "5", "--quiet")
    assert (code, "was begun with epochs = 2, not 5" in err) == (2, True)
    code, printed, err = vitrail("finetune", "--resume", out, "--quiet", "--json")
    assert (code, err, json.loads(printed)["epochs"]) == (0, "", 2)
    assert yaml.safe_load((out / "config.yaml").read_text())["training"]["optimizer"] == "sgd"
    lines = (out / "training" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines if "loss" in line] == [1, 2, 3, 4]


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ((), "No data are named"),
        (("photos",), "No run folder is named"),
        (("--resume", "nowhere"), "There is no run folder nowhere"),
        (("--resume", "nowhere", "--out", "there"), "leave out --out, --dry-run and --profile"),
    ],
)
def test_what_is_missing_is_said(vitrail: Any, words: tuple[str, ...], sentence: str) -> None:
    code, out, err = vitrail("finetune", *words)
    assert (code, out) == (2, "")
    assert sentence in err
