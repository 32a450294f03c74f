"""Folders, tables and built-in names become the samples they should, or one sentence."""

from __future__ import annotations

import errno
import os
import random
import unicodedata
from collections.abc import Iterable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vitrail.data.sources import Dataset, Sample, iter_images, open_dataset, open_labelled, write_split
from vitrail.data.split import held_out
from vitrail.errors import UserError


def tree(root: Path, files: Iterable[str]) -> Path:
    """Empty files: listing never looks inside."""
    root.mkdir(exist_ok=True)
    for name in files:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    return root


def some(folder: str, count: int, suffix: str = "jpg") -> list[str]:
    return [f"{folder}/{n:03d}.{suffix}" for n in range(count)]


def names(samples: Iterable[Sample], root: Path) -> list[str]:
    return [sample.path.relative_to(root).as_posix() for sample in samples]


def sentence(act: object, *arguments: object, **options: object) -> str:
    """The one sentence of the UserError that the call raises."""
    with pytest.raises(UserError) as caught:
        list(act(*arguments, **options))  # type: ignore[operator]
    text = str(caught.value)
    assert "\n" not in text
    assert text.endswith(".")
    return text


# Split folders


def test_split_folders(tmp_path: Path) -> None:
    files = [
        *some("train/cat", 3),
        *some("train/dog", 2),
        "val/cat/x/y/deep.PNG",
        *some("val/dog", 1),
        "train/readme.txt",
    ]
    root = tree(tmp_path / "photos", files)
    dataset = open_dataset(root)
    assert dataset.classes == ("cat", "dog")
    assert names(dataset.val, root) == ["val/cat/x/y/deep.PNG", "val/dog/000.jpg"]
    assert [sample.label for sample in dataset.train] == [0, 0, 0, 1, 1]
    assert dataset.split == "folders train/ and val/"
    assert dataset.counts() == {"cat": (3, 1), "dog": (2, 1)}
    assert dataset.notes == (f"Files in {root / 'train'} that are not pictures: 1 (.txt 1).",)


@pytest.mark.parametrize(
    ("present", "taken"),
    [
        (["test"], "test"),
        (["test", "valid"], "valid"),
        (["valid", "validation"], "validation"),
        (["val", "test"], "val"),
    ],
)
def test_which_folder_is_held_out(tmp_path: Path, present: list[str], taken: str) -> None:
    files = [name for part in ["train", *present] for label in "ab" for name in some(f"{part}/{label}", 2)]
    dataset = open_dataset(tree(tmp_path / "photos", files))
    assert {sample.path.parts[-3] for sample in dataset.val} == {taken}
    assert dataset.split == f"folders train/ and {taken}/"
    assert len(dataset.notes) == len(present) - 1


def test_a_class_called_train_is_a_class(tmp_path: Path) -> None:
    root = tree(tmp_path / "vehicles", [*some("car", 3), *some("train", 3)])
    assert open_dataset(root).classes == ("car", "train")


def test_train_alone_is_split(tmp_path: Path) -> None:
    root = tree(tmp_path / "photos", [*some("train/a", 5), *some("train/b", 5)])
    assert open_dataset(root).counts() == {"a": (4, 1), "b": (4, 1)}


def test_what_is_odd_is_noted(tmp_path: Path) -> None:
    files = [*some("train/a", 2), *some("train/b", 2), "train/empty/notes.txt", "train/stray.jpg", *some("val/a", 1)]
    notes = " ".join(open_dataset(tree(tmp_path / "photos", files)).notes)
    assert "without pictures" in notes
    assert ": empty." in notes
    assert "outside any class folder are not used: 1." in notes
    assert "not pictures: 1 (.txt 1)" in notes
    assert "no picture held out, so that nothing is measured on them: b." in notes


def test_hidden_things_are_passed_over(tmp_path: Path) -> None:
    files = [*some("a", 3), *some("b", 3), "a/._000.jpg", ".cache/x.jpg", "__MACOSX/a/000.jpg", "a/.thumbs/x.jpg"]
    dataset = open_dataset(tree(tmp_path / "photos", files))
    assert dataset.classes == ("a", "b")
    assert len(dataset.train) + len(dataset.val) == 6
    assert dataset.notes == ()


def test_class_names_in_any_script(tmp_path: Path) -> None:
    labels = ["猫", "Hund & Katz", "café", "Ωμέγα", 'a,b"c']
    root = tree(tmp_path / "photos", [name for label in labels for name in some(label, 3)])
    dataset = open_dataset(root)
    assert dataset.classes == tuple(sorted(labels))
    assert open_dataset(write_split(dataset, tmp_path / "run")).classes == dataset.classes


