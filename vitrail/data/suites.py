"""Published benchmark sets, laid out as their authors give them -> which picture has which label, and is judged by.

Nothing is fetched. What is found is held against what is known of the set: lists have their published lengths and
classes, every listed file is there, no picture is listed twice or is both learned from and judged by.
"""

from __future__ import annotations

import csv
import io
import os
import re
import unicodedata
from collections import Counter
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from vitrail.atomic import explained, new_folder
from vitrail.config import suggestion
from vitrail.data.listing import IMAGE_EXTENSIONS, entries, extension, images_below
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
CLASSES = {"imagenet": 1000, "cifar10": 10, "cifar100": 100, "pets": 37, "flowers102": 102}
"""How many classes the other sets are published with; ImageNet's subsets have fewer."""
LENGTHS = {
    "imagenet": {"val": 50_000},
    "cifar10": {f"data_batch_{number}.bin": 10_000 for number in range(1, 6)} | {"test_batch.bin": 10_000},
    "cifar100": {"train.bin": 50_000, "test.bin": 10_000},
    "pets": {"trainval.txt": 3_680, "test.txt": 3_669},
    "flowers102": {"labels": 8_189, "trnid": 1_020, "valid": 1_020, "tstid": 6_149},
    "vtab-1k": {"train800val200.txt": 1_000, "train800.txt": 800, "val200.txt": 200},
}
"""How many entries the lists of each set are published with; ImageNet's where it has all of its classes."""
WRITTEN = frozenset({"cifar10", "cifar100"})
"""The sets whose pictures are in no files of their own, and are written as some."""
WNID = re.compile(r"n\d{8}")
"""How WordNet, and so ImageNet's folders, names a class."""


def read_suite(name: str, folder: str | Path, pictures: Path) -> list[Row]:
    """The rows of a set: absolute paths, class names, and ``train`` or ``val``, judged by the latter.

    Args:
        name: one of ``SUITES``.
        folder: where the set was unpacked.
        pictures: a folder to make, for the sets that are ``WRITTEN``; it is there wholly or not at all.

    Raises:
        UserError: there is no such set, it is not laid out so, labels and files do not fit, or the pictures
            cannot be written.
    """
    if name not in SUITES:
        raise UserError(f"There is no suite {name!r}{suggestion(name, SUITES)}: name one of {', '.join(SUITES)}.")
    root = Path(folder).absolute()
    if not os.path.isdir(root):
        raise UserError(f"There is no folder {root}: name the one that {name} was unpacked into.")
    rows = list(SUITES[name](root, pictures))
    folders = {folder for folder in {row.path.parent for row in rows} if os.path.isdir(folder)}
    files = {folder / file for folder in folders for file, is_folder in entries(folder) if not is_folder}
    if missing := [row.path for row in rows if row.path not in files]:
        raise UserError(f"{len(missing)} pictures of {name} are not there, such as {missing[0]}: unpack the set again.")
    parts = {part: Counter(os.path.abspath(row.path) for row in rows if row.split == part) for part in (TRAIN, VAL)}
    if both := parts[TRAIN].keys() & parts[VAL].keys():
        raise UserError(
            f"{len(both)} pictures of {name} are both learned from and judged by, such as {min(both)}: take the lists "
            "that were published with the set."
        )
    if again := [path for part in parts.values() for path, times in part.items() if times > 1]:
        raise UserError(
            f"{len(again)} pictures of {name} are listed more than once, such as {min(again)}: take the lists that "
            "were published with the set."
        )
    if not parts[VAL]:
        raise UserError(f"{root} lists no pictures of {name} to be judged by: unpack the set again.")
    return rows


