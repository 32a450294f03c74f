"""Images a second, the peers' ways and Vitrail's in one process run, by turns: ``python -m benchmarks.inference``

Random weights, the same for all, 224 pixels, ViT-B/16, S/16 and Ti/16, batches of 1, 8 and 32; features alone. Peers,
each as its users would have it:

- timm: eager in fp32; compiled in bf16 autocast
- ONNX Runtime on timm's exported model: fp32; int8 dynamic with a scale for each output (its default is one for all)
- OpenVINO on timm's model: fp32, bf16, and int8 by nncf (transformer preset), the rest in bf16

Vitrail's are the engines of ``vitrail tune``, and int8 with tokens merged: a quarter, half or three quarters of the
patches gone at the end, most of them early, in every third layer, or in every layer, there as many in each
(``constant``) or most in the first (``decreasing``).
Medians over ``ROUNDS`` turns in which every way is timed once. The speed of products of 2048 x 2048 in fp32 and bf16
and of copying 256 MiB, measured in the same run, stand beside.

Aims, written down before: at each precision at least the fastest peer, ratios under 1.1 being ties; with merging 1.6
times the fastest peer at any precision.

Every (model, batch) is a process of its own and a file in ``results/inference/``, in the folder of the kind of
processor, that is not measured again; name some to measure them alone (``S/16:8``). ``--table`` writes the tables of
``docs/performance.md``. ``--check S/16:8`` measures that one again and says which ratios to the fastest peer have
fallen by more than ``MARGIN``. A cell takes five minutes on two cores, of B/16 up to eighteen.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import torch
from torch import Tensor, nn

from benchmarks.limits import limits
from benchmarks.results_file import KINDS, RESULTS, fallen, kind, publish, record
from vitrail.config import variant
from vitrail.model.build import build
from vitrail.report.markdown import table
from vitrail.runtime import onnxruntime, openvino
from vitrail.runtime.device import native_bf16
from vitrail.runtime.engines import available, engine
from vitrail.runtime.plan import Precision, Runtime
from vitrail.runtime.schedules import Kind, schedule
from vitrail.runtime.tuning import in_order
from vitrail.weights.dialect import translate_back
from vitrail.weights.timm import rules

MODELS = {"B/16": "base", "S/16": "small", "Ti/16": "tiny"}
BATCHES = (1, 8, 32)
ROUNDS, SECONDS = 5, 0.5
SHARES = (0.25, 0.5, 0.75)
MERGED: dict[str, tuple[float, Kind, int]] = {
    **{f"{100 * share:g} %": (share, "decreasing", 3) for share in SHARES},
    **{f"{kind} {100 * share:g} %": (share, kind, 1) for kind in ("constant", "decreasing") for share in SHARES},
}
"""How much is merged, and where: arguments of ``schedule``."""
PRECISIONS: tuple[Precision, ...] = ("fp32", "bf16", "int8")
MARGIN = 0.15
Way = Callable[[], object]


def main() -> None:
    """Measure what is not there, or what is named."""
    named = [word for word in sys.argv[1:] if not word.startswith("--")]
    cells = [f"{model}:{batch}" for model in MODELS for batch in BATCHES]
    if wrong := [word for word in named if word not in cells]:
        sys.exit(f"There is no {wrong[0]}: name one of {', '.join(cells)}.")
    if "--check" in sys.argv:
        if len(named) != 1 or not _file(named[0]).is_file():
            sys.exit("Name one to check that was measured on this kind of processor.")
        sys.exit(check(named[0]))
    if "--table" not in sys.argv:
        for cell in named or cells:
            if named or not _file(cell).is_file():
                record(f"inference/{kind()}/{_file(cell).stem}", _in_a_process(cell))
    texts = []
    for name, title in KINDS.items():
        if there := [cell for cell in cells if _file(cell, name).is_file()]:
            texts.append(f"{title}, pictures a second at 224 pixels, by batch:\n\n{tables(there, name)}")
    unknown = "Not measured yet: `python -m benchmarks.inference` fills this in."
    publish("inference", "\n\n".join(texts) or unknown, *sorted(RESULTS.glob("inference/*/*.json")))


def measure(cell: str) -> dict[str, Any]:
    """Pictures a second of every way, in this process."""
    model, batch = cell.split(":")
    images = torch.randn(int(batch), 3, 224, 224, generator=torch.Generator().manual_seed(0))
    with tempfile.TemporaryDirectory() as folder:
        ways = {**peers(model, images, Path(folder)), **ours(model, images, Path(folder))}
        speeds = by_turns(ways, int(batch))
    return {"pictures_per_second": speeds, "limits": limits()}


def peers(model: str, images: Tensor, folder: Path) -> dict[str, Way]:
    """As their users would have them."""
    import timm

    config = variant(f"ViT-{model}", (224, 224), 0)
    theirs = timm.create_model(f"vit_{MODELS[model]}_patch16_224", num_classes=0).eval()
    own = build(config).state_dict()
    theirs.load_state_dict(translate_back(rules(config), config, own), strict=False)
    compiled = torch.compile(theirs)

    def eager() -> object:
        with torch.inference_mode():
            return theirs(images)

    def in_bf16() -> object:
        with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
            return compiled(images)

    found: dict[str, Way] = {"timm fp32": eager, "timm compiled bf16": in_bf16}
    for name, quantised in (("fp32", False), ("int8", True)):
        place = folder / f"onnx-{name}"
        place.mkdir()
        onnxruntime.build(theirs, images[:1].repeat(2, 1, 1, 1), place, quantised)
        session = onnxruntime.library().InferenceSession(place / onnxruntime.GRAPH, providers=["CPUExecutionProvider"])
        found[f"ONNX Runtime {name}"] = lambda session=session: session.run(None, {"images": images.numpy()})  # type: ignore[misc]
    for name, hint in (("fp32", "f32"), ("bf16", "bf16"), ("int8", "bf16")):
        found[f"OpenVINO {name}"] = _openvino(theirs, images, hint, name == "int8")
    return found


def _openvino(model: nn.Module, images: Tensor, hint: str, quantised: bool) -> Way:
    """OpenVINO by its documentation, one graph for this batch."""
    library = openvino.library()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        graph = library.convert_model(model, example_input=images, input=list(images.shape))
        if quantised:
            import nncf

            nncf.set_log_level("ERROR")
            data = nncf.Dataset([images.numpy()])
            graph = nncf.quantize(graph, data, subset_size=1, model_type=nncf.ModelType.TRANSFORMER)
    hints = {"INFERENCE_PRECISION_HINT": hint, "PERFORMANCE_HINT": "LATENCY"}
    compiled = library.Core().compile_model(graph, "CPU", hints)
    array = images.numpy()
    return lambda: compiled(array)


def ours(model: str, images: Tensor, folder: Path) -> dict[str, Way]:
    """Every engine there is, and int8 with tokens merged."""
    own = build(variant(f"ViT-{model}", (224, 224), 0))
    cpu = torch.device("cpu")
    plans = [Runtime(*pair, batch_size=len(images)) for pair in available(cpu)]
    best: Precision = "int8" if ("openvino", "int8") in available(cpu) else "bf16" if native_bf16(cpu) else "fp32"
    fast = Runtime("openvino", best, batch_size=len(images))
    merged = {f"merging {name}": replace(fast, merging=schedule(own.config, *how)) for name, how in MERGED.items()}
    shown = images[:1].repeat(8, 1, 1, 1) + 0.1 * torch.randn(8, 3, 224, 224)
    made = {f"vitrail {plan.backend}:{plan.precision}": engine(own, plan, shown, folder) for plan in plans}
    made |= {f"vitrail {name}": engine(own, plan, shown, folder) for name, plan in merged.items()}
    return {name: lambda run=run: run(images) for name, run in made.items()}  # type: ignore[misc]


def by_turns(ways: Mapping[str, Way], pictures: int) -> dict[str, float]:
    """Medians of images a second; a way's turn lasts ``SECONDS`` or one call."""
    for way in ways.values():
        way()
        way()
    speeds: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(ROUNDS):
        for name, way in in_order(ways, turn):
            start, calls = time.perf_counter(), 0
            while calls == 0 or time.perf_counter() - start < SECONDS:
                way()
                calls += 1
            speeds[name].append(calls * pictures / (time.perf_counter() - start))
    return {name: statistics.median(own) for name, own in speeds.items()}


