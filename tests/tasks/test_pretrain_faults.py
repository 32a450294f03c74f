"""Faults planted into pretraining: one sentence each, and nothing is lost."""

from __future__ import annotations

import errno
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

import vitrail
from tests.tasks.pretraining import ALL_ON, SMALL, Dying, Killed, Stop, files, run, sentence
from vitrail.errors import UserError
from vitrail.settings import PretrainSettings
from vitrail.tasks import pretrain_cost, pretrain_folder, pretrain_job, pretrain_run
from vitrail.train import checkpoint
from vitrail.train.lock import locked

pytestmark = pytest.mark.usefixtures("untimed")


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
        ({"objective": "moco", "tuning": {"accumulate": 2}}, "set accumulate and repeats to 1"),
        ({"device": "cuda:7"}, "There is no device 'cuda:7'"),
    ],
)
def test_what_cannot_be_is_a_sentence_and_leaves_nothing(
    options: dict[str, Any], words: str, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pretrain_job, "seconds_per_step", pretrain_cost.seconds_per_step)
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
        ({"learning_rate": 3e-3}, r"was begun with learning_rate = the usual, not 0.003"),
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


def test_a_tuple_is_the_list_that_it_was_kept_as(tmp_path: Path) -> None:
    kept = PretrainSettings("photos", "mae", tuning={"betas": [0.9, 0.95]})
    pretrain_folder.compare(tmp_path, kept, {"tuning": {"betas": (0.9, 0.95)}})
    pretrain_folder.compare(tmp_path, replace(kept, dropout=0.0), {"dropout": 0})
    with pytest.raises(UserError, match="was begun with tuning"):
        pretrain_folder.compare(tmp_path, kept, {"tuning": {"betas": (0.9, 0.99)}})


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
