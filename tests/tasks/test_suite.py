"""A published set to a table to a judgement; a few pictures of each class."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

import vitrail
from tests.tasks.test_finetune import TOY
from vitrail.data.sources import open_dataset
from vitrail.errors import UserError


@pytest.fixture
def cifar(tmp_path: Path) -> Path:
    """CIFAR-100's layout, of noise: 3 classes, 12 pictures to learn from and 12 to be judged by."""
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


def test_nothing_half_written_is_left(cifar: Path, tmp_path: Path) -> None:
    with (cifar / "test.bin").open("ab") as file:
        file.write(b"more")
    with pytest.raises(UserError, match="no whole number of records"):
        vitrail.suite("cifar100", cifar, tmp_path / "out" / "cifar.csv")
    assert not (tmp_path / "out" / "cifar").exists()
    assert not (tmp_path / "out" / "cifar.csv").exists()


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
