"""Published sets in their authors' layouts, and every way in which labels and files may not fit."""

from __future__ import annotations

import os
import pickle
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import scipy.io
from PIL import Image

from vitrail.data.suites import VTAB, read_suite
from vitrail.data.table import Row
from vitrail.errors import UserError

Make = Callable[[Path], None]


def put(*paths: Path) -> None:
    """One small picture under many names."""
    first = paths[0]
    first.parent.mkdir(parents=True, exist_ok=True)
    if not first.exists():
        Image.new("RGB", (8, 8)).save(first, "JPEG")
    for path in paths[1:]:
        path.parent.mkdir(parents=True, exist_ok=True)
        os.link(first, path)


def read(name: str, root: Path, tmp_path: Path) -> list[Row]:
    return read_suite(name, root, tmp_path / "pictures")


def counts(rows: list[Row]) -> dict[str, int]:
    return dict(Counter(row.split for row in rows))


def imagenet(root: Path, flat: bool = False) -> None:
    names = ["n01440764", "n01443537", "n02102040"]
    put(*(root / "train" / name / f"{name}_{number}.JPEG" for name in names for number in range(3)))
    if not flat:
        put(*(root / "val" / name / f"ILSVRC2012_val_{number:08d}.JPEG" for number, name in enumerate(names, 1)))
        return
    put(*(root / "val" / f"ILSVRC2012_val_{number:08d}.JPEG" for number in range(1, 4)))
    lines = [f"ILSVRC2012_val_{number:08d},{name} 1 2 3 4 " for number, name in enumerate(names, 1)]
    (root / "LOC_val_solution.csv").write_text("\n".join(["ImageId,PredictionString", *lines]))


def cifar(root: Path, names: list[str], files: list[str], names_file: str, labels: int) -> None:
    root.mkdir()
    rng = np.random.default_rng(0)
    for file in files:
        records = rng.integers(0, 256, (12, labels + 3072), dtype=np.uint8)
        records[:, : labels - 1] = 0
        records[:, labels - 1] = np.arange(12) % len(names)
        records.tofile(root / file)
    (root / names_file).write_text("\n".join(names) + "\n")


def cifar10(root: Path) -> None:
    cifar(
        root, ["plane", "car"], [f"data_batch_{n}.bin" for n in range(1, 6)] + ["test_batch.bin"], "batches.meta.txt", 1
    )


def cifar100(root: Path) -> None:
    cifar(root, ["apple", "bear", "can"], ["train.bin", "test.bin"], "fine_label_names.txt", 2)


def pets(root: Path) -> None:
    (root / "annotations").mkdir(parents=True)
    names = [
        f"{'Cat' if breed % 2 else 'dog'}_breed_{chr(65 + breed // 26)}{chr(65 + breed % 26)}" for breed in range(37)
    ]
    for part, numbers in (("trainval", (1, 2)), ("test", (3,))):
        lines = [f"{name}_{n} {breed} 1 1" for breed, name in enumerate(names, 1) for n in numbers]
        (root / "annotations" / f"{part}.txt").write_text("\n".join(["# Image CLASS-ID SPECIES BREED", *lines]))
    put(*(root / "images" / f"{name}_{n}.jpg" for name in names for n in (1, 2, 3)))


def flowers(root: Path) -> None:
    put(*(root / "jpg" / f"image_{number:05d}.jpg" for number in range(1, 307)))
    scipy.io.savemat(root / "imagelabels.mat", {"labels": np.arange(306)[None] % 102 + 1})
    numbers = np.arange(1, 307)[None]
    scipy.io.savemat(
        root / "setid.mat", {"trnid": numbers[:, :102], "valid": numbers[:, 102:204], "tstid": numbers[:, 204:]}
    )


def vtab(root: Path) -> None:
    train = [f"images/train/{number:06d}.jpg" for number in range(1000)]
    test = [f"images/test/{number:06d}.jpg" for number in range(12)]
    put(*(root / name for name in (*train, *test)))
    labelled = [f"{name} {number % 6}" for number, name in enumerate(train)]
    (root / "train800val200.txt").write_text("\n".join(labelled))
    (root / "train800.txt").write_text("\n".join(labelled[:800]))
    (root / "val200.txt").write_text("\n".join(labelled[800:]))
    (root / "test.txt").write_text("\n".join(f"{name} {number % 6}" for number, name in enumerate(test)))


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
    assert counts(read("vtab-1k", tmp_path / "vtab-1k" / "dmlab", tmp_path)) == {"train": 1000, "val": 12}
    assert counts(read("vtab-1k-search", tmp_path / "vtab-1k" / "dmlab", tmp_path)) == {"train": 800, "val": 200}


