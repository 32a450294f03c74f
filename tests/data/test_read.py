"""Reading: every mode by value, every orientation upright, every fault a reason."""

from __future__ import annotations

import hashlib
import os
import threading
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageCms, ImageFile

from vitrail.data.read import UnreadableImage, _to_rgb, content_hash, read_image
from vitrail.errors import UserError

DATA = os.environ.get("VITRAIL_DATA")
needs_data = pytest.mark.skipif(DATA is None, reason="VITRAIL_DATA names no folder of unpacked real data")


def picture(width: int = 40, height: int = 24) -> Image.Image:
    """A picture without symmetry and without fine detail."""
    x, y = np.meshgrid(np.linspace(0, 1, width), np.linspace(0, 1, height))
    return Image.fromarray((255 * np.stack([x, y, x * y], -1)).astype(np.uint8))


def saved(image: Image.Image, path: Path, **options: object) -> Path:
    image.save(path, **options)
    return path


def pixel(path: Path, at: tuple[int, int] = (0, 0)) -> tuple[int, ...]:
    image = read_image(path)
    assert image.mode == "RGB"
    value = image.getpixel(at)
    assert isinstance(value, tuple)
    return value


# Modes


@pytest.mark.parametrize("mode", ["P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr", "LAB", "HSV"])
def test_red_is_red_in_every_mode_of_colour(mode: str) -> None:
    red = Image.new("RGB", (2, 2), (255, 0, 0))
    image = red.convert("RGBA").convert(mode) if mode in ("PA", "RGBa") else red.convert(mode)
    rgb = _to_rgb(image)
    assert rgb.mode == "RGB"
    assert np.allclose(rgb.getpixel((1, 1)), (255, 0, 0), atol=6)  # LAB in 8 bits is coarse


@pytest.mark.parametrize("mode", ["1", "L", "LA", "La"])
def test_white_and_black_are_so_in_every_mode_of_grey(mode: str) -> None:
    image = Image.fromarray(np.array([[0, 255]], dtype=np.uint8))
    rgb = _to_rgb(image.convert("LA").convert(mode) if mode == "La" else image.convert(mode))
    assert rgb.mode == "RGB"
    assert [rgb.getpixel((x, 0)) for x in (0, 1)] == [(0, 0, 0), (255, 255, 255)]


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "RGBA", "LA", "CMYK", "YCbCr", "LAB"])
def test_every_mode_a_file_can_hold(tmp_path: Path, mode: str) -> None:
    assert np.allclose(pixel(saved(Image.new("RGB", (8, 8), "white").convert(mode), tmp_path / "a.tif")), 255, atol=2)


@pytest.mark.parametrize(("mode", "suffix"), [("I;16", "png"), ("I;16", "tif"), ("I;16B", "tif"), ("I;16", "pgm")])
def test_sixteen_bit_grey_is_scaled_not_clipped(tmp_path: Path, mode: str, suffix: str) -> None:
    values = np.array([[0, 257, 32768, 65535]], dtype=">u2" if mode == "I;16B" else "<u2")
    image = Image.frombytes(mode, (4, 1), values.tobytes())
    path = saved(image, tmp_path / f"a.{suffix}")
    assert [pixel(path, (x, 0))[0] for x in range(4)] == [0, 1, 128, 255]


def test_thirty_two_bit_integers_and_floats_have_a_stated_range(tmp_path: Path) -> None:
    def grey(values: list[float], dtype: str) -> list[int]:
        path = saved(Image.fromarray(np.array([values], dtype=dtype)), tmp_path / "a.tif")
        return [pixel(path, (x, 0))[0] for x in range(len(values))]

    assert grey([0, 65535], "int32") == [0, 255]
    assert grey([0, 1_000_000, 500_000], "int32") == [0, 255, 128]
    assert grey([0.0, 1.0, 0.2], "float32") == [0, 255, 51]
    assert grey([0.0, 255.0, 3.0], "float32") == [0, 255, 3]
    assert grey([-1.0, 1.0, float("nan")], "float32") == [0, 255, 128]
    assert grey([-7.0, -7.0], "float32") == [0, 0]