def test_accents_stored_apart_are_the_same_class(tmp_path: Path) -> None:
    apart = unicodedata.normalize("NFD", "café")
    root = tree(tmp_path / "photos", [*some(f"train/{apart}", 2), *some("train/thé", 2), *some("val/café", 1)])
    assert open_dataset(root).counts() == {"café": (2, 1), "thé": (2, 0)}


# The stratified split


def test_split_is_stratified_and_disjoint(tmp_path: Path) -> None:
    root = tree(tmp_path / "photos", [*some("a", 100), *some("b", 10), *some("c", 3)])
    dataset = open_dataset(root)
    assert dataset.counts() == {"a": (80, 20), "b": (8, 2), "c": (2, 1)}
    assert not set(dataset.train) & set(dataset.val)
    assert dataset.split == "stratified, 20 % held out, seed 0"
    assert open_dataset(root, seed=1).val != dataset.val
    assert open_dataset(root, val_fraction=0.5).counts()["a"] == (50, 50)


def test_split_depends_on_nothing_but_its_seed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one = tree(tmp_path / "one", [*some("b", 20), *some("c", 20)])
    two = tree(tmp_path / "two", [*some("a", 7), *some("c", 20), *some("b", 20)])
    expected = names(open_dataset(one).val, one)
    scandir = os.scandir

    class Shuffled:
        def __init__(self, folder: str) -> None:
            with scandir(folder) as found:
                self.entries = list(found)
            random.Random(3).shuffle(self.entries)

        def __enter__(self) -> list[os.DirEntry[str]]:
            return self.entries

        def __exit__(self, *_: object) -> None:
            pass

    monkeypatch.setattr(os, "scandir", Shuffled)
    assert [name for name in names(open_dataset(two).val, two) if name[0] != "a"] == expected
    monkeypatch.chdir(two)
    assert [str(s.path) for s in open_dataset(".").val if str(s.path)[0] != "a"] == expected


@given(st.dictionaries(st.text(max_size=3), st.integers(3, 40), max_size=4), st.floats(0.01, 0.99), st.integers(0, 9))
def test_every_class_keeps_two_and_holds_out_one(sizes: dict[str, int], fraction: float, seed: int) -> None:
    keys = {name: [f"{name}/{n}" for n in range(size)] for name, size in sizes.items()}
    held = held_out(keys, fraction, seed)
    for members in keys.values():
        count = len(held.intersection(members))
        assert 1 <= count <= len(members) - 2
        assert abs(count - fraction * len(members)) <= 2


def test_a_new_picture_moves_at_most_one_other() -> None:
    keys = [f"a/{n}" for n in range(50)]
    before, after = (held_out({"a": members}, 0.2, 0) for members in (keys, [*keys, "a/new"]))
    assert len((before ^ after) - {"a/new"}) <= 1


# Tables


def test_table_without_split(tmp_path: Path) -> None:
    root = tree(tmp_path / "d", [*some("p", 3), *some("q r", 3)])
    lines = [
        "path,label",
        *(f"p/{n:03d}.jpg,cat" for n in range(3)),
        *(f'"q r/{n:03d}.jpg", "dog, big"' for n in range(3)),
    ]
    (root / "all.csv").write_text("\n".join(lines), encoding="utf-8-sig")  # as spreadsheets save it: with a mark
    dataset = open_dataset(root / "all.csv")
    assert dataset.counts() == {"cat": (2, 1), "dog, big": (2, 1)}
    assert dataset.split.startswith("stratified")


