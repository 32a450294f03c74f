"""What the user names (a folder, a split folder, a CSV, a built-in set) -> labelled samples."""

from __future__ import annotations

import os
import unicodedata
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from vitrail.config import suggestion
from vitrail.data.builtin import BUILTIN, materialise
from vitrail.data.listing import IMAGE_EXTENSIONS, entries, extension, images_below
from vitrail.data.split import held_out
from vitrail.data.suites import WNID
from vitrail.data.table import Row, read_table, write_table
from vitrail.errors import UserError

TRAINED = ("train", "training")
HELD_OUT = ("val", "validation", "valid", "test", "testing")
"""What the parts may be called, in capitals or not; of several, the first of these is taken."""


@dataclass(frozen=True, slots=True)
class Sample:
    """A picture and the position of its class in ``classes``."""

    path: Path
    label: int


@dataclass(frozen=True)
class Dataset:
    """Pictures to learn from and pictures held out."""

    classes: tuple[str, ...]
    """Sorted; a sample's label is a position in it."""
    train: tuple[Sample, ...]
    val: tuple[Sample, ...]
    split: str
    """Where the split came from, such as ``folders train/ and val/``."""
    notes: tuple[str, ...] = ()
    """What was passed over or looks odd, a sentence each."""
    drawn: bool = False
    """Whether it was drawn here, for the data have none of their own."""

    def counts(self) -> dict[str, tuple[int, int]]:
        """Class name -> its pictures in (train, val)."""
        train, val = (Counter(sample.label for sample in part) for part in (self.train, self.val))
        return {name: (train[label], val[label]) for label, name in enumerate(self.classes)}


Members = dict[str, list[Path]]
"""Class name -> its pictures."""


def open_dataset(source: str | Path, val_fraction: float = 0.2, seed: int = 0) -> Dataset:
    """Find the labelled pictures that ``source`` stands for, and which of them are held out.

    Args:
        source: ``photos/`` with {train,val}/<class>/ (val may be called validation, valid or test) or
            with <class>/; a CSV with columns path, label and optionally split; or a built-in name. A
            path that exists goes before a built-in name. Pictures count to their class however deep.
        val_fraction: share of each class held out where the source has no split of its own.
        seed: another seed, another such split.

    Raises:
        UserError: there is nothing there, or nothing that a classifier can be trained on.
    """
    path = _existing(source)
    notes: list[str] = []
    if path.is_file():
        parts = _table_parts(path)
        named = "column split of " + path.name
    else:
        parts = _folder_parts(path, notes)
        named = "folders " + " and ".join(f"{part}/" for part in parts)
    if "" in parts:
        train, val = _split(parts[""], path, val_fraction, seed)
        how = f"stratified, {val_fraction * 100:g} % held out, seed {seed}"
        return replace(_dataset(train, val, how, path, notes), drawn=True)
    if len(parts) == 1:
        raise UserError(
            f"{path} has no rows of the split {'val' if 'train' in parts else 'train'}: "
            "write train or val in that column, or remove the column to have a split drawn."
        )
    train, val = parts.values()
    return _dataset(train, val, named, path, notes)


def open_labelled(source: str | Path, classes: Sequence[str]) -> tuple[Sample, ...]:
    """Find labelled pictures to evaluate a model on that tells ``classes`` apart.

    Args:
        source: a folder of class folders; a folder with a val/ (validation/, valid/, test/) of them; a
            CSV, of which the held-out rows are taken if it has a column split; or a built-in name. As many
            WordNet numbers (``n01440764``) as there are classes stand, sorted, for these in their order, which
            is how every library numbers ImageNet's.

    Raises:
        UserError: there is nothing there, no picture, no class folder, or a class the model does not know.
    """
    path = _existing(source)
    if path.is_file():
        members = list(_table_parts(path).values())[-1]
    else:
        folders = {name for name, is_folder in entries(path) if is_folder}
        known = {name.lower(): name for name in folders if name not in classes}
        inside = next((known[name] for name in HELD_OUT if name in known), None)
        path = path / inside if inside else path
        members = _class_folders(path, [], f"the model knows {_some(classes)}")
    names = list(classes)
    if len(members) == len(classes) and all(WNID.fullmatch(name) for name in members) and not members.keys() & {*names}:
        names = sorted(members)
    labels = {_same(name): label for label, name in enumerate(names)}
    for name, pictures in members.items():
        if name not in labels:
            raise UserError(
                f"{path} has the class {name!r} (pictures: {len(pictures)}), which the model does not know"
                f"{suggestion(name, classes)}: rename it, or leave it out."
            )
    return tuple(_samples(members, labels))


