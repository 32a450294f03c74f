"""Any file a person calls a picture -> an upright RGB image, or the reason why not."""

from __future__ import annotations

import errno
import hashlib
import io
import os
import re
import stat
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image, UnidentifiedImageError

from vitrail.config import Size
from vitrail.data.jpeg import divide, divisor
from vitrail.errors import UserError

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "DIB", "TIFF", "AVIF", "JPEG2000", "PPM", "ICO", "PCX", "SGI", "QOI")
"""Pictures only: Pillow would also open, say, EPS, by running Ghostscript on a stranger's program."""

_ORIENTATION_TAG = 0x0112
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""EXIF orientation (CIPA DC-008, table 6) -> what makes the picture upright."""
_ON_THE_SIDE = frozenset({5, 6, 7, 8})
"""Orientations whose width is the upright picture's height."""


class UnreadableImage(Exception):
    """A file that gives no picture; ``reason`` is a short lower-case phrase, without the file's name."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


Box = tuple[float, float, float, float]
"""Left, top, right, bottom, in pixels."""


@dataclass(frozen=True)
class Extent:
    """How large a picture is, and where it lies in what was decoded of it."""

    size: Size
    """Height and width of the upright picture in the file."""
    box: Box
    """Where it is in the decoded image, which may be smaller, and larger than the picture by less than a pixel."""

    @classmethod
    def of(cls, image: Image.Image) -> Extent:
        """A whole image."""
        return cls((image.height, image.width), (0.0, 0.0, float(image.width), float(image.height)))


MAX_PIXELS = 178_956_970
"""Pictures with more are not decoded, unless the environment's VITRAIL_MAX_PIXELS says otherwise."""


Picture = str | Path | bytes
"""A file's path, or what would be in it."""


def read_image(picture: Picture, max_pixels: int | None = None) -> Image.Image:
    """Decode the first frame of a picture: mode RGB, EXIF orientation applied, transparency over white.

    16-bit grey is scaled to 8 bits. Integers beyond 16 bits and floating point have no agreed
    range: see ``_grey``. Colour profiles are not applied. Safe to call from threads.

    Args:
        picture: a file of any name; its content decides the format.
        max_pixels: refuse larger pictures before decoding them; None: VITRAIL_MAX_PIXELS, or ``MAX_PIXELS``.

    Raises:
        UnreadableImage: whatever goes wrong with this file.
        UserError: VITRAIL_MAX_PIXELS is no number.
    """
    return _read(picture, max_pixels, lambda size: 1.0)[0]


def read_reduced(
    picture: Picture, surplus: Callable[[Size], float], max_pixels: int | None = None
) -> tuple[Image.Image, Extent]:
    """``read_image`` for who needs fewer pixels: a JPEG of many more is decoded at a fraction (``vitrail.data.jpeg``).

    Args:
        surplus: how many times the pixels a side that are needed an upright picture of size (H, W) has.
        max_pixels: as for ``read_image``.

    Raises:
        UnreadableImage, UserError: as ``read_image``.
    """
    return _read(picture, max_pixels, surplus)


def _read(picture: Picture, max_pixels: int | None, surplus: Callable[[Size], float]) -> tuple[Image.Image, Extent]:
    if max_pixels is None:
        max_pixels = pixel_limit()
    try:
        with _opened(picture) as file, _without_warnings():
            return _decode(file, max_pixels, surplus)
    except UnreadableImage:
        raise
    except Image.DecompressionBombError as error:
        pixels = re.search(r"\d+", str(error))
        raise UnreadableImage(_too_large(int(pixels[0]) if pixels else max_pixels + 1, max_pixels)) from error
    except MemoryError as error:
        raise UnreadableImage("it asks for more memory than there is: very large, or damaged") from error
    except Exception as error:  # Pillow's decoders raise what they like: SyntaxError, struct.error, zlib.error, ...
        raise UnreadableImage(_damage(error)) from error