def _imagenet(root: Path, pictures: Path) -> Iterator[Row]:
    """train/<wnid>/ where it is there; val/<wnid>/, or val/*.JPEG with LOC_val_solution.csv."""
    learned = _wnids(root / TRAIN) if os.path.isdir(root / TRAIN) else []
    solution = root / "LOC_val_solution.csv"
    if not os.path.isdir(root / VAL):
        raise UserError(f"{root} has no folder val/: name the folder that holds ImageNet's train/ and val/.")
    if any(is_folder for _, is_folder in entries(root / VAL)):
        judged = _wnids(root / VAL)
    elif os.path.isfile(solution):
        judged = _solved(root / VAL, solution)
    else:
        raise UserError(
            f"{root / VAL} holds no class folders, and there is no {solution.name} beside it: sort the pictures into "
            "val/<wnid>/, or put that file there."
        )
    classes, found = ({name for _, name in part} for part in (learned, judged))
    if classes and (odd := classes ^ found):
        has, lacks = (VAL, TRAIN) if min(odd) in found else (TRAIN, VAL)
        raise UserError(f"{root / has} has the class {min(odd)}, which {root / lacks} has not: unpack {lacks} again.")
    if len(found) == CLASSES["imagenet"] and os.path.isfile(solution):
        _as_published(root / VAL, "imagenet", "val", judged)
    for part, members in ((TRAIN, learned), (VAL, judged)):
        yield from (Row(path, name, part) for path, name in members)


def _wnids(folder: Path) -> list[tuple[Path, str]]:
    """The pictures of class folders, which are named as WordNet numbers them, and their classes."""
    members: list[tuple[Path, str]] = []
    for name, is_folder in entries(folder):
        if not is_folder and extension(name) in IMAGE_EXTENSIONS:
            raise UserError(f"{folder / name} lies beside the class folders: move it into the one of its class.")
        if is_folder and not WNID.fullmatch(name):
            raise UserError(f"{folder / name} is not named as ImageNet's classes are, such as n01440764: rename it.")
        if is_folder:
            own = [(path, name) for path in images_below(folder / name)]
            if not own:
                raise UserError(f"{folder / name} holds no pictures: unpack it again, or leave that class out.")
            members += own
    if not members:
        raise UserError(f"{folder} holds no class folders: unpack the pictures into it, or remove it.")
    return members


def _solved(folder: Path, solution: Path) -> list[tuple[Path, str]]:
    """The pictures of a flat folder and their classes, as a file with the columns ImageId, PredictionString says."""
    members = []
    try:
        reader = csv.DictReader(io.StringIO(_text(solution), newline=""))
        if lacking := {"ImageId", "PredictionString"} - set(reader.fieldnames or ()):
            raise UserError(f"{solution} lacks the column {min(lacking)}: take the published file.")
        for cells in reader:
            picture, said = ((cells[column] or "").strip() for column in ("ImageId", "PredictionString"))
            if not picture or not WNID.fullmatch(name := said.partition(" ")[0]):
                raise UserError(
                    f"{solution}, line {reader.line_num}, says {said[:80]!r} of the picture {picture[:80]!r}, which "
                    "does not begin with a class such as n01440764: take the published file."
                )
            members.append((folder / f"{picture}.JPEG", name))
    except csv.Error as error:
        raise UserError(f"{solution} is not a CSV file ({error}): take the published file.") from error
    there = {folder / name for name, _ in entries(folder) if extension(name) in IMAGE_EXTENSIONS}
    listed = {path for path, _ in members}
    if unlisted := there - listed:
        raise UserError(
            f"{folder} holds {len(unlisted)} pictures that {solution.name} does not list, such as "
            f"{min(unlisted).name}: take both from the same set."
        )
    if absent := listed - there:
        raise UserError(
            f"{solution} lists {len(absent)} pictures that {folder} does not hold, such as {min(absent).name}: unpack "
            f"{VAL} again."
        )
    return members


def _cifar10(root: Path, pictures: Path) -> list[Row]:
    """The binary version: data_batch_1.bin to 5, test_batch.bin, batches.meta.txt."""
    return _cifar(root, pictures, "cifar10", "batches.meta.txt", 1)


def _cifar100(root: Path, pictures: Path) -> list[Row]:
    """The binary version: train.bin, test.bin, fine_label_names.txt."""
    return _cifar(root, pictures, "cifar100", "fine_label_names.txt", 2)