def iter_images(paths: Sequence[str | Path]) -> Iterator[Path]:
    """Yield the files as named, and the pictures in the folders and below them, sorted, as they are found.

    A file named outright is taken whatever its extension.

    Raises:
        UserError: a path does not exist (at once), or, at the end, there was no picture in any folder. A
            folder that cannot be listed is yielded itself, for the reader to say so.
    """
    named = [Path(path) for path in paths]
    for path in named:
        if not os.path.lexists(path):
            raise UserError(f"There is no file or folder {path}: check the path.")
    return _found(named)


def find_images(sources: Sequence[str | Path]) -> list[Path]:
    """The pictures that files, folders, CSVs with a column path, and built-in sets stand for, in their order.

    Raises:
        UserError: there is no such thing, or no picture in it.
    """
    found: list[Path] = []
    for source in sources:
        path = Path(source)
        if not os.path.lexists(path) and str(source) in BUILTIN:
            path = materialise(str(source))
        if extension(path.name) == ".csv" and os.path.isfile(path):
            found += [row.path for row in read_table(path)]
        else:
            found += iter_images([path])
    return found


def write_split(dataset: Dataset, folder: Path) -> Path:
    """Write ``split.csv``, which ``open_dataset`` reads back to the very same split, and return its path.

    Raises:
        UserError: the disk is full, or the folder cannot be written.
    """
    path = Path(folder) / "split.csv"
    parts = {"train": dataset.train, "val": dataset.val}
    write_table((Row(s.path, dataset.classes[s.label], part) for part, samples in parts.items() for s in samples), path)
    return path


def trained_photos(run: Path) -> set[Path]:
    """Absolute paths of what ``write_split`` wrote into ``run`` as trained on; empty where it wrote nothing."""
    path = run / "split.csv"
    if not os.path.isfile(path):
        return set()
    return {row.path.absolute() for row in read_table(path) if row.split == "train"}


def _existing(source: str | Path) -> Path:
    """The path that ``source`` is, or the folder of the built-in set that it names."""
    if not str(source).strip():
        raise UserError("No data are named: give a folder, a CSV file, or a built-in set.")
    path = Path(source)
    if os.path.isdir(path):
        return path
    if os.path.isfile(path):
        if extension(path.name) != ".csv":
            raise UserError(
                f"{path} is neither a folder nor a CSV file: name a folder with a folder of pictures for each class, "
                "or a .csv with the columns path,label."
            )
        return path
    if str(source) in BUILTIN:
        return materialise(str(source))
    raise UserError(f"There is no folder {path}: check the path, or name a built-in set ({', '.join(BUILTIN)}).")


def _folder_parts(root: Path, notes: list[str]) -> dict[str, Members]:
    """The parts of a folder by name, train first; one part named "" if it has no split of its own."""
    why = "training needs a folder for each class"
    folders = [name for name, is_folder in entries(root) if is_folder]
    known = {name.lower(): name for name in folders}
    train = next((known[name] for name in TRAINED if name in known), None)
    val = next((known[name] for name in HELD_OUT if name in known), None)
    if train is None or (val is None and len(folders) > 1):
        return {"": _class_folders(root, notes, why)}
    if unused := [name for name in folders if name not in (train, val)]:
        notes.append(f"Not used, beside {train}/{f' and {val}/' if val else ''}: {_some(unused)}.")
    parts = {part: root / part for part in (train, val) if part} if val else {"": root / train}
    return {part: _class_folders(folder, notes, why) for part, folder in parts.items()}


def _class_folders(root: Path, notes: list[str], why: str) -> Members:
    """The pictures in and below each folder in ``root``, by the folder's name.

    Raises:
        UserError: no picture anywhere, or none in a class folder; ``why`` completes that sentence.
    """
    others: Counter[str] = Counter()
    members: Members = {}
    empty, loose = [], 0
    for name, is_folder in entries(root):
        if not is_folder:
            loose += extension(name) in IMAGE_EXTENSIONS
            others.update([extension(name)] if extension(name) not in IMAGE_EXTENSIONS else [])
        elif pictures := list(images_below(root / name, others)):
            members.setdefault(_same(name), []).extend(pictures)
        else:
            empty.append(name)
    if not members and loose:
        raise UserError(
            f"{root} holds pictures ({loose}) but no class folders, and {why}: "
            f"put each picture into a folder named after its class, as in {root / 'cat' / 'one.jpg'}."
        )
    if not members:
        passed = f" (files of other kinds: {sum(others.values())})" if others else ""
        raise UserError(f"{root} holds no pictures{passed}: put them into a folder for each class below it.")
    if empty:
        notes.append(f"Class folders without pictures in {root} are left out: {_some(empty)}.")
    if loose:
        notes.append(f"Pictures in {root} outside any class folder are not used: {loose}.")
    if others:
        kinds = ", ".join(f"{kind or 'no extension'} {count}" for kind, count in others.most_common(5))
        notes.append(f"Files in {root} that are not pictures: {sum(others.values())} ({kinds}).")
    return members