def test_vtab_has_nineteen_tasks() -> None:
    assert len(VTAB) == 19


def replaced(path: str, old: str, new: str) -> Make:
    def change(root: Path) -> None:
        text = (root / path).read_text()
        assert old in text
        (root / path).write_text(text.replace(old, new, 1))

    return change


def removed(path: str) -> Make:
    return lambda root: (root / path).unlink()


def label_out_of_range(root: Path) -> None:
    content = np.fromfile(root / "test_batch.bin", np.uint8)
    content[0] = 10
    content.tofile(root / "test_batch.bin")


def pickled(root: Path) -> None:
    for file in root.iterdir():
        file.unlink()
    (root / "data_batch_1").write_bytes(pickle.dumps({}))


def cut(root: Path) -> None:
    file = root / "test_batch.bin"
    file.write_bytes(file.read_bytes()[:-1])


def other_flowers(root: Path) -> None:
    scipy.io.savemat(root / "setid.mat", {"trnid": [[1]], "valid": [[2]], "tstid": [[400]]})


def flower_in_both(root: Path) -> None:
    scipy.io.savemat(root / "setid.mat", {"trnid": [[1]], "valid": [[2]], "tstid": [[1]]})


@pytest.mark.parametrize(
    ("name", "make", "fault", "sentence"),
    [
        (
            "imagenet",
            imagenet,
            lambda root: (root / "val" / "n02102040").rename(root / "val" / "dog"),
            "dog is not named as",
        ),
        (
            "imagenet",
            imagenet,
            lambda root: shutil.rmtree(root / "train" / "n02102040"),
            "has the class n02102040, which",
        ),
        ("imagenet", imagenet, lambda root: shutil.rmtree(root / "val"), "has no folder val/"),
        ("imagenet", lambda root: imagenet(root, True), removed("LOC_val_solution.csv"), "no LOC_val_solution.csv"),
        (
            "imagenet",
            lambda root: imagenet(root, True),
            removed("val/ILSVRC2012_val_00000002.JPEG"),
            "1 pictures of imagenet",
        ),
        ("cifar10", cifar10, label_out_of_range, "test_batch.bin has the label 10, and batches.meta.txt 2 names"),
        ("cifar10", cifar10, pickled, "the one for Python is pickled"),
        ("cifar10", cifar10, cut, "no whole number of records of 3073 bytes"),
        (
            "pets",
            pets,
            replaced("annotations/test.txt", "dog_breed_AA_3 1 ", "dog_breed_AA_3 2 "),
            "the classes 1 and 2",
        ),
        ("pets", pets, replaced("annotations/test.txt", " 1 1\n", "\n"), "has 2 words, not 4"),
        ("pets", pets, removed("annotations/trainval.txt"), "trainval.txt cannot be read"),
        ("pets", pets, removed("images/dog_breed_AA_3.jpg"), "1 pictures of pets are not there, such as"),
        (
            "pets",
            pets,
            replaced("annotations/test.txt", "dog_breed_AA_3", "dog_breed_AA_2"),
            "both learned from and judged",
        ),
        ("flowers102", flowers, other_flowers, "lists the picture 400 in tstid"),
        ("flowers102", flowers, flower_in_both, "1 pictures of flowers102 are both learned from and judged by"),
        ("flowers102", flowers, lambda root: (root / "setid.mat").write_bytes(b"MATLAB"), "setid.mat gives no trnid"),
        (
            "vtab-1k",
            vtab,
            replaced("test.txt", "images/test/000003.jpg 3", "images/test/000003.jpg 6"),
            "label 6, and dmlab has 6",
        ),
        ("vtab-1k", vtab, replaced("train800val200.txt", "images/train/000000.jpg 0\n", ""), "has 999 lines, not 1000"),
        (
            "vtab-1k",
            vtab,
            replaced("test.txt", "images/test/000003.jpg", "images/train/000003.jpg"),
            "both learned from",
        ),
        ("vtab-1k", vtab, lambda root: root.rename(root.parent / "dogs"), "There is no folder"),
    ],
)
def test_what_does_not_fit_is_named(tmp_path: Path, name: str, make: Make, fault: Make, sentence: str) -> None:
    root = tmp_path / ("dmlab" if name == "vtab-1k" else name)
    make(root)
    fault(root)
    with pytest.raises(UserError) as error:
        read(name, root, tmp_path)
    assert sentence in str(error.value)


def test_names_are_known(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="There is no suite 'cifar'"):
        read("cifar", tmp_path, tmp_path)
    (tmp_path / "cats").mkdir()
    with pytest.raises(UserError, match="'cats' is no task of VTAB-1k"):
        read("vtab-1k", tmp_path / "cats", tmp_path)
