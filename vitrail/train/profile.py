"""Where the time of a training step goes, and how near its products are to what the machine can do."""

from __future__ import annotations

import math
import os
import statistics
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from vitrail.atomic import new_file
from vitrail.train.loop import Step

TIMED = LOOKED_AT = 3
STEPS = 2 + TIMED + LOOKED_AT
"""In the first step operations are counted, the second warms up, then some are timed, and the last are looked at, which
makes them slower."""
SIDE = 2048
"""Of the square matrices whose product says what the machine can do."""
PARTS = {
    "matrix products": ("mm", "addmm", "bmm", "baddbmm", "convolution", "_convolution", "linear"),
    "attention, fused": ("_scaled_dot_product",),
    "norms and softmax": ("native_layer_norm", "native_batch_norm", "native_group_norm", "_softmax", "_log_softmax"),
    "nonlinearities": ("gelu", "silu", "relu", "tanh", "sigmoid", "threshold"),
    "copies and conversions": ("copy_", "cat", "stack", "index", "gather", "scatter", "clone", "fill_", "zero_"),
    "optimiser and averages": ("_fused", "_foreach", "lerp", "linalg_vector_norm"),
}
"""Where an operation belongs, by how its name begins once mkldnn_ or cudnn_ is taken from it."""
ATTENTION_ON_CPU = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: lambda *shapes, **_: _forth(*shapes[:3]),
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: lambda *shapes, **_: _back(*shapes[1:4]),
}
"""PyTorch counts fused attention on GPUs only; the same on a CPU takes the same arguments and products."""
OTHER, COMPILED, WAITING = "other operations", "compiled together", "Python, and waiting for pictures"
INDUCTOR = "## Call CompiledFxGraph"
"""How PyTorch names what inductor compiled; the products in it stand beside it under names of their own."""


@dataclass(frozen=True)
class Accounts:
    """What a step costs."""

    seconds: float
    """A step that is not looked at, median."""
    parts: Mapping[str, float]
    """Seconds of such a step by kind of operation, most first: shares of those that are looked at."""
    flops: float
    """Floating-point operations of a step's products, forth and back."""
    limit: float
    """Those a second of one large product in the same precision."""

    @property
    def share(self) -> float:
        """Of the limit, that a step as a whole reaches."""
        return self.flops / self.seconds / self.limit

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON values."""
        return {**asdict(self), "share": self.share}


class Profiler:
    """Follows a run of ``STEPS`` steps: ``with Profiler(...) as follow: train(..., tell=follow)``."""

    def __init__(self, device: torch.device, bf16: bool) -> None:
        self.device, self.bf16 = device, bf16
        self.ends: list[float] = []
        self.started = 0.0
        self.counter = FlopCounterMode(display=False, custom_mapping=ATTENTION_ON_CPU)
        self.first = ExitStack()
        os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # or PyTorch tells of every processor it did not find
        kinds = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if device.type == "cuda" else [])]
        self.profile = profile(activities=kinds)

    def __enter__(self) -> Callable[[Step], None]:
        self.first.enter_context(self.counter)
        return self._tell

    def __exit__(self, *error: object) -> None:
        self.first.close()
        if 2 + TIMED <= len(self.ends) < STEPS:
            self.profile.stop()

    def _tell(self, step: Step) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        self.ends.append(time.perf_counter())
        if len(self.ends) == 1:
            self.first.close()
        if len(self.ends) == 2 + TIMED:
            self.profile.start()
            self.started = time.perf_counter()  # starting takes long the first time
        if len(self.ends) == STEPS:
            self.profile.stop()

    def accounts(self) -> Accounts:
        """Of the steps after the second."""
        seconds = statistics.median(after - before for before, after in pairwise(self.ends[1 : 2 + TIMED]))
        looked_at = self.ends[-1] - self.started
        parts = dict.fromkeys([*PARTS, OTHER, COMPILED], 0.0)
        for event in self.profile.key_averages():
            own = event.self_device_time_total if self.device.type == "cuda" else event.self_cpu_time_total
            if event.key.startswith("aten::"):
                parts[_part(event.key.removeprefix("aten::"))] += own / 1e6
            elif event.key.startswith(INDUCTOR):
                parts[COMPILED] += own / 1e6
        parts[WAITING] = max(0.0, looked_at - sum(parts.values()))
        return Accounts(
            seconds=seconds,
            parts={name: seconds * own / looked_at for name, own in sorted(parts.items(), key=lambda item: -item[1])},
            flops=float(self.counter.get_total_flops()),
            limit=product_limit(self.device, torch.bfloat16 if self.bf16 else torch.float32),
        )

    def write(self, path: Path) -> None:
        """The trace, as Perfetto and Chrome read it.

        Raises:
            UserError: the file cannot be written.
        """
        with new_file(path) as beside:
            self.profile.export_chrome_trace(str(beside))


def product_limit(device: torch.device, dtype: torch.dtype, rounds: int = 5) -> float:
    """Floating-point operations a second of a product of two ``SIDE`` x ``SIDE`` matrices: median of ``rounds``."""
    a, b = (torch.randn(SIDE, SIDE, device=device).to(dtype) for _ in range(2))
    times = []
    for _ in range(rounds + 1):
        start = time.perf_counter()
        (a @ b)[0, 0].item()
        times.append(time.perf_counter() - start)
    return 2 * SIDE**3 / statistics.median(times[1:])


def _part(name: str) -> str:
    name = name.removeprefix("mkldnn_").removeprefix("cudnn_")
    return next((part for part, starts in PARTS.items() if name.startswith(starts)), OTHER)


def _forth(q: torch.Size, k: torch.Size, v: torch.Size) -> int:
    """Operations of fused attention, q (B, K, n, D/K), k and v (B, K, N, D/K): the logits, and what they weigh."""
    return 2 * math.prod(q) * k[-2] + 2 * math.prod(q[:-1]) * math.prod(v[-2:])


def _back(q: torch.Size, k: torch.Size, v: torch.Size) -> int:
    """Twice as many, and the logits once more."""
    return 2 * _forth(q, k, v) + 2 * math.prod(q) * k[-2]
