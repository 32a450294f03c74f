"""Sets in their authors' layouts, of a few small pictures; ``small_suites`` makes their counts the published ones."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import scipy.io
from PIL import Image

from vitrail.data.suites import read_suite
from vitrail.data.table import Row

Make = Callable[[Path], object]
BATCHES = [f"data_batch_{number}.bin" for number in range(1, 6)]
COUNTS = {
    "imagenet": {"val": 3},
    "cifar10": dict.fromkeys([*BATCHES, "test_batch.bin"], 12),
    "cifar100": {"train.bin": 12, "test.bin": 12},
    "pets": {"trainval.txt": 74, "test.txt": 37},
    "flowers102": {"labels": 306, "trnid": 102, "valid": 102, "tstid": 102},
    "vtab-1k": {"train800val200.txt": 20, "train800.txt": 16, "val200.txt": 4},
}


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
    cifar(root, ["plane", "car"], [*BATCHES, "test_batch.bin"], "batches.meta.txt", 1)


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
    """As published: every list has pictures of its own, also where they are the same."""
    lists = {"train800val200": range(20), "train800": range(16), "val200": range(16, 20), "test": range(12)}
    names = {name: [f"images/{name}/{n:06d}.jpg" for n in range(len(labels))] for name, labels in lists.items()}
    put(*(root / picture for pictures in names.values() for picture in pictures))
    for name, labels in lists.items():
        lines = [f"{picture} {label % 6}" for picture, label in zip(names[name], labels, strict=True)]
        (root / f"{name}.txt").write_text("\n".join(lines))
