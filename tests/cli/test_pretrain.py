"""``vitrail pretrain`` as a person types it."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vitrail.cli.main import main
from vitrail.cli.options import assignments
from vitrail.errors import UserError
from vitrail.tasks import pretrain_job, pretrain_run

Type = Callable[..., tuple[int, str, str]]
SMALL = ("--layers", 1, "--width", 24, "--heads", 3, "--patch", 8, "--resolution", 16, "--batch-size", 4, "--steps", 3)


@pytest.fixture
def vitrail(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Type:
    """Type ``vitrail pretrain`` and some words; exit code, standard output, standard error."""
    monkeypatch.setattr("signal.signal", lambda *_: None)

    def run(*words: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["vitrail", "pretrain", *map(str, words)])
        with pytest.raises(SystemExit) as stopped:
            main()
        seen = capfd.readouterr()
        assert "Traceback" not in seen.err
        return int(stopped.value.code or 0), seen.out, " ".join(seen.err.split())

    return run


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    for number in range(8):
        pixels = np.random.default_rng(number).integers(0, 255, (20, 20, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
    return folder


def test_from_a_plan_to_a_model(vitrail: Type, data: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    words = (data, "--objective", "mae", "--out", out, *SMALL, "--set", "layers=1", "--set", "betas=0.9,0.99")
    code, text, said = vitrail(*words, "--dry-run")
    assert (code, text) == (0, "")
    assert "measured here" in said
    assert not out.exists()
    code, text, said = vitrail(*words, "--profile", tmp_path / "trace.json")
    assert (code, text) == (0, "")
    assert "matrix products" in said
    assert json.loads((tmp_path / "trace.json").read_text())["traceEvents"]
    assert not out.exists()
    code, text, said = vitrail(*words)
    assert (code, text) == (0, "")
    for expected in ("Training", "loss", "img/s", "ETA", "run folder", f"vitrail finetune DATA --weights {out}"):
        assert "".join(expected.split()) in "".join(said.split()), expected  # lines are broken anywhere
    code, text, said = vitrail("--resume", out, "--json")
    assert code == 0
    assert json.loads(text)["steps"] == 3
    assert "is finished" in said
    assert vitrail(*words, "--quiet") == (0, f"3 steps of mae: {out}\n", "")
    code, text, said = vitrail(*words, "--profile", tmp_path / "trace.json")
    assert (code, text) == (2, "")
    assert "is begun already" in said


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--out", "x", "--objective", "mea"), "There is no objective 'mea'; the nearest is mae."),
        (("--objective", "mae"), "The run folder is missing: name it with --out."),
        (("--out", "x", "--objective", "mae", "--set", "mixup"), "'mixup' should be NAME=VALUE"),
        (("--out", "x", "--objective", "mae", "--set", "mixu=0"), "There is no setting 'mixu'; the nearest is mixup."),
        (("--out", "x", "--objective", "mae", "--recipe", "mae"), "There is no recipe 'mae'"),
        (("--resume", "nowhere"), "nowhere is no run to go on with: it has no config.yaml."),
    ],
)
def test_a_mistake_is_one_sentence(
    words: tuple[str, ...], said: str, vitrail: Type, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    code, out, err = vitrail(*(() if "--resume" in words else (data,)), *words, "--quiet")
    assert (code, out) == (2, "")
    assert err.startswith("vitrail: ")
    assert said in err
    assert list(tmp_path.iterdir()) == []


def test_ctrl_c_says_how_to_go_on_and_exits_with_130(
    vitrail: Type, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pretrain_job, "seconds_per_step", lambda *_: 0.01)

    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(pretrain_job, "read", interrupted)
        code, _, said = vitrail(data, "--objective", "mae", "--out", tmp_path / "run", *SMALL)
    assert (code, list(tmp_path.iterdir())) == (130, [])
    assert said.endswith("Stopped. Nothing was written.")
    with monkeypatch.context() as patch:
        patch.setattr(pretrain_run, "train", interrupted)
        code, _, said = vitrail(data, "--objective", "mae", "--out", tmp_path / "run", *SMALL)
    assert code == 130
    assert f"vitrail pretrain --resume {tmp_path / 'run'} goes on from there." in said
    assert vitrail("--resume", tmp_path / "run", "--quiet")[0] == 0


def test_values() -> None:
    words = ["a=1", "b=1e-3", "c=0.9,0.95", "d=linear", "e=False", "f=none"]
    assert assignments(words) == {"a": 1, "b": 1e-3, "c": [0.9, 0.95], "d": "linear", "e": False, "f": None}
    for word in ("a", "a=", "=1"):
        with pytest.raises(UserError, match="should be NAME=VALUE"):
            assignments([word])
