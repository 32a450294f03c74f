"""How a trained model is to be run on a machine: plain data, written beside the model by ``vitrail tune``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from vitrail.config import suggestion
from vitrail.errors import UserError

Backend = Literal["eager", "compiled", "onnx", "openvino"]
Precision = Literal["fp32", "bf16", "int8"]
FILE = "runtime.json"
"""In a model's folder: what ``vitrail tune`` found, a ``Tuned``."""
BUILDS = "builds"
"""In a model's folder: what engines were built, a folder each."""
LARGEST = 2**16
"""Of batches and threads, far beyond what any machine runs: more is a slip."""


@dataclass(frozen=True)
class Runtime:
    """One way to run a model."""

    backend: Backend = "eager"
    """PyTorch as it is, PyTorch compiled by inductor, ONNX Runtime, or OpenVINO."""
    precision: Precision = "fp32"
    """Of matrix products; ``openvino:int8`` takes ranges from pictures, and its sensitive layers stay more precise."""
    merging: tuple[int, ...] = ()
    """How many tokens each layer merges into others (2210.09461), one number a layer; empty: none."""
    batch_size: int = 32
    threads: int | None = None
    """None: as many as PyTorch takes, the cores at most."""
    ranges: str = ""
    """From which pictures ``openvino:int8`` has its ranges, a digest of them; empty: from whichever there are."""

    def __post_init__(self) -> None:
        """Raise UserError for numbers that nothing can be run with."""
        threads = 1 if self.threads is None else self.threads
        for what, number in (("pictures in a batch", self.batch_size), ("threads", threads)):
            if not 1 <= number <= LARGEST:
                raise UserError(f"A model cannot be run with {number} {what}: say 1 to {LARGEST:,}.")

    @property
    def name(self) -> str:
        """``openvino:int8``, with tokens merged, batches and threads where they are said."""
        merged = f", {sum(self.merging)} merged" if any(self.merging) else ""
        batch = "" if self.batch_size == Runtime.batch_size else f", batches of {self.batch_size}"
        threads = "" if self.threads is None else f", {self.threads} thread{'s' if self.threads > 1 else ''}"
        return f"{self.backend}:{self.precision}{merged}{batch}{threads}"


@dataclass(frozen=True)
class Tuned:
    """The way that was found to be the fastest, and what was measured of it."""

    runtime: Runtime
    images_per_second: float
    accuracy: float
    loss: float
    """Points of accuracy less than in eager fp32, on the same pictures."""
    interval: tuple[float, float]
    """Of ``loss``, 95 %."""
    images: int
    """That ``loss`` was measured on."""
    processor: str
    model: str = ""
    """The ``fingerprint`` of what was measured; empty: not noted, as it was once."""


def parse(text: str) -> Runtime:
    """``openvino``, ``openvino:int8``: a backend, and a precision where it is not the backend's usual.

    Raises:
        UserError: there is no such backend or precision.
    """
    backend, colon, precision = text.partition(":")
    precision = precision if colon else "fp32"
    for word, known, what in ((backend, Backend, "backend"), (precision, Precision, "precision")):
        if word not in get_args(known):
            raise UserError(f"There is no {what} {word!r}{suggestion(word, get_args(known))}.")
    return Runtime(backend, precision)  # type: ignore[arg-type]
