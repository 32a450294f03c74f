"""What this machine can do at all: products of 2048 x 2048 at each precision, and a copy."""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

from vitrail.data.ahead import cores
from vitrail.runtime import openvino
from vitrail.runtime.device import native_bf16
from vitrail.runtime.engines import available
from vitrail.train.profile import SIDE, product_limit

TIMES = 5


def limits() -> dict[str, float]:
    """GFLOP/s of a product, and GB/s of a copy, in this process; int8 by OpenVINO, its floats in and out included."""
    cpu = torch.device("cpu")
    found = {"fp32 GFLOP/s": product_limit(cpu, torch.float32) / 1e9}
    if native_bf16(cpu):
        found["bf16 GFLOP/s"] = product_limit(cpu, torch.bfloat16) / 1e9
    if ("openvino", "int8") not in available(cpu):
        return {**found, "copy GB/s": _copy()}
    with tempfile.TemporaryDirectory() as folder:
        module = nn.Sequential(nn.Linear(SIDE, SIDE)).eval()
        numbers = torch.randn(SIDE, SIDE)
        openvino.build(module, numbers[:2], Path(folder), numbers[:8])
        product = openvino.OpenVINO(Path(folder), "int8", SIDE, cores())
        found["int8 GFLOP/s"] = 2 * SIDE**3 / _seconds(lambda: product(numbers)) / 1e9
    return {**found, "copy GB/s": _copy()}


def _copy() -> float:
    source = torch.ones(2**26)
    target = torch.empty_like(source)
    return 2 * source.nbytes / _seconds(lambda: target.copy_(source)) / 1e9


def _seconds(function: Callable[[], object]) -> float:
    """Median of ``TIMES``, after one that warms up."""
    times = []
    for _ in range(TIMES + 1):
        start = time.perf_counter()
        function()
        times.append(time.perf_counter() - start)
    return statistics.median(times[1:])
