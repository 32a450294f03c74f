"""Training images a second, timm's ways and ours in one process run, by turns: ``python -m benchmarks.training``

Forward, backward and AdamW (fused) on random images that are in memory already; ours go through Vitrail's own
loop, with its guard, order and log. Medians of the steps of ``ROUNDS`` turns, each turn's first step left out.
timm's ways: float32, bf16 autocast, the same compiled, and bf16 with its fused attention switched off, which the
others leave on as timm does. The speed of a 2048 x 2048 product, measured in the same run, stands beside.

Aim: 1.3 times the fastest peer. Half an hour on two cores; name shapes to time those alone. ``--check SHAPE`` times
that one again and says whether its ratios have fallen by more than ``MARGIN``. That both learn the same is for
``training_curves.py``.
"""

from __future__ import annotations

import itertools
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from timm.layers import set_fused_attn, use_fused_attn
from timm.models.vision_transformer import VisionTransformer as TimmViT
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.limits import limits
from benchmarks.results_file import RESULTS, fallen, kind, publish, record
from vitrail.config import Preprocessing, ViTConfig, variant
from vitrail.model.build import build
from vitrail.model.compiling import compile_blocks
from vitrail.objectives.supervised import Supervised
from vitrail.report.markdown import table
from vitrail.runtime.tuning import in_order
from vitrail.settings import Augmentation, TrainSettings
from vitrail.train.loop import Step, train
from vitrail.train.profile import product_limit
from vitrail.train.state import State

ROUNDS, STEPS = 5, 3
MARGIN = 0.15
SPEEDS = RESULTS / "training"
"""A file for each kind of processor."""
RATE, CLASSES = 1e-3, 10
PLAIN = Augmentation(mixing=0.0)
OURS, OURS_COMPILED = "vitrail, bf16", "vitrail, bf16, compiled"


@dataclass(frozen=True)
class Shape:
    """A model and a batch."""

    config: ViTConfig
    batch: int


def small(layers: int, width: int, heads: int, patch: int, pixels: int) -> ViTConfig:
    """A ViT for small pictures."""
    usual = variant("ViT-Ti/16", (pixels, pixels), CLASSES)
    encoder = replace(usual.encoder, layers=layers, width=width, heads=heads, mlp_width=4 * width)
    return replace(usual, encoder=encoder, patch=(patch, patch))


def dropping(config: ViTConfig, rate: float) -> ViTConfig:
    """With dropout."""
    return replace(config, encoder=replace(config.encoder, dropout=rate))


SHAPES = {
    "S/16, 224 px, batch 32": Shape(variant("ViT-S/16", (224, 224), CLASSES), 32),
    "Ti/16, 224 px, batch 32": Shape(variant("ViT-Ti/16", (224, 224), CLASSES), 32),
    "9 layers x 192, 32 px, batch 128": Shape(small(9, 192, 3, 4, 32), 128),
    "S/16, 224 px, batch 32, dropout 0.1": Shape(dropping(variant("ViT-S/16", (224, 224), CLASSES), 0.1), 32),
}
Way = Callable[[int], list[float]]
"""A number of steps -> seconds of each."""


def main() -> None:
    """Time the shapes that are named, or all, print and record; or check one."""
    path = SPEEDS / f"{kind()}.json"
    before: dict[str, Any] = json.loads(path.read_text())["findings"] if path.is_file() else {}
    named = [word for word in sys.argv[1:] if word != "--check"]
    if unknown := set(named) - set(SHAPES):
        sys.exit(f"No shape {', '.join(sorted(unknown))}: name one of {'; '.join(SHAPES)}.")
    if "--check" in sys.argv:
        if len(named) != 1 or named[0] not in before:
            sys.exit("Name one to check that was measured on this kind of processor.")
        slower = fallen(ratios(before[named[0]]), ratios(measure(named[0])), MARGIN)
        sys.exit(f"slower against the peers: {'; '.join(slower)}" if slower else None)
    findings = {**before, **{name: measure(name) for name in named or SHAPES}}
    print(record(f"{SPEEDS.name}/{kind()}", findings, limits()))
    write_section()


def measure(name: str) -> dict[str, Any]:
    """Images a second of every way at a shape, and what they say."""
    shape = SHAPES[name]
    ways = {
        "timm, fp32": peer(shape, bf16=False),
        "timm, bf16": peer(shape),
        "timm, bf16, compiled": peer(shape, compiled=True),
        "timm, bf16, attention not fused": peer(shape, fused=False),
        "timm, bf16, attention not fused, compiled": peer(shape, fused=False, compiled=True),
        OURS: ours(shape),
        OURS_COMPILED: ours(shape, compiled=True),
    }
    for way in ways.values():
        way(2)  # warms up, and compiles
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    products = []
    for turn in range(ROUNDS):
        for label, way in in_order(ways, turn):
            seconds[label] += way(STEPS)[1:]
        products.append(product_limit(torch.device("cpu"), torch.bfloat16))
    speeds = {label: shape.batch / statistics.median(times) for label, times in seconds.items()}
    best = max(speeds[OURS], speeds[OURS_COMPILED])
    usual = max(speed for label, speed in speeds.items() if label.startswith("timm") and "not" not in label)
    every = max(speed for label, speed in speeds.items() if label.startswith("timm"))
    print(name)
    for label, speed in speeds.items():
        print(f"    {label:<44}{speed:8.1f} images/s  {speed / speeds['timm, bf16']:5.2f} x timm, bf16")
    print(f"    best of ours: {best / usual:.2f} x the fastest peer, {best / every:.2f} x with attention not fused")
    return {
        "images_per_second": speeds,
        "to_fastest_peer": best / usual,
        "to_fastest_peer_not_fused": best / every,
        "product_limit_gflops": statistics.median(products) / 1e9,
    }