def _table_parts(path: Path) -> dict[str, Members]:
    """The parts of a CSV by name, train first; one part named "" if it has no column split.

    Raises:
        UserError: besides ``read_table``'s, no rows, or a split that is neither train nor held out.
    """
    rows = read_table(path)
    if not rows:
        raise UserError(f"{path} lists no pictures: add a line path,label for each.")
    parts: dict[str, Members] = {}
    for row in rows:
        parts.setdefault(row.split, {}).setdefault(_same(row.label), []).append(row.path)
    if "" in parts:
        return parts
    if strange := parts.keys() - {"train", *HELD_OUT}:
        raise UserError(f"{path} has the split {min(strange)!r}: write train or val in that column.")
    val = next((name for name in HELD_OUT if name in parts), None)
    return {part: parts[part] for part in ("train", val) if part in parts}


def _split(members: Members, path: Path, fraction: float, seed: int) -> tuple[Members, Members]:
    # Relative to the source, so that a moved folder is split as before.
    root = f"{path if path.is_dir() else path.parent}{os.sep}"
    keys = {
        picture: str(picture).removeprefix(root).replace(os.sep, "/") for paths in members.values() for picture in paths
    }
    held = held_out({name: [keys[picture] for picture in paths] for name, paths in members.items()}, fraction, seed)
    train, val = (
        {name: [picture for picture in paths if (keys[picture] in held) == part] for name, paths in members.items()}
        for part in (False, True)
    )
    return train, val


def _dataset(train: Members, val: Members, split: str, path: Path, notes: list[str]) -> Dataset:
    """Check that a classifier can be trained on this, and number the classes."""
    classes = tuple(sorted(train))
    if stranger := sorted(val.keys() - train.keys()):
        raise UserError(
            f"The class {stranger[0]!r} in {path} is held out but has no pictures to train on"
            f"{suggestion(stranger[0], classes)}: add some, or remove it."
        )
    if len(classes) < 2:
        raise UserError(
            f"{path} has only one class, {classes[0]!r}: a classifier needs at least two, "
            "each in a folder (or with a label) of its own."
        )
    for name, pictures in train.items():
        if len(pictures) < 2:
            raise UserError(f"The class {name!r} in {path} has only one picture to train on: add at least one more.")
    if unseen := [name for name in classes if name not in val]:
        notes.append(f"Classes with no picture held out, so that nothing is measured on them: {_some(unseen)}.")
    labels = {name: label for label, name in enumerate(classes)}
    return Dataset(classes, tuple(_samples(train, labels)), tuple(_samples(val, labels)), split, tuple(notes))


def _samples(members: Members, labels: dict[str, int]) -> Iterator[Sample]:
    for name in sorted(members):
        for path in members[name]:
            try:
                str(path).encode()
            except UnicodeEncodeError as error:
                raise UserError(f"The name of {os.fsencode(path)!r} is not UTF-8: rename it.") from error
            yield Sample(path, labels[name])


def _found(paths: list[Path]) -> Iterator[Path]:
    count = 0
    for path in paths:
        for image in images_below(path, lenient=True) if os.path.isdir(path) else (path,):
            count += 1
            yield image
    if count == 0:
        raise UserError(f"There are no pictures in {_some([str(path) for path in paths])}: name others.")


def _same(name: str) -> str:
    """One spelling for names that look the same: macOS stores accents apart (NFD), others do not (NFC).

    Raises:
        UserError: the name is not valid UTF-8, and so could be written nowhere.
    """
    try:
        name.encode()
    except UnicodeEncodeError as error:
        raise UserError(f"The class name {os.fsencode(name)!r} is not UTF-8: rename it.") from error
    return unicodedata.normalize("NFC", name)


def _some(names: Sequence[str]) -> str:
    """The first names of a list, and how many more there are."""
    return ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")
