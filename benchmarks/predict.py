"""A folder of photos classified, against the model alone and the peers' own ways: ``python -m benchmarks.predict``.

``--photos`` JPEGs of 500 x 375, made of the real ones of ``imagenette-subset``. Every way has random
weights (transformers and Vitrail the same, with 1,000 classes) and the same batch, and is timed on the same photos, a
part of them each round, one way after the other; medians over the rounds:

- model: what ``vitrail predict --runtime openvino:int8`` runs (``--runtime``), on a batch that is in memory already
- predict: ``Classifier.predict``, from the files, by the same runtime
- transformers: its pipeline ``image-classification``, as it comes
- timm: a loop over its model, its transform for that model, and a DataLoader with 2 workers

Then the same as whole commands, each in a process of its own, by turns (``--commands 0``: not); and decoding and
preprocessing alone, one thread, images a second of processor time, also of photos of 12 megapixels.

Every model is a file in ``results/predict/``, in the folder of the kind of processor, as is decoding; what is not
measured again stays.

Aims, written down before: predict at least 95 % of the model's speed, 3 x transformers, 2.5 x timm. About an hour and
a half for ViT-B/16 and ViT-S/16 on two cores; ``--photos 16 --decoded 0 --models ViT-Ti/16`` to see
that it works (remove that model's file afterwards).
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from itertools import cycle, islice
from pathlib import Path
from typing import Any

# As in every command of Vitrail, before torch is loaded; the peers have the same in this process.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from benchmarks.limits import limits
from benchmarks.results_file import KINDS, RESULTS, kind, publish, record
from vitrail.config import IMAGENET_MEAN, IMAGENET_STD, Preprocessing
from vitrail.data.preprocess import load as load_picture
from vitrail.data.preprocess import preprocess
from vitrail.data.read import read_image
from vitrail.report.markdown import table
from vitrail.runtime.engines import engine
from vitrail.runtime.plan import parse
from vitrail.runtime.tuning import in_order

CELLS = RESULTS / "predict"

Way = Callable[[Sequence[Path]], int]
"""Photos -> how many were classified."""

TIMM = {"ViT-Ti/16": "tiny", "ViT-S/16": "small", "ViT-B/16": "base"}
WIDTHS = {"ViT-Ti/16": (192, 3), "ViT-S/16": (384, 6), "ViT-B/16": (768, 12)}
"""Width and heads; all have 12 layers, and an MLP four times as wide."""

RANGES = 64
"""Photos that int8 takes its ranges from, as many as ``vitrail tune`` takes."""

SQUASHED = Preprocessing(fit="squash", crop_fraction=1.0, interpolation="bilinear")
"""What transformers' ViT does."""


