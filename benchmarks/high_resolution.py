"""ViT-B/16 at 1024 x 1024 (4,096 patches), and what more patches cost: ``python -m benchmarks.high_resolution``.

A forward pass of one image without gradients: timm's with its attention fused and not, Vitrail's engines, and every
scheme of positions in PyTorch. The seconds are medians of ``ROUNDS`` turns in one process. The memory is that of a
process for each case: the peak of resident memory above what it held with the model and the image built (VmHWM, reset
before), an engine's own copy of the weights included; engines are opened from builds that were made before. Of the two
that the aim compares it is a median of ``PROCESSES``. Every scheme's memory should be linear in N; a traced layer is
given out whole, K x N x N, and cannot be.

Aims, written down before: the seconds and the memory of the model's own positions at most those of timm's fused
attention, ratios under 1.1 being ties.

Then seconds and operations from 64 to 4,096 patches, and the exponents of a + b N + c N^2 through them. Half an
hour on two cores; ``--table`` writes the tables of ``docs/performance.md`` from the file.
"""

from __future__ import annotations

import ctypes
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.limits import limits
from benchmarks.results_file import RESULTS, publish, record
from vitrail.analyze.scaling import Growth, scaling
from vitrail.config import PositionConfig, variant
from vitrail.model.build import build
from vitrail.model.encoder import Trace
from vitrail.report.markdown import table
from vitrail.runtime.engines import available, engine
from vitrail.runtime.plan import Runtime
from vitrail.runtime.schedules import schedule
from vitrail.runtime.tuning import in_order

SIDE, ROUNDS, PROCESSES = 1024, 3, 5
SIDES = (128, 224, 384, 512, 768, 1024)
CURVE_SECONDS = 300.0
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
FUSED, UNFUSED, OWN = "timm, fused", "timm, unfused", "learned-1d"
TRACED = f"{OWN}, one layer traced"
CONFIG = variant("ViT-B/16", (SIDE, SIDE))
MERGED = "openvino:int8, half merged"
Pass = Callable[[Tensor], object]


def main() -> None:
    """Run every case, print and record."""
    path = RESULTS / "high_resolution.json"
    if "--table" not in sys.argv:
        with tempfile.TemporaryDirectory() as builds:
            seconds = by_turns(Path(builds))
            memory = {case: _in_processes(case, builds) for case in seconds}
        found = {case: {"seconds": own, "MiB": memory[case]} for case, own in seconds.items()}
        path = record("high_resolution", {"1024 x 1024": found, "by patches": curve()}, limits())
    publish("high-resolution", tables(json.loads(path.read_text())["findings"]), path)


def engines() -> dict[str, Runtime]:
    """What there is on this machine but PyTorch in fp32, which the schemes of positions are run by."""
    there = available(torch.device("cpu"))
    found = {Runtime(*pair).name: Runtime(*pair, batch_size=1) for pair in there if pair != ("eager", "fp32")}
    if "openvino:int8" in found:
        found[MERGED] = replace(found["openvino:int8"], merging=schedule(CONFIG, 0.5, "decreasing"))
    return found


def by_turns(builds: Path) -> dict[str, float]:
    """Seconds of each case, in this process."""
    image = _image()
    passes = {case: opened(case, builds)() for case in (FUSED, UNFUSED, TRACED, *engines(), *POSITIONS)}
    taken: dict[str, list[float]] = {case: [] for case in passes}
    for turn in range(ROUNDS + 1):  # the first warms up
        for case, run in in_order(passes, turn):
            start = time.perf_counter()
            with torch.inference_mode():
                run(image)
            taken[case].append(time.perf_counter() - start)
            print(f"{turn} {case:<30} {taken[case][-1]:7.2f} s", flush=True)
    return {case: statistics.median(own[1:]) for case, own in taken.items()}


