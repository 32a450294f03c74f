"""Whatever the bytes are: an RGB picture or a reason, never another exception or a warning."""

from __future__ import annotations

import io
import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from vitrail.data.read import UnreadableImage, read_image


def encoded(name: str) -> bytes:
    format, _, variant = name.partition("-")
    image = Image.merge("RGB", [Image.linear_gradient("L").resize((30, 20)).rotate(turn) for turn in (0, 90, 180)])
    if variant == "palette":
        image = image.quantize(16)
    elif variant == "alpha":
        image.putalpha(Image.linear_gradient("L").resize(image.size))
    elif variant == "grey16":
        image = Image.fromarray(np.arange(600, dtype=np.uint16).reshape(20, 30) * 100)
    options: dict[str, object] = {"compression": "tiff_lzw"} if variant == "lzw" else {}
    if variant == "animated":
        options = {"save_all": True, "append_images": [Image.new(image.mode, image.size)]}
    if variant == "exif":
        exif = Image.Exif()
        exif[0x0112], exif[0x010E] = 6, "words"
        options = {"exif": exif}
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


FILES = {
    name: encoded(name)
    for name in (
        *("JPEG", "JPEG-exif", "PNG", "PNG-palette", "PNG-alpha", "PNG-grey16", "PNG-exif", "GIF", "GIF-animated"),
        *("WEBP", "WEBP-alpha", "WEBP-animated", "TIFF", "TIFF-lzw", "TIFF-grey16", "BMP", "BMP-palette", "ICO"),
        *("PPM", "JPEG2000", "PCX", "QOI", "SGI"),
    )
}


@settings(max_examples=800, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_mutated_files_give_a_picture_or_a_reason(data: st.DataObject, tmp_path: Path) -> None:
    content = bytearray(FILES[data.draw(st.sampled_from(sorted(FILES)), label="file")])
    for _ in range(data.draw(st.integers(1, 4), label="changes")):
        # Half of the changes fall on the header, where they do most.
        end = data.draw(st.sampled_from([64, len(content)]))
        at = data.draw(st.integers(0, max(min(end, len(content)) - 1, 0)), label="at")
        match data.draw(st.sampled_from(["byte", "cut", "insert", "delete"]), label="change"):
            case "byte":
                content[at : at + 1] = bytes([data.draw(st.integers(0, 255))])
            case "cut":
                del content[at:]
            case "insert":
                content[at:at] = data.draw(st.binary(min_size=1, max_size=8))
            case "delete":
                del content[at : at + data.draw(st.integers(1, 8))]
    (tmp_path / "a.jpg").write_bytes(content)
    try:
        image = read_image(tmp_path / "a.jpg", max_pixels=1_000_000)
        outcome = f"{image.mode} {image.width * image.height <= 1_000_000}"
    except UnreadableImage as error:
        outcome = error.reason
    assert outcome == "RGB True" or re.fullmatch(r"[a-z0-9][^\n]{2,110}", outcome)


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(content=st.binary(max_size=64))
def test_random_bytes_give_a_reason(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(content)
    with pytest.raises(UnreadableImage):
        read_image(tmp_path / "a.jpg", max_pixels=1_000_000)