def test_table_with_split(tmp_path: Path) -> None:
    root = tree(tmp_path / "d", some("p", 6))
    rows = [("0", "a", "train"), ("1", "a", "Train"), ("2", "b", "train"), ("3", "b", "train"), ("4", "a", "valid")]
    text = "Label,Path,SPLIT\r\n" + "".join(f"{label},p/00{n}.jpg,{part}\r\n" for n, label, part in rows)
    (root / "all.csv").write_text(text + "\r\na,p/005.jpg,test\r\n", newline="")
    dataset = open_dataset(str(root / "all.csv"))
    assert names(dataset.val, root) == ["p/004.jpg"]
    assert dataset.counts() == {"a": (2, 1), "b": (2, 0)}
    assert dataset.split == "column split of all.csv"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (b"", "lacks the column 'label'"),
        (b"path;label\np.jpg;a\n", "it says 'path;label'"),
        (b"path,label\n", "lists no pictures"),
        (b"path,label\np.jpg,\n", "line 2, has an empty cell"),
        (b"path,label,split\np.jpg,a\n", "line 2, has an empty cell"),
        (b"path,label\np.jpg,a\np.jpg,b\n", "line 3, lists "),
        (b"path,label\np.jpg,a\n../d/p.jpg,b\n", "line 3, lists "),
        (b"path,label\np.jpg,a\nq.jpg,b\nr.jpg,b\n", "names pictures that are not there (2), such as "),
        (b"path,label\np.jpg,caf\xe9\n", "not UTF-8"),
        (b"path,label,split\np.jpg,a,dev\n", "the split 'dev'"),
        (b"path,label,split\np.jpg,a,train\n", "no rows of the split val"),
        (b"path,label,split\np.jpg,a,val\n", "no rows of the split train"),
        (b'path,label\n"' + b"x" * 200_000 + b'",a\n', "not a CSV file"),
    ],
)
def test_faulty_tables(tmp_path: Path, text: bytes, says: str) -> None:
    tree(tmp_path / "d", ["p.jpg"])
    (tmp_path / "d" / "all.csv").write_bytes(text)
    assert says in sentence(open_dataset, tmp_path / "d" / "all.csv")


def test_the_written_split_is_read_back(tmp_path: Path) -> None:
    files = [*some("猫, wild", 7), *some("b", 5), 'b/odd "name", yes.jpg', "b/new\nline.jpg"]
    dataset = open_dataset(tree(tmp_path / "photos", files), seed=5)
    path = write_split(dataset, tmp_path / "run")
    assert path == tmp_path / "run" / "split.csv"
    again = open_dataset(path, seed=99)
    assert (again.classes, again.train, again.val) == (dataset.classes, dataset.train, dataset.val)


# Faults of folders


@pytest.mark.parametrize(
    ("files", "says"),
    [
        ([], "holds no pictures:"),
        (["a/readme.txt", "b/x.pdf"], "holds no pictures (files of other kinds: 2)"),
        (["one.jpg", "two.jpg"], "holds pictures (2) but no class folders"),
        (some("only", 5), "has only one class, 'only'"),
        ([*some("a", 5), *some("b", 1)], "The class 'b' has too few pictures (1)"),
        ([*some("a", 5), *some("b", 2)], "The class 'b' has too few pictures (2)"),
        ([*some("train/a", 5), *some("train/b", 1), *some("val/a", 1)], "The class 'b' in "),
        ([*some("train/a", 5), *some("train/b", 5), *some("val/bb", 1)], "; the nearest is b"),
        ([*some("train/a", 5), *some("train/b", 5), "val/x.jpg"], "val holds pictures (1) but no class folders"),
        (["train/x.jpg", "val/x.jpg"], "train holds pictures (1) but no class folders"),
    ],
)
def test_faulty_folders(tmp_path: Path, files: list[str], says: str) -> None:
    assert says in sentence(open_dataset, tree(tmp_path / "photos", files))


def test_faulty_names(tmp_path: Path) -> None:
    assert "There is no folder" in sentence(open_dataset, tmp_path / "nowhere")
    assert "mnist-5k, digits" in sentence(open_dataset, "mnist")
    tree(tmp_path, ["one.jpg"])
    assert "neither a folder nor a CSV" in sentence(open_dataset, tmp_path / "one.jpg")
    assert "between 0 and 1" in sentence(open_dataset, tree(tmp_path / "p", some("a", 3)), val_fraction=1.0)
    (tmp_path / "q" / os.fsdecode(b"caf\xe9")).mkdir(parents=True)
    (tmp_path / "q" / os.fsdecode(b"caf\xe9") / "a.jpg").touch()
    assert "not UTF-8" in sentence(open_dataset, tmp_path / "q")


# Evaluating