def ratios(speeds: Mapping[str, float]) -> dict[str, float]:
    """Ours to the fastest peer: at each precision, and merged to the fastest at any."""
    theirs = {name: speed for name, speed in speeds.items() if not name.startswith("vitrail ")}
    mine = {name: speed for name, speed in speeds.items() if name.startswith("vitrail ")}
    found: dict[str, float] = {}
    for precision in PRECISIONS:
        here = [speed for name, speed in mine.items() if name.endswith(f":{precision}")]
        there = [speed for name, speed in theirs.items() if name.endswith(precision)]
        if here and there:
            found[precision] = max(here) / max(there)
    for name, speed in mine.items():
        if name.startswith("vitrail merging"):
            found[name.removeprefix("vitrail ")] = speed / max(theirs.values())
    return found


def check(cell: str) -> str | None:
    """What has become slower against the peers than the committed file says; None: nothing."""
    before = ratios(json.loads(_file(cell).read_text())["findings"]["pictures_per_second"])
    now = ratios(_in_a_process(cell)["pictures_per_second"])
    print(now)
    slower = fallen(before, now, MARGIN)
    return f"slower against the peers: {'; '.join(slower)}" if slower else None


def tables(cells: list[str], name: str) -> str:
    """In Markdown: speeds on one kind of processor, and ratios to the fastest peer."""
    measured = {cell: json.loads(_file(cell, name).read_text())["findings"] for cell in cells}
    found = {cell: one["pictures_per_second"] for cell, one in measured.items()}
    names = list(dict.fromkeys(name for speeds in found.values() for name in speeds))
    head = [cell.replace(":", ", ") for cell in cells]
    speeds = [[name, *(_told(found[cell], name, 1) for cell in cells)] for name in names]
    bounds = [
        [name, *(_told(one["limits"], name, 0) for one in measured.values())]
        for name in dict.fromkeys(name for one in measured.values() for name in one["limits"])
    ]
    own = {cell: ratios(found[cell]) for cell in cells}
    told = list(dict.fromkeys(name for one in own.values() for name in one))
    compared = [[name, *(_told(own[cell], name, 2) for cell in cells)] for name in told]
    return "\n\n".join(
        [
            table(["", *head], speeds),
            "Vitrail to the fastest peer, at each precision, and merged to the fastest peer at any:",
            table(["", *head], compared),
            "What the machine did in the same run, products of 2048 x 2048 and a copy:",
            table(["", *head], bounds),
        ]
    )


def _told(found: Mapping[str, float], name: str, places: int) -> str:
    """The number, or nothing where that was not measured in this cell."""
    return f"{found[name]:.{places}f}" if name in found else ""


def _file(cell: str, name: str | None = None) -> Path:
    return RESULTS / "inference" / (name or kind()) / f"{cell.replace('/', '').replace(':', '-')}.json"


def _in_a_process(cell: str) -> dict[str, Any]:
    words = [sys.executable, "-m", "benchmarks.inference", "--one", cell]
    done = subprocess.run(words, check=True, stdout=subprocess.PIPE, text=True)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    print(cell, found, flush=True)
    return found


if __name__ == "__main__":
    if sys.argv[1:2] == ["--one"]:
        print(json.dumps(measure(sys.argv[2])))
    else:
        main()
