"""An experiment's pictures are looked at before the first run, and are the same in all runs."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.experiments.test_lab import _lab, _run
from vitrail.errors import UserError
from vitrail.experiments import data_scale, index, masking, noisy_student
from vitrail.experiments.lab import CELLS, SPLITS
from vitrail.experiments.pictures import look_at
from vitrail.report.markdown import refuse_page
from vitrail.report.terminal import Show


@pytest.fixture
def own(data: Path, tmp_path: Path) -> Path:
    """The pictures, to be spoilt."""
    return Path(shutil.copytree(data, tmp_path / "shades"))


def _look(own: Path) -> list[str]:
    return look_at(own, own.parent / "out" / SPLITS / "shades.csv", Show(quiet=True))


def test_other_pictures_of_the_same_name_are_not_taken_for_these(own: Path) -> None:
    _look(own)
    _look(own)
    spoilt = own / "test" / "dark" / "3.png"
    spoilt.write_bytes(spoilt.read_bytes() + b" ")
    with pytest.raises(UserError, match=r"are of other pictures called shades, or .* has changed since"):
        _look(own)
    with pytest.raises(UserError, match="are of other pictures"):
        index.reproduce("head", own, own.parent / "out", quiet=True)


def _broken(own: Path) -> None:
    (own / "test" / "light" / "4.png").write_bytes(b"no picture")


def _foreign(own: Path) -> None:
    shutil.copytree(own / "test" / "dark", own / "test" / "zebra")


def _few(own: Path) -> None:
    for number in range(2, 20):
        (own / "train" / "dark" / f"{number}.png").unlink()


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (_broken, r"1 of the pictures to be judged by cannot be read, such as .*light/4\.png \(not an image"),
        (_foreign, "has the class 'zebra'"),
        (_few, r"train/dark has 2 pictures: an experiment needs 3 of each"),
    ],
)
def test_what_is_wrong_with_them_is_said_before_anything_is_trained(
    spoil: Callable[[Path], None], words: str, own: Path
) -> None:
    spoil(own)
    with pytest.raises(UserError, match=words):
        index.reproduce("patch-size", own, own.parent / "out", quiet=True)
    assert not (own.parent / "out" / "runs").exists()


def test_pictures_that_are_learned_from_and_judged_by_are_named_each_time(own: Path) -> None:
    assert _look(own) == []
    shutil.rmtree(own.parent / "out")
    shutil.copyfile(own / "train" / "dark" / "0.png", own / "test" / "dark" / "twin.png")
    for _ in range(2):
        assert _look(own) == [
            "1 held-out pictures are also trained on, so the result flatters: shades/train/dark/0.png = "
            "shades/test/dark/twin.png."
        ]


def test_a_page_that_cannot_be_written_is_said_before_anything_is_trained(own: Path) -> None:
    (own.parent / "a file").touch()
    for page, words in ((own, "is a folder: name a file"), (own.parent / "a file" / "page.md", "cannot be written")):
        with pytest.raises(UserError, match=words):
            index.reproduce("patch-size", own, own.parent / "out", page=page, quiet=True)
    refuse_page(Path("a" * 300 + ".md"))  # is explained when it is written
    assert not (own.parent / "out").exists()


def test_too_few_are_said_before_anything_is_trained(own: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(noisy_student.PICTURES, "small", (8, 2000))
    monkeypatch.setattr(masking, "PER_CLASS", 19)
    monkeypatch.setattr(data_scale, "SHARES", (0.01, 0.02))
    for name, words in (
        ("noisy-student", "has 18 pictures of dark to learn from, and this experiment takes 2008"),
        ("masking", "takes 19 of each class"),
        ("data-scale", "has 18 pictures of a class to learn from, too few for shares of 1 %, 2 % to differ"),
    ):
        with pytest.raises(UserError, match=words):
            index.reproduce(name, own, own.parent / "out", quiet=True)
    assert not (own.parent / "out" / "runs").exists()


def test_a_damaged_result_is_named_with_its_remedy(own: Path) -> None:
    there = _lab(own.parent / "out", own)
    cell = own.parent / "out" / CELLS / f"{_run().key}.json"
    cell.parent.mkdir(parents=True)
    for text in ("{}", "{", "[]"):
        cell.write_text(text)
        with pytest.raises(UserError, match="remove it, and it is made again"):
            there.result(_run())
