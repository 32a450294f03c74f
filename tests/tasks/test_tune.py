"""Tuning writes down what is the fastest, those that run a model take it, and what is wrong is a sentence."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import vitrail
from tests.tasks.shades import write_shades
from vitrail.data.ahead import cores
from vitrail.errors import UserError
from vitrail.record import to_dict
from vitrail.runtime.engines import engine, fingerprint
from vitrail.runtime.in_torch import InTorch
from vitrail.runtime.plan import BUILDS, FILE, Runtime
from vitrail.tasks import tune as task
from vitrail.tasks.running import read_tuned, write_tuned


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A model that tells dark from light, and 24 pictures of each."""
    folder = tmp_path_factory.mktemp("tune")
    write_shades(folder / "photos", 24)
    vitrail.pretrain(
        folder / "photos", folder / "run", objective="supervised", steps=30, batch_size=8, learning_rate=1e-2,
        layers=2, width=24, heads=3, patch=4, resolution=16, quiet=True, tuning={"mixing": 0.0},
    )  # fmt: skip
    return folder / "run", folder / "photos"


@pytest.fixture
def model(made: tuple[Path, Path], tmp_path: Path) -> Path:
    return Path(shutil.copytree(made[0], tmp_path / "run"))


def _few(monkeypatch: pytest.MonkeyPatch, *pairs: tuple[str, str]) -> None:
    monkeypatch.setattr(task, "available", lambda device: pairs)


