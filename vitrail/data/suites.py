"""Published benchmark sets, laid out as their authors give them -> which picture has which label, and is judged by.

Nothing is fetched. What is found is held against what is known of the set: every listed file is there, labels are
within the classes, no picture is both learned from and judged by.
"""

from __future__ import annotations

import csv
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from vitrail.config import suggestion
from vitrail.data.listing import entries, images_below
from vitrail.data.table import Row
from vitrail.errors import UserError

TRAIN, VAL = "train", "val"
VTAB = {
    "caltech101": 102, "cifar": 100, "dtd": 47, "oxford_flowers102": 102, "oxford_iiit_pet": 37, "sun397": 397,
    "svhn": 10, "patch_camelyon": 2, "eurosat": 10, "resisc45": 45, "diabetic_retinopathy": 5, "clevr_count": 8,
    "clevr_dist": 6, "dmlab": 6, "kitti": 4, "dsprites_loc": 16, "dsprites_ori": 16, "smallnorb_azi": 18,
    "smallnorb_ele": 9,
}  # fmt: skip
"""The tasks of VTAB (1910.04867, section 3) by the names of their folders, and their classes."""
WNID = re.compile(r"n\d{8}")
"""How WordNet, and so ImageNet's folders, names a class."""


def read_suite(name: str, folder: str | Path, pictures: Path) -> list[Row]:
    """The rows of a set: absolute paths, class names, and ``train`` or ``val``, judged by the latter.

    Args:
        name: one of ``SUITES``.
        folder: where the set was unpacked.
        pictures: a folder to make, for sets that have no picture files.

    Raises:
        UserError: there is no such set, it is not laid out so, or labels and files do not fit.
    """
    if name not in SUITES:
        raise UserError(f"There is no suite {name!r}{suggestion(name, SUITES)}: name one of {', '.join(SUITES)}.")
    root = Path(folder).absolute()
    if not root.is_dir():
        raise UserError(f"There is no folder {root}: name the one that {name} was unpacked into.")
    rows = list(SUITES[name](root, pictures))
    files = {file for part in {row.path.parent for row in rows} if part.is_dir() for file in part.iterdir()}
    if missing := [row.path for row in rows if row.path not in files]:
        raise UserError(f"{len(missing)} pictures of {name} are not there, such as {missing[0]}: unpack the set again.")
    parts = {part: {row.path for row in rows if row.split == part} for part in (TRAIN, VAL)}
    if both := parts[TRAIN] & parts[VAL]:
        raise UserError(
            f"{len(both)} pictures of {name} are both learned from and judged by, such as {min(both)}: take the lists "
            "that were published with the set."
        )
    return rows


def _imagenet(root: Path, pictures: Path) -> Iterator[Row]:
    """train/<wnid>/ where it is there; val/<wnid>/, or val/*.JPEG with LOC_val_solution.csv."""
    classes: set[str] = set()
    if (root / TRAIN).is_dir():
        for name in _wnids(root / TRAIN):
            classes.add(name)
            yield from (Row(path, name, TRAIN) for path in images_below(root / TRAIN / name))
    solution = root / "LOC_val_solution.csv"
    if not (root / VAL).is_dir():
        raise UserError(f"{root} has no folder val/: name the folder that holds ImageNet's train/ and val/.")
    if any(is_folder for _, is_folder in entries(root / VAL)):
        judged = [(path, name) for name in _wnids(root / VAL) for path in images_below(root / VAL / name)]
    elif solution.is_file():
        with solution.open(newline="", encoding="utf-8") as file:
            said = [(cells["ImageId"], cells["PredictionString"].split()[0]) for cells in csv.DictReader(file)]
        judged = [(root / VAL / f"{picture}.JPEG", name) for picture, name in said]
        if odd := next((name for _, name in judged if not WNID.fullmatch(name)), None):
            raise UserError(f"{solution} has the class {odd!r}, which is no WordNet number: take the published file.")
    else:
        raise UserError(
            f"{root / VAL} holds no class folders, and there is no {solution.name} beside it: sort the pictures into "
            "val/<wnid>/, or put that file there."
        )
    if classes and (strange := {name for _, name in judged} - classes):
        raise UserError(f"{root / VAL} has the class {min(strange)}, which {root / TRAIN} has not: unpack train again.")
    yield from (Row(path, name, VAL) for path, name in judged)


def _wnids(folder: Path) -> list[str]:
    found = [name for name, is_folder in entries(folder) if is_folder]
    if odd := next((name for name in found if not WNID.fullmatch(name)), None):
        raise UserError(f"{folder / odd} is not named as ImageNet's classes are, such as n01440764: rename it.")
    return found


def _cifar10(root: Path, pictures: Path) -> Iterator[Row]:
    """The binary version: data_batch_1.bin to 5, test_batch.bin, batches.meta.txt."""
    batches = [f"data_batch_{number}.bin" for number in range(1, 6)]
    return _cifar(root, pictures, {TRAIN: batches, VAL: ["test_batch.bin"]}, "batches.meta.txt", 1)


def _cifar100(root: Path, pictures: Path) -> Iterator[Row]:
    """The binary version: train.bin, test.bin, fine_label_names.txt."""
    return _cifar(root, pictures, {TRAIN: ["train.bin"], VAL: ["test.bin"]}, "fine_label_names.txt", 2)