def main() -> None:
    """Measure, print, record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=int, default=2000)
    parser.add_argument("--decoded", type=int, default=5000, help="how many photos each library decodes; 0: not")
    parser.add_argument("--models", nargs="*", choices=TIMM, default=["ViT-B/16", "ViT-S/16"])
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--commands", type=int, default=1, help="how many turns of whole commands")
    parser.add_argument("--runtime", default="openvino:int8", help="Vitrail's")
    parser.add_argument("--one", nargs=3, metavar=("WAY", "MODEL", "FOLDER"), help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.one:
        name, model, folder = asked.one
        print(
            ways(model, Path(folder), asked.batch_size, asked.runtime)[name](
                sorted((Path(folder) / "photos").iterdir())
            )
        )
        return
    data = Path(os.environ.get("VITRAIL_DATA", "")) / "imagenette-subset"
    if not (data / "train").is_dir():
        sys.exit("Set VITRAIL_DATA to the folder that holds imagenette-subset/{train,val}.")
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        photos = make_photos(data, folder / "photos", asked.photos, (500, 375), grain=0)
        if asked.decoded:
            large = make_photos(data, folder / "large", 8, (4000, 3000), grain=4)
            record(f"predict/{kind()}/decoding", decoding(photos, large, asked.decoded))
        for model in asked.models:
            make_model(model, folder)
            make_ours(model, folder, asked.runtime, photos)
            found = in_this_process(model, folder, photos, asked)
            if asked.commands:
                found["whole commands, images/s"] = as_commands(model, folder, len(photos), asked)
            measured = {"model": model, "photos": asked.photos, "batch size": asked.batch_size}
            record(f"predict/{kind()}/{model.replace('/', '-')}", {**measured, **found}, limits())
    texts = [f"{title}.\n\n{section(CELLS / name)}" for name, title in KINDS.items() if (CELLS / name).is_dir()]
    publish("predict", "\n\n".join(texts), *CELLS.glob("*/*.json"))


def section(folder: Path) -> str:
    """In Markdown, of what is measured on one kind of processor."""
    rows = []
    cells = {path.stem: json.loads(path.read_text())["findings"] for path in sorted(folder.glob("*.json"))}
    decoded_by = cells.pop("decoding", {})
    for found in cells.values():
        whole = found.get("whole commands, images/s", {})
        for name, speed in found["images/s"].items():
            ratio = found["ratios"].get(f"predict / {name}")
            command = whole.get("vitrail predict" if name == "predict" else name)
            rows.append(
                [
                    found["model"],
                    f"{found['photos']:,}",
                    str(found["batch size"]),
                    {"model": f"the model alone, {found['runtime']}", "predict": f"vitrail, {found['runtime']}"}.get(
                        name, f"{name}, fp32"
                    ),
                    f"{speed:.1f}",
                    "" if ratio is None else f"{ratio:.2f}",
                    "" if command is None else f"{command:.1f}",
                ]
            )
    header = ["model", "photos", "batch", "way", "in one process", "vitrail to it", "as a command"]
    texts = ["JPEGs of 500 x 375, pictures a second:", table(header, rows)] if rows else []
    if decoded_by:
        decoded = [[what, *(f"{speed:.0f}" for speed in speeds.values())] for what, speeds in decoded_by.items()]
        header = ["JPEG", *next(iter(decoded_by.values()))]
        texts += ["A file to what a model takes, pictures a second of one core:", table(header, decoded)]
    return "\n\n".join(texts)


def make_photos(data: Path, folder: Path, count: int, size: tuple[int, int], grain: float) -> list[Path]:
    """JPEGs of ``size`` (width, height) from real photos, with the ``grain`` of a sensor, in levels of 255."""
    folder.mkdir()
    real = sorted(data.rglob("*.JPEG"))
    rng, made = np.random.default_rng(0), []
    for number, path in enumerate(islice(cycle(real[:: max(1, len(real) // count)]), count)):
        image = read_image(path).resize(size, Image.Resampling.BICUBIC)
        if grain:
            noise = rng.normal(0, grain, (size[1], size[0], 1))
            image = Image.fromarray(np.clip(np.asarray(image) + noise, 0, 255).astype(np.uint8))
        made.append(folder / f"{number:05d}.jpg")
        image.save(made[-1], quality=90)
    return made


def make_model(name: str, folder: Path) -> None:
    """Random weights as a folder of transformers, which Vitrail and it read: ``folder/<name>``."""
    from transformers import ViTConfig, ViTForImageClassification, ViTImageProcessor

    width, heads = WIDTHS[name]
    torch.manual_seed(0)
    model = ViTForImageClassification(
        ViTConfig(
            hidden_size=width,
            num_attention_heads=heads,
            intermediate_size=4 * width,
            id2label={number: f"class {number}" for number in range(1000)},
        )
    )
    model.save_pretrained(folder / name)
    ViTImageProcessor().save_pretrained(folder / name)


def make_ours(name: str, folder: Path, runtime: str, photos: Sequence[Path]) -> Path:
    """The same as a folder of Vitrail's; int8 is built as by ``vitrail tune``, with ranges from ``RANGES`` photos."""
    import vitrail

    classifier = vitrail.load(folder / name, runtime="eager:fp32", quiet=True)
    saved = classifier.save(_ours(folder, name))
    if parse(runtime).precision == "int8":
        shown = torch.stack([load_picture(path, classifier.card.preprocessing) for path in photos[:RANGES]])
        engine(classifier.model, parse(runtime), shown, saved)
    return saved