def test_open_labelled(tmp_path: Path) -> None:
    files = [*some("train/cat", 2), *some("train/dog", 2), *some("val/dog", 3)]
    root = tree(tmp_path / "photos", files)
    samples = open_labelled(root / "val", ["cat", "dog"])
    assert [sample.label for sample in samples] == [1, 1, 1]
    assert open_labelled(root, ["cat", "dog"]) == samples
    assert [sample.label for sample in open_labelled(root, ["train", "val"])] == [0, 0, 0, 0, 1, 1, 1]
    (root / "x.csv").write_text("path,label\nval/dog/000.jpg,dog\n")
    assert open_labelled(root / "x.csv", ["dog", "cat"]) == (Sample(root / "val/dog/000.jpg", 0),)
    (root / "x.csv").write_text("path,label,split\nval/dog/000.jpg,dog,test\n")
    assert open_labelled(root / "x.csv", ["dog", "cat"]) == (Sample(root / "val/dog/000.jpg", 0),)
    split = write_split(open_dataset(root), tmp_path / "run")
    assert open_labelled(split, ["cat", "dog"]) == samples


def test_open_labelled_faults(tmp_path: Path) -> None:
    root = tree(tmp_path / "photos", some("cats", 2))
    text = sentence(open_labelled, root, ["cat", "dog"])
    assert "the class 'cats' (pictures: 2), which the model does not know; the nearest is cat" in text
    flat = tree(tmp_path / "flat", ["a.jpg", "b.jpg"])
    assert "holds pictures (2) but no class folders, and the model knows cat, dog" in sentence(
        open_labelled, flat, ["cat", "dog"]
    )
    assert "holds no pictures" in sentence(open_labelled, tree(tmp_path / "none", []), ["cat"])
    assert "There is no folder" in sentence(open_labelled, tmp_path / "nowhere", ["cat"])


# Finding pictures


def test_iter_images(tmp_path: Path) -> None:
    root = tree(tmp_path / "p", ["b.jpg", "a.JPEG", "c/d.png", "c/.e.png", "note.txt", "z.heic"])
    found = [path.relative_to(root).as_posix() for path in iter_images([root, root / "note.txt", str(root / "b.jpg")])]
    assert found == ["a.JPEG", "b.jpg", "z.heic", "c/d.png", "note.txt", "b.jpg"]


def test_iter_images_lists_as_it_goes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = tree(tmp_path / "p", ["a/1.jpg", "b/1.jpg", "c/1.jpg"])
    listed: list[str] = []
    scandir = os.scandir
    monkeypatch.setattr(os, "scandir", lambda folder: (listed.append(Path(folder).name), scandir(folder))[1])
    images = iter_images([root])
    assert next(images) == root / "a/1.jpg"
    assert listed == ["p", "a"]
    assert len(list(images)) == 2
    assert listed == ["p", "a", "b", "c"]


def test_symbolic_links(tmp_path: Path) -> None:
    root = tree(tmp_path / "p", ["a/1.jpg", "b/2.jpg"])
    (root / "a" / "up").symlink_to(root)
    (root / "a" / "self").symlink_to(root / "a")
    (root / "b" / "everything").symlink_to("/")
    (root / "b" / "twin").symlink_to(root / "a")
    (root / "b" / "broken.jpg").symlink_to(root / "nowhere")
    (root / "b" / "loop.jpg").symlink_to(root / "b" / "loop.jpg")
    found = [path.relative_to(root).as_posix() for path in iter_images([root])]
    assert found == ["a/1.jpg", "b/2.jpg", "b/broken.jpg", "b/loop.jpg"]  # the last two are to be named as unreadable


def test_iter_images_faults(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="There is no file or folder"):
        iter_images([tmp_path, tmp_path / "nowhere.jpg"])  # at once, before anything is consumed
    assert "There are no pictures in " in sentence(iter_images, [tree(tmp_path / "p", ["a.txt"])])


def test_a_folder_that_cannot_be_listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = tree(tmp_path / "p", some("a", 3))

    def refuse(_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "scandir", refuse)
    assert "cannot be listed (Permission denied)" in sentence(open_dataset, root)


def test_dataset_is_plain_data() -> None:
    sample = Sample(Path("a.jpg"), 0)
    assert Dataset(("a",), (sample,), (), "x") == Dataset(("a",), (Sample(Path("a.jpg"), 0),), (), "x")


def test_a_folder_that_cannot_be_listed_takes_its_pictures_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("a", "b", "c"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "1.png").touch()
    scandir = os.scandir

    def closed(folder: Path) -> object:
        if Path(folder).name == "b":
            raise PermissionError(errno.EACCES, "Permission denied")
        return scandir(folder)

    monkeypatch.setattr("os.scandir", closed)
    assert list(iter_images([tmp_path])) == [tmp_path / "a" / "1.png", tmp_path / "b", tmp_path / "c" / "1.png"]
