"""Large JPEGs decoded at a fraction: nearly the same picture, whatever the file, and never one that has no blocks."""

from __future__ import annotations

import io
import os
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from vitrail.config import Fit, Interpolation, Preprocessing, Size
from vitrail.data.jpeg import MARGIN, divisor
from vitrail.data.preprocess import load, preprocess, resized
from vitrail.data.read import UnreadableImage, read_image, read_reduced

DATA = os.environ.get("VITRAIL_DATA")
STORED = {
    1: None,
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}
"""How an upright picture is turned before it is written with an EXIF orientation."""


def photo(height: int, width: int, seed: int = 0) -> Image.Image:
    """Shapes of all sizes down to a pixel, the finer the fainter, as in photos."""
    rng, total = np.random.default_rng(seed), np.zeros((height, width, 3))
    for cell in (1, 2, 4, 8, 16, 32, 64):
        shape = (max(1, height // cell), max(1, width // cell), 3)
        small = Image.fromarray(rng.integers(0, 256, shape, dtype=np.uint8))
        total += np.asarray(small.resize((width, height), Image.Resampling.BICUBIC), float) * cell
    return Image.fromarray((total / 127).astype(np.uint8))


def written(image: Image.Image, path: Path, orientation: int = 1, **options: object) -> Path:
    exif = Image.Exif()
    exif[0x0112] = orientation
    turn = STORED[orientation]
    (image if turn is None else image.transpose(turn)).save(path, "JPEG", exif=exif, quality=90, **options)
    return path


def outcome(read: Callable[[], object]) -> str:
    """What was read, as text, or the reason why it was not."""
    try:
        return str(read())
    except UnreadableImage as error:
        return error.reason


def apart(path: Path, how: Preprocessing) -> tuple[float, float]:
    """Mean and largest difference, in levels of 255, to the same picture decoded whole."""
    scale = 255 * torch.tensor(how.std)[:, None, None]
    difference = (scale * (load(path, how) - preprocess(read_image(path), how))).abs()
    return float(difference.mean()), float(difference.max())


def test_what_is_left_is_the_margin_and_no_more_than_twice() -> None:
    assert [divisor(surplus) for surplus in (0.1, 1.0, 4.99, 5.0, 9.99, 10.0, 19.99, 20.0, 1e6)] == [
        *(1, 1, 1, 2, 2, 4, 4, 8, 8),
    ]
    assert all(
        MARGIN <= surplus / divisor(surplus) < 2 * MARGIN for surplus in np.linspace(MARGIN, 16 * MARGIN, 99)[:-1]
    )


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("size", [(601, 805), (800, 600)])
@pytest.mark.parametrize("fit", ["crop", "squash"])
def test_orientations_and_sizes_that_do_not_divide(tmp_path: Path, orientation: int, size: Size, fit: Fit) -> None:
    path = written(photo(*size), tmp_path / "a.jpg", orientation)
    how = Preprocessing((28, 35), fit)
    needed = {"crop": 40, "squash": 32}[fit]
    image, extent = read_reduced(path, lambda found: min(found) / needed)
    assert extent.size == size
    assert image.size == (-(-size[1] // 4), -(-size[0] // 4))
    width, height = extent.box[2] - extent.box[0], extent.box[3] - extent.box[1]
    assert (width, height) == (size[1] / 4, size[0] / 4)
    mean, most = apart(path, how)
    assert 0 < mean < 0.7
    assert most <= 6


def test_a_wrong_extent_would_be_noticed(tmp_path: Path) -> None:
    """The bound above is tighter than what leaving the incomplete last pixel in, or at the wrong end, makes of it."""
    path = written(photo(601, 805), tmp_path / "a.jpg")
    how = Preprocessing((28, 35), "squash", 1.0)
    whole = np.asarray(resized(path, how), float)
    image, _ = read_reduced(path, lambda found: min(found) / 32)
    for box in ((0, 0, *image.size), (0.75, 0.75, *image.size)):
        other = np.asarray(image.resize((35, 28), Image.Resampling.BICUBIC, box), float)
        assert np.abs(other - whole).mean() > 0.3


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.tuples(st.integers(40, 500), st.integers(40, 500)),
    st.tuples(st.integers(4, 24), st.integers(4, 24)),
    st.sampled_from(["crop", "squash"]),
    st.floats(0.6, 1.0),
    st.sampled_from(["bilinear", "bicubic", "lanczos"]),
    st.integers(1, 8),
    st.sampled_from([0, 1, 2]),
)
def test_any_size_is_nearly_the_same(
    tmp_path: Path,
    shape: Size,
    size: Size,
    fit: Fit,
    fraction: float,
    interpolation: Interpolation,
    orientation: int,
    subsampling: int,
) -> None:
    path = written(photo(*shape), tmp_path / "a.jpg", orientation, subsampling=subsampling)
    mean, most = apart(path, Preprocessing(size, fit, fraction, interpolation))
    assert mean < 2
    assert most < 16


@pytest.mark.parametrize("mode", ["L", "CMYK", "progressive"])
def test_other_kinds_of_jpeg(tmp_path: Path, mode: str) -> None:
    image = photo(400, 500)
    options = {"progressive": True} if mode == "progressive" else {}
    path = written(image if options else image.convert(mode), tmp_path / "a.jpg", **options)
    assert read_reduced(path, lambda size: 10.0)[0].size == (125, 100)
    assert apart(path, Preprocessing((32, 32)))[0] < 1


def test_two_pictures_in_one_file(tmp_path: Path) -> None:
    """MPO, which phones write: the first is taken."""
    first = photo(400, 500)
    first.save(tmp_path / "a.jpg", "MPO", save_all=True, append_images=[Image.new("RGB", (500, 400))], quality=90)
    assert read_reduced(tmp_path / "a.jpg", lambda size: 10.0)[0].size == (125, 100)
    assert apart(tmp_path / "a.jpg", Preprocessing((32, 32)))[0] < 1


def segment(marker: int, content: bytes) -> bytes:
    return struct.pack(">BBH", 0xFF, marker, len(content) + 2) + content


def lossless(width: int, height: int) -> bytes:
    """A grey JPEG of the lossless process (ITU-T T.81, annex H): no difference anywhere from the middle grey."""
    frame = struct.pack(">BHHB", 8, height, width, 1) + bytes([1, 0x11, 0])
    codes = bytes([0, 1, *[0] * 15, 0])  # one code, of one bit, for a difference of none
    scan = bytes([1, 1, 0, 1, 0, 0])
    pixels = bytes(-(-width * height // 8))
    return b"\xff\xd8" + segment(0xC3, frame) + segment(0xC4, codes) + segment(0xDA, scan) + pixels + b"\xff\xd9"


def test_a_lossless_one_is_decoded_whole(tmp_path: Path) -> None:
    path = tmp_path / "a.jpg"
    path.write_bytes(lossless(512, 256))
    image, extent = read_reduced(path, lambda size: 100.0)
    assert image.size == (512, 256)
    assert extent.box == (0, 0, 512, 256)
    assert image.getextrema() == ((128, 128),) * 3
    assert apart(path, Preprocessing((16, 16))) == (0, 0)


def test_odd_headers_are_decoded_whole(tmp_path: Path) -> None:
    """A second frame, fill bytes, an end before the pixels: libjpeg may see another picture there than we do."""
    path = written(photo(256, 256), tmp_path / "a.jpg")
    whole = path.read_bytes()
    assert read_reduced(path, lambda size: 100.0)[0].size == (32, 32)
    for odd in (
        b"\xff\xd8" + b"\xff\xff" + whole[3:],
        b"\xff\xd8" + b"\0" + whole[2:],
        b"\xff\xd8\xff\xd9" + whole,
        b"\xff\xd8" + segment(0xC3, struct.pack(">BHHB", 8, 256, 256, 3) + bytes(9)) + whole[2:],
    ):
        path.write_bytes(odd)
        assert outcome(lambda: read_reduced(path, lambda size: 100.0)[0].size) == outcome(lambda: read_image(path).size)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_damaged_file_gives_the_same_reason(
    data: st.DataObject, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VITRAIL_MAX_PIXELS", "1000000")
    file = io.BytesIO()
    photo(96, 128).save(file, "JPEG", quality=80)
    content = bytearray(file.getvalue())
    for _ in range(data.draw(st.integers(1, 3), label="changes")):
        at = data.draw(st.integers(0, len(content) - 1), label="at")
        if data.draw(st.booleans(), label="cut"):
            del content[max(at, 20) :]
        else:
            content[at] = data.draw(st.integers(0, 255))
    path = tmp_path / "a.jpg"
    path.write_bytes(content)
    reduced = outcome(lambda: read_reduced(path, lambda size: min(size) / 9)[1].size[::-1])
    assert reduced == outcome(lambda: read_image(path).size)


@pytest.mark.skipif(not DATA, reason="VITRAIL_DATA names no folder with exif-orientation and pngsuite")
def test_real_photos_in_every_orientation() -> None:
    """1800 x 1200: whole for 224 pixels, at a half for 168, at a quarter for 84."""
    assert DATA is not None
    paths = sorted((Path(DATA) / "exif-orientation").glob("*.jpg"))
    assert apart(paths[0], Preprocessing((224, 224))) == (0, 0)
    for path, size in zip(paths, [168, 84] * 9, strict=True):
        mean, _ = apart(path, Preprocessing((size, size)))
        assert 0 < mean < 0.6


@pytest.mark.skipif(not DATA, reason="VITRAIL_DATA names no folder with exif-orientation and pngsuite")
def test_what_is_no_jpeg_is_the_same_to_the_bit() -> None:
    assert DATA is not None
    how, read = Preprocessing((4, 4)), 0
    for path in sorted((Path(DATA) / "pngsuite").glob("*.png")):
        expected = outcome(lambda path=path: preprocess(read_image(path), how).tolist())  # type: ignore[misc]
        assert outcome(lambda path=path: load(path, how).tolist()) == expected  # type: ignore[misc]
        read += expected.startswith("[")
    assert read >= 162
