"""A model's features by ONNX Runtime, in float32, or with products of 8 bits whose ranges are found as they run."""

from __future__ import annotations

import logging
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vitrail.errors import UserError
from vitrail.runtime.plan import Backend, Precision
from vitrail.runtime.sizes import in_pieces

GRAPH = "model.onnx"


def library() -> Any:
    """ONNX Runtime.

    Raises:
        UserError: it is not installed.
    """
    try:
        import onnxruntime
    except ImportError:
        raise UserError("Running by ONNX Runtime needs onnxruntime: pip install 'vitrail[fast]'.") from None
    return onnxruntime


def build(module: nn.Module, example: Tensor, folder: Path, quantised: bool) -> None:
    """Write ``module`` as ``model.onnx`` for batches of any size into ``folder``.

    Raises:
        UserError: a library is not installed.
    """
    path = folder / GRAPH
    export(module, example, path)
    if quantised:
        library()
        from onnxruntime.quantization import QuantType, quantize_dynamic

        whole = path.rename(folder / "float.onnx")
        logging.disable(logging.WARNING)  # it says that the graph was not prepared by its own tool
        try:
            # A scale for each output: one for a whole matrix costs twice the error.
            quantize_dynamic(
                whole, path, weight_type=QuantType.QInt8, per_channel=True, op_types_to_quantize=["MatMul", "Gemm"]
            )
        finally:
            logging.disable(logging.NOTSET)
        whole.unlink()
        whole.with_suffix(".onnx.data").unlink(missing_ok=True)


def export(module: nn.Module, example: Tensor, path: Path) -> None:
    """Write ``module`` (B, C, H, W) -> (B, F) as an ONNX graph; position tables are constants in it.

    Raises:
        UserError: onnxscript is not installed.
    """
    try:
        import onnxscript  # noqa: F401
    except ImportError:
        raise UserError("Writing ONNX needs onnxscript: pip install 'vitrail[fast]'.") from None
    batch = torch.export.Dim("batch", min=1, max=4096)
    with warnings.catch_warnings(), torch.inference_mode():
        warnings.simplefilter("ignore")  # of the exporter's own inner workings
        program = torch.onnx.export(
            module, (example,), dynamo=True, verbose=False, input_names=["images"], output_names=["features"],
            dynamic_shapes=({0: batch},),
        )  # fmt: skip
        assert program is not None
        program.save(str(path))


class ONNXRuntime:
    """A build on this machine."""

    backend: Backend = "onnx"
    sizes: tuple[int, ...] = ()

    def __init__(self, folder: Path, precision: Precision, most: int, threads: int) -> None:
        runtime = library()
        self.precision = precision
        self.most = most
        options = runtime.SessionOptions()
        options.intra_op_num_threads = threads
        # Its threads would go on turning after each batch, and hold up whoever decodes the next one.
        options.add_session_config_entry("session.force_spinning_stop", "1")
        options.log_severity_level = 3
        self.session = runtime.InferenceSession(folder / GRAPH, options, providers=["CPUExecutionProvider"])

    def __call__(self, images: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, F)."""
        return in_pieces(self._features, images, self.most)

    def _features(self, images: Tensor) -> Tensor:
        return torch.from_numpy(self.session.run(None, {"images": images.contiguous().numpy()})[0])