def _ours(folder: Path, name: str) -> Path:
    return folder / f"{name}, by Vitrail"


def ways(model: str, folder: Path, batch_size: int, runtime: str) -> dict[str, Way]:
    """Each way to classify photos, made when first called."""
    made: dict[str, Way] = {}

    def first(name: str, make: Callable[[], Way]) -> Way:
        def call(photos: Sequence[Path]) -> int:
            if name not in made:
                made[name] = make()
            return made[name](photos)

        return call

    return {
        "predict": first("predict", lambda: _vitrail(_ours(folder, model), batch_size, runtime)),
        "transformers": first("transformers", lambda: _transformers(folder / model, batch_size)),
        "timm": first("timm", lambda: _timm(f"vit_{TIMM[model]}_patch16_224", batch_size)),
    }


def _vitrail(folder: Path, batch_size: int, runtime: str) -> Way:
    import vitrail

    classifier = vitrail.load(folder, runtime=runtime, quiet=True)
    return lambda photos: len(classifier.predict(photos, batch_size=batch_size))


def _transformers(folder: Path, batch_size: int) -> Way:
    from transformers import pipeline

    classify = pipeline("image-classification", model=str(folder), batch_size=batch_size, device="cpu")
    return lambda photos: len(classify([str(path) for path in photos]))


class _Photos(Dataset[Tensor]):
    """What a person writes around timm's transform."""

    def __init__(self, paths: Sequence[Path], transform: Callable[[Image.Image], Tensor]) -> None:
        self.paths, self.transform = paths, transform

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, number: int) -> Tensor:
        return self.transform(Image.open(self.paths[number]).convert("RGB"))


def _timm(name: str, batch_size: int) -> Way:
    import timm
    from timm.data import create_transform, resolve_data_config

    model = timm.create_model(name, num_classes=1000).eval()
    transform = create_transform(**resolve_data_config({}, model=model))  # type: ignore[no-untyped-call]

    def classify(photos: Sequence[Path]) -> int:
        loader = DataLoader(_Photos(photos, transform), batch_size, num_workers=2)
        with torch.inference_mode():
            return sum(len(model(images).softmax(-1).topk(5).indices) for images in loader)

    return classify


def in_this_process(
    model: str, folder: Path, photos: Sequence[Path], asked: argparse.Namespace
) -> dict[str, dict[str, Any] | str]:
    """Images a second of every way, interleaved: medians, and ratios of ``predict`` to the others by round."""
    import vitrail

    batch_size, rounds = asked.batch_size, asked.rounds
    classifier = vitrail.load(_ours(folder, model), runtime=asked.runtime, quiet=True)
    predictor = classifier.predictor
    held = torch.stack([load_picture(path, classifier.card.preprocessing) for path in photos[:batch_size]])

    def alone(part: Sequence[Path]) -> int:
        sizes = [min(batch_size, len(part) - start) for start in range(0, len(part), batch_size)]
        return sum(len(predictor.logits(held[:size])[1]) for size in sizes)

    everyone = {"model": alone, **ways(model, folder, batch_size, asked.runtime)}
    parts = [photos[start::rounds] for start in range(min(rounds, len(photos)))]
    speeds: dict[str, list[float]] = {name: [] for name in everyone}
    for way in everyone.values():
        way(photos[:batch_size])  # made, compiled, warm
    for turn, part in enumerate(parts):
        for name, way in in_order(everyone, turn):
            start = time.perf_counter()
            done = way(part)
            speeds[name].append(done / (time.perf_counter() - start))
            assert done == len(part), name
    medians = {name: round(statistics.median(found), 2) for name, found in speeds.items()}
    ratios = {
        f"predict / {name}": round(statistics.median(_ratios(speeds["predict"], found)), 3)
        for name, found in speeds.items()
        if name != "predict"
    }
    print(model, f"({asked.runtime}), images/s:", medians, ratios, flush=True)
    return {"runtime": asked.runtime, "images/s": medians, "ratios": ratios}


