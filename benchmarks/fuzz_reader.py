"""Damaged files through the reader: ``VITRAIL_DATA=folder python -m benchmarks.fuzz_reader``.

5,000 mutations, each a function of its number, of real JPEG, PNG, GIF, WebP, TIFF and BMP files: photos
of ``imagenette-subset``, ``pngsuite``, what Pillow makes of those photos in many variants, and pictures of
one colour and 64 megapixels. Each must come out of ``vitrail.data.read.read_image`` as a whole RGB image
or as ``UnreadableImage`` with a short reason. Anything else is a finding, printed with the mutation's
number: another exception, a crash, more than 5 s (twice), a leak. With numbers as arguments only those
mutations are read, and their files kept in the folder ``fuzz-reader`` to look at.

The reader runs in a process whose address space is capped at 4 GiB (RLIMIT_AS: an allocation fails there,
not on the machine): the largest picture it takes, 179 megapixels, is 0.7 GB in Pillow, and with transparency
stands in memory up to four times. Its resident memory after 500 files and at the end, with all that is free
given back, may differ by 16 MiB, 4 KB a file. What libtiff prints on standard error is counted; Pillow has
no way to silence it.

Under a minute on one core.
"""

from __future__ import annotations

import ctypes
import gc
import io
import json
import os
import random
import re
import resource
import select
import struct
import subprocess
import sys
import tempfile
import time
import traceback
import zlib
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import PIL
from PIL import Image

from benchmarks.results_file import record
from vitrail.data.read import UnreadableImage, read_image

MUTATIONS = 5_000
LIMIT = 5.0
"""Seconds a file may take."""
MEMORY = 4 << 30
"""Bytes of address space the reading process may have."""
SETTLED = 500
"""Files after which the reading process has loaded and cached what it keeps."""
LEAK = 16 << 20
"""Bytes it may grow from there to the end."""
Files = dict[str, list[tuple[str, bytes]]]
"""Format -> description and content of each file."""


def main() -> None:
    """Read all mutations, or those asked for; print and record what came out."""
    if sys.argv[1:] == ["--read"]:
        _read_what_is_asked()
        return
    data = Path(os.environ.get("VITRAIL_DATA", ""))
    if not (data / "imagenette-subset" / "val").is_dir() or not (data / "pngsuite").is_dir():
        sys.exit("Set VITRAIL_DATA to the folder that holds imagenette-subset and pngsuite.")
    files, chosen = originals(data), [int(number) for number in sys.argv[1:]]
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path("fuzz-reader") if chosen else Path(scratch)
        folder.mkdir(exist_ok=True)
        findings = _fuzz(files, chosen or list(range(MUTATIONS)), folder, bool(chosen))
    print(json.dumps(findings, indent=1))
    if not chosen:
        print(record("fuzz_reader", findings))
    sys.exit(bool(findings["findings"]))


def _fuzz(files: Files, numbers: list[int], folder: Path, keep: bool) -> dict[str, Any]:
    with Reader(folder) as reader:  # unharmed, all must be images, in that time and memory
        for made, content in [entry for entries in files.values() for entry in entries]:
            answer = reader.read(folder / "original", content)
            assert answer["outcome"] == "image", (made, answer)
    rows: list[dict[str, Any]] = []
    with Reader(folder) as reader:
        for number in numbers:
            format, made, content = mutation(files, number)
            path = folder / f"{number}.{format.lower()}"
            rows.append({"mutation": number, "format": format, "made": made, **reader.read(path, content)})
            if keep or rows[-1]["outcome"] not in ("image", "reason"):
                print(rows[-1], flush=True)
            if not keep:
                path.unlink()
            if not len(rows) % SETTLED:
                reader.weights[-1].append(int(reader.ask(b"")))
                print(f"{len(rows)} read, {reader.weights[-1][-1] >> 20} MiB resident", flush=True)
    found = [row for row in rows if row["outcome"] not in ("image", "reason")]
    growth = max((life[-1] - life[0] for life in reader.weights if life), default=0)
    if growth > LEAK:
        found.append({"outcome": "leak", "bytes": growth})
    formats = {}
    for name in files:
        of = [row for row in rows if row["format"] == name]
        reasons = Counter(re.sub(r"\d+", "N", row["detail"]) for row in of if row["outcome"] == "reason")
        formats[name] = {
            "originals": len(files[name]),
            **Counter(row["outcome"] for row in of),
            "slowest": max(of, key=lambda row: row["seconds"], default=None),
            "most memory": max(of, key=lambda row: row.get("megabytes", 0), default=None),
            "spoke on standard error": sum("words" in row for row in of),
            "commonest reasons": dict(reasons.most_common(12)),
        }
    about = {"mutations": len(rows), "pillow": PIL.__version__, "growth in bytes from 500 to the end": growth}
    return {**about, "resident bytes, each process": reader.weights, "formats": formats, "findings": found}