def _cifar(root: Path, pictures: Path, suite: str, names: str, labels: int) -> list[Row]:
    """Records of ``labels`` bytes, the last of them the class, and 3 x 32 x 32 pixels; written as PNGs."""
    if not all(os.path.isfile(root / file) for file in (names, *LENGTHS[suite])):
        raise UserError(
            f"{root} does not hold {names}, {', '.join(LENGTHS[suite])}: unpack the binary version of the set there; "
            "the one for Python is pickled, and pickles are not opened."
        )
    classes = _class_names(root / names, CLASSES[suite])
    length = labels + 3 * 32 * 32
    batches: dict[str, np.ndarray] = {}
    for file in LENGTHS[suite]:
        content = np.frombuffer(_bytes(root / file), np.uint8)
        if len(content) % length:
            raise UserError(f"{root / file} is no whole number of records of {length} bytes: unpack it again.")
        batches[file] = records = content.reshape(-1, length)
        _as_published(root / file, suite, file, records)
        if (last := records[:, labels - 1].max()) >= len(classes):
            raise UserError(f"{root / file} has the label {last}, and {names} {len(classes)} names: unpack it again.")
        _all_classes(root / file, records[:, labels - 1].tolist(), range(len(classes)))
    rows = []
    with new_folder(pictures) as beside, explained(pictures):  # not before all of it is known to fit
        for file, records in batches.items():
            part = VAL if file.startswith("test") else TRAIN
            for number, record in enumerate(records):
                label = classes[record[labels - 1]]
                path = Path(part, label, f"{Path(file).stem}-{number:05d}.png")
                (beside / path).parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(record[labels:].reshape(3, 32, 32).transpose(1, 2, 0)).save(beside / path)
                rows.append(Row(pictures / path, label, part))
    return rows


def _class_names(path: Path, classes: int) -> list[str]:
    """A name a line, each of which can be that of one folder; lines left empty at the end are passed over."""
    names = _text(path).replace("\r\n", "\n").rstrip("\n").split("\n")
    for number, name in enumerate(names, 1):
        plain = name.strip() == name and name.isprintable() and not {"/", "\\"} & set(name)
        if not plain or name in ("", ".", "..") or len(name.encode()) > 255:
            raise UserError(
                f"{path}, line {number}, has the class {name[:80]!r}, and no folder could be called that: take the "
                "published file."
            )
    if again := [name for name, times in Counter(unicodedata.normalize("NFC", n) for n in names).items() if times > 1]:
        raise UserError(f"{path} has the class {again[0]!r} more than once: take the published file.")
    if len(names) != classes:
        raise UserError(f"{path} has {len(names)} names, not {classes}: take the published file.")
    return names


def _pets(root: Path, pictures: Path) -> Iterator[Row]:
    """Oxford-IIIT Pets: images/, and annotations/trainval.txt and test.txt with lines ``Abyssinian_100 1 1 1``."""
    numbers: dict[str, str] = {}
    rows = []
    for part, file in ((TRAIN, "trainval.txt"), (VAL, "test.txt")):
        path = root / "annotations" / file
        lines = list(_lines(path, 4))
        _as_published(path, "pets", file, lines)
        for picture, number, *_ in lines:
            name = picture.rpartition("_")[0]
            if numbers.setdefault(name, number) != number:
                raise UserError(
                    f"{path} gives {name} the classes {numbers[name]} and {number}: take the published file."
                )
            rows.append(Row(root / "images" / f"{picture}.jpg", name, part))
        _all_classes(path, [number for _, number, *_ in lines], [str(n + 1) for n in range(CLASSES["pets"])])
    if len(numbers) != CLASSES["pets"]:
        raise UserError(
            f"The lists in {root} have {len(numbers)} names for {CLASSES['pets']} classes: unpack it again."
        )
    return iter(rows)


def _flowers(root: Path, pictures: Path) -> Iterator[Row]:
    """Oxford Flowers-102: jpg/, imagelabels.mat, setid.mat; training and validation parts are learned from."""
    labels = _matlab(root / "imagelabels.mat", "labels")
    _all_classes(root / "imagelabels.mat", labels, range(1, CLASSES["flowers102"] + 1))
    for name in ("trnid", "valid", "tstid"):
        numbers = _matlab(root / "setid.mat", name)
        if odd := {number for number in numbers if not 1 <= number <= len(labels)}:
            raise UserError(
                f"{root / 'setid.mat'} lists the picture {max(odd)} in {name}, and imagelabels.mat has {len(labels)}: "
                "take both files from the same set."
            )
        for number in numbers:
            part = VAL if name == "tstid" else TRAIN
            yield Row(root / "jpg" / f"image_{number:05d}.jpg", f"{labels[number - 1]:03d}", part)