def _cifar(root: Path, pictures: Path, files: dict[str, list[str]], names: str, labels: int) -> Iterator[Row]:
    """Records of ``labels`` bytes, the last of them the class, and 3 x 32 x 32 pixels; written as PNGs."""
    if not all((root / file).is_file() for file in (names, *(file for own in files.values() for file in own))):
        raise UserError(
            f"{root} does not hold {names}, {', '.join(file for own in files.values() for file in own)}: unpack the "
            "binary version of the set there; the one for Python is pickled, and pickles are not opened."
        )
    classes = [line.strip() for line in (root / names).read_text().splitlines() if line.strip()]
    length = labels + 3 * 32 * 32
    for part, own in files.items():
        for file in own:
            content = np.fromfile(root / file, np.uint8)
            if not len(content) or len(content) % length:
                raise UserError(f"{root / file} is no whole number of records of {length} bytes: unpack it again.")
            records = content.reshape(-1, length)
            found = records[:, labels - 1]
            if found.max() >= len(classes):
                raise UserError(f"{root / file} has the label {found.max()}, and {names} {len(classes)} names.")
            for number, (label, record) in enumerate(zip(found.tolist(), records, strict=True)):
                path = pictures / part / classes[label] / f"{Path(file).stem}-{number:05d}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(record[labels:].reshape(3, 32, 32).transpose(1, 2, 0)).save(path)
                yield Row(path, classes[label], part)


def _pets(root: Path, pictures: Path) -> Iterator[Row]:
    """Oxford-IIIT Pets: images/, and annotations/trainval.txt and test.txt with lines ``Abyssinian_100 1 1 1``."""
    numbers: dict[str, str] = {}
    rows = []
    for part, file in ((TRAIN, "trainval.txt"), (VAL, "test.txt")):
        for words in _lines(root / "annotations" / file, 4):
            name = words[0].rpartition("_")[0]
            if numbers.setdefault(name, words[1]) != words[1]:
                raise UserError(
                    f"{root / 'annotations' / file} gives {name} the classes {numbers[name]} and {words[1]}: take the "
                    "published file."
                )
            rows.append(Row(root / "images" / f"{words[0]}.jpg", name, part))
    _count(root, numbers.values(), 37)
    return iter(rows)


def _flowers(root: Path, pictures: Path) -> Iterator[Row]:
    """Oxford Flowers-102: jpg/, imagelabels.mat, setid.mat; training and validation parts are learned from."""
    labels = _matlab(root / "imagelabels.mat", "labels")
    parts = {name: _matlab(root / "setid.mat", name) for name in ("trnid", "valid", "tstid")}
    _count(root, labels, 102)
    for name, numbers in parts.items():
        if min(numbers) < 1 or max(numbers) > len(labels):
            raise UserError(
                f"{root / 'setid.mat'} lists the picture {max(numbers)} in {name}, and imagelabels.mat has "
                f"{len(labels)}: take both files from the same set."
            )
        for number in numbers:
            part = VAL if name == "tstid" else TRAIN
            yield Row(root / "jpg" / f"image_{number:05d}.jpg", f"{labels[number - 1]:03d}", part)


def _vtab(root: Path, pictures: Path) -> Iterator[Row]:
    """A task of VTAB-1k: train800val200.txt and test.txt, with lines ``images/test/000001.jpg 5``."""
    rows = _vtab_lists(root, "train800val200.txt", 1000, "test.txt")
    for part, count in (("train800.txt", 800), ("val200.txt", 200)):  # where they are there, they are its halves
        if (root / part).is_file() and len(list(_lines(root / part, 2))) != count:
            raise UserError(f"{root / part} does not have {count} lines: take the published lists.")
    return rows


def _vtab_search(root: Path, pictures: Path) -> Iterator[Row]:
    """The same to choose settings by, which the test pictures must not be: train800.txt and val200.txt."""
    return _vtab_lists(root, "train800.txt", 800, "val200.txt")


def _vtab_lists(root: Path, train: str, count: int, val: str) -> Iterator[Row]:
    if root.name not in VTAB:
        raise UserError(
            f"{root.name!r} is no task of VTAB-1k{suggestion(root.name, VTAB)}: name the folder of one, such as "
            "vtab-1k/caltech101."
        )
    classes = VTAB[root.name]
    for part, file in ((TRAIN, train), (VAL, val)):
        lines = list(_lines(root / file, 2))
        if part == TRAIN and len(lines) != count:
            raise UserError(f"{root / file} has {len(lines)} lines, not {count}: take the published lists.")
        for picture, label in lines:
            if not label.isdecimal() or int(label) >= classes:
                raise UserError(
                    f"{root / file} gives {picture} the label {label}, and {root.name} has {classes} classes, from 0 "
                    "on: the lists are another task's."
                )
            yield Row(root / picture, f"{int(label):03d}", part)


SUITES = {
    "imagenet": _imagenet,
    "cifar10": _cifar10,
    "cifar100": _cifar100,
    "pets": _pets,
    "flowers102": _flowers,
    "vtab-1k": _vtab,
    "vtab-1k-search": _vtab_search,
}
"""Name -> what reads the folder of the set; pictures that are in no files of their own are written to the other."""


def _lines(path: Path, words: int) -> Iterator[list[str]]:
    """The words of each line of a list; comments are passed over."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"The list {path} cannot be read ({error}): unpack the set again.") from None
    for number, line in enumerate(lines, 1):
        found = line.split()
        if found and not line.startswith("#"):
            if len(found) != words:
                raise UserError(f"{path}, line {number}, has {len(found)} words, not {words}: take the published file.")
            yield found


def _matlab(path: Path, name: str) -> list[int]:
    """A row of numbers in a MATLAB file."""
    import scipy.io

    try:
        found: Any = scipy.io.loadmat(path)[name]
    except Exception as error:  # damaged, and scipy has errors of its own for that
        raise UserError(f"{path} gives no {name} ({error}): unpack the set again.") from None
    return [int(number) for number in np.ravel(found)]


def _count(root: Path, labels: Iterable[object], classes: int) -> None:
    found = len(Counter(labels))
    if found != classes:
        raise UserError(f"The lists in {root} have {found} classes, not {classes}: take those of the whole set.")
