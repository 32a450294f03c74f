"""What a model is looked into with: files that can and cannot be read, and tensors."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from vitrail.config import Preprocessing
from vitrail.data.preprocess import preprocess
from vitrail.data.read import read_image
from vitrail.errors import UserError
from vitrail.tasks.pictures import Pictures

HOW = Preprocessing((16, 24))


def test_a_limit_takes_evenly_spaced_ones(photos: Path) -> None:
    everything = Pictures([photos], HOW)
    some = Pictures([photos], HOW, limit=9)
    assert len(everything) == 36
    assert len(some) == 9
    assert some.paths == everything.paths[::4]
    assert len({path.parent for path in some.paths}) == 6  # all folders


def test_batches_are_what_preprocessing_makes_and_the_unreadable_are_noted(photos: Path, tmp_path: Path) -> None:
    good = sorted(photos.glob("val/red/*"))
    bad = tmp_path / "bad.jpg"
    bad.write_bytes(b"no picture")
    found = Pictures([good[0], bad, *good[1:]], HOW)
    images = torch.cat(list(found.batches(2)))
    assert torch.equal(images, torch.stack([preprocess(read_image(path), HOW) for path in good]))
    assert list(found.unreadable) == [bad]


def test_the_first_few_are_spread_and_skip_what_cannot_be_read(photos: Path, tmp_path: Path) -> None:
    bad = tmp_path / "bad.jpg"
    bad.write_bytes(b"no picture")
    red, blue = sorted(photos.glob("val/red/*")), sorted(photos.glob("val/blue/*"))
    found = Pictures([bad, *red, *blue], HOW)
    expected = [f"red/{red[3].name}", f"blue/{blue[3].name}", f"red/{red[0].name}"]  # both folders have such names
    assert [one.name for one in found.shown(3)] == expected
    assert found.first(3).shape == (3, 3, 16, 24)
    assert found.first(2, larger=5).shape == (2, 3, 21, 29)
    assert found.first(100).shape[0] == 8


def test_nothing_readable_is_one_sentence(tmp_path: Path) -> None:
    one, two = tmp_path / "one.jpg", tmp_path / "two.jpg"
    one.write_bytes(b"")
    two.write_bytes(b"x")
    with pytest.raises(UserError, match=r"one.jpg cannot be read \(.*\): name another picture"):
        list(Pictures([one], HOW).batches(4))
    with pytest.raises(UserError, match="None of the 2 pictures can be read, such as"):
        Pictures([one, two], HOW).first(1)


def test_tensors_do_as_well(photos: Path) -> None:
    paths = sorted(photos.glob("val/*/*"))[:6]
    images = torch.stack([preprocess(read_image(path), HOW) for path in paths])
    found = Pictures(images, HOW)
    assert len(found) == 6
    assert torch.equal(torch.cat(list(found.batches(4))), images)
    assert torch.equal(found.first(2), images[::3])
    assert found.first(2, larger=4).shape == (2, 3, 20, 28)
    shown, files = found.shown(3), Pictures(paths, HOW.at((16, 24))).shown(3)
    assert [one.name for one in shown] == ["image 0", "image 2", "image 4"]
    assert shown[0].picture.size == (24, 16)
    assert np.abs(np.asarray(shown[0].picture, float).mean() - np.asarray(files[0].picture, float).mean()) < 6
    assert len(Pictures(images, HOW, limit=2)) == 2


def test_tensors_that_are_no_images_and_limits_that_leave_none_are_refused() -> None:
    with pytest.raises(UserError, match=r"\(B, C, H, W\), not torch.float32 of shape \(3, 16, 24\)"):
        Pictures(torch.zeros(3, 16, 24), HOW)
    with pytest.raises(UserError, match=r"not torch.uint8 of shape"):
        Pictures(torch.zeros(1, 3, 16, 24, dtype=torch.uint8), HOW)
    for limit in (0, -3):
        with pytest.raises(UserError, match=f"At least 1 picture must be looked at, not {limit}"):
            Pictures(torch.zeros(1, 3, 16, 24), HOW, limit)


@pytest.mark.parametrize("channels", [1, 2, 5])
def test_pictures_of_any_number_of_channels_can_be_shown(channels: int) -> None:
    how = Preprocessing((16, 24), mean=(0.5,) * channels, std=(0.5,) * channels)
    (shown,) = Pictures(torch.full((1, channels, 16, 24), 0.2), how).shown(1)
    assert shown.picture.mode == "RGB"
    assert np.asarray(shown.picture).tolist() == np.full((16, 24, 3), 153).tolist()  # (0.2 * 0.5 + 0.5) * 255


def test_pictures_of_the_same_name_are_told_apart(photos: Path, tmp_path: Path) -> None:
    first, second = sorted(photos.glob("val/*/*"))[:2]
    for number, (folder, name) in enumerate([("a", "1.png"), ("b", "1.png"), ("b", "2.png")]):
        (tmp_path / folder).mkdir(exist_ok=True)
        (tmp_path / folder / name).write_bytes((first, second, first)[number].read_bytes())
    assert [one.name for one in Pictures([tmp_path], HOW).shown(3)] == ["a/1.png", "b/1.png", "2.png"]
