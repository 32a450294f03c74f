"""Which pictures are learned from without labels: all there are, but for those held out."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from vitrail.data.unlabelled import open_unlabelled
from vitrail.errors import UserError


def tree(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    return root


def found(source: Path) -> list[str]:
    root = source if source.is_dir() else source.parent
    return [path.relative_to(root).as_posix() for path in open_unlabelled(source)[0]]


def test_folders(tmp_path: Path) -> None:
    flat = tree(tmp_path / "flat", "b.jpg", "a.png", "x/y/c.webp", "notes.txt")
    assert found(flat) == ["a.png", "b.jpg", "x/y/c.webp"]
    split = tree(tmp_path / "split", "train/cat/a.jpg", "train/b.jpg", "Test/cat/c.jpg", "more/d.jpg")
    assert found(split) == ["train/b.jpg", "train/cat/a.jpg"]
    assert "held-out ones are left alone" in open_unlabelled(split)[1]
    alone = tree(tmp_path / "alone", "train/a.jpg", "other/b.jpg")
    assert found(alone) == ["other/b.jpg", "train/a.jpg"]


def test_tables(tmp_path: Path) -> None:
    tree(tmp_path, "a.jpg", "b.jpg")
    table = tmp_path / "list.csv"
    table.write_text("path\na.jpg\nb.jpg\na.jpg\n")
    assert found(table) == ["a.jpg", "b.jpg"]
    table.write_text("path,split\na.jpg,val\nb.jpg,train\n")
    assert found(table) == ["b.jpg"]
    table.write_text("path,split\na.jpg,val\n")
    with pytest.raises(UserError, match="no rows of the split train"):
        found(table)
    table.write_text("path\n")
    with pytest.raises(UserError, match="lists no pictures"):
        found(table)


def test_built_in_sets_keep_their_held_out_ones() -> None:
    paths, which = open_unlabelled("digits")
    assert {path.parent.parent.name for path in paths} == {"train"}
    assert "those in train/" in which


def test_what_is_not_there(tmp_path: Path) -> None:
    for source, words in {"": "No data are named", tmp_path / "none": "There is no file or folder"}.items():
        with pytest.raises(UserError, match=words):
            open_unlabelled(source)
    with pytest.raises(UserError, match="There are no pictures"):
        open_unlabelled(tree(tmp_path / "empty", "a.txt"))
    bad = os.fsencode(tmp_path) + b"/bad/\xff.jpg"
    os.mkdir(os.path.dirname(bad))
    open(bad, "w").close()
    with pytest.raises(UserError, match="is not UTF-8: rename it"):
        open_unlabelled(tmp_path / "bad")