def ratios(found: Mapping[str, Any]) -> dict[str, float]:
    """What ``measure`` says of ours to the peers."""
    return {name: value for name, value in found.items() if name.startswith("to_")}


def write_section() -> None:
    """Write what is measured into the page of speeds."""
    speeds = [json.loads(path.read_text()) for path in sorted(SPEEDS.glob("*.json"))]
    publish("training", "\n\n".join(section(one["machine"], one["findings"]) for one in speeds))


def section(machine: dict[str, Any], findings: dict[str, Any]) -> str:
    """In Markdown."""
    ways = list(next(iter(findings.values()))["images_per_second"])
    rows = [[way, *(f"{found['images_per_second'][way]:.1f}" for found in findings.values())] for way in ways]
    for label, name in (
        ("**vitrail to the fastest of timm's, attention fused**", "to_fastest_peer"),
        ("**vitrail to the fastest of timm's, fused or not**", "to_fastest_peer_not_fused"),
    ):
        rows.append([label, *(f"**{found[name]:.2f}**" for found in findings.values())])
    rows.append(
        ["one large product, GFLOP/s", *(f"{found['product_limit_gflops']:.0f}" for found in findings.values())]
    )
    return f"{machine['processor']}, {machine['cores']} cores, pictures a second:\n\n{table(['', *findings], rows)}"


def peer(shape: Shape, bf16: bool = True, compiled: bool = False, fused: bool = True) -> Way:
    """timm's model in the shortest loop."""
    config = shape.config
    with fused_attention(fused):
        model: nn.Module = timm_model(config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, fused=True)
    images = torch.randn(shape.batch, 3, *config.image_size)
    labels = torch.randint(CLASSES, (shape.batch,))
    called = torch.compile(model) if compiled else model

    def run(steps: int) -> list[float]:
        times = []
        for _ in range(steps):
            start = time.perf_counter()
            peer_step(called, optimizer, images, labels, bf16)
            times.append(time.perf_counter() - start)
        return times

    return run


def peer_step(
    model: Callable[[Tensor], Tensor], optimizer: torch.optim.Optimizer, images: Tensor, labels: Tensor, bf16: bool
) -> float:
    """One step as timm's users write it; the loss."""
    optimizer.zero_grad(set_to_none=True)
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        loss = F.cross_entropy(model(images), labels)
    loss.backward()  # type: ignore[no-untyped-call]
    optimizer.step()
    return loss.item()


def timm_model(config: ViTConfig) -> TimmViT:
    """timm's ViT of the same shape."""
    encoder = config.encoder
    return TimmViT(
        img_size=config.image_size, patch_size=config.patch[0], num_classes=CLASSES, embed_dim=encoder.width,
        depth=encoder.layers, num_heads=encoder.heads, mlp_ratio=encoder.mlp_width / encoder.width,
        pos_drop_rate=encoder.dropout, proj_drop_rate=encoder.dropout,
    )  # fmt: skip


@contextmanager
def fused_attention(on: bool) -> Iterator[None]:
    """timm's models built inside use fused attention, or do not."""
    before = bool(use_fused_attn())
    set_fused_attn(on)
    try:
        yield
    finally:
        set_fused_attn(before)


def ours(shape: Shape, compiled: bool = False) -> Way:
    """Vitrail's model in Vitrail's loop."""
    model = build(shape.config)
    if compiled:
        compile_blocks(model)
    images = torch.randn(shape.batch, 3, *shape.config.image_size)
    labels = torch.randint(CLASSES, (shape.batch,))

    def run(steps: int) -> list[float]:
        ends = [time.perf_counter()]
        our_steps(model, images, labels, shape.batch, steps, 0, lambda step: ends.append(time.perf_counter()))
        return [after - before for before, after in itertools.pairwise(ends)]

    return run


def our_steps(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    batch: int,
    steps: int,
    seed: int,
    tell: Callable[[Step], None],
    learning_rate: float = RATE,
) -> None:
    """Steps of the loop that are a plain AdamW's, as the peer's are."""
    settings = TrainSettings(
        steps, batch, learning_rate=learning_rate, weight_decay=0.01, layer_decay=1.0, schedule="constant", warmup=0,
        clip=None, average=0.0, bf16=True, seed=seed, spike=0,
    )  # fmt: skip
    objective = Supervised(Preprocessing((32, 32)), PLAIN, smoothing=0.0)
    state = State.start(model, objective.modules, settings)

    def view(sample: int, chance: np.random.Generator) -> Tensor:
        return images[sample]

    train(state, objective, view, labels, settings, torch.device("cpu"), tell=tell)


if __name__ == "__main__":
    main()
