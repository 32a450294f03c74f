"""From a run folder to its report: the pictures, where the model looked, and what is said when something is gone."""

from __future__ import annotations

import csv
import json
import re
import shlex
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import typer
from PIL import Image

import vitrail
from vitrail.cli.main import app, main
from vitrail.config import Fit, Preprocessing, Size
from vitrail.data.preprocess import preprocess
from vitrail.data.read import read_image
from vitrail.errors import UserError
from vitrail.model.encoder import Trace
from vitrail.report.page import command
from vitrail.report.run import read_run
from vitrail.report.terminal import Show
from vitrail.tasks.report import as_shown, class_attention, overlay, write_report

QUIET = Show(quiet=True)


def write(path: Path, *rows: tuple[Any, ...]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(rows)


@pytest.fixture(scope="module")
def finished(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on toy pictures with two mistakes, one of a photo that is gone, a doubtful label and two pairs."""
    folder = tmp_path_factory.mktemp("runs") / "toy"
    vitrail.finetune(
        photos, folder, weights="none", architecture="ViT-Ti/16", method="probe", resolution="32x48", quiet=True
    )
    red, green = (photos / "val" / name / "9.png" for name in ("red", "green"))
    predictions = [(red, "red", "blue", 0.9), (photos / "val" / "gone.png", "red", "green", 0.8)]
    write(
        folder / "predictions.csv", ("path", "label", "predicted", "confidence"),
        *predictions, (green, "green", "green", 0.7),
    )  # fmt: skip
    write(folder / "suspects.csv", ("path", "label", "suggested", "given", "score"), (red, "red", "blue", 0.02, 0.9))
    write(
        folder / "near_duplicates.csv", ("path_a", "path_b", "similarity", "label_a", "label_b", "parts"),
        (red, green, 0.98, "red", "green", "val/val"), (red, photos / "lost.png", 0.97, "red", "red", "train/val"),
    )  # fmt: skip
    return folder


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "run"))


def pictures(page: Path) -> int:
    return page.read_text(encoding="utf-8").count('<img src="data:image/jpeg;base64,')


def test_a_report_shows_what_can_still_be_read(run: Path) -> None:
    path = write_report(run, QUIET)
    text = path.read_text(encoding="utf-8")
    assert path == run / "report.html"
    assert pictures(path) == 2 + 1 + 3  # a mistake and its attention, a doubtful label, two pairs less a lost photo
    assert text.count("Not shown: no such file") == 2
    assert "12 layers of width 192" in text
    assert not list(run.glob(".*"))


def test_a_report_written_twice_is_the_same(run: Path) -> None:
    first = write_report(run, QUIET).read_bytes()
    assert write_report(run, QUIET).read_bytes() == first


def test_a_lost_model_costs_the_attention_only(run: Path) -> None:
    shutil.rmtree(run / "model")
    path = write_report(run, QUIET)
    assert pictures(path) == 1 + 1 + 3
    assert "The attention is not shown." in path.read_text(encoding="utf-8")


@pytest.mark.parametrize("name", ["config.yaml", "metrics.jsonl", "split.csv", "predictions.csv", "suspects.csv"])
@pytest.mark.parametrize("content", [None, b"", b"\xff\x00{,\n\"'"])
def test_a_lost_or_damaged_file_is_survived(name: str, content: bytes | None, run: Path) -> None:
    shutil.rmtree(run / "model")
    (run / name).unlink()
    if content is not None:
        (run / name).write_bytes(content)
    text = write_report(run, QUIET).read_text(encoding="utf-8")
    if content is None:
        assert f"This run has no {name}." in text


def test_half_a_surrogate_pair_does_not_stop_the_report(run: Path) -> None:
    with (run / "metrics.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps({"event": "unreadable", "path": "/x/\udce4.jpg", "reason": "zero bytes"}) + "\n")
    assert "zero bytes" in write_report(run, QUIET).read_text(encoding="utf-8")


def test_the_attention_is_the_class_tokens_in_the_last_layer(run: Path, photos: Path) -> None:
    classifier = vitrail.load(run)
    image = preprocess(read_image(photos / "val" / "red" / "9.png"), classifier.card.preprocessing)
    found = class_attention(classifier, image)
    held: dict[int, torch.Tensor] = {}
    with torch.inference_mode():
        classifier.model(image[None], Trace(lambda _, layer, a: held.update({layer: a}), attention=range(12)))
    row = held[11][0, :, 0]  # (K, N)
    assert found.shape == (2, 3)
    np.testing.assert_allclose(found.ravel(), row[:, 1:].mean(0), rtol=1e-5)
    assert found.sum() == pytest.approx(1 - float(row[:, 0].mean()), rel=1e-5)


def test_a_model_without_class_token_says_so(run: Path) -> None:
    classifier = vitrail.load(run)
    object.__setattr__(classifier.card.architecture, "tokens", ())
    with pytest.raises(UserError, match="no class token"):
        class_attention(classifier, torch.zeros(3, 32, 48))


@pytest.mark.parametrize("fit", ["crop", "squash"])
@pytest.mark.parametrize("size", [(32, 48), (64, 40)])
def test_a_photo_is_shown_to_people_as_to_the_model(fit: Fit, size: Size, tmp_path: Path) -> None:
    ramp = np.linspace(0, 255, 300 * 200).reshape(200, 300).astype(np.uint8)
    image = Image.fromarray(np.stack([ramp, np.tile(np.linspace(0, 255, 300), (200, 1)).astype(np.uint8), ramp], -1))
    how = Preprocessing(size, fit, mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4))
    image.save(tmp_path / "a.png")
    shown = as_shown(tmp_path / "a.png", how)
    assert max(shown.size) == 224
    again = np.asarray(shown.resize((size[1], size[0]), Image.Resampling.BICUBIC), np.float64) / 255
    seen = preprocess(image, how).numpy().transpose(1, 2, 0) * how.std + how.mean
    assert np.abs(again - seen).max() < 0.03


def test_the_overlay_is_brightest_where_attention_is_most() -> None:
    attention = np.zeros((4, 6))
    attention[1, 4] = 0.3
    bright = np.asarray(overlay(Image.new("RGB", (60, 40), "grey"), attention).convert("L"))
    row, column = np.unravel_index(int(bright.argmax()), bright.shape)
    assert (row // 10, column // 10) == (1, 4)
    assert bright[35, 5] < bright[row, column] - 50
    nothing = np.asarray(overlay(Image.new("RGB", (60, 40), "grey"), np.zeros((4, 6))))
    assert (nothing == nothing[0, 0]).all()


def test_the_command_is_one_that_finetune_takes(finished: Path) -> None:
    words = shlex.split(command(read_run(finished)))
    assert words[:2] == ["vitrail", "finetune"]
    finetune = typer.main.get_command(app).commands["finetune"]  # type: ignore[attr-defined]
    asked = finetune.make_context("finetune", words[2:]).params
    assert asked["weights"] == "none"
    assert asked["architecture"] == "ViT-Ti/16"
    assert asked["resolution"] == "32x48"
    assert asked["method"] == "probe"


def test_the_command_writes_the_report_and_says_where(
    run: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("signal.signal", lambda *_: None)
    monkeypatch.setattr(sys, "argv", ["vitrail", "report", str(run)])
    with pytest.raises(SystemExit) as stopped:
        main()
    assert not stopped.value.code
    assert capsys.readouterr().out == f"{run / 'report.html'}\n"
    monkeypatch.setattr(sys, "argv", ["vitrail", "report", str(run / "model")])
    with pytest.raises(SystemExit) as stopped:
        main()
    assert stopped.value.code == 2
    assert re.fullmatch(r"vitrail: .* is not a run folder: .*\.\n", capsys.readouterr().err)