def _vtab(root: Path, pictures: Path) -> Iterator[Row]:
    """A task of VTAB-1k: train800val200.txt and test.txt, with lines ``images/test/000001.jpg 5``."""
    return _vtab_lists(root, "train800val200.txt", "test.txt")


def _vtab_search(root: Path, pictures: Path) -> Iterator[Row]:
    """The same to choose settings by, which the test pictures must not be: train800.txt and val200.txt."""
    return _vtab_lists(root, "train800.txt", "val200.txt")


def _vtab_lists(root: Path, train: str, val: str) -> Iterator[Row]:
    if root.name not in VTAB:
        raise UserError(
            f"{root.name!r} is no task of VTAB-1k{suggestion(root.name, VTAB)}: name the folder of one, such as "
            "vtab-1k/caltech101."
        )
    there = [file for file in LENGTHS["vtab-1k"] if os.path.isfile(root / file)]
    lists = {file: _vtab_list(root / file) for file in dict.fromkeys((train, val, *there))}
    if len(there) == len(LENGTHS["vtab-1k"]):
        # As published, each list has pictures of its own even where they are the same: labels are what can be compared.
        whole, *halves = (Counter(label for _, label in lists[file]) for file in LENGTHS["vtab-1k"])
        if whole != sum(halves, Counter()):
            raise UserError(
                f"{root / there[0]} has other labels than {' and '.join(there[1:])} together: take all three from the "
                "same place."
            )
    for part, file in ((TRAIN, train), (VAL, val)):
        yield from (Row(root / picture, label, part) for picture, label in lists[file])


def _vtab_list(path: Path) -> list[tuple[str, str]]:
    """The pictures of a list, and their classes as three digits."""
    classes = VTAB[path.parent.name]
    found = []
    for picture, label in _lines(path, 2):
        if not re.fullmatch(r"[0-9]{1,9}", label) or int(label) >= classes:
            raise UserError(
                f"{path} gives {picture} the label {label}, and {path.parent.name} has {classes} classes, from 0 on: "
                "the lists are another task's."
            )
        found.append((picture, f"{int(label):03d}"))
    if path.name in LENGTHS["vtab-1k"]:
        _as_published(path, "vtab-1k", path.name, found)
    return found


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


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}): unpack the set again.") from None


def _text(path: Path) -> str:
    try:
        return _bytes(path).decode("utf-8-sig")
    except UnicodeDecodeError:
        raise UserError(f"{path} is not UTF-8 text: take the published file.") from None


def _lines(path: Path, words: int) -> Iterator[list[str]]:
    """The words of each line of a list; comments are passed over."""
    for number, line in enumerate(_text(path).splitlines(), 1):
        found = line.split()
        if found and not line.startswith("#"):
            if len(found) != words:
                raise UserError(f"{path}, line {number}, has {len(found)} words, not {words}: take the published file.")
            yield found


def _matlab(path: Path, name: str) -> list[int]:
    """A row of whole numbers in a MATLAB file of Flowers-102, of the length it is published with."""
    import scipy.io

    content = io.BytesIO(_bytes(path))
    try:
        found: Any = np.ravel(scipy.io.loadmat(content, variable_names=[name]).get(name, ()))
    except Exception as error:  # damaged, and scipy has errors of its own for that
        raise UserError(f"{path} gives no {name} ({error}): unpack the set again.") from None
    _as_published(f"The list {name} in {path}", "flowers102", name, found)
    if found.dtype.kind not in "uif" or not (np.isfinite(found) & (found == np.round(found))).all():
        raise UserError(f"The list {name} in {path} is not one of whole numbers: unpack the set again.")
    return [int(number) for number in found]


def _as_published(where: Path | str, suite: str, name: str, found: Collection[Any]) -> None:
    """Raise UserError where a list has another length than it was published with."""
    if len(found) != (length := LENGTHS[suite][name]):
        raise UserError(f"{where} has {len(found):,} entries, not the {length:,} that were published: unpack it again.")


def _all_classes(where: Path, labels: Iterable[object], classes: Collection[object]) -> None:
    """Raise UserError where labels are not within the classes, or some class has none."""
    if odd := set(labels) ^ set(classes):
        what = "lacks the class" if min(odd, key=str) in classes else "has the class"
        raise UserError(f"{where} {what} {min(odd, key=str)}, of {len(classes)}: take the published file.")
