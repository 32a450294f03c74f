"""Published sets in their authors' layouts, and what is known of them."""

from __future__ import annotations

import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.data.fake_suites import BATCHES, Make, cifar10, cifar100, flowers, imagenet, pets, read, vtab
from vitrail.data import suites
from vitrail.data.suites import CLASSES, LENGTHS, VTAB
from vitrail.data.table import Row
from vitrail.errors import UserError


def counts(rows: list[Row]) -> dict[str, int]:
    return dict(Counter(row.split for row in rows))


@pytest.mark.parametrize(
    ("suite", "classes", "lengths"),
    [
        ("imagenet", 1000, {"val": 50000}),
        ("cifar10", 10, dict.fromkeys([*BATCHES, "test_batch.bin"], 10000)),
        ("cifar100", 100, {"train.bin": 50000, "test.bin": 10000}),
        ("pets", 37, {"trainval.txt": 3680, "test.txt": 3669}),
        ("flowers102", 102, {"labels": 8189, "trnid": 1020, "valid": 1020, "tstid": 6149}),
        ("vtab-1k", None, {"train800val200.txt": 1000, "train800.txt": 800, "val200.txt": 200}),
    ],
)
def test_the_tables_hold_what_was_published(suite: str, classes: int | None, lengths: dict[str, int]) -> None:
    assert (CLASSES.get(suite), LENGTHS[suite]) == (classes, lengths)


def test_every_picture_of_flowers_is_in_one_list() -> None:
    lengths = LENGTHS["flowers102"]
    assert lengths["trnid"] + lengths["valid"] + lengths["tstid"] == lengths["labels"]


@pytest.mark.usefixtures("small_suites")
@pytest.mark.parametrize("flat", [False, True])
def test_imagenet(tmp_path: Path, flat: bool) -> None:
    imagenet(tmp_path / "imagenet", flat)
    rows = read("imagenet", tmp_path / "imagenet", tmp_path)
    assert counts(rows) == {"train": 9, "val": 3}
    assert [(row.path.stem[-1], row.label) for row in rows if row.split == "val"] == [
        ("1", "n01440764"), ("2", "n01443537"), ("3", "n02102040"),
    ]  # fmt: skip
    shutil.rmtree(tmp_path / "imagenet" / "train")
    assert counts(read("imagenet", tmp_path / "imagenet", tmp_path)) == {"val": 3}


@pytest.mark.usefixtures("small_suites")
@pytest.mark.parametrize(("make", "name", "labels"), [(cifar10, "cifar10", 1), (cifar100, "cifar100", 2)])
def test_cifar_is_written_pixel_for_pixel(tmp_path: Path, make: Make, name: str, labels: int) -> None:
    make(tmp_path / name)
    rows = read(name, tmp_path / name, tmp_path)
    assert counts(rows) == {"train": 60 if labels == 1 else 12, "val": 12}
    row = next(row for row in rows if row.split == "val")
    file = tmp_path / name / ("test_batch.bin" if labels == 1 else "test.bin")
    record = np.fromfile(file, np.uint8)[: labels + 3072]
    pixels = np.asarray(Image.open(row.path))
    assert (pixels[0, :, 0] == record[labels : labels + 32]).all()  # the first 32 are the red of the first row
    assert (pixels[31, 31] == record[[labels + 1023, labels + 2047, labels + 3071]]).all()
    assert row.label == row.path.parent.name == {1: "plane", 2: "apple"}[labels]


@pytest.mark.usefixtures("small_suites")
def test_pets_flowers_and_vtab(tmp_path: Path) -> None:
    pets(tmp_path / "pets")
    rows = read("pets", tmp_path / "pets", tmp_path)
    assert counts(rows) == {"train": 74, "val": 37}
    assert rows[0].label == "dog_breed_AA"
    flowers(tmp_path / "flowers")
    rows = read("flowers102", tmp_path / "flowers", tmp_path)
    assert counts(rows) == {"train": 204, "val": 102}
    assert (rows[0].path.name, rows[0].label) == ("image_00001.jpg", "001")
    vtab(tmp_path / "vtab-1k" / "dmlab")
    assert counts(read("vtab-1k", tmp_path / "vtab-1k" / "dmlab", tmp_path)) == {"train": 20, "val": 12}
    assert counts(read("vtab-1k-search", tmp_path / "vtab-1k" / "dmlab", tmp_path)) == {"train": 16, "val": 4}