class Reader:
    """A process that reads files one at a time, and is replaced when it dies or is silent for too long."""

    def __init__(self, folder: Path) -> None:
        self.said = (folder / "standard-error").open("w+b")
        self.weights: list[list[int]] = []
        """Resident bytes after every 500 files, of each process there was."""
        self._start()

    def __enter__(self) -> Reader:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()
        self.said.close()

    def _start(self) -> None:
        # Blocks of 128 KiB and more go back to the system when freed, so that resident memory is memory in use.
        environment = {"MALLOC_MMAP_THRESHOLD_": str(128 << 10), "MALLOC_ARENA_MAX": "1", "OPENBLAS_NUM_THREADS": "1"}
        command = [sys.executable, "-m", "benchmarks.fuzz_reader", "--read"]
        pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": self.said}
        self.process: Any = subprocess.Popen(command, env={**os.environ, **environment}, **pipes)
        assert self.ask(b""), "the reading process did not start"
        self.weights.append([])

    def ask(self, question: bytes, patience: float = 120) -> bytes:
        """The answer, which is empty from a process that dies or is silent; resident bytes for no question."""
        with suppress(BrokenPipeError):
            os.write(self.process.stdin.fileno(), question + b"\n")
        ready, _, _ = select.select([self.process.stdout], [], [], patience)
        return self.process.stdout.readline() if ready else b""

    def read(self, path: Path, content: bytes, again: bool = False) -> dict[str, Any]:
        """What becomes of a file: ``outcome``, ``detail``, ``seconds``, ``megabytes`` at the most, ``words`` if any."""
        path.write_bytes(content)
        before, start = self.said.seek(0, os.SEEK_END), time.perf_counter()
        line = self.ask(os.fsencode(path), LIMIT)
        answer: dict[str, Any] = json.loads(line) if line else {"seconds": time.perf_counter() - start}
        if not line:
            answer["outcome"] = "hang" if answer["seconds"] >= LIMIT else "crash"
            self.process.kill()
            answer["detail"] = f"return code {self.process.wait()}"
            self._start()
            if answer["outcome"] == "hang" and not again:  # perhaps others had the processor
                return self.read(path, content, again=True)
        self.said.seek(before)
        if words := self.said.read().decode(errors="replace"):
            answer["words"] = words[-2000:]
        return answer


