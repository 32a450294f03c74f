"""What keeping freed memory gains in training: ``python -m benchmarks.memory``; some minutes on two cores.

A step of training (bf16, forward, backward, AdamW) with ``vitrail.runtime.memory.keep_memory`` and without, each in a
process of its own, by turns; medians over ``ROUNDS`` of the processor time of a step and of the peak of memory.
"""

from __future__ import annotations

import json
import resource
import statistics
import subprocess
import sys
import time
from typing import Any

from benchmarks.results_file import publish, record
from vitrail.report.markdown import table

ROUNDS, STEPS = 5, 4
MODELS = {
    "R1-1-1x0.5, 32 px, batch 128": ("R1-1-1x0.5", 32, 128),
    "ViT of 4 layers x 96, 32 px, batch 128": ("small", 32, 128),
    "ViT-Ti/16, 224 px, batch 32": ("ViT-Ti/16", 224, 32),
}
WAYS = ("given back", "kept")


def main() -> None:
    """Measure, print and record."""
    found: dict[str, dict[str, Any]] = {}
    for name in MODELS:
        rows: dict[str, list[dict[str, float]]] = {way: [] for way in WAYS}
        for _ in range(ROUNDS):
            for way in WAYS:
                words = [sys.executable, "-m", __spec__.name, name, way]
                rows[way].append(json.loads(subprocess.run(words, check=True, capture_output=True, text=True).stdout))
        found[name] = {
            way: {key: statistics.median(row[key] for row in own) for key in own[0]} for way, own in rows.items()
        }
        ratios = [kept["seconds"] / other["seconds"] for other, kept in zip(*rows.values(), strict=True)]
        found[name]["ratio"] = statistics.median(ratios)
        print(name, found[name], flush=True)
    publish("memory", section(found), record("memory", found))


def section(found: dict[str, dict[str, Any]]) -> str:
    """In Markdown."""
    rows = [
        [
            name,
            *(f"{1000 * own[way]['seconds']:.0f}" for way in WAYS),
            f"{own['ratio']:.2f}",
            *(f"{own[way]['mebibytes']:.0f}" for way in WAYS),
        ]
        for name, own in found.items()
    ]
    header = ["a step of", "given back, ms", "kept, ms", "kept to given back", "given back, MiB", "kept, MiB"]
    return f"Processor time of a step, and the peak of memory:\n\n{table(header, rows)}"


def step(name: str, way: str) -> None:
    """In a process of its own."""
    import torch

    from benchmarks.training import CLASSES, peer_step, small
    from vitrail.config import variant
    from vitrail.model.build import Model, build
    from vitrail.resnet import resnet
    from vitrail.runtime.memory import keep_memory

    if way == "kept":
        keep_memory()
    architecture, side, batch = MODELS[name]
    model: Model
    if architecture == "small":
        model = build(small(4, 96, 3, 4, side))
    elif architecture.startswith("R"):
        model = build(resnet(architecture, (side, side), CLASSES))
    else:
        model = build(variant(architecture, (side, side), CLASSES))
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    images, labels = torch.randn(batch, 3, side, side), torch.randint(CLASSES, (batch,))
    for number in range(1 + STEPS):
        if number == 1:
            start = time.process_time()
        peer_step(model, optimizer, images, labels, bf16=True)
    seconds = (time.process_time() - start) / STEPS
    print(json.dumps({"seconds": seconds, "mebibytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}))


if __name__ == "__main__":
    if len(sys.argv) == 3:
        step(*sys.argv[1:])
    else:
        main()
