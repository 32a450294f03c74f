"""Another view of the same photo."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from vitrail.config import Preprocessing
from vitrail.data import augment as module
from vitrail.data.augment import augment
from vitrail.data.order import generator
from vitrail.data.preprocess import preprocess
from vitrail.settings import Augmentation

HOW = Preprocessing((32, 24))


def photo(width: int = 60, height: int = 45, seed: int = 0) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


@settings(max_examples=60)
@given(width=st.integers(1, 200), height=st.integers(1, 200), seed=st.integers(0, 10**6))
def test_any_photo_gives_a_finite_view_that_its_place_decides(width: int, height: int, seed: int) -> None:
    strong = Augmentation(magnitude=1.0, erase=1.0, operations=3)
    view = augment(photo(width, height), HOW, strong, generator(seed, "view", 1, 2))
    assert view.shape == (3, 32, 24)
    assert torch.isfinite(view).all()
    assert torch.equal(view, augment(photo(width, height), HOW, strong, generator(seed, "view", 1, 2)))


def test_views_of_a_photo_differ() -> None:
    views = [augment(photo(), HOW, Augmentation(), generator(0, "view", epoch, 7)) for epoch in range(8)]
    assert all(not torch.equal(one, other) for i, one in enumerate(views) for other in views[:i])


def test_with_everything_off_a_flip_is_all_that_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_crop", lambda width, height, *rest: (0, 0, width, height))
    plain = Augmentation(flip=0.0, operations=0, erase=0.0)
    direct = preprocess(photo(), Preprocessing((32, 24), "squash", 1.0))
    assert torch.equal(augment(photo(), HOW, plain, np.random.default_rng(0)), direct)
    flipped = Augmentation(flip=1.0, operations=0, erase=0.0)
    assert torch.equal(augment(photo(), HOW, flipped, np.random.default_rng(0)), direct.flip(-1))


@pytest.mark.parametrize("name", sorted(module._OPERATIONS))
def test_every_operation_keeps_the_size_and_none_at_strength_0_is_lost(name: str) -> None:
    image = photo()
    for strength in (-1.0, -0.3, 0.0, 0.3, 1.0):
        result = module._OPERATIONS[name](image, strength)
        assert result.size == image.size
        assert result.mode == "RGB"
    if name not in ("autocontrast", "equalize"):
        assert np.array_equal(np.asarray(module._OPERATIONS[name](image, 0.0)), np.asarray(image))


def test_a_crop_lies_inside_and_takes_its_share() -> None:
    chance = np.random.default_rng(0)
    for _ in range(300):
        left, top, right, bottom = module._crop(60, 45, 24 / 32, 0.35, chance)
        assert 0 <= left < right <= 60 + 1e-6
        assert 0 <= top < bottom <= 45 + 1e-6
        assert (right - left) * (bottom - top) >= 0.3 * 60 * 45 * 0.5


def test_erasing_leaves_three_quarters() -> None:
    for seed in range(50):
        pixels = torch.full((3, 40, 30), 9.0)
        module._erase(pixels, np.random.default_rng(seed))
        erased = float((pixels != 9.0).float().mean())
        assert 0.0 < erased <= 0.35
