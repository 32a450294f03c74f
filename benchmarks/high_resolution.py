"""ViT-B/16 at 1024 x 1024 (4,096 patches): memory and time of a forward pass, ``python -m benchmarks.high_resolution``.

Each case in a process of its own: the peak of its resident memory above what it held with the model and the
image built (VmHWM, reset before), and the median time of three passes, without gradients, in float32. timm's
fused and unfused attention stand beside. Every scheme's memory should be linear in N; a traced layer is given
out whole, K x N x N, and cannot be. About ten minutes on two cores.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch

from benchmarks.results_file import record
from vitrail.config import PositionConfig, variant
from vitrail.model.build import build
from vitrail.model.encoder import Trace

SIDE = 1024
POSITIONS = {
    "learned-1d": PositionConfig(),
    "none": PositionConfig("none"),
    "sincos-2d": PositionConfig("sincos-2d"),
    "learned-1d at every layer": PositionConfig(place="every-layer"),
    "rope-2d": PositionConfig("rope-2d"),
    "relative-1d, clip 196": PositionConfig("relative-1d", clip=(196,)),
    "relative-2d, clip 13": PositionConfig("relative-2d", clip=(13, 13)),
    "relative-2d, no clip": PositionConfig("relative-2d"),
}
TRACED = "learned-1d, one layer traced"
CASES = ("timm, fused", "timm, unfused", TRACED, *POSITIONS)


def main() -> None:
    """Run every case, print and record."""
    if len(sys.argv) > 1:
        print(json.dumps(measure(sys.argv[1])))
        return
    found = {}
    for case in CASES:
        command = [sys.executable, "-m", "benchmarks.high_resolution", case]
        found[case] = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
        print(f"{case:<30} {found[case]['MiB']:8.0f} MiB {found[case]['seconds']:7.1f} s", flush=True)
    record("high_resolution", found)


def measure(case: str) -> dict[str, float]:
    """One case, in this process."""
    run = _timm(fused=case == "timm, fused") if case.startswith("timm") else _ours(case)
    image = torch.randn(1, 3, SIDE, SIDE)
    with torch.inference_mode():
        Path("/proc/self/clear_refs").write_text("5")  # the peak starts from here
        before, seconds = peak(), []
        for _ in range(3):
            start = time.perf_counter()
            run(image)
            seconds.append(time.perf_counter() - start)
    return {"MiB": peak() - before, "seconds": statistics.median(seconds)}


def _ours(case: str) -> Callable[[torch.Tensor], object]:
    position = PositionConfig() if case == TRACED else POSITIONS[case]
    model = build(replace(variant("ViT-B/16", (SIDE, SIDE)), position=position))
    trace = Trace(lambda kind, layer, weights: None, attention=[5]) if case == TRACED else None
    return lambda image: model.features(image, trace)


def _timm(fused: bool) -> Callable[[torch.Tensor], object]:
    import timm

    model = timm.create_model("vit_base_patch16_224", img_size=SIDE, num_classes=0).eval()
    for block in model.blocks:
        block.attn.fused_attn = fused
    return model.forward_features


def peak() -> float:
    """MiB of resident memory at the highest."""
    status = Path("/proc/self/status").read_text()
    return int(next(line for line in status.splitlines() if line.startswith("VmHWM")).split()[1]) / 1024


if __name__ == "__main__":
    main()
