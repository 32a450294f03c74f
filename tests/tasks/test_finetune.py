"""The main job on toy pictures and random weights: what it writes, what it refuses, what it leaves behind."""

from __future__ import annotations

import errno
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

import vitrail
from vitrail import atomic
from vitrail.errors import UserError
from vitrail.tasks import features
from vitrail.tasks.features import FeatureCache
from vitrail.tasks.finetune import Finetuned

TOY: dict[str, Any] = {
    "weights": "none",
    "architecture": "ViT-Ti/16",
    "method": "probe",
    "resolution": 32,
    "quiet": True,
}


@pytest.fixture(scope="module")
def run(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Finetuned:
    return vitrail.finetune(photos, tmp_path_factory.mktemp("runs") / "toy", **TOY)


def test_a_run_learns_colours_and_describes_itself(run: Finetuned, photos: Path) -> None:
    assert run.evaluation.top1 == 1.0
    assert run.trained_on == 24
    names = {path.name for path in run.folder.iterdir()}
    tables = {"predictions.csv", "suspects.csv", "near_duplicates.csv", "split.csv"}
    assert names == {"config.yaml", "metrics.jsonl", "model", "report.html", "weights.json"} | tables
    asked = yaml.safe_load((run.folder / "config.yaml").read_text())["finetune"]
    assert asked["weights"] == "none"
    assert asked["resolution"] == [32, 32]
    events = [json.loads(line) for line in (run.folder / "metrics.jsonl").read_text().splitlines()]
    assert {event["event"] for event in events} >= {"candidate", "held-out"}
    assert events[-1]["top1"] == 1.0
    card = json.loads((run.folder / "model" / "config.json").read_text())
    assert card["class_names"] == ["blue", "green", "red"]
    assert card["provenance"]["finetuned"] == "probe"
    fates = json.loads((run.folder / "weights.json").read_text())
    assert {"tensor": "classifier.weight", "what": "new", "note": "the probe"} in fates


def test_the_run_folder_is_an_ordinary_model(run: Finetuned, photos: Path, tmp_path: Path) -> None:
    classifier = vitrail.load(run.folder)
    assert classifier.class_names == ("blue", "green", "red")
    predictions = classifier.predict([photos / "val" / "red", photos / "val" / "blue" / "8.png"], top=2)
    assert [entry.labels[0][0] for entry in predictions] == ["red"] * 4 + ["blue"]
    for entry in predictions:
        assert len(entry.labels) == 2
        assert entry.labels[0][1] >= entry.labels[1][1]
    copy = classifier.save(tmp_path / "copy")
    again = vitrail.load(copy)
    for name, tensor in classifier.model.state_dict().items():
        assert torch.equal(tensor, again.model.state_dict()[name]), name


def test_evaluating_the_run_gives_what_the_run_said(run: Finetuned, photos: Path) -> None:
    result = vitrail.load(run.folder).evaluate(photos / "val")
    assert result.evaluation.top1 == run.evaluation.top1
    assert np.array_equal(result.evaluation.confusion, run.evaluation.confusion)
    assert result.images_per_second > 0


def test_the_head_is_the_probe_to_the_digit(run: Finetuned, photos: Path) -> None:
    classifier = vitrail.load(run.folder)
    paths, embedded = classifier.embed(photos / "val")
    shape = (len(paths), run.probe.layers, len(run.probe.parts), -1)
    with torch.inference_mode():
        assert classifier.model.classifier is not None
        logits = classifier.model.classifier(torch.from_numpy(embedded)).numpy()
    direct = embedded.reshape(shape).reshape(len(paths), -1) @ run.probe.weight.T + run.probe.bias
    np.testing.assert_allclose(logits, direct, rtol=1e-4, atol=1e-4)


def test_a_run_can_be_repeated_from_its_split(run: Finetuned, tmp_path: Path) -> None:
    again = vitrail.finetune(run.folder / "split.csv", tmp_path / "again", **TOY)
    assert again.images_per_second is None, "every feature was in the cache"
    np.testing.assert_array_equal(again.probe.weight, run.probe.weight)


def test_more_pictures_cost_only_themselves(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VITRAIL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(features, "CHUNK", 5)
    copy = tmp_path / "photos"
    shutil.copytree(photos, copy)
    late = copy / "train" / "red" / "0.png"
    kept = late.read_bytes()
    late.unlink()
    vitrail.finetune(copy, tmp_path / "first", **TOY)
    late.write_bytes(kept)
    computed: list[int] = []
    original = features.Predictor.features

    def counting(self: Any, images: torch.Tensor, pooling: Any = None) -> torch.Tensor:
        if pooling is not None:
            computed.append(len(images))
        return original(self, images, pooling)

    monkeypatch.setattr(features.Predictor, "features", counting)
    vitrail.finetune(copy, tmp_path / "second", **TOY)
    assert sum(computed) == 1


def test_interruption_leaves_no_run_and_keeps_the_features(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VITRAIL_CACHE", str(tmp_path / "cache"))
    original, calls = features.Predictor.features, 0

    def interrupted(self: Any, images: torch.Tensor, pooling: Any = None) -> torch.Tensor:
        nonlocal calls
        calls += pooling is not None
        if calls == 4:
            raise KeyboardInterrupt
        return original(self, images, pooling)

    with monkeypatch.context() as patch:
        patch.setattr(features.Predictor, "features", interrupted)
        with pytest.raises(KeyboardInterrupt):
            vitrail.finetune(photos, tmp_path / "out", **TOY, batch_size=8)
    assert not (tmp_path / "out").exists()
    cached = list((tmp_path / "cache").rglob("*.safetensors"))
    assert len(FeatureCache(cached[0].parent).places) == 24
    assert not list((tmp_path / "cache").rglob("*.partial"))
    assert vitrail.finetune(photos, tmp_path / "out", **TOY, batch_size=8).evaluation.top1 == 1.0


def test_a_damaged_cache_file_is_passed_over(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VITRAIL_CACHE", str(tmp_path / "cache"))
    vitrail.finetune(photos, tmp_path / "first", **TOY)
    (file,) = (tmp_path / "cache").rglob("*.safetensors")
    file.write_bytes(file.read_bytes()[:1000])
    assert vitrail.finetune(photos, tmp_path / "second", **TOY).images_per_second is not None


def test_unreadable_pictures_are_named_and_skipped(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = tmp_path / "photos"
    shutil.copytree(photos, copy)
    (copy / "train" / "red" / "0.png").write_bytes(b"")
    result = vitrail.finetune(copy, tmp_path / "out", **{**TOY, "quiet": False})
    assert [(path.name, reason) for path, reason in result.unreadable] == [("0.png", "zero bytes")]
    assert "zero bytes" in capsys.readouterr().err
    assert result.trained_on == 23


def test_too_many_unreadable_pictures_stop_the_run(photos: Path, tmp_path: Path) -> None:
    copy = tmp_path / "photos"
    shutil.copytree(photos, copy)
    for number in range(6):
        (copy / "train" / "red" / f"{number}.png").write_bytes(b"no picture")
    with pytest.raises(UserError, match=r"6 of 36 pictures cannot be read.*--max-unreadable"):
        vitrail.finetune(copy, tmp_path / "out", **TOY)
    assert not (tmp_path / "out").exists()
    for number in (6,):
        (copy / "train" / "red" / f"{number}.png").write_bytes(b"no picture")
    with pytest.raises(UserError, match="'red' has 1 readable picture"):
        vitrail.finetune(copy, tmp_path / "out", **TOY, max_unreadable=0.5)


def test_labels_that_were_mixed_up_give_chance_and_a_warning(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Every colour has as much of every label."""
    pictures = sorted(photos.glob("*/*/*.png"))
    rows = [f"{path},{'abc'[int(path.stem) % 3]},{path.parent.parent.name}" for path in pictures]
    (tmp_path / "mixed.csv").write_text("\n".join(["path,label,split", *rows]))
    run = vitrail.finetune(tmp_path / "mixed.csv", tmp_path / "run", **TOY | {"quiet": False})
    assert run.evaluation.interval[0] < 1 / 3 < run.evaluation.interval[1]
    warning = "cannot be told from always answering the commonest class"
    assert warning in capsys.readouterr().err
    run = vitrail.finetune(photos, tmp_path / "other", **TOY | {"quiet": False})
    assert warning not in capsys.readouterr().err
    assert run.evaluation.commonest == pytest.approx(1 / 3)


def test_pictures_in_both_parts_are_named(photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    copy = tmp_path / "photos"
    shutil.copytree(photos, copy)
    shutil.copyfile(copy / "train" / "red" / "0.png", copy / "val" / "red" / "twin.png")
    small = {"layers": 1, "width": 16, "heads": 2, "patch": 8, "resolution": 16, "steps": 1, "batch_size": 4}
    for command in (
        lambda: vitrail.finetune(copy, tmp_path / "finetuned", **{**TOY, "quiet": False}),
        lambda: vitrail.pretrain(copy, tmp_path / "trained", objective="supervised", **small),
        lambda: vitrail.few_shot("none", copy, [1], 1, architecture="ViT-Ti/16", resolution=32, quiet=False),
    ):
        command()
        shown = " ".join(capsys.readouterr().err.split())
        assert "1 held-out pictures are also trained on" in shown
        assert "twin.png" in shown


def test_a_full_disk_while_saving_leaves_nothing(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    vitrail.finetune(photos, tmp_path / "warm", **TOY)

    def full(path: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(atomic, "_flush", full)
    with pytest.raises(UserError, match="disk is full"):
        vitrail.finetune(photos, tmp_path / "out", **TOY)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["warm"]


def test_a_model_that_knows_nothing_refuses_to_predict(photos: Path) -> None:
    empty = vitrail.load("none", 32, architecture="ViT-Ti/16", classes=("a", "b"), quiet=True)
    with pytest.raises(UserError, match="all zeros"):
        empty.predict(photos / "val")
    headless = vitrail.load("none", 32, architecture="ViT-Ti/16", quiet=True)
    with pytest.raises(UserError, match="no classifier"):
        headless.predict(photos / "val")


def test_another_resolution_of_a_run(run: Finetuned, photos: Path) -> None:
    larger = vitrail.load(run.folder, image_size="48x32")
    assert larger.card.architecture.grid == (3, 2)
    assert larger.report.of("resampled")[0].note == "2x2 -> 3x2 (bicubic-corner)"
    assert larger.predict(photos / "val" / "red" / "8.png")[0].labels[0][0] == "red"


def test_full_fine_tuning_goes_on_from_the_probe_and_repeats_itself(photos: Path, tmp_path: Path) -> None:
    options = {**TOY, "method": "full", "epochs": 2, "batch_size": 8, "tuning": {"learning_rate": 1e-4, "mixup": 0}}
    first = vitrail.finetune(photos, tmp_path / "first", **options)
    assert first.method == "full"
    assert first.trained is not None
    assert [line["epoch"] for line in first.trained.epochs] == [1, 2]
    assert {"loss", "train_accuracy", "val_accuracy", "lr", "images_per_second"} <= set(first.trained.epochs[-1])
    about = yaml.safe_load((first.folder / "config.yaml").read_text())
    assert (about["training"]["steps"], about["training"]["learning_rate"]) == (6, 1e-4)
    assert about["augmentation"]["mixup"] == 0
    probed = vitrail.finetune(photos, tmp_path / "probed", **TOY)
    again = vitrail.finetune(photos, tmp_path / "again", **options)
    tensors = [vitrail.load(run.folder).model.state_dict() for run in (first, again, probed)]
    for name, tensor in tensors[0].items():
        assert torch.equal(tensor, tensors[1][name]), name
        assert not torch.equal(tensor, tensors[2][name]), name
    assert vitrail.load(first.folder).evaluate(photos / "val").evaluation.top1 == first.evaluation.top1


def test_tensorboard_gets_the_curves(photos: Path, tmp_path: Path) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    board = tmp_path / "board"
    run = vitrail.finetune(photos, tmp_path / "run", **{**TOY, "method": "layers:1", "epochs": 2, "tensorboard": board})
    events = accumulator.EventAccumulator(str(board)).Reload()
    assert run.trained is not None
    losses = [line["loss"] for line in run.trained.epochs]
    assert [event.value for event in events.Scalars("loss")] == pytest.approx(losses)
    assert [event.step for event in events.Scalars("val_accuracy")] == [1, 2]


def test_the_top_layers_alone(photos: Path, tmp_path: Path) -> None:
    options = {**TOY, "epochs": 1, "batch_size": 8}
    run = vitrail.finetune(photos, tmp_path / "top", **{**options, "method": "layers:2"})
    probed = vitrail.finetune(photos, tmp_path / "probed", **TOY)
    tensors, start = (vitrail.load(each.folder).model.state_dict() for each in (run, probed))
    for name, tensor in tensors.items():
        trained = name.startswith(("encoder.blocks.10.", "encoder.blocks.11.", "norm.", "classifier."))
        assert torch.equal(tensor, start[name]) != trained, name
    assert json.loads((run.folder / "model" / "config.json").read_text())["provenance"]["finetuned"] == "layers:2"


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"method": "ful"}, "There is no method 'ful'; the nearest is full"),
        ({"method": "layers:13"}, "The model has 12 layers, so layers:13 is too many"),
        ({"method": "layers:0"}, "There is no method 'layers:0'"),
        ({"tuning": {"mixxup": 0.2}}, "There is no setting 'mixxup'; the nearest is mixup"),
        ({"tuning": {"operations": 1.5}}, "field 'operations' should be int"),
        ({"epochs": 0}, "epochs must be at least 1"),
    ],
)
def test_wrong_settings_are_sentences(photos: Path, tmp_path: Path, options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        vitrail.finetune(photos, tmp_path / "out", **{**TOY, **options})
    assert not list(tmp_path.iterdir())