def pixel_limit() -> int:
    """How many pixels a picture may have: the environment's VITRAIL_MAX_PIXELS, or ``MAX_PIXELS``.

    Pillow refuses more than twice its own ``Image.MAX_IMAGE_PIXELS``, which is raised to allow a higher limit.

    Raises:
        UserError: VITRAIL_MAX_PIXELS is no number.
    """
    asked = os.environ.get("VITRAIL_MAX_PIXELS", "")
    if asked and not re.fullmatch(r"[1-9]\d{0,17}", asked):
        raise UserError(f"VITRAIL_MAX_PIXELS should be a number of pixels such as {MAX_PIXELS}, not {asked!r}.")
    limit = int(asked or MAX_PIXELS)
    if asked and Image.MAX_IMAGE_PIXELS is not None and limit > 2 * Image.MAX_IMAGE_PIXELS:
        Image.MAX_IMAGE_PIXELS = -(-limit // 2)
    return limit


def content_hash(path: str | Path) -> str:
    """SHA-256 of the file's bytes, in hexadecimal.

    Raises:
        UnreadableImage: the file cannot be read.
    """
    digest = hashlib.sha256()
    with _regular_file(path) as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _opened(picture: Picture) -> AbstractContextManager[BinaryIO]:
    if not isinstance(picture, bytes):
        return _regular_file(picture)
    if not picture:
        raise UnreadableImage("zero bytes")
    return io.BytesIO(picture)


@contextmanager
def _regular_file(path: str | Path) -> Iterator[BinaryIO]:
    """Open a file that has bytes; a pipe or a device, which could block for ever, is refused."""
    try:
        info = os.stat(path)
        if stat.S_ISDIR(info.st_mode):
            listed = os.access(path, os.R_OK | os.X_OK)
            raise UnreadableImage("a folder, not a file" if listed else "a folder that may not be listed")
        if not stat.S_ISREG(info.st_mode):
            raise UnreadableImage("not a regular file")
        if info.st_size == 0:
            raise UnreadableImage("zero bytes")
        file = open(path, "rb")  # noqa: SIM115 (an error inside the caller's block is not one of opening)
    except FileNotFoundError as error:
        raise UnreadableImage("broken symbolic link" if os.path.islink(path) else "no such file") from error
    except PermissionError as error:
        raise UnreadableImage("permission denied") from error
    except OSError as error:
        loop = error.errno == errno.ELOOP
        raise UnreadableImage("symbolic link to itself" if loop else (error.strerror or str(error)).lower()) from error
    except ValueError as error:
        raise UnreadableImage("not a possible file name") from error
    with file:
        yield file


def _decode(file: BinaryIO, max_pixels: int, surplus: Callable[[Size], float]) -> tuple[Image.Image, Extent]:
    Image.init()
    try:
        image = Image.open(file, formats=[name for name in FORMATS if name in Image.OPEN])
    except UnidentifiedImageError as error:
        file.seek(0)
        raise UnreadableImage(_unidentified(file.read(16))) from error
    with image:
        if image.width * image.height > max_pixels:
            raise UnreadableImage(_too_large(image.width * image.height, max_pixels))
        _mend_transparent_colour(image)
        (width, height), held = image.size, None
        if image.format in ("JPEG", "MPO"):  # where the orientation is known before the pixels
            size = (width, height) if _orientation(image) in _ON_THE_SIDE else (height, width)
            held = divide(image, file, divisor(surplus(size)))
        image.load()
        orientation = _orientation(image)
        rgb = _to_rgb(image)
    # Pillow's info (EXIF, transparency, profile) describes the pixels as they were.
    rgb.info.clear()
    upright = rgb.transpose(_UPRIGHT[orientation]) if orientation in _UPRIGHT else rgb
    if held is None:
        return upright, Extent.of(upright)
    return upright, Extent(size, _turned(held, upright, orientation))


def _turned(held: tuple[float, float], upright: Image.Image, orientation: int) -> Box:
    """Where a picture, ``held`` wide and high at the top left, is once upright."""
    width, height = reversed(held) if orientation in _ON_THE_SIDE else held
    left = upright.width - width if orientation in (2, 3, 6, 7) else 0.0
    top = upright.height - height if orientation in (3, 4, 7, 8) else 0.0
    return (left, top, left + width, top + height)


def _orientation(image: Image.Image) -> int:
    """The EXIF orientation; 1 (upright) where there is none, or where the EXIF block is damaged."""
    try:
        return int(image.getexif().get(_ORIENTATION_TAG, 1))
    except Exception:  # a picture is not to be lost over its metadata
        return 1


def _mend_transparent_colour(image: Image.Image) -> None:
    """Bring a PNG's transparent colour to 8 bits, as its pixels will be: Pillow leaves it at the file's depth."""
    key, tile = image.info.get("transparency"), getattr(image, "tile", None)
    depth = tile[0][3] if image.format == "PNG" and tile else None
    if depth in ("L;2", "L;4") and isinstance(key, int):
        image.info["transparency"] = key * (85 if depth == "L;2" else 17)
    elif depth == "RGB;16B" and isinstance(key, tuple):
        image.info["transparency"] = tuple(part >> 8 for part in key)


def _to_rgb(image: Image.Image) -> Image.Image:
    """Any of Pillow's modes -> RGB, by value: Pillow's own convert clips grey of more than 8 bits."""
    if image.mode.startswith("I") or image.mode == "F":
        values = np.asarray(image)
        grey = Image.fromarray(_grey(values)).convert("RGB")
        if isinstance(key := image.info.get("transparency"), int):
            grey.paste((255, 255, 255), mask=Image.fromarray(np.where(values == key, np.uint8(255), np.uint8(0))))
        return grey
    if not image.has_transparency_data:
        return image.convert("RGB")
    if image.mode == "La":  # premultiplied grey has no direct way to RGBA
        image = image.convert("LA")
    rgba = image.convert("RGBA")
    white = Image.new("RGB", rgba.size, "white")
    white.paste(rgba, mask=rgba.getchannel("A"))
    return white


def _grey(values: np.ndarray) -> np.ndarray:
    """(H, W) integers or floats -> (H, W) uint8.

    Integers within 16 bits: 65535 becomes 255. Floats: 1 becomes 255 if none is above 1, else 255
    stays 255 if none is above that. Anything else is stretched from its least to its greatest value.
    Not-a-number counts as 0.
    """
    bands = [slice(top, top + _BAND) for top in range(0, len(values), _BAND)]
    low = min(float(_finite(values[band]).min()) for band in bands)
    high = max(float(_finite(values[band]).max()) for band in bands)
    ceilings = (65535.0,) if np.issubdtype(values.dtype, np.integer) else (1.0, 255.0)
    ceiling = next((ceiling for ceiling in ceilings if low >= 0 and high <= ceiling), None)
    start = 0.0 if ceiling else low
    scale = 255.0 / (ceiling or (high - low) or 1.0)
    grey = np.empty(values.shape, np.uint8)
    for band in bands:
        grey[band] = np.rint((_finite(values[band]) - start) * scale)
    return grey


_BAND = 64
"""Rows that are float64 at a time: a whole large picture so would take gigabytes."""


def _finite(values: np.ndarray) -> np.ndarray:
    return np.nan_to_num(values.astype(np.float64), posinf=0.0, neginf=0.0)


def _too_large(pixels: int, limit: int) -> str:
    return f"{pixels / 1e6:.0f} megapixels, over the limit of {limit / 1e6:.0f} (VITRAIL_MAX_PIXELS sets it)"


def _unidentified(head: bytes) -> str:
    """Why no decoder took a file that begins with ``head``."""
    if head[4:8] == b"ftyp" and head[8:12] in (b"heic", b"heix", b"hevc", b"mif1", b"msf1"):
        return "an HEIC picture: convert it to JPEG or PNG"
    signatures = {b"\x89PNG": "PNG", b"\xff\xd8\xff": "JPEG", b"GIF8": "GIF", b"RIFF": "WebP", b"BM": "BMP"}
    signatures |= {b"II*\0": "TIFF", b"MM\0*": "TIFF"}
    kind = next((kind for start, kind in signatures.items() if head.startswith(start)), None)
    return f"damaged {kind} header" if kind else "not an image"


def _damage(error: Exception) -> str:
    """Pillow's words for a damaged file as a short phrase."""
    words = " ".join(str(error).split())
    if re.search(r"truncated|premature|eof|end of file|not enough", words, re.IGNORECASE):
        return "truncated file"
    return f"damaged file ({words[:80].lower()})" if words else "damaged file"


class _ReadingHere(type):
    """Stands for every warning while its thread is inside ``read_image``, and for none otherwise."""

    thread = threading.local()

    def __subclasscheck__(cls, category: type) -> bool:
        return getattr(cls.thread, "reading", False)


class _PillowWarning(Warning, metaclass=_ReadingHere):
    pass


@contextmanager
def _without_warnings() -> Iterator[None]:
    """Silence what Pillow says about odd metadata, palettes and sizes, in this thread only.

    ``warnings.catch_warnings`` swaps the process-wide list of filters: with several threads inside,
    one's filters would be left behind for everybody. This filter stays in the list instead, and
    matches nothing unless the warning comes from a thread that is reading a picture.
    """
    if not warnings.filters or warnings.filters[0][2] is not _PillowWarning:
        warnings.simplefilter("ignore", category=_PillowWarning)
    _ReadingHere.thread.reading = True
    try:
        yield
    finally:
        _ReadingHere.thread.reading = False
