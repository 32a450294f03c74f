"""Pixels equal to transformers' and timm's."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image
from timm.data import create_transform
from transformers.models.bit.image_processing_pil_bit import BitImageProcessorPil
from transformers.models.deit.image_processing_pil_deit import DeiTImageProcessorPil
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

from vitrail.config import IMAGENET_MEAN, IMAGENET_STD, Preprocessing, Size
from vitrail.data.preprocess import _covering, _plan, load, preprocess
from vitrail.data.read import read_image

SHAPES = [(300, 300), (427, 640), (640, 427), (47, 33), (224, 224), (333, 501), (1000, 90)]
"""Height, width."""


QUICK = [
    Preprocessing(mean=(0.0,) * 3, std=(1.0,) * 3, **rest)
    for rest in (
        {"size": (64, 64), "crop_fraction": 0.875, "interpolation": "bicubic"},
        {"size": (96, 64), "crop_fraction": 1.0, "interpolation": "bilinear", "fit": "squash"},
        {"size": (224, 224), "crop_fraction": 0.9, "interpolation": "bicubic"},
    )
]
"""Levels from 0 to 1."""


def noise(shape: Size) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8))


@pytest.mark.parametrize("shape", SHAPES)
def test_crop_equals_transformers(shape: Size) -> None:
    reference = BitImageProcessorPil(
        size={"shortest_edge": 256}, crop_size=224, image_mean=IMAGENET_MEAN, image_std=IMAGENET_STD
    )
    ours = preprocess(noise(shape), Preprocessing(crop_fraction=0.875, mean=IMAGENET_MEAN, std=IMAGENET_STD))
    assert ours.dtype == torch.float32
    assert ours.is_contiguous()
    assert torch.equal(ours, reference(noise(shape), return_tensors="pt")["pixel_values"][0])


@pytest.mark.parametrize("edge", [225, 256, 257, 248, 311])
def test_any_shortest_edge_of_transformers(edge: int) -> None:
    reference = BitImageProcessorPil(
        size={"shortest_edge": edge}, crop_size=224, image_mean=[0.5] * 3, image_std=[0.5] * 3
    )
    ours = preprocess(noise((300, 410)), Preprocessing(crop_fraction=224 / edge))
    assert torch.equal(ours, reference(noise((300, 410)), return_tensors="pt")["pixel_values"][0])


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("size", [(224, 224), (224, 168)])
def test_squash_equals_transformers(shape: Size, size: Size) -> None:
    reference = ViTImageProcessorPil(size={"height": size[0], "width": size[1]})
    ours = preprocess(noise(shape), Preprocessing(size=size, fit="squash", crop_fraction=1.0, interpolation="bilinear"))
    assert ours.shape == (3, *size)
    assert torch.equal(ours, reference(noise(shape), return_tensors="pt")["pixel_values"][0])


@pytest.mark.parametrize(
    ("fraction", "interpolation"), [(0.875, "bicubic"), (0.9, "bicubic"), (1.0, "bicubic"), (0.95, "bilinear")]
)
@pytest.mark.parametrize("size", [(224, 224), (224, 168), (168, 224)])
@pytest.mark.parametrize("shape", SHAPES)
def test_crop_equals_timm(shape: Size, size: Size, fraction: float, interpolation: str) -> None:
    how = Preprocessing(size, "crop", fraction, interpolation, IMAGENET_MEAN, IMAGENET_STD)  # type: ignore[arg-type]
    reference = create_transform(
        size, crop_pct=fraction, interpolation=interpolation, mean=IMAGENET_MEAN, std=IMAGENET_STD
    )(noise(shape))
    ours = preprocess(noise(shape), how)
    assert ours.shape == (3, *size)
    surplus = [whole - kept for whole, kept in zip(_covering(shape, how), size, strict=True)]
    # timm rounds an offset of 1.5, 3.5, ... up, transformers and we down: one pixel apart there.
    down, right = (pixels % 4 == 3 for pixels in surplus)
    ours = ours[:, down:, right:]
    reference = reference[:, : size[0] - down, : size[1] - right]
    assert torch.equal(ours, reference)


@settings(max_examples=60, deadline=None)
@given(
    st.tuples(st.integers(1, 3000), st.integers(1, 3000)).filter(lambda shape: shape[0] * shape[1] < 100_000),
    st.tuples(st.integers(1, 40), st.integers(1, 40)),
    st.floats(0.3, 1.0),
    st.sampled_from(["crop", "squash"]),
    st.sampled_from(["nearest", "bilinear", "bicubic", "lanczos"]),
)
def test_any_shape_gives_the_size_asked_for(
    shape: Size, size: Size, fraction: float, fit: str, interpolation: str
) -> None:
    white = Image.new("RGB", (shape[1], shape[0]), "white")
    how = Preprocessing(size, fit, fraction, interpolation)  # type: ignore[arg-type]
    assert torch.equal(preprocess(white, how), torch.ones(3, *size))  # no padding: every pixel is the picture's


@settings(max_examples=150, deadline=None)
@given(
    st.tuples(st.integers(1, 300), st.integers(1, 300)),
    st.tuples(st.integers(1, 120), st.integers(1, 120)),
    st.floats(0.3, 1.0),
    st.sampled_from(["crop", "squash"]),
    st.sampled_from(["nearest", "bilinear", "bicubic", "lanczos"]),
)
def test_resizing_no_more_than_is_kept_changes_nothing(
    shape: Size, size: Size, fraction: float, fit: str, interpolation: str
) -> None:
    image, how = noise(shape), Preprocessing(size, fit, fraction, interpolation, (0.0,) * 3, (1.0,) * 3)  # type: ignore[arg-type]
    (rows, columns), box = _plan(shape, how)
    whole = image.resize((columns, rows), Image.Resampling[interpolation.upper()], box)
    top, left = (rows - size[0]) // 2, (columns - size[1]) // 2
    expected = np.asarray(whole)[top : top + size[0], left : left + size[1]].transpose(2, 0, 1)
    assert np.array_equal(np.rint(preprocess(image, how).numpy() * 255), expected)


@pytest.mark.parametrize(
    ("mean", "std"), [((0.5,) * 3, (0.5,) * 3), (IMAGENET_MEAN, IMAGENET_STD), ((0.4814, 0.45, 0.4), (0.26, 0.2, 1e-3))]
)
def test_standardised_as_in_float32_one_step_after_the_other(
    mean: tuple[float, ...], std: tuple[float, ...], tmp_path: Path
) -> None:
    """All 256 values of every channel, to the bit; also where it is written to a place that is given."""
    levels = np.arange(256, dtype=np.uint8).reshape(16, 16, 1).repeat(3, axis=2)
    how = Preprocessing((16, 16), "squash", 1.0, mean=mean, std=std)
    expected = (levels.astype(np.float32) / 255 - np.array(mean, np.float32)) / np.array(std, np.float32)
    Image.fromarray(levels).save(tmp_path / "a.png")
    batch = np.full((2, 3, 16, 16), np.nan, np.float32)
    given = load(tmp_path / "a.png", how, out=batch[1])
    assert np.array_equal(batch[1].transpose(1, 2, 0), expected)
    assert given.data_ptr() == batch[1].ctypes.data
    assert torch.equal(given, preprocess(Image.fromarray(levels), how))
    assert np.isnan(batch[0]).all()


@pytest.mark.parametrize("shape", [(375, 500), (500, 375), (639, 700)])
def test_a_photo_less_than_five_times_too_large_is_read_whole(shape: Size, tmp_path: Path) -> None:
    noise(shape).save(tmp_path / "a.jpg", quality=90)
    for how in (Preprocessing(), Preprocessing((112, 112)), Preprocessing((128, 128), "squash", 1.0)):
        assert torch.equal(load(tmp_path / "a.jpg", how), preprocess(read_image(tmp_path / "a.jpg"), how))


def test_a_line_one_pixel_high_is_not_enlarged_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[Size] = []
    resize = Image.Image.resize
    monkeypatch.setattr(
        Image.Image, "resize", lambda image, size, *rest: (sizes.append(size), resize(image, size, *rest))[1]
    )
    assert preprocess(Image.new("RGB", (60_000, 1)), Preprocessing()).shape == (3, 224, 224)
    assert sizes == [(256 * 16, 256)]


@pytest.mark.parametrize("shape", [(300, 200), (199, 301), (64, 64)])
def test_a_squash_with_a_margin_equals_transformers_deit(shape: Size) -> None:
    """256 x 256 whatever the aspect, then the centre's 224."""
    image = noise(shape)
    reference = DeiTImageProcessorPil()(image, return_tensors="pt")["pixel_values"][0]
    how = Preprocessing((224, 224), "squash", 224 / 256)
    assert torch.equal(preprocess(image, how), reference)


