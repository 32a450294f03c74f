"""A published set to a table to a judgement; a few pictures of each class."""

from __future__ import annotations

import errno
import json
import shutil
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest

import vitrail
from tests.tasks.test_finetune import TOY
from vitrail.atomic import explained
from vitrail.data import suites
from vitrail.data.sources import open_dataset
from vitrail.errors import UserError


@pytest.fixture
def cifar(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """CIFAR-100's layout, of noise: 3 classes, 12 pictures to learn from and 12 to be judged by."""
    monkeypatch.setitem(suites.CLASSES, "cifar100", 3)
    monkeypatch.setitem(suites.LENGTHS, "cifar100", {"train.bin": 12, "test.bin": 12})
    root = tmp_path / "cifar-100-binary"
    root.mkdir()
    rng = np.random.default_rng(0)
    for file in ("train.bin", "test.bin"):
        records = rng.integers(0, 256, (12, 3074), dtype=np.uint8)
        records[:, 1] = np.arange(12) % 3
        records.tofile(root / file)
    (root / "fine_label_names.txt").write_text("apple\nbear\ncan\n")
    return root


def test_a_set_becomes_a_table_that_is_taken(cifar: Path, tmp_path: Path) -> None:
    found = vitrail.suite("cifar100", cifar, tmp_path / "out" / "cifar.csv")
    assert found.to_dict() | {"out": ""} == {"out": "", "classes": 3, "train": 12, "val": 12}
    dataset = open_dataset(found.out)
    assert (dataset.classes, len(dataset.train), len(dataset.val)) == (("apple", "bear", "can"), 12, 12)
    with pytest.raises(UserError, match="exists"):
        vitrail.suite("cifar100", cifar, tmp_path / "out" / "cifar.csv")
    found.out.unlink()
    with pytest.raises(UserError, match=r"The pictures would go into .*cifar, which is there already"):
        vitrail.suite("cifar100", cifar, tmp_path / "out" / "cifar.csv")
    assert len(list((tmp_path / "out" / "cifar").rglob("*.png"))) == 24


@pytest.mark.parametrize(
    ("out", "sentence"),
    [
        ("noext", "noext does not end in .csv"),
        ("x.csv.gz", "x.csv.gz does not end in .csv"),
        (".csv", ".csv does not end in .csv"),
        ("folder.csv", "folder.csv is a folder"),
        ("a.txt/x.csv", "a.txt is a file, not a folder"),
        ("x" * 300 + ".csv", "its name is too long"),
    ],
)
def test_where_to_write_is_known_before_anything_is_read(tmp_path: Path, out: str, sentence: str) -> None:
    (tmp_path / "folder.csv").mkdir()
    (tmp_path / "a.txt").touch()
    with pytest.raises(UserError) as error:
        vitrail.suite("cifar100", tmp_path / "there is none", tmp_path / out)
    assert sentence in str(error.value)


def test_a_set_that_has_picture_files_may_stand_beside_its_table(tmp_path: Path) -> None:
    for part in ("train", "val"):
        (tmp_path / "imagenet" / part / "n01440764").mkdir(parents=True)
        (tmp_path / "imagenet" / part / "n01440764" / "x.JPEG").touch()
    found = vitrail.suite("imagenet", tmp_path / "imagenet", tmp_path / "imagenet.csv")
    assert (found.train, found.val) == (1, 1)


@pytest.mark.parametrize("at", ["PIL.Image.Image.save", "vitrail.tasks.suite.write_table"])
def test_a_full_disk_leaves_nothing(cifar: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: str) -> None:
    def full(*_: object) -> None:
        with explained(tmp_path / "out" / "cifar.csv") if "table" in at else nullcontext():
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(at, full)
    with pytest.raises(UserError, match="The disk is full while writing"):
        vitrail.suite("cifar100", cifar, tmp_path / "out" / "cifar.csv")
    assert list((tmp_path / "out").iterdir()) == []


def test_nothing_half_written_is_left(cifar: Path, tmp_path: Path) -> None:
    with (cifar / "test.bin").open("ab") as file:
        file.write(b"more")
    with pytest.raises(UserError, match="no whole number of records"):
        vitrail.suite("cifar100", cifar, tmp_path / "out" / "cifar.csv")
    assert not (tmp_path / "out").exists()


def test_few_shots_of_colours(photos: Path) -> None:
    how = {"architecture": "ViT-Ti/16", "resolution": 32, "seeds": 3}
    found = vitrail.few_shot("none", photos, [4, 1], **how)  # type: ignore[arg-type]
    assert [row.shots for row in found.rows] == [1, 4]
    assert (found.classes, found.judged) == (3, 12)
    assert found.rows[1].accuracy > 0.9
    low, high = found.rows[0].interval
    assert low <= found.rows[0].accuracy <= high
    assert found.to_dict()["shots"][0]["accuracies"] == found.rows[0].accuracies
    with pytest.raises(UserError, match="has 8 pictures to learn from, fewer than 9 shots"):
        vitrail.few_shot("none", photos, [9], **how)  # type: ignore[arg-type]


def test_wordnet_numbers_stand_for_classes_in_their_order_and_real_labels_judge(photos: Path, tmp_path: Path) -> None:
    run = vitrail.finetune(photos, tmp_path / "run", **TOY)
    classifier = vitrail.load(run.folder)
    numbers = dict(zip(("blue", "green", "red"), ("n00000001", "n00000002", "n00000003"), strict=True))
    right: list[list[int]] = []
    for label, (name, number) in enumerate(numbers.items()):
        (tmp_path / "val" / number).mkdir(parents=True)
        for path in sorted((photos / "val" / name).iterdir()):
            right.append([label, 2] if label < 2 else [])
            shutil.copy(path, tmp_path / "val" / number / f"ILSVRC2012_val_{len(right):08d}.png")
    (tmp_path / "real.json").write_text(json.dumps(right))
    found = classifier.evaluate(tmp_path / "val", real=tmp_path / "real.json")
    assert found.evaluation.top1 == 1.0
    assert found.real is not None
    assert (found.real.accuracy, found.real.images) == (1.0, 8)
    assert found.to_dict()["real"]["images"] == 8
    (tmp_path / "real.json").write_text(json.dumps([[(number // 4 + 1) % 3] for number in range(12)]))
    with pytest.raises(UserError, match="so it is of another set"):
        classifier.evaluate(tmp_path / "val", real=tmp_path / "real.json")