def test_adobe_cmyk_is_not_inverted(tmp_path: Path) -> None:
    image = Image.new("CMYK", (16, 16), (0, 255, 255, 0))  # red ink
    path = saved(image, tmp_path / "a.jpg", quality=95)
    assert b"Adobe" in path.read_bytes()
    assert np.allclose(pixel(path), (255, 0, 0), atol=4)


def test_lab_agrees_with_littlecms(tmp_path: Path) -> None:
    rgb = Image.new("RGB", (4, 4), (30, 120, 200))
    lab = ImageCms.applyTransform(
        rgb,
        ImageCms.buildTransform(ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB"), "RGB", "LAB"),
    )
    assert lab is not None
    assert np.allclose(pixel(saved(lab, tmp_path / "a.tif")), (30, 120, 200), atol=8)


# Transparency


def test_half_transparent_pixels_are_laid_over_white(tmp_path: Path) -> None:
    assert pixel(saved(Image.new("RGBA", (2, 2), (0, 0, 255, 51)), tmp_path / "a.png")) == (204, 204, 255)
    assert pixel(saved(Image.new("LA", (2, 2), (0, 51)), tmp_path / "b.png")) == (204, 204, 204)


@pytest.mark.parametrize("key", [0, bytes([0, 255])])
def test_palettes_with_one_or_many_transparent_entries(tmp_path: Path, key: object) -> None:
    image = Image.new("P", (2, 1))
    image.putpalette([10, 20, 30, 200, 100, 50])
    image.putpixel((1, 0), 1)
    path = saved(image, tmp_path / "a.png", transparency=key)
    assert (pixel(path), pixel(path, (1, 0))) == ((255, 255, 255), (200, 100, 50))


def png(depth: int, kind: int, transparent: bytes, row: bytes, width: int) -> bytes:
    """A one-row PNG with a transparent colour, written by hand: Pillow writes none below 8 bits or above."""

    def chunk(name: bytes, body: bytes) -> bytes:
        return len(body).to_bytes(4, "big") + name + body + zlib.crc32(name + body).to_bytes(4, "big")

    header = width.to_bytes(4, "big") + (1).to_bytes(4, "big") + bytes([depth, kind, 0, 0, 0])
    chunks = [(b"IHDR", header), (b"tRNS", transparent), (b"IDAT", zlib.compress(b"\0" + row)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*parts) for parts in chunks)


@pytest.mark.parametrize(
    ("depth", "kind", "transparent", "row", "second"),
    [
        (1, 0, b"\0\0", b"\x40", (255, 255, 255)),
        (2, 0, b"\0\1", b"\x60", (170, 170, 170)),  # two pixels: 1, the transparent one, and 2
        (4, 0, b"\0\5", b"\x5a", (170, 170, 170)),
        (8, 0, b"\0\5", b"\x05\xaa", (170, 170, 170)),
        (16, 0, b"\x12\x34", b"\x12\x34\xaa\xaa", (170, 170, 170)),
        (8, 2, b"\0\1\0\2\0\3", b"\1\2\3\4\5\6", (4, 5, 6)),
        (16, 2, b"\1\1\2\2\3\3", b"\1\1\2\2\3\3\4\4\5\5\6\6", (4, 5, 6)),
    ],
)
def test_transparent_colour_at_every_depth(
    tmp_path: Path, depth: int, kind: int, transparent: bytes, row: bytes, second: tuple[int, ...]
) -> None:
    (tmp_path / "a.png").write_bytes(png(depth, kind, transparent, row, width=2))
    assert pixel(tmp_path / "a.png") == (255, 255, 255)
    assert pixel(tmp_path / "a.png", (1, 0)) == second


# Orientation


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "tif"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_is_applied_once(tmp_path: Path, suffix: str, orientation: int) -> None:
    upright = picture()
    stored = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }
    image = upright.transpose(stored[orientation]) if orientation > 1 else upright
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = read_image(saved(image, tmp_path / f"a.{suffix}", exif=exif, quality=95))
    assert image.size == upright.size
    assert np.abs(np.asarray(image, int) - np.asarray(upright, int)).mean() < 3
    assert not image.getexif()