@pytest.mark.parametrize("how", QUICK)
@given(height=st.integers(1, 700), width=st.integers(1, 700))
@settings(max_examples=50)
@example(height=149, width=74)  # columns first
@example(height=500, width=375)
def test_quickly_resized_is_two_levels_away_at_most(how: Preprocessing, height: int, width: int) -> None:
    exact, quick = (load(_png(noise((height, width))), how, quick=quick) for quick in (False, True))
    assert np.rint((quick - exact).abs().numpy() * 255).max() <= 2


@pytest.mark.parametrize("how", QUICK)
def test_quickly_resized_most_levels_are_the_same(how: Preprocessing) -> None:
    exact, quick = (load(_png(noise((375, 500))), how, quick=quick) for quick in (False, True))
    apart = np.rint((quick - exact).abs().numpy() * 255)
    assert 0 < (apart > 0).mean() < 0.01, "some differ, or it was not PyTorch that resized"


def test_what_pytorch_cannot_or_should_not_resize_is_as_ever() -> None:
    large = (2049, 2048)
    for shape, interpolation in (
        ((60, 80), "lanczos"), ((60, 80), "nearest"), ((2, 900), "bicubic"), (large, "bicubic"),
    ):  # fmt: skip
        how = Preprocessing(size=(32, 32), interpolation=interpolation)
        assert torch.equal(*(load(_png(noise(shape)), how, quick=quick) for quick in (False, True)))


def _png(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()
