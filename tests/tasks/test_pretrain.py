"""Pretraining as a whole: what it leaves, that it ends the same however it was stopped, and what it says of faults."""

from __future__ import annotations

import errno
import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

import vitrail
from tests.tasks.dying import Dying
from vitrail.errors import UserError
from vitrail.report.terminal import Show
from vitrail.settings import OBJECTIVES
from vitrail.tasks import pretrain_job, pretrain_run
from vitrail.tasks.pretrain_folder import Pretrained
from vitrail.train import checkpoint
from vitrail.train.lock import locked
from vitrail.weights.store import read_model

SMALL: dict[str, Any] = {
    "layers": 2,
    "width": 24,
    "heads": 3,
    "patch": 8,
    "resolution": 16,
    "batch_size": 8,
    "steps": 6,
}
NARROW: dict[str, dict[str, Any]] = {
    "dino": {"hidden": 16, "bottleneck": 8, "outputs": 32},
    "moco": {"hidden": 16, "outputs": 8},
}
EVERYTHING: dict[str, Any] = {"accumulate": 2, "average": 0.4, "checkpoint_every": 2, "clip": 0.5, "spike": 5}
ALL_ON = {
    "mae": {**EVERYTHING, "normalised": False, "on_spike": "rollback"},
    "supervised": {**EVERYTHING, "evaluate_every": 3, "patience": 5, "erase": 0.5, "mixing": 0.8, "operations": 1},
}
PLAIN = {"patches", "tokens", "position", "encoder", "norm"}


class Killed(BaseException):
    """What SIGKILL is to a test: nothing may be saved because of it."""


Stop = Callable[[int, type[BaseException]], None]


@pytest.fixture(autouse=True)
def _not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The plan's measurement is tried in one test; elsewhere it would be most of the work."""
    monkeypatch.setattr(pretrain_job, "seconds_per_step", lambda *_: 0.01)


@pytest.fixture
def stop(monkeypatch: pytest.MonkeyPatch) -> Stop:
    """Have training end after a step, in the way of an error; after step 0: never."""

    def at(step: int, error: type[BaseException]) -> None:
        @contextmanager
        def training(self: Show, steps: int, done: int = 0) -> Iterator[Callable[..., None]]:
            def advance(made: int, *_: Any) -> None:
                if made == step:
                    raise error

            yield advance

        monkeypatch.setattr(Show, "training", training)

    return at


def run(data: Path | str, out: Path, objective: str = "mae", **options: Any) -> Pretrained:
    tuning = options.pop("tuning", NARROW.get(objective, {}))
    found = vitrail.pretrain(data, out, objective=objective, tuning=tuning, quiet=True, **{**SMALL, **options})
    assert found is not None
    return found


def files(folder: Path) -> dict[str, bytes]:
    """What a run gave, without what time it took and what it was asked."""
    names = ["model/model.safetensors", "model/config.json", "training/metrics.jsonl"]
    last = checkpoint.place(folder / "training" / "checkpoints", 6)
    return {name: (folder / name).read_bytes() for name in names} | {"last": (last / checkpoint.TENSORS).read_bytes()}