def test_damaged_exif_does_not_cost_the_picture(tmp_path: Path) -> None:
    path = saved(picture(), tmp_path / "a.jpg", exif=b"Exif\0\0MM\0*\0\0\0\x08\xff\xff" + b"\x01\x12\0\3" * 3)
    assert read_image(path).size == (40, 24)


def test_first_frame_of_an_animation(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "blue")]
    for suffix in ("gif", "webp", "png", "tif"):
        path = saved(frames[0], tmp_path / f"a.{suffix}", save_all=True, append_images=frames[1:], lossless=True)
        assert pixel(path) == (255, 0, 0)


# Faults


def reason(path: Path, **options: int) -> str:
    with pytest.raises(UnreadableImage) as caught:
        read_image(path, **options)
    assert str(caught.value) == caught.value.reason
    return caught.value.reason


def test_reasons(tmp_path: Path) -> None:
    def file(name: str, content: bytes) -> Path:
        (tmp_path / name).write_bytes(content)
        return tmp_path / name

    good = saved(picture(400, 300), tmp_path / "a.jpg").read_bytes()
    assert reason(file("cut.jpg", good[: len(good) // 2])) == "truncated file"
    assert reason(file("empty.jpg", b"")) == "zero bytes"
    assert reason(file("text.jpg", b"no picture at all, only words")) == "not an image"
    assert reason(file("header.png", b"\x89PNG\r\n\x1a\nrubbish")) == "damaged PNG header"
    assert reason(file("a.heic", b"\0\0\0\x18ftypheic\0\0\0\0")) == "an HEIC picture: convert it to JPEG or PNG"
    assert reason(file("a.eps", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n")) == "not an image"
    assert reason(tmp_path / "nowhere.jpg") == "no such file"
    assert reason(tmp_path) == "a folder, not a file"
    assert reason(tmp_path / "nul\0.jpg") == "not a possible file name"
    assert reason(tmp_path / "cut.jpg" / "x.jpg") == "not a directory"


def test_special_files_are_refused_not_waited_for(tmp_path: Path) -> None:
    (tmp_path / "broken.jpg").symlink_to(tmp_path / "nowhere")
    assert reason(tmp_path / "broken.jpg") == "broken symbolic link"
    (tmp_path / "loop.jpg").symlink_to(tmp_path / "loop.jpg")
    assert reason(tmp_path / "loop.jpg") == "symbolic link to itself"
    os.mkfifo(tmp_path / "pipe.jpg")
    assert reason(tmp_path / "pipe.jpg") == "not a regular file"


def test_permission_denied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = saved(picture(), tmp_path / "a.png")

    def refuse(*_: object) -> None:  # root, who runs many test machines, may read every file
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("builtins.open", refuse)
    assert reason(path) == "permission denied"


def test_large_pictures_are_refused_before_they_are_decoded(tmp_path: Path) -> None:
    huge = png(8, 0, b"\0\0", b"", width=20_000)
    huge = huge[:20] + (20_000).to_bytes(4, "big") + huge[24:29] + zlib.crc32(b"").to_bytes(4, "big") + huge[33:]
    body = huge[12:29]
    huge = huge[:29] + zlib.crc32(body).to_bytes(4, "big") + huge[33:]
    (tmp_path / "a.png").write_bytes(huge)
    assert reason(tmp_path / "a.png") == "400 megapixels, over the limit of 179 (VITRAIL_MAX_PIXELS sets it)"
    assert reason(saved(picture(2000, 1500), tmp_path / "b.png"), max_pixels=2_000_000) == (
        "3 megapixels, over the limit of 2 (VITRAIL_MAX_PIXELS sets it)"
    )


def test_the_limit_of_pixels_is_the_environments(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = saved(picture(40, 30), tmp_path / "a.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)  # Pillow would refuse 1,200 by itself
    monkeypatch.setenv("VITRAIL_MAX_PIXELS", "1200")
    assert read_image(path).size == (40, 30)
    monkeypatch.setenv("VITRAIL_MAX_PIXELS", "1199")
    assert "over the limit" in reason(path)
    monkeypatch.setenv("VITRAIL_MAX_PIXELS", "many")
    with pytest.raises(UserError, match="VITRAIL_MAX_PIXELS should be a number of pixels"):
        read_image(path)


def test_pillows_own_warning_about_size_stays_inside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = saved(picture(12, 12), tmp_path / "a.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)  # Pillow warns above it, and refuses above twice that
    assert read_image(path).size == (12, 12)
    assert reason(saved(picture(2000, 1500), tmp_path / "b.png")).startswith("3 megapixels, over the limit of 179")


def test_content_hash(tmp_path: Path) -> None:
    content = bytes(range(256)) * 9000
    (tmp_path / "a").write_bytes(content)
    assert content_hash(tmp_path / "a") == hashlib.sha256(content).hexdigest()
    with pytest.raises(UnreadableImage, match="no such file"):
        content_hash(tmp_path / "b")


# Warnings


def test_warnings_are_silenced_in_the_reading_thread_and_nowhere_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = saved(picture(), tmp_path / "a.png")
    inside, outside = threading.Event(), threading.Event()
    load = ImageFile.ImageFile.load

    def warns(image: ImageFile.ImageFile) -> object:
        warnings.warn("from the decoder", stacklevel=1)
        inside.set()
        assert outside.wait(10)
        return load(image)

    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", warns)
    read: list[Image.Image] = []
    reader = threading.Thread(target=lambda: read.append(read_image(path)))
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        reader.start()
        assert inside.wait(10)
        warnings.warn("from somebody else", stacklevel=1)
        outside.set()
        reader.join()
        warnings.warn("afterwards", stacklevel=1)
    assert len(read) == 1
    assert [str(warning.message) for warning in heard] == ["from somebody else", "afterwards"]


def test_filters_do_not_pile_up(tmp_path: Path) -> None:
    path = saved(picture(), tmp_path / "a.png")
    read_image(path)
    before = len(warnings.filters)
    for _ in range(3):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            read_image(path)
        warnings.simplefilter("error")
        read_image(path)
    assert len(warnings.filters) <= before + 1


# Real files


@needs_data
def test_every_file_of_pngsuite() -> None:
    assert DATA is not None
    read, reasons = 0, {}
    for path in sorted((Path(DATA) / "pngsuite").glob("*.png")):
        try:
            assert read_image(path).mode == "RGB"
            read += 1
        except UnreadableImage as error:
            reasons[path.stem] = error.reason
    assert all(name.startswith("x") for name in reasons)
    assert read >= 162
    assert reasons["xs1n0g01"] == "not an image"
    assert reasons["xhdn0g08"] == "damaged PNG header"


@needs_data
@pytest.mark.parametrize("kind", ["Landscape", "Portrait"])
def test_the_nine_orientations_of_one_photo_are_nearly_equal(kind: str) -> None:
    assert DATA is not None
    photos = [read_image(Path(DATA) / "exif-orientation" / f"{kind}_{n}.jpg") for n in range(9)]
    width, height = photos[0].size
    assert (width > height) == (kind == "Landscape")
    # The number drawn in the middle differs, so a few pixels do.
    small = [np.asarray(photo.resize((60, 60)), float) for photo in photos]
    assert all(photo.size == (width, height) for photo in photos)
    assert max(np.abs(photo - small[0]).mean() for photo in small) < 3