def test_what_is_found_is_written_and_taken(
    model: Path, made: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    _few(monkeypatch, ("eager", "fp32"), ("openvino", "fp32"))
    usual = task.by_turns
    monkeypatch.setattr(
        task,
        "by_turns",
        lambda runs, pictures, late=lambda: True: {
            way: speed * (1e6 if way.backend == "openvino" else 1) for way, speed in usual(runs, pictures, late).items()
        },
    )
    judged: list[Runtime] = []
    right = task.Work.right
    monkeypatch.setattr(task.Work, "right", lambda work, way: judged.append(way) or right(work, way))
    plain = vitrail.load(model).predict(made[1])
    found = vitrail.tune(model, made[1], max_loss=5, quiet=True)
    assert judged.count(task.REFERENCE) == 1, "all are held against one run of it"
    assert found.tuned.runtime.backend == "openvino"
    assert found.tuned.images == 36, "a quarter is for calibration"
    assert (model / "model" / "tune.png").stat().st_size > 5000
    assert read_tuned(model / "model" / FILE) == found.tuned
    assert json.loads((model / "model" / FILE).read_text())["runtime"]["backend"] == "openvino"
    assert len(list((model / "model" / BUILDS).iterdir())) >= 1
    loaded = vitrail.load(model)
    assert loaded.predictor.engine is not None
    assert vitrail.load(model, device="cpu").predictor.engine is not None, "where it was tuned"
    again = loaded.predict(made[1])
    assert [one.labels[0][0] for one in again] == [one.labels[0][0] for one in plain]
    assert vitrail.load(model, runtime="eager").predictor.engine is None
    assert vitrail.load(model, image_size=24).predictor.engine is None, "another size is another model"
    assert vitrail.tune(model, made[1], max_loss=5, quiet=True).tuned.runtime.backend == "openvino"
    assert set(found.to_dict()) >= {"runtime", "images_per_second", "loss", "interval", "single", "trials", "left_out"}


def test_what_cannot_be_run_here_is_said_and_run_by_torch(
    model: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    tuned = task.Tuned(Runtime("openvino", "int8"), 1.0, 1.0, 0.0, (0.0, 0.0), 9, "another")
    write_tuned(model / "model", tuned)
    loaded = vitrail.load(model)
    assert loaded.predictor.engine is None
    said = " ".join(capsys.readouterr().err.split())
    assert "it is run by PyTorch instead: openvino:int8 takes its ranges" in said
    with pytest.raises(UserError, match="takes its ranges of numbers from pictures"):
        vitrail.load(model, runtime="openvino:int8")
    for text, words in (
        ("{}", "lacks the field 'runtime'"),
        ("", "cannot be read as JSON"),
        (json.dumps({**to_dict(tuned), "runtime": {"threads": -1}}), "cannot be run with -1 threads"),
    ):
        (model / "model" / FILE).write_text(text)
        assert vitrail.load(model).predictor.engine is None
        said = " ".join(capsys.readouterr().err.split())
        assert words in said
        assert "is run by PyTorch instead" in said
    with pytest.raises(UserError, match="PyTorch runs no model in int8 here"):
        vitrail.load(model, runtime="eager:int8")


def test_what_was_found_for_other_weights_is_not_taken(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    own = fingerprint(vitrail.load(model).model)
    for about, taken in ((own, True), ("", True), ("0123", False)):
        tuned = task.Tuned(Runtime("openvino", "fp32", threads=1), 1.0, 1.0, 0.0, (0.0, 0.0), 9, "another", about)
        write_tuned(model / "model", tuned)
        found = vitrail.load(model).predictor.engine
        assert (found is not None) == taken
        said = capsys.readouterr().err
        assert ("found for other weights" in " ".join(said.split())) == (not taken)
        if found is not None:
            assert found.threads == min(cores(), torch.get_num_threads()), "as many are best on another machine"


def test_an_engine_is_not_asked_for_weights_that_it_has_not(model: Path, made: tuple[Path, Path]) -> None:
    loaded = vitrail.load(model, runtime="openvino:fp32")
    before = loaded.predict(made[1])
    with torch.no_grad():
        loaded.model.classifier.bias += 1
    assert loaded.predict(made[1]) != before, "the classifier is no part of it"
    with torch.no_grad():
        loaded.model.norm.weight *= 2
    with pytest.raises(UserError, match="weights have changed since openvino:fp32 was built"):
        loaded.predict(made[1])


def test_few_threads_are_tried_on_many_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(task, "cores", lambda: 64)
    best = Runtime("openvino", "int8")
    assert {(one.batch_size, one.threads) for one in task._variants(best, 32)} == {
        (8, None), (16, None), (32, 32), (32, 16),
    }  # fmt: skip
    assert {one.batch_size for one in task._variants(replace(best, backend="onnx"), 32)} == {32}
    assert {one.batch_size for one in task._variants(best, 8)} == {32}


def test_of_large_pictures_few_are_read_and_timed(
    model: Path, made: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []
    _few(monkeypatch, ("eager", "fp32"))
    monkeypatch.setattr(task, "reference_speed", lambda classifier: 0.3)
    monkeypatch.setattr(
        task, "by_turns", lambda runs, pictures, late=None: asked.append(pictures) or dict.fromkeys(runs, 1.0)
    )
    monkeypatch.setattr(task, "CALIBRATION", 4)
    monkeypatch.setattr(task, "MOST", 30)
    assert vitrail.tune(model, made[1], quiet=True, merging=False).tuned.images == 26
    assert set(asked) == {4, 1}


def test_pictures_that_were_trained_on_are_warned_about(
    model: Path, made: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    _few(monkeypatch, ("eager", "fp32"))
    vitrail.tune(model, made[1], merging=False)
    assert "was trained on 38 of these 48 pictures" in " ".join(capsys.readouterr().err.split())


def test_a_wrong_backend_never_wins(model: Path, made: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    _few(monkeypatch, ("eager", "fp32"), ("compiled", "fp32"))
    monkeypatch.setattr(torch, "compile", lambda module, **_: lambda images: torch.zeros(len(images), 24))
    found = vitrail.tune(model, made[1], quiet=True, merging=False)
    assert found.tuned.runtime.backend == "eager"
    assert "so it is not used" in found.search.left_out["compiled:fp32"]


def test_merging_is_searched_for(model: Path, made: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    _few(monkeypatch, ("eager", "fp32"))
    monkeypatch.setattr(
        task, "by_turns", lambda runs, pictures, late=None: {way: 10.0 + sum(way.merging) for way in runs}
    )
    found = vitrail.tune(model, made[1], max_loss=100, quiet=True)
    assert sum(found.tuned.runtime.merging) > 8
    loaded = vitrail.load(model)
    assert isinstance(loaded.predictor.engine, InTorch)
    assert engine(loaded.model, found.tuned.runtime).precision == "fp32"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"model": "none"}, "none is no folder of a model of ours: make one"),
        ({"max_loss": -1.0}, "max_loss must be at least 0"),
        ({"minutes": 0.0}, "minutes more than 0"),
        ({"minutes": float("nan")}, "minutes more than 0"),
        ({"minutes": float("inf")}, "minutes more than 0"),
        ({"out": "figure.pdf"}, r"figure\.pdf is no name for a figure: let it end in \.png or \.svg"),
        ({"out": "."}, "is no name for a figure"),
        ({"data": "nowhere"}, "nowhere"),
        ({"data": "one"}, "1 pictures that can be read, too few"),
    ],
)
def test_what_is_wrong_is_a_sentence(
    options: dict[str, Any], words: str, model: Path, made: tuple[Path, Path], tmp_path: Path
) -> None:
    if options.get("data") == "one":
        (tmp_path / "one" / "dark").mkdir(parents=True)
        shutil.copy(made[1] / "dark" / "00.png", tmp_path / "one" / "dark")
        options = {"data": tmp_path / "one"}
    with pytest.raises(UserError, match=words):
        vitrail.tune(**{"model": model, "data": made[1], "quiet": True, **options})
    assert not (model / "model" / FILE).exists()


def test_stopped_it_leaves_what_was_there(
    model: Path, made: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    _few(monkeypatch, ("eager", "fp32"))

    def interrupted(*_: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(task, "draw", interrupted)
    with pytest.raises(KeyboardInterrupt):
        vitrail.tune(model, made[1], quiet=True)
    assert not (model / "model" / FILE).exists()