def memory(case: str, builds: Path) -> float:
    """MiB of one case at the peak, in this process."""
    image, opening = _image(), opened(case, builds)
    ctypes.CDLL("libc.so.6").malloc_trim(0)  # what building left behind, freed but resident, would hide what comes
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts from here
    before = peak()
    run = opening()
    with torch.inference_mode():
        run(image)
    return peak() - before


def opened(case: str, builds: Path) -> Callable[[], Pass]:
    """With the model built: what opens its engine, if it has one, and gives a forward pass."""
    if case in (FUSED, UNFUSED):
        import timm

        theirs: Any = timm.create_model("vit_base_patch16_224", img_size=SIDE, num_classes=0).eval()
        for block in theirs.blocks:
            block.attn.fused_attn = case == FUSED
        return lambda: theirs.forward_features
    model = build(replace(CONFIG, position=POSITIONS.get(case, PositionConfig())))
    if runtime := engines().get(case):
        shown = 0.1 * torch.randn(2, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(1)) + _image()
        return lambda: engine(model, runtime, shown, builds)
    trace = Trace(lambda kind, layer, weights: None, attention=[5]) if case == TRACED else None
    return lambda: lambda image: model.features(image, trace)


def curve() -> dict[str, Any]:
    """Seconds and operations by number of patches, and what is fitted through them."""
    found = scaling(CONFIG, SIDES, budget_seconds=CURVE_SECONDS)
    growth: dict[str, Growth | None] = {of: found.growth(of) for of in ("flops", "seconds")}
    cases = [{"patches": case.patches, "flops": case.flops, "seconds": case.seconds} for case in found.cases]
    return {"cases": cases, "growth": {of: own and asdict(own) for of, own in growth.items()}}


def tables(found: dict[str, Any]) -> str:
    """In Markdown: seconds and memory, and the curve."""
    cases, by_patches = found["1024 x 1024"], found["by patches"]
    fused = cases[FUSED]["seconds"]
    rows = [
        [case, f"{own['seconds']:.1f}", f"{fused / own['seconds']:.2f}", f"{own['MiB']:.0f}"]
        for case, own in cases.items()
    ]
    costs = [
        [f"{one['patches']:,}", f"{one['flops'] / 1e9:.1f}", f"{one['seconds']:.3f}"] for one in by_patches["cases"]
    ]
    exponents = [
        [name, *(f"{own[key]:.2f}" for key in ("first", "slope", "last")), f"{100 * own['worst']:.0f} %"]
        for name, own in (("operations", by_patches["growth"]["flops"]), ("seconds", by_patches["growth"]["seconds"]))
    ]
    return "\n\n".join(
        [
            "One picture of 1024 x 1024, ViT-B/16; memory above the model in PyTorch:",
            table(["way", "seconds", "times as fast as timm, fused", "MiB"], rows),
            "By number of patches N, PyTorch in fp32:",
            table(["N", "GFLOP", "seconds"], costs),
            "Exponents, d log / d log N of a + b N + c N^2 fitted to each:",
            table(["", "at the fewest", "overall", "at the most", "furthest from the fit"], exponents),
        ]
    )


def _image() -> Tensor:
    return torch.randn(1, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0))


def _in_processes(case: str, builds: str) -> float:
    words = [sys.executable, "-m", "benchmarks.high_resolution", "--memory", case, builds]
    found = []
    for _ in range(PROCESSES if case in (FUSED, OWN) else 1):
        out = subprocess.run(words, check=True, stdout=subprocess.PIPE, text=True).stdout
        found.append(float(out.splitlines()[-1]))
    print(f"{case:<32}", *(f"{one:7.0f}" for one in found), "MiB", flush=True)
    return statistics.median(found)


def peak() -> float:
    """MiB of resident memory at the highest."""
    status = Path("/proc/self/status").read_text()
    return int(next(line for line in status.splitlines() if line.startswith("VmHWM")).split()[1]) / 1024


if __name__ == "__main__":
    if sys.argv[1:2] == ["--memory"]:
        print(memory(sys.argv[2], Path(sys.argv[3])))
    else:
        main()