def _read_what_is_asked() -> None:
    """The reading process: a path a line in, a JSON object a line out; for an empty line, resident bytes."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    for line in map(str.rstrip, sys.stdin):
        if line:
            print(json.dumps(_outcome(Path(line))), flush=True)
        else:
            gc.collect()
            ctypes.CDLL(None).malloc_trim(0)
            print(_status("VmRSS") << 10, flush=True)


def _outcome(path: Path) -> dict[str, Any]:
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")  # the peak of resident memory starts anew
    base, start = _status("VmRSS"), time.perf_counter()
    try:
        image = read_image(path)
        plain = image.mode == "RGB" and not image.info and min(image.size) > 0
        outcome, detail = "image" if plain else "not a plain RGB image", f"{image.mode} {image.width}x{image.height}"
    except UnreadableImage as error:
        outcome, detail = "reason", error.reason
        if not re.fullmatch(r"[a-z0-9][^\n]{2,110}", detail):
            outcome = "reason without words"
    except BaseException:
        outcome, detail = "another exception", traceback.format_exc()[-2000:]
    seconds, peak = round(time.perf_counter() - start, 3), round((_status("VmHWM") - base) / 1024)
    return {"outcome": outcome, "detail": detail, "seconds": seconds, "megabytes": peak}


def _status(name: str) -> int:
    """A figure of this process in KiB."""
    return int(re.search(rf"{name}:\s+(\d+)", Path("/proc/self/status").read_text())[1])  # type: ignore[index]


def originals(data: Path) -> Files:
    """Format -> files, each with what it is."""
    chance = random.Random(0)
    photos = sorted((data / "imagenette-subset" / "val").glob("*/*"))
    chosen = chance.sample(photos, 40)
    pngs = sorted((data / "pngsuite").glob("[!x]*.png"))  # those with an x are damaged by design
    files: Files = {name: [] for name in ("JPEG", "PNG", "GIF", "WEBP", "TIFF", "BMP")}
    files["JPEG"] += [(path.name, path.read_bytes()) for path in chosen]
    files["PNG"] += [(path.name, path.read_bytes()) for path in pngs]
    for format, mode in (("JPEG", "L"), ("PNG", "I;16"), ("PNG", "RGBA"), ("GIF", "P"), ("TIFF", "F")):
        packed = {"compression": "tiff_lzw"} if format == "TIFF" else {}
        files[format].append((f"64 megapixels {mode}", _saved(Image.new(mode, (8_000, 8_000)), format, packed)))
    for path in chosen[:5]:
        with Image.open(path) as photo:
            image = photo.convert("RGB").resize((160, 120))
        for format, made, content in _variants(image):
            files[format].append((f"{path.name} as {made}", content))
    return files


def _variants(image: Image.Image) -> Iterator[tuple[str, str, bytes]]:
    """Format, description and content of one photo in every manner Pillow writes (and tiles, which it does not)."""
    exif = Image.Exif()
    exif[0x0112], exif[0x010E] = 6, "a photo"
    alpha = image.copy()
    alpha.putalpha(Image.linear_gradient("L").resize(image.size))
    palette, few = image.quantize(256), image.quantize(5)
    deep = Image.fromarray((np.asarray(image.convert("L"), np.uint16) * 257).astype(np.uint16))
    grey, bits = image.convert("L"), image.convert("1")
    frames: dict[str, Any] = {"save_all": True, "append_images": [image.rotate(90), image.rotate(180)]}
    made: list[tuple[str, Image.Image, dict[str, Any]]] = [("JPEG", image.convert("CMYK"), {})]
    made += [("JPEG", image, {"progressive": True}), ("JPEG", image, {"subsampling": 0, "exif": exif, "quality": 95})]
    made += [("JPEG", grey, {"progressive": True, "optimize": True}), ("JPEG", image, {"restart_marker_blocks": 4})]
    made += [("PNG", alpha, {"exif": exif}), ("PNG", palette, {"transparency": 3})]
    made += [("PNG", deep, {}), ("PNG", image, frames)]
    made += [("GIF", palette, {}), ("GIF", few, {"interlace": False}), ("GIF", palette, {"transparency": 7})]
    made += [("GIF", grey, {"comment": b"a photo"}), ("GIF", image, frames), ("GIF", alpha, {**frames, "disposal": 2})]
    made += [("WEBP", image, {"quality": 80}), ("WEBP", image, {"lossless": True}), ("WEBP", alpha, {"exif": exif})]
    made += [("WEBP", few.convert("RGBA"), {"lossless": True}), ("WEBP", image, frames)]
    for packing in ("raw", "tiff_lzw", "tiff_adobe_deflate", "packbits", "jpeg"):
        made += [("TIFF", picture, {"compression": packing}) for picture in (image, grey)]
    made += [("TIFF", palette, {"compression": "packbits"}), ("TIFF", bits, {"compression": "group4"})]
    made += [("TIFF", picture, {"compression": "tiff_lzw"}) for picture in (deep, alpha, image.convert("CMYK"))]
    made += [("TIFF", grey.convert("F"), {"compression": "tiff_adobe_deflate"}), ("TIFF", deep, {"exif": exif})]
    made += [("TIFF", Image.fromarray(np.asarray(image), "LAB"), {}), ("TIFF", image, frames)]
    made += [("BMP", picture, {}) for picture in (image, alpha, palette, grey, bits)]
    for format, picture, options in made:
        what = ", ".join(key if key in ("exif", "append_images") else f"{key} {options[key]}" for key in options)
        yield format, f"{format} {picture.mode} {what}", _saved(picture, format, options)
    for packed in (False, True):
        yield "TIFF", f"TIFF in {'deflated ' * packed}tiles", _tiled(np.asarray(image), packed)


def _saved(image: Image.Image, format: str, options: dict[str, Any]) -> bytes:
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


def _tiled(pixels: np.ndarray, packed: bool, side: int = 64) -> bytes:
    """(H, W, 3) as a TIFF of square tiles (TIFF 6.0, section 15)."""
    height, width = pixels.shape[:2]
    padded = np.pad(pixels, ((0, -height % side), (0, -width % side), (0, 0)))
    corners = [(top, left) for top in range(0, height, side) for left in range(0, width, side)]
    tiles = [padded[top : top + side, left : left + side].tobytes() for top, left in corners]
    tiles = [zlib.compress(tile) for tile in tiles] if packed else tiles
    at = np.cumsum([14, *map(len, tiles)]).tolist()  # after the header and three times the bits of a sample
    count, tables = len(tiles), at[-1]
    entries = [(256, width), (257, height), (258, 8), (259, 8 if packed else 1), (262, 2), (277, 3), (322, side)]
    entries += [(323, side), (324, tables), (325, tables + 4 * count)]
    many = {258: (3, 3), 324: (4, count), 325: (4, count)}  # tag -> type, count of values that stand elsewhere
    rows = [struct.pack("<HHII", tag, *many.get(tag, (4, 1)), value) for tag, value in entries]
    start = struct.pack("<2sHI3H", b"II", 42, tables + 8 * count, 8, 8, 8)
    lists = struct.pack(f"<{2 * count}I", *at[:-1], *map(len, tiles))
    return b"".join([start, *tiles, lists, struct.pack("<H", len(rows)), *rows, bytes(4)])


class Field(NamedTuple):
    """Where in a file a number stands that its reader goes by."""

    kind: str
    """``length`` (offsets, counts and sizes) or ``dimension``."""
    at: int
    size: int
    order: Literal["little", "big"]


def fields(format: str, data: bytes) -> list[Field]:
    """The lengths and dimensions that stand in a file that is not damaged yet."""
    found: list[Field] = []

    def note(kind: str, size: int, order: Literal["little", "big"], *at: int) -> int:
        """Take note of fields; the value of the last."""
        found.extend(Field(kind, place, size, order) for place in at)
        return int.from_bytes(data[at[-1] : at[-1] + size], order)

    at = {"JPEG": 2, "PNG": 8, "WEBP": 12, "GIF": 13, "TIFF": 0, "BMP": 0}[format]
    if format == "JPEG":
        while at + 9 < len(data) and data[at] == 0xFF and data[at + 1] != 0xD9:
            length = note("length", 2, "big", at + 2)
            if 0xC0 <= data[at + 1] <= 0xC2:
                note("dimension", 2, "big", at + 5, at + 7)
            at += 2 + length
    elif format == "PNG":
        note("dimension", 4, "big", 16, 20)
        while at + 8 < len(data):
            at += 12 + note("length", 4, "big", at)
    elif format == "WEBP":
        note("length", 4, "little", 4)
        while at + 16 < len(data):
            kind, length = data[at : at + 4], note("length", 4, "little", at + 4)
            kinds = {b"VP8X": (3, 12, 15), b"VP8L": (4, 9), b"VP8 ": (2, 14, 16), b"ANMF": (3, 14, 17)}
            size, *places = kinds.get(kind, (0,))
            if places:
                note("dimension", size, "little", *(at + place for place in places))
            at += 8 + length + length % 2
    elif format == "GIF":
        note("dimension", 2, "little", 6, 8)
        at += 3 * 2 ** (data[10] % 8 + 1) if data[10] & 128 else 0
        while at < len(data) and data[at] in b"\x21\x2c":
            at += 2
            if data[at - 2] == 0x2C:
                at += 8
                note("dimension", 2, "little", at - 5, at - 3)
                at += 1 + (3 * 2 ** (data[at - 1] % 8 + 1) if data[at - 1] & 128 else 0)
            while length := note("length", 1, "little", at):
                at += 1 + length
            at += 1
    elif format == "TIFF":
        at = note("length", 4, "little", 4)
        for entry in range(at + 2, at + 2 + 12 * note("length", 2, "little", at), 12):
            tag = int.from_bytes(data[entry : entry + 2], "little")
            note("length", 4, "little", entry + 4)
            note("dimension" if tag in (256, 257, 322, 323) else "length", 4, "little", entry + 8)
    else:
        note("length", 4, "little", 2, 10, 14, 34, 46)
        note("dimension", 4, "little", 18, 22)
    return found


def mutation(files: Files, number: int) -> tuple[str, str, bytes]:
    """Format, description and content of the mutation of that number: one to three changes, each at random."""
    chance = random.Random(number)
    format = list(files)[number % len(files)]
    name, original = chance.choice(files[format])
    content, places, made = bytearray(original), fields(format, original), [name]
    for _ in range(chance.choice((1, 1, 1, 2, 3))):
        kind = chance.choice(("flip", "overwrite", "truncate", "insert", "delete", "splice", "length", "dimension"))
        end = len(content) if chance.random() < 0.6 else min(len(content), 256)  # the header, where it does most
        at, run = chance.randrange(end + 1), chance.choice((1, 2, 4, 16, 64, 1024))
        if kind == "flip":
            for _ in range(min(run, 16)):
                content[chance.randrange(max(end, 1))] ^= 1 << chance.randrange(8)
        elif kind == "overwrite":
            content[at : at + run] = chance.choice((bytes(run), b"\xff" * run, chance.randbytes(run)))
        elif kind == "truncate":
            del content[at:]
        elif kind == "insert":
            content[at:at] = chance.choice((chance.randbytes(run), bytes(content[at : at + run])))
        elif kind == "delete":
            del content[at : at + run]
        elif kind == "splice":
            other = chance.choice(files[format if chance.random() < 0.8 else chance.choice(list(files))])[1]
            content[at:] = other[at if chance.random() < 0.5 else chance.randrange(len(other)) :]
        else:
            like = [place for place in places if place.kind == kind]
            first = chance.randrange(len(like))
            pair = like[first // 2 * 2 :][:2] if kind == "dimension" and chance.random() < 0.5 else [like[first]]
            top = 1 << 8 * pair[0].size
            old = int.from_bytes(content[pair[0].at :][: pair[0].size], pair[0].order)
            small, great = (0, 1, old - 1, old + 1, 2 * old, at), (13_000, 70_000, top // 2 - 1, top // 2, top - 1)
            value = chance.choice((*small, *great))
            for place in pair:  # 13,000 for both is about the largest that is taken
                content[place.at : place.at + place.size] = (value % top).to_bytes(place.size, place.order)
        content = content or bytearray(1)
        made.append(f"{kind} at {at}")
    if format == "PNG" and chance.random() < 0.7:
        _mend_sums(content)  # else hardly a mutation would get past the first of them
    return format, ", ".join(made), bytes(content)


def _mend_sums(content: bytearray) -> None:
    """Bring a PNG's check sums in line with what stands in its chunks now."""
    at = 8
    while at + 12 <= len(content):
        length = int.from_bytes(content[at : at + 4], "big")
        if at + 12 + length > len(content):
            return
        content[at + 8 + length : at + 12 + length] = zlib.crc32(content[at + 4 : at + 8 + length]).to_bytes(4, "big")
        at += 12 + length


if __name__ == "__main__":
    main()
