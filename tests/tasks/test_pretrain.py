"""Pretraining as a whole: what it leaves, and that it ends the same however it was stopped."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import vitrail
from tests.tasks.pretraining import ALL_ON, SMALL, Killed, Stop, files, run, sentence
from vitrail.settings import OBJECTIVES
from vitrail.tasks import pretrain_cost, pretrain_job
from vitrail.weights.store import read_model

pytestmark = pytest.mark.usefixtures("untimed")
PLAIN = {"patches", "tokens", "position", "encoder", "norm"}


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_every_objective_ends_in_a_model_that_can_be_used(objective: str, photos: Path, tmp_path: Path) -> None:
    result = run(photos, tmp_path / "run", objective)
    assert (result.steps, result.pictures, result.last["step"]) == (6, 24, 6)
    card, tensors = read_model(tmp_path / "run" / "model")
    hides, labelled = objective in ("mae", "masked-patches"), objective == "supervised"
    split = {"split.csv"} if labelled else set()
    assert {path.name for path in (tmp_path / "run").iterdir()} == {"config.yaml", "training", "model"} | split
    assert card.architecture.head.parts == (("mean",) if hides else ("class",))
    assert card.class_names == (("blue", "green", "red") if labelled else ())
    assert (result.evaluation is not None) == labelled
    assert card.preprocessing.size == (16, 16)
    assert card.provenance["pretrained"] == objective
    assert card.provenance["class_token"].startswith("took part" if hides else "trained")
    plain = {name for name in tensors if name.split(".")[0] in PLAIN}
    assert set(tensors) == plain | ({"classifier.weight", "classifier.bias"} if labelled else set())
    _, features = vitrail.load(tmp_path / "run").embed(photos / "val")
    assert features.shape == (12, 24)
    assert np.isfinite(features).all()


def test_finetune_takes_the_run(photos: Path, whole: dict[str, Path], tmp_path: Path) -> None:
    tuned = vitrail.finetune(photos, tmp_path / "tuned", weights=whole["mae"], method="probe", quiet=True)
    card, _ = read_model(tmp_path / "tuned" / "model")
    assert card.provenance["pretrained"] == "mae"
    assert tuned.evaluation.images == 12


@pytest.mark.parametrize("objective", ALL_ON)
@pytest.mark.parametrize(("step", "error"), [(1, KeyboardInterrupt), (4, KeyboardInterrupt), (5, Killed), (6, Killed)])
def test_stopped_and_gone_on_with_it_ends_the_same(
    objective: str,
    step: int,
    error: type[BaseException],
    photos: Path,
    whole: dict[str, Path],
    stop: Stop,
    tmp_path: Path,
) -> None:
    out = tmp_path / "run"
    stop(step, error)
    with pytest.raises(error):
        run(photos, out, objective, tuning=ALL_ON[objective])
    assert not (out / "model").exists()
    stop(0, error)
    vitrail.pretrain(resume=out, quiet=True)
    assert files(out) == files(whole[objective])


def test_the_same_command_goes_on_too_and_a_finished_run_says_so(
    photos: Path, whole: dict[str, Path], stop: Stop, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    stop(3, KeyboardInterrupt)
    with pytest.raises(KeyboardInterrupt):
        vitrail.pretrain(photos, out, objective="mae", tuning=ALL_ON["mae"], **SMALL)
    said = " ".join(capsys.readouterr().err.split())
    assert f"Stopped after step 3, which is kept: vitrail pretrain --resume {out} goes on from there." in said
    stop(0, KeyboardInterrupt)
    run(photos, out, tuning=ALL_ON["mae"])
    assert files(out) == files(whole["mae"])
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    capsys.readouterr()
    again = vitrail.pretrain(resume=out)
    assert "is finished: 6 steps were made" in " ".join(capsys.readouterr().err.split())
    assert again is not None
    assert (again.steps, again.last["step"]) == (6, 6)
    assert before == {path: path.stat().st_mtime_ns for path in out.rglob("*")}


def test_pictures_held_in_memory_or_not_and_processes_are_all_the_same(
    photos: Path, whole: dict[str, Path], tmp_path: Path
) -> None:
    for memory, workers in ((0.0, 0), (1e-5, 0), (2.0, 1)):
        out = tmp_path / f"{memory} {workers}"
        run(photos, out, tuning=ALL_ON["mae"], memory=memory, workers=workers)
        assert files(out) == files(whole["mae"])


def test_a_model_is_gone_on_from(photos: Path, whole: dict[str, Path], tmp_path: Path) -> None:
    """With a rate of 0 it stays what it was, and only the head that labels need is new."""
    none = dict.fromkeys(("layers", "width", "heads", "patch", "resolution"))
    run(photos, tmp_path / "run", "supervised", weights=whole["mae"], learning_rate=0.0, **none)
    (card, tensors), (_, before) = (read_model(folder / "model") for folder in (tmp_path / "run", whole["mae"]))
    assert {name for name in tensors if name not in before} == {"classifier.weight", "classifier.bias"}
    for name, tensor in before.items():
        assert torch.equal(tensor, tensors[name]), name
    assert card.architecture.head.parts == ("mean",)
    said = sentence(lambda: run(photos, tmp_path / "b", weights=whole["mae"]))
    assert "says itself what it is: leave out --heads" in said


def test_what_cannot_be_read_is_named_left_out_and_remembered(
    photos: Path, stop: Stop, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data, out = tmp_path / "photos", tmp_path / "run"
    shutil.copytree(photos / "train", data)
    broken = data / "red" / "0.png"
    broken.write_bytes(broken.read_bytes()[:100])
    assert "1 of 24 pictures cannot be read, such as" in sentence(lambda: run(data, out, max_unreadable=0.01))
    assert not out.exists()
    stop(3, KeyboardInterrupt)
    with pytest.raises(KeyboardInterrupt):
        vitrail.pretrain(data, out, objective="mae", **SMALL)
    assert f"1 of 24 pictures cannot be read and are skipped: {broken} (truncated file)" in " ".join(
        capsys.readouterr().err.split()
    )
    shutil.copy(data / "red" / "1.png", data / "red" / "new.png")
    said = sentence(lambda: vitrail.pretrain(resume=out, quiet=True))
    assert "are not those" in said
    assert "(24 then, 25 now)" in said
    (data / "red" / "new.png").unlink()
    stop(0, KeyboardInterrupt)
    found = vitrail.pretrain(resume=out, quiet=True, memory=0.0)
    assert found is not None
    assert found.pictures == 23


def test_a_dry_run_says_what_and_how_long_and_writes_nothing(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(pretrain_job, "seconds_per_step", pretrain_cost.seconds_per_step)
    before = {path: path.stat().st_mtime_ns for path in photos.rglob("*")}
    assert vitrail.pretrain(photos, tmp_path / "a" / "run", objective="mae", dry_run=True, **SMALL) is None
    said = " ".join(capsys.readouterr().err.split())
    for expected in (
        "mae (hidden 0.75, layers 1, width 12, heads 3, normalised True)",
        "24 pictures: those in train/; the held-out ones are left alone; in memory",
        "2 layers x 24, 3 heads",
        "16x16 pixels in patches of 8x8: 5 tokens",
        "6 steps of 8 pictures: 2 epochs; adamw",
        "memory about",
        "a second, measured here",
        "Nothing was written",
    ):
        assert expected in said, expected
    assert list(tmp_path.iterdir()) == []
    assert before == {path: path.stat().st_mtime_ns for path in photos.rglob("*")}


def test_what_memory_there_is_not_enough_for_is_not_begun(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(pretrain_job, "available", lambda device: 1e5)
    words = "0.0001 GB are free: choose a smaller --batch-size or model"
    assert words in sentence(lambda: run(photos, tmp_path / "run"))
    assert vitrail.pretrain(photos, tmp_path / "run", objective="mae", dry_run=True, **SMALL) is None
    said = " ".join(capsys.readouterr().err.split())
    assert words in said
    assert "time not measured" in said
    assert list(tmp_path.iterdir()) == []


def test_what_a_supervised_run_was_trained_on_is_known(photos: Path, whole: dict[str, Path]) -> None:
    classifier = vitrail.load(whole["supervised"])
    assert classifier.evaluate(photos / "train").trained_on == 24
    assert classifier.evaluate(photos / "val").trained_on == 0


def test_tensorboard_has_the_curve(photos: Path, tmp_path: Path) -> None:
    event_accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    result = run(photos, tmp_path / "run", tensorboard=tmp_path / "board")
    events = event_accumulator.EventAccumulator(str(tmp_path / "board"))
    events.Reload()
    curve = events.Scalars("loss")
    assert [point.step for point in curve] == [1, 2, 3, 4, 5, 6]
    assert curve[-1].value == pytest.approx(result.last["loss"])


def test_metrics_are_lines_of_json(whole: dict[str, Path]) -> None:
    lines = [json.loads(line) for line in (whole["supervised"] / "training/metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "loss" in line] == [1, 2, 3, 4, 5, 6]
    assert [line["step"] for line in lines if "val_accuracy" in line] == [3, 6]


def test_small_pictures_get_a_small_model(tmp_path: Path) -> None:
    """The shortest command is one that a small machine can do."""
    for number in range(8):
        pixels = np.random.default_rng(number).integers(0, 255, (28, 30, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{number}.png")
    found = vitrail.pretrain(tmp_path, tmp_path / "run", objective="masked-patches", steps=1, quiet=True)
    assert found is not None
    card, _ = read_model(tmp_path / "run" / "model")
    assert (card.architecture.image_size, card.architecture.patch) == ((28, 28), (4, 4))
    assert (card.preprocessing.size, card.preprocessing.crop_fraction) == ((28, 28), 1.0)
