"""A model's features by OpenVINO, in float32, bf16, or int8 with the rest in bf16.

A build is a graph, ``model.xml`` and ``model.bin``, for batches of any size; it is compiled for each size it meets.
A batch is run as several at once, each on its own part of the processor: where all of it shared every layer, whoever
was held up, by the decoder of the next pictures or by another program, would hold up all at the end of each.
"""

from __future__ import annotations

import io
import logging
import math
import sys
import threading
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, redirect_stdout
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vitrail.errors import UserError
from vitrail.runtime.plan import Backend, Precision
from vitrail.runtime.sizes import in_sizes, sizes_up_to

GRAPH = "model.xml"
SENSITIVE = ("", ".*mlp.fc2.*")
"""What is left more precise: nothing but the patch embedding; where that is too coarse, the second layers of the MLPs
as well, whose inputs have the largest outliers."""
CALIBRATION = 128
"""Most pictures that ranges of numbers are taken from."""
ALONE = 4
"""Pictures that keep a part of the processor busy."""


def library() -> Any:
    """OpenVINO.

    Raises:
        UserError: it is not installed.
    """
    # It would tell a server of every conversion; without the module that does so it has a silent one of its own.
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
    try:
        import openvino
    except ImportError:
        raise UserError("Running by OpenVINO needs openvino: pip install 'vitrail[fast]'.") from None
    _core()
    return openvino


@cache
def _core() -> Any:
    """The one that lives as long as the process.

    Each sets a stack for signals and sets back, when it goes, the one it had found. Where two go in the order they
    came, the stack that remains is that of the first, freed: the next Ctrl-C would end the process with a fault.
    """
    import openvino

    core = openvino.Core()
    core.get_property("CPU", "FULL_DEVICE_NAME")  # loads what sets the stack, before another can
    return core


def build(module: nn.Module, example: Tensor, folder: Path, pictures: Tensor | None, sensitive: str = "") -> None:
    """Write the graph of ``module`` into ``folder``, quantised if there are ``pictures`` (n, C, H, W).

    Raises:
        UserError: a library is not installed.
    """
    openvino = library()
    free = [-1, *example.shape[1:]]
    with torch.no_grad(), _traced():  # attention with relative positions recomputes parts of itself for gradients
        graph = openvino.convert_model(module, example_input=example, input=free)
    if pictures is not None:
        graph = _quantised(graph, pictures, sensitive)
    openvino.save_model(graph, folder / GRAPH, compress_to_fp16=False)


def _quantised(graph: Any, pictures: Tensor, sensitive: str) -> Any:
    """Weights and inputs of matrix products in 8 bits (W8A8), their ranges from pictures."""
    # It looks for a compiler of CUDA's that nobody asked for, and would say that there is none.
    logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)
    try:
        import nncf
    except ImportError:
        raise UserError("Quantising needs nncf: pip install 'vitrail[fast]'.") from None
    nncf.set_log_level("ERROR")
    samples = [picture[None].numpy() for picture in pictures[:CALIBRATION]]
    scope = nncf.IgnoredScope(types=["Convolution"], patterns=[sensitive] if sensitive else [], validate=False)
    with _traced(), redirect_stdout(io.StringIO()):  # nncf draws bars of its own there
        return nncf.quantize(
            graph,
            nncf.Dataset(samples),
            subset_size=len(samples),
            model_type=nncf.ModelType.TRANSFORMER,
            ignored_scope=scope,
        )


class OpenVINO:
    """A build on this machine."""

    backend: Backend = "openvino"

    def __init__(self, folder: Path, precision: Precision, most: int, threads: int) -> None:
        library()
        self.precision = precision
        self.most = most
        self.sizes = sizes_up_to(most)
        self.graph = _core().read_model(folder / GRAPH)
        self.threads = threads
        self.hints = {
            "INFERENCE_PRECISION_HINT": "f32" if precision == "fp32" else "bf16",
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_NUM_THREADS": self.threads,
        }
        self.compiled: dict[int, list[Any]] = {}
        self.lock = threading.Lock()
        """Held while the requests run, which have one place each for pictures and for answers: another thread waits."""

    def __call__(self, images: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, F)."""
        return in_sizes(self._features, images, self.most)

    def _features(self, images: Tensor) -> Tensor:
        with self.lock:
            if len(images) not in self.compiled:
                self.compiled[len(images)] = self._requests(images)
            requests = self.compiled[len(images)]
            parts = images.contiguous().chunk(len(requests))
            with ExitStack() as running:  # left when all ended, by Ctrl-C too: they read the pictures where they are
                for request, part in zip(requests, parts, strict=True):
                    running.callback(request.wait)
                    request.start_async([part.numpy()], share_inputs=True)
            return torch.cat([torch.from_numpy(request.get_output_tensor(0).data) for request in requests])

    def _requests(self, images: Tensor) -> list[Any]:
        """As many as batches of this size are run as."""
        count = streams(len(images), self.threads)
        graph = self.graph.clone()
        graph.reshape([len(images) // count, *images.shape[1:]])
        compiled = _core().compile_model(graph, "CPU", {**self.hints, "NUM_STREAMS": count})
        return [compiled.create_infer_request() for _ in range(count)]


def streams(pictures: int, threads: int) -> int:
    """How many batches of equal size a batch is run as at once, with equally many threads each."""
    most = math.gcd(pictures, threads)
    return max(count for count in range(1, most + 1) if most % count == 0 and (count == 1 or pictures >= ALONE * count))


@contextmanager
def _traced() -> Iterator[None]:
    """Tracing fixes what Python decides by shapes, which is what is wanted here, and says so."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", torch.jit.TracerWarning)  # type: ignore[attr-defined]
        warnings.simplefilter("ignore", DeprecationWarning)
        warnings.simplefilter("ignore", FutureWarning)
        yield
