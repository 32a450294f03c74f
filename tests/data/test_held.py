"""Pictures in memory are those on the disk, pixel for pixel."""

from __future__ import annotations

import pickle  # what the standard library sends to a process with; nothing of it is written
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from vitrail.config import Preprocessing
from vitrail.data.augment import _crop
from vitrail.data.held import (
    Pictures,
    enough,
    estimated_bytes,
    fingerprint,
    forget,
    hold,
    reduced,
    remember,
    usual_size,
)
from vitrail.data.preprocess import preprocess
from vitrail.data.read import Extent, read_image, read_reduced
from vitrail.errors import UserError


@pytest.fixture
def paths(tmp_path: Path) -> list[Path]:
    """Pictures of several shapes and modes, and two that are none."""
    found = []
    for number, (height, width) in enumerate([(8, 8), (30, 20), (5, 40), (16, 17), (64, 48)]):
        pixels = np.random.default_rng(number).integers(0, 255, (height, width, 3), dtype=np.uint8)
        image = Image.fromarray(pixels).convert("L" if number == 3 else "RGB")
        found.append(tmp_path / f"{number}.png")
        image.save(found[-1])
    (tmp_path / "2b.png").write_bytes(b"nothing")
    (tmp_path / "9.png").touch()
    return sorted([*found, tmp_path / "2b.png", tmp_path / "9.png"])


def ignore(done: int, total: int | None) -> None:
    """Progress is another's affair."""


@pytest.mark.parametrize("shortest", [None, 16])
def test_held_or_not_they_are_the_same(paths: list[Path], shortest: int | None) -> None:
    told: list[tuple[int, int | None]] = []
    held, failed = hold(Pictures(paths, shortest), 1e9, lambda done, total: told.append((done, total)))
    read, again = hold(Pictures(paths, shortest), 100, ignore)
    assert held.pixels is not None
    assert read.pixels is None
    assert told[-1] == (7, 7)
    assert failed == again == {paths[3]: "not an image", paths[-1]: "zero bytes"}
    assert held.paths == read.paths == [path for path in paths if path not in failed]
    assert held.bytes == held.pixels.size == sum(np.asarray(read(number)).size for number in range(5))
    sent = pickle.loads(pickle.dumps(held))
    for number in range(len(held)):
        assert np.array_equal(np.asarray(held(number)), np.asarray(read(number)))
        assert np.array_equal(np.asarray(sent(number)), np.asarray(read(number)))
        assert held(number).mode == "RGB"
        assert shortest is None or min(held(number).size) <= shortest
    assert read(1).size == ((20, 30) if shortest is None else (16, 24))


def test_what_turns_out_larger_than_estimated_is_let_go(tmp_path: Path) -> None:
    for number in range(40):
        size = (100, 100) if number % 2 else (2, 2)  # every second one is tried
        Image.new("RGB", size).save(tmp_path / f"{number:02d}.png")
    pictures = Pictures(sorted(tmp_path.iterdir()))
    assert estimated_bytes(pictures) == 40 * 12
    found, failed = hold(pictures, 50_000, ignore)
    assert (found.pixels, found.bytes, len(found), failed) == (None, 0, 40, {})


def test_what_is_remembered_is_the_last_two_and_not_read_again(paths: list[Path]) -> None:
    one, two, three = Pictures(paths), Pictures(paths, 16), Pictures(paths[:3])
    remember()
    try:
        first = hold(one, 1e9, ignore)
        assert hold(one, 1e9, lambda done, total: pytest.fail("read")) is first
        assert hold(one, 100, ignore)[0].pixels is None, "more than may be held"
        second, third = hold(two, 1e9, ignore), hold(three, 1e9, ignore)
        assert hold(two, 1e9, ignore) is second
        assert hold(three, 1e9, ignore) is third
        assert hold(one, 1e9, ignore) is not first
    finally:
        forget()
    assert hold(one, 1e9, ignore) is not first


def test_what_is_known_is_not_read_again(paths: list[Path]) -> None:
    known = {paths[3]: "not an image", paths[-1]: "zero bytes"}
    found, failed = hold(Pictures(paths), 0, lambda done, total: pytest.fail("read"), known)
    assert (len(found), failed) == (5, known)


def test_one_that_vanishes_is_a_sentence(paths: list[Path]) -> None:
    found, _ = hold(Pictures(paths), 0, ignore)
    paths[0].unlink()
    with pytest.raises(UserError, match="could be read before and no longer can \\(no such file\\)"):
        found(0)


@pytest.mark.parametrize(("size", "smallest"), [((32, 32), 0.2), ((32, 32), 0.08), ((48, 24), 0.35)])
def test_no_crop_of_a_reduced_picture_is_enlarged(size: tuple[int, int], smallest: float) -> None:
    """Nor would one of a longer picture be."""
    side = enough(size, smallest)
    chance = np.random.default_rng(0)
    for _ in range(500):
        left, top, right, bottom = _crop(side, side, size[1] / size[0], smallest, chance)
        assert right - left >= size[1] - 1e-6
        assert bottom - top >= size[0] - 1e-6


def test_reduced_keeps_small_ones_and_the_aspect() -> None:
    small = Image.new("RGB", (10, 300))
    assert reduced(small, Extent.of(small), 10) is small
    large = Image.new("RGB", (100, 300))
    assert reduced(large, Extent.of(large), 10).size == (10, 30)


def test_a_large_photo_is_reduced_from_a_fraction_of_it(tmp_path: Path) -> None:
    """And one that is to be as it is, is as it is."""
    path = tmp_path / "a.jpg"
    Image.linear_gradient("L").resize((403, 301)).convert("RGB").save(path, quality=95)
    assert read_reduced(path, lambda size: min(size) / 20)[0].size == (101, 76)
    found, whole = Pictures([path], 20)(0), Pictures([path])(0)
    assert whole.size == (403, 301)
    assert found.size == (27, 20)
    expected = reduced(whole, Extent.of(whole), 20)
    assert np.abs(np.asarray(found, int) - np.asarray(expected, int)).max() <= 3


@pytest.mark.parametrize("most", [0, 1e9])
def test_whole_pictures_are_held_as_a_model_is_shown_them(paths: list[Path], most: float) -> None:
    how = Preprocessing((12, 16), crop_fraction=0.8)
    found, failed = hold(Pictures(paths, how=how), most, ignore)
    assert (found.pixels is None) == (most == 0)
    assert len(failed) == 2
    for number, path in enumerate(found.paths):
        plain = preprocess(found(number), replace(how, fit="squash", crop_fraction=1.0))
        assert torch.equal(plain, preprocess(read_image(path), how))


def test_usual_size_and_fingerprint(paths: list[Path]) -> None:
    assert usual_size(paths) == 16  # of 5, 8, 16, 20 and 48
    assert usual_size(paths[-1:]) == 0
    before = fingerprint(paths)
    assert [name for name, _ in before] == [path.name for path in paths]
    paths[0].write_bytes(b"longer")
    assert fingerprint(paths) != before
    paths[0].unlink()
    assert fingerprint(paths)[0] == (paths[0].name, -1)