def sentence(act: Callable[[], object]) -> str:
    with pytest.raises(UserError) as caught:
        act()
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.fixture(scope="module")
def whole(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Uninterrupted runs with everything on."""
    folder = tmp_path_factory.mktemp("whole")
    for objective, tuning in ALL_ON.items():
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(pretrain_job, "seconds_per_step", lambda *_: 0.01)
            run(photos, folder / objective, objective, tuning=tuning)
    return {objective: folder / objective for objective in ALL_ON}


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_every_objective_ends_in_a_model_that_can_be_used(objective: str, photos: Path, tmp_path: Path) -> None:
    result = run(photos, tmp_path / "run", objective)
    assert (result.steps, result.pictures, result.last["step"]) == (6, 24, 6)
    assert {path.name for path in (tmp_path / "run").iterdir()} == {"config.yaml", "training", "model"}
    card, tensors = read_model(tmp_path / "run" / "model")
    hides, labelled = objective in ("mae", "masked-patches"), objective == "supervised"
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
    monkeypatch.setattr(pretrain_job, "seconds_per_step", pretrain_run.seconds_per_step)
    before = {path: path.stat().st_mtime_ns for path in photos.rglob("*")}
    assert vitrail.pretrain(photos, tmp_path / "a" / "run", objective="mae", dry_run=True, **SMALL) is None
    said = " ".join(capsys.readouterr().err.split())
    for expected in (
        "mae (hidden 0.75, layers 1, width 12, heads 3, normalised True)",
        "24 pictures, those in train/; the held-out ones are left alone; in memory",
        "2 layers x 24, 3 heads",
        "16x16 pixels in patches of 8x8: 5 tokens",
        "6 steps of 8 images: 2 epochs; adamw",
        "memory about",
        "a second measured here",
        "Nothing was written",
    ):
        assert expected in said, expected
    assert list(tmp_path.iterdir()) == []
    assert before == {path: path.stat().st_mtime_ns for path in photos.rglob("*")}


def test_tensorboard_has_the_curve(photos: Path, tmp_path: Path) -> None:
    event_accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    result = run(photos, tmp_path / "run", tensorboard=tmp_path / "board")
    events = event_accumulator.EventAccumulator(str(tmp_path / "board"))
    events.Reload()
    curve = events.Scalars("loss")
    assert [point.step for point in curve] == [1, 2, 3, 4, 5, 6]
    assert curve[-1].value == pytest.approx(result.last["loss"])


# Planted faults: one sentence, nothing lost.


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"objective": "mea"}, "There is no objective 'mea'; the nearest is mae"),
        ({"tuning": {"weight_deca": 0.1}}, "There is no setting 'weight_deca'; the nearest is weight_decay"),
        ({"tuning": {"hiden": 0.5}}, "There is no setting 'hiden'; the nearest is hidden"),
        ({"tuning": {"mixing": "much"}}, "'mixing' should be float, not 'much'"),
        ({"tuning": {"steps": 4}}, "steps has an option of its own: give --steps"),
        ({"tuning": {"hidden": 0.9}}, "choose another share or smaller patches"),
        ({"tuning": {"schedule": "cosin"}}, "should be one of 'cosine', 'linear'"),
        ({"epochs": 3}, "Both epochs and steps are given"),
        ({"heads": 5}, "5 heads do not divide a width of 24"),
        ({"resolution": 17}, "the nearest sizes are 16 and 24"),
        ({"recipe": "vit-b16-imagenet21"}, "There is no recipe 'vit-b16-imagenet21'"),
        ({"recipe": "moco-b16-imagenet"}, "is for the objective moco, not mae"),
        ({"objective": "moco", "tuning": {"accumulate": 2}}, "set accumulate to 1"),
        ({"device": "cuda:7"}, "There is no device 'cuda:7'"),
    ],
)
def test_what_cannot_be_is_a_sentence_and_leaves_nothing(
    options: dict[str, Any], words: str, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pretrain_job, "seconds_per_step", pretrain_run.seconds_per_step)
    assert words in sentence(lambda: run(photos, tmp_path / "run", **options))
    assert not (tmp_path / "run").exists()


def test_bad_labels(photos: Path, tmp_path: Path) -> None:
    table = tmp_path / "labels.csv"
    pictures = sorted((photos / "train").rglob("*.png"))
    table.write_text("path,label\n" + "".join(f"{path},{path.parent.name}\n" for path in pictures) + "gone.png,red\n")
    said = sentence(lambda: run(table, tmp_path / "run", "supervised"))
    assert "names pictures that are not there (1)" in said
    table.write_text("file,label\na.png,red\n")
    assert "lacks the column 'path'" in sentence(lambda: run(table, tmp_path / "run"))
    table.write_text("path\n" + "".join(f"{path}\n" for path in pictures))
    assert "lacks the column 'label'" in sentence(lambda: run(table, tmp_path / "run", "supervised"))
    assert not (tmp_path / "run").exists()
    assert run(table, tmp_path / "run").pictures == 24, "without labels it will do"


def test_a_class_that_is_missing_from_what_is_held_out(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [
        f"{path},{path.parent.name},{part}\n"
        for part in ("train", "val")
        for path in sorted((photos / part).rglob("*.png"))
        if (part, path.parent.name) != ("val", "green")
    ]
    table = tmp_path / "labels.csv"
    table.write_text("path,label,split\n" + "".join(rows))
    found = vitrail.pretrain(table, tmp_path / "run", objective="supervised", **SMALL)
    assert "Classes with no picture held out, so that nothing is measured on them: green." in " ".join(
        capsys.readouterr().err.split()
    )
    assert found is not None
    assert found.evaluation is not None
    assert found.evaluation.images == 8


@pytest.fixture
def begun(photos: Path, stop: Stop, tmp_path: Path) -> Path:
    """A run of everything, killed after step 5, with checkpoints of steps 2 and 4."""
    out = tmp_path / "run"
    stop(5, Killed)
    with pytest.raises(Killed):
        run(photos, out, tuning=ALL_ON["mae"])
    stop(0, Killed)
    return out


def test_a_corrupt_checkpoint_is_passed_over(
    begun: Path, whole: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    path = checkpoint.place(begun / "training" / "checkpoints", 4) / checkpoint.TENSORS
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 255
    path.write_bytes(content)
    vitrail.pretrain(resume=begun)
    assert "the checkpoint before it is taken" in " ".join(capsys.readouterr().err.split())
    assert files(begun) == files(whole["mae"])


def test_a_full_disk_at_a_checkpoint(
    photos: Path, begun: Path, whole: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "write_tensors", full)
        said = sentence(lambda: vitrail.pretrain(resume=begun, quiet=True))
    assert "The disk is full while writing" in said
    assert "run the same command again" in said
    assert checkpoint.steps_in(begun / "training" / "checkpoints")[:2] == [4, 2]
    run(photos, begun, tuning=ALL_ON["mae"])
    assert files(begun) == files(whole["mae"])


def test_a_killed_worker(photos: Path, whole: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pretrain_run, "Views", Dying)
    said = sentence(lambda: run(photos, tmp_path / "run", tuning=ALL_ON["mae"], workers=1))
    assert "A process that prepares pictures was killed" in said
    monkeypatch.undo()
    monkeypatch.setattr(pretrain_job, "seconds_per_step", lambda *_: 0.01)
    run(photos, tmp_path / "run", tuning=ALL_ON["mae"])
    assert files(tmp_path / "run") == files(whole["mae"])


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"learning_rate": 3e-3}, r"was begun with learning_rate = None, not 0.003"),
        ({"steps": 7}, r"was begun with steps = 6, not 7"),
        ({"objective": "moco"}, r"was begun with objective = 'mae', not 'moco'"),
        ({"seed": 1}, r"was begun with seed = 0, not 1"),
        ({"resolution": 32}, r"was begun with resolution = \(16, 16\), not \(32, 32\)"),
        ({"tuning": {"hidden": 0.5}}, r"was begun with tuning = "),
    ],
)
def test_a_run_of_another_config_says_which_field(
    options: dict[str, Any], words: str, photos: Path, begun: Path
) -> None:
    before = {path: path.read_bytes() for path in begun.rglob("*") if path.is_file()}
    with pytest.raises(UserError, match=words):
        vitrail.pretrain(resume=begun, quiet=True, **options)
    with pytest.raises(UserError, match=words):
        run(photos, begun, **{"objective": "mae", "tuning": ALL_ON["mae"], **options})
    assert before == {path: path.read_bytes() for path in before}


def test_a_changed_config_file_is_noticed(begun: Path) -> None:
    path = begun / "config.yaml"
    text = path.read_text()
    content = yaml.safe_load(text)
    content["plan"]["training"]["weight_decay"] = 0.5
    path.write_text(yaml.safe_dump(content))
    with pytest.raises(UserError, match=r"was trained with settings\.weight_decay = 0\.05, not 0\.5"):
        vitrail.pretrain(resume=begun, quiet=True)
    path.write_text(text.replace("objective: mae", "objectiv: mae", 1))
    assert "does not know" in sentence(lambda: vitrail.pretrain(resume=begun, quiet=True))
    path.write_text("[")
    assert "cannot be read" in sentence(lambda: vitrail.pretrain(resume=begun, quiet=True))
    path.unlink()
    assert "is no run to go on with" in sentence(lambda: vitrail.pretrain(resume=begun, quiet=True))


def test_two_processes_on_one_run(begun: Path) -> None:
    with locked(begun / "training"):
        assert "is being trained in by process" in sentence(lambda: vitrail.pretrain(resume=begun, quiet=True))


def test_what_is_no_run_is_left_alone(photos: Path, whole: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("mine")
    assert "exists already" in sentence(lambda: run(photos, tmp_path / "mine"))
    vitrail.finetune(photos, tmp_path / "tuned", weights=whole["mae"], method="probe", quiet=True)
    assert "is not a run of vitrail pretrain" in sentence(lambda: run(photos, tmp_path / "tuned"))
    assert "leave out --out" in sentence(lambda: vitrail.pretrain(out=tmp_path / "b", resume=tmp_path / "a"))
    assert "The run folder is missing" in sentence(lambda: vitrail.pretrain(photos, objective="mae"))
    assert "The data are missing" in sentence(lambda: vitrail.pretrain(out=tmp_path / "b", objective="mae"))
    assert "No objective is named" in sentence(lambda: vitrail.pretrain(photos, tmp_path / "b"))


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
