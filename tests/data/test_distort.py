"""Each distortion alone, and what a view is a function of."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from vitrail.config import Preprocessing
from vitrail.data.distort import Distortion, distort
from vitrail.data.preprocess import preprocess

HOW = Preprocessing((32, 24), mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
NOTHING = Distortion(smallest_crop=1.0, flip=0.0, jitter=0.0, grey=0.0, blur=0.0)
JITTER = replace(NOTHING, jitter=1.0, brightness=0.0, contrast=0.0, saturation=0.0, hue=0.0)


def photo(width: int = 24, height: int = 32) -> Image.Image:
    """Of the views' size, so that a crop of all of it changes nothing."""
    return Image.fromarray(np.random.default_rng(0).integers(20, 230, (height, width, 3), dtype=np.uint8))


def seen(policy: Distortion, seed: int = 0, image: Image.Image | None = None) -> torch.Tensor:
    return distort(image or photo(), HOW, policy, np.random.default_rng(seed))


@pytest.fixture(autouse=True)
def _whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vitrail.data.augment._crop", lambda width, height, *rest: (0, 0, width, height))


PLAIN = preprocess(photo(), replace(HOW, fit="squash", crop_fraction=1.0))


def test_with_everything_off_nothing_changes() -> None:
    assert torch.equal(seen(NOTHING), PLAIN)
    assert torch.equal(seen(JITTER), PLAIN)


def test_flip_grey_and_solarize() -> None:
    assert torch.equal(seen(replace(NOTHING, flip=1.0)), PLAIN.flip(-1))
    grey = seen(replace(NOTHING, grey=1.0))
    assert torch.equal(grey, grey[:1].expand(3, -1, -1))
    weights = torch.tensor([0.299, 0.587, 0.114])[:, None, None]
    torch.testing.assert_close(grey[0], (PLAIN * weights).sum(0), rtol=0, atol=1 / 255)
    inverted = torch.where(PLAIN * 255 >= 127.5, 1 - PLAIN, PLAIN)
    torch.testing.assert_close(seen(replace(NOTHING, solarize=1.0)), inverted, rtol=0, atol=1e-6)


def test_blur_leaves_the_mean_and_takes_the_detail() -> None:
    large = Image.fromarray(np.random.default_rng(0).integers(0, 256, (224, 224, 3), dtype=np.uint8))
    how = replace(HOW, size=(224, 224))
    plain = distort(large, how, NOTHING, np.random.default_rng(1))
    blurred = distort(large, how, replace(NOTHING, blur=1.0), np.random.default_rng(1))
    assert float(blurred.mean()) == pytest.approx(float(plain.mean()), abs=0.01)
    assert float(blurred.std()) < 0.7 * float(plain.std())


@pytest.mark.parametrize("change", ["brightness", "contrast", "saturation", "hue"])
def test_each_change_of_colour_keeps_what_it_should(change: str) -> None:
    views = torch.stack([seen(replace(JITTER, **{change: 0.2}), seed) for seed in range(6)])
    assert not any(torch.equal(view, PLAIN) for view in views)
    mean, original = views.mean(dim=(2, 3)), PLAIN.mean(dim=(1, 2))
    if change == "brightness":  # all channels scale alike
        ratios = mean / original
        assert float((ratios - ratios[:, :1]).abs().max()) < 0.02
        assert 0.79 < float(ratios.min()) < float(ratios.max()) < 1.21
    elif change == "hue":  # the largest channel stays as large
        assert float((views.amax(dim=1) - PLAIN.amax(dim=0)).abs().max()) < 3 / 255
    else:  # around the picture's grey, and each pixel's
        assert float((mean.mean(dim=1) - original.mean()).abs().max()) < 0.02


def test_the_order_of_the_changes_varies() -> None:
    policy = replace(JITTER, brightness=0.4, contrast=0.4, saturation=0.2, hue=0.1)
    views = [seen(policy, seed) for seed in range(20)]
    assert all(not torch.equal(one, other) for i, one in enumerate(views) for other in views[:i])


@settings(max_examples=40)
@given(width=st.integers(1, 90), height=st.integers(1, 90), seed=st.integers(0, 10**6))
def test_any_photo_gives_a_finite_view_that_the_generator_decides(width: int, height: int, seed: int) -> None:
    policy = Distortion(solarize=0.5)
    image = photo(width, height)
    view = seen(policy, seed, image)
    assert view.shape == (3, 32, 24)
    assert view.dtype == torch.float32
    assert torch.isfinite(view).all()
    assert torch.equal(view, seen(policy, seed, image))
