"""A model's features by OpenVINO, in float32, bf16, or int8 with the rest in bf16.

A build is a graph, ``model.xml`` and ``model.bin``, for batches of any size; it is compiled for each size it meets.
"""

from __future__ import annotations

import io
import logging
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vitrail.data.ahead import cores
from vitrail.errors import UserError
from vitrail.runtime.plan import Backend, Precision
from vitrail.runtime.sizes import in_sizes

GRAPH = "model.xml"
SENSITIVE = ("", ".*mlp.fc2.*")
"""What is left more precise: nothing but the patch embedding; where that is too coarse, the second layers of the MLPs
as well, whose inputs have the largest outliers."""
CALIBRATION = 128
"""Most pictures that ranges of numbers are taken from."""


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
    with _traced():
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

    def __init__(self, folder: Path, precision: Precision, most: int, threads: int | None) -> None:
        library()
        self.precision = precision
        self.most = most
        self.graph = _core().read_model(folder / GRAPH)
        self.hints = {
            "INFERENCE_PRECISION_HINT": "f32" if precision == "fp32" else "bf16",
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_NUM_THREADS": threads or cores(),
        }
        self.compiled: dict[int, Any] = {}

    def __call__(self, images: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, F)."""
        return in_sizes(self._features, images, self.most)

    def _features(self, images: Tensor) -> Tensor:
        if len(images) not in self.compiled:
            graph = self.graph.clone()
            graph.reshape(list(images.shape))
            self.compiled[len(images)] = _core().compile_model(graph, "CPU", self.hints).create_infer_request()
        request = self.compiled[len(images)]
        request.infer([images.contiguous().numpy()], share_inputs=True)
        return torch.from_numpy(request.get_output_tensor(0).data.copy())


@contextmanager
def _traced() -> Iterator[None]:
    """Tracing fixes what Python decides by shapes, which is what is wanted here, and says so."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", torch.jit.TracerWarning)  # type: ignore[attr-defined]
        warnings.simplefilter("ignore", DeprecationWarning)
        warnings.simplefilter("ignore", FutureWarning)
        yield