def test_vtab_has_nineteen_tasks() -> None:
    assert len(VTAB) == 19


@pytest.mark.usefixtures("small_suites")
@pytest.mark.parametrize("absent", ["train800val200.txt", "train800.txt", "val200.txt"])
def test_a_task_of_vtab_needs_only_the_lists_it_is_asked_for(tmp_path: Path, absent: str) -> None:
    root = tmp_path / "dmlab"
    vtab(root)
    (root / absent).unlink()
    for name, needed in (("vtab-1k", ["train800val200.txt"]), ("vtab-1k-search", ["train800.txt", "val200.txt"])):
        if absent in needed:
            with pytest.raises(UserError, match=f"{absent} cannot be read"):
                read(name, root, tmp_path)
        else:
            assert sum(counts(read(name, root, tmp_path)).values()) in (32, 20)


def test_a_subset_of_imagenet_has_as_many_pictures_as_it_likes(tmp_path: Path) -> None:
    imagenet(tmp_path / "imagenet", flat=True)
    assert counts(read("imagenet", tmp_path / "imagenet", tmp_path)) == {"train": 9, "val": 3}


@pytest.mark.usefixtures("small_suites")
@pytest.mark.parametrize("flat", [False, True])
def test_all_of_imagenet_is_judged_by_all_of_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, flat: bool) -> None:
    root = tmp_path / "imagenet"
    imagenet(root, flat)
    monkeypatch.setitem(suites.LENGTHS, "imagenet", {"val": 4})
    (root / "LOC_val_solution.csv").touch()
    with pytest.raises(UserError, match="val has 3 entries, not the 4 that were published"):
        read("imagenet", root, tmp_path)
    if not flat:  # without the file nothing says that it is not ImageNetV2, say
        (root / "LOC_val_solution.csv").unlink()
        assert counts(read("imagenet", root, tmp_path)) == {"train": 9, "val": 3}


@pytest.mark.usefixtures("small_suites")
def test_names_may_have_the_line_ends_of_windows_and_empty_lines_at_the_end(tmp_path: Path) -> None:
    cifar10(tmp_path / "cifar")
    (tmp_path / "cifar" / "batches.meta.txt").write_bytes("\ufeffplane\r\ncity car\r\n\r\n".encode())
    assert {row.label for row in read("cifar10", tmp_path / "cifar", tmp_path)} == {"plane", "city car"}


@pytest.mark.usefixtures("small_suites")
@pytest.mark.parametrize(
    "name",
    ["../../evil", "a/b", "a\\b", "/evil", "", ".", "..", " car", "car ", "car\0", "c\x1bar", "\xe4" * 128, "plane"],
)
def test_a_class_whose_name_is_no_folders_own_is_refused(tmp_path: Path, name: str) -> None:
    root = tmp_path / "cifar"
    cifar10(root)
    (root / "batches.meta.txt").write_text(f"plane\n{name}\nboat\n", encoding="utf-8")
    before = set(tmp_path.rglob("*"))
    with pytest.raises(UserError, match="'plane' more than once" if name == "plane" else "line 2, has the class"):
        read("cifar10", root, tmp_path)
    assert set(tmp_path.rglob("*")) == before


def test_names_are_known(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="There is no suite 'cifar'"):
        read("cifar", tmp_path, tmp_path)
    (tmp_path / "cats").mkdir()
    with pytest.raises(UserError, match="'cats' is no task of VTAB-1k"):
        read("vtab-1k", tmp_path / "cats", tmp_path)