def _ratios(ours: Sequence[float], theirs: Sequence[float]) -> Iterator[float]:
    return (a / b for a, b in zip(ours, theirs, strict=True))


def as_commands(model: str, folder: Path, photos: int, asked: argparse.Namespace) -> dict[str, float]:
    """Images a second of a whole process, from its start to its end; medians of so many turns."""
    # What the peers' users have: no setting but their own.
    environment = {name: value for name, value in os.environ.items() if name != "OMP_WAIT_POLICY"}
    batch = ["--batch-size", str(asked.batch_size)]
    ours = [
        sys.executable,
        "-m",
        "vitrail.cli.main",
        "predict",
        str(_ours(folder, model)),
        str(folder / "photos"),
        *batch,
    ]
    ours += ["--runtime", asked.runtime]
    commands = {"vitrail predict": ours}
    for name in ("transformers", "timm"):
        commands[name] = [sys.executable, "-m", "benchmarks.predict", "--one", name, model, str(folder), *batch]
    seconds: dict[str, list[float]] = {name: [] for name in commands}
    for _ in range(asked.commands):
        for name, command in commands.items():
            start = time.perf_counter()
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env=environment)
            seconds[name].append(time.perf_counter() - start)
    found = {name: round(photos / statistics.median(times), 2) for name, times in seconds.items()}
    print(model, "whole commands, images/s:", found, flush=True)
    return found


def decoding(photos: Sequence[Path], large: Sequence[Path], count: int) -> dict[str, dict[str, float]]:
    """A file to what a model takes: images a second of processor time, one thread, the libraries by turns."""
    import timm.data
    from torchvision import io
    from torchvision.transforms import v2

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    how = Preprocessing(mean=IMAGENET_MEAN, std=IMAGENET_STD)
    steps = v2.Compose(
        [
            v2.Resize(256, v2.InterpolationMode.BICUBIC, antialias=True),
            v2.CenterCrop(224),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(IMAGENET_MEAN, IMAGENET_STD),
        ]
    )
    transform = timm.data.create_transform(224, crop_pct=0.875, interpolation="bicubic")
    slot = np.zeros((3, 224, 224), np.float32)
    libraries: dict[str, Callable[[Path], Any]] = {
        "vitrail": lambda path: load_picture(path, how, out=slot),
        "vitrail, decoded whole": lambda path: preprocess(read_image(path), how),
        "vitrail, quickly": lambda path: load_picture(path, how, out=slot, quick=True),
        "vitrail, squashed by bilinear": lambda path: load_picture(path, SQUASHED, out=slot),
        "vitrail, squashed, quickly": lambda path: load_picture(path, SQUASHED, out=slot, quick=True),
        "torchvision v2": lambda path: steps(io.decode_image(str(path), io.ImageReadMode.RGB)),
        "timm": lambda path: transform(Image.open(path).convert("RGB")),
    }
    found = {}
    for what, files, each in (("500 x 375", photos, count), ("4000 x 3000", large, max(8, count // 100))):
        seconds = dict.fromkeys(libraries, 0.0)
        for turn, path in enumerate(islice(cycle(files), each)):
            for name, function in in_order(libraries, turn):  # whoever is first finds the file in no cache
                start = time.thread_time()
                function(path)
                seconds[name] += time.thread_time() - start
        found[what] = {name: round(each / spent, 1) for name, spent in seconds.items()}
        print(what, "decoded and preprocessed, images/s a core:", found[what], flush=True)
    torch.set_num_threads(threads)
    return found


if __name__ == "__main__":
    main()
