"""How a trained model is to be run on a machine: plain data, written beside the model by ``vitrail tune``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Backend = Literal["eager", "compiled", "onnx", "openvino"]
Precision = Literal["fp32", "bf16", "int8"]


@dataclass(frozen=True)
class Runtime:
    """One way to run a model."""

    backend: Backend = "eager"
    """PyTorch as it is, PyTorch compiled by inductor, ONNX Runtime, or OpenVINO."""
    precision: Precision = "fp32"
    """Of matrix products; ``int8`` needs calibration on pictures, and its sensitive layers stay more precise."""
    merging: tuple[int, ...] = ()
    """How many tokens each layer merges into others (2210.09461), one number a layer; empty: none."""
    batch_size: int = 32
    threads: int | None = None
    """None: as many as there are cores."""
