"""A model and a way to run it -> an engine: built once, held against the model itself, and kept beside it."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor, nn

from vitrail.atomic import new_folder
from vitrail.cache import cache_dir
from vitrail.errors import UserError
from vitrail.model.build import Model
from vitrail.model.vision import VisionTransformer
from vitrail.record import to_dict
from vitrail.runtime import onnxruntime, openvino
from vitrail.runtime.device import native_bf16
from vitrail.runtime.in_torch import InTorch
from vitrail.runtime.machine import processor, versions
from vitrail.runtime.merging import Merged
from vitrail.runtime.plan import BUILDS, Backend, Precision, Runtime
from vitrail.runtime.predictor import Engine
from vitrail.weights.store import write_json

BOUNDS: dict[Precision, float] = {"fp32": 1e-3, "bf16": 0.05, "int8": 0.25}
"""Most that an engine's features may be from the model's own in fp32: mean over pictures of |a - b| / |b|."""
MERGED = 3.0
"""Times as far where tokens merge: which ones do turns on small differences, and another pair is no fault."""
CHECKED = 8
"""Pictures that this is looked at on."""
ABOUT = "build.json"
RECIPE = 2
"""Raised when the same model is built differently than before: builds that are there are not taken then."""


class Rejected(UserError):
    """What an engine gives is not what the model gives."""


class Features(nn.Module):
    """A model's features as a module of its own, for compilers."""

    def __init__(self, model: Model) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, F)."""
        return self.model.features(images)


def available(device: torch.device) -> tuple[tuple[Backend, Precision], ...]:
    """What can be tried on this machine, by its device, processor and libraries; nothing is imported for it."""
    precisions: tuple[Precision, ...] = ("fp32", "bf16") if native_bf16(device) else ("fp32",)
    found: list[tuple[Backend, Precision]] = [("eager", one) for one in precisions]
    if device.type != "cpu":
        return tuple(found)
    found += [("compiled", one) for one in precisions]
    if find_spec("onnxruntime") and find_spec("onnxscript"):
        found += [("onnx", "fp32"), ("onnx", "int8")]
    if find_spec("openvino"):
        found += [("openvino", one) for one in precisions]
        found += [("openvino", "int8")] if find_spec("nncf") else []
    return tuple(found)


def engine(model: Model, runtime: Runtime, pictures: Tensor | None = None, beside: Path | None = None) -> Engine:
    """What computes the features of ``model`` in the way of ``runtime``, on the processor.

    A build that is there is taken; another is made, and taken if it gives what the model gives.

    Args:
        pictures: (n, C, H, W), preprocessed as the model's: ranges for int8 are taken from them, and the engine is
            checked on them; None: on noise.
        beside: the model's folder, which keeps the build, or the cache where it cannot be written; None: none does.

    Raises:
        Rejected: the engine's features are not the model's within ``BOUNDS``.
        UserError: a library is missing, int8 is asked for without pictures or a build, the model's tokens cannot be
            merged, or the build cannot be written.
    """
    if any(runtime.merging):
        if not isinstance(model, VisionTransformer):
            raise UserError("A CNN has no tokens to merge: run it without merging.")
        module: nn.Module = Merged(model, runtime.merging).eval()
    else:
        module = Features(model).eval()
    shown = _noise(model) if pictures is None else pictures
    if runtime.backend in ("eager", "compiled"):
        if runtime.precision == "int8":
            raise UserError("PyTorch runs no model in int8 here: take openvino:int8 or onnx:int8.")
        made = InTorch(module, runtime.precision, runtime.batch_size, runtime.threads, runtime.backend == "compiled")
        if runtime.backend == "compiled":
            check(made, module, runtime, shown)
        return made
    if runtime.backend == "onnx" and runtime.precision == "bf16":
        raise UserError("ONNX Runtime has no bf16 on a processor: take onnx:fp32, onnx:int8 or openvino:bf16.")
    run = _opener(runtime)
    if beside is None:
        folder = Path(cache_dir()) / BUILDS / f"unkept-{os.getpid()}"
        try:
            return _built(module, runtime, pictures, shown, folder, run)
        finally:
            shutil.rmtree(folder, ignore_errors=True)
    root = beside if os.access(beside, os.W_OK) else cache_dir()
    folder = root / BUILDS / key(model, runtime)
    if (folder / ABOUT).is_file():
        try:
            return run(folder)
        except UserError:
            raise
        except Exception:  # damaged, and each library has errors of its own for that
            shutil.rmtree(folder, ignore_errors=True)
    return _built(module, runtime, pictures, shown, folder, run)


def _opener(runtime: Runtime) -> Callable[[Path], Engine]:
    if runtime.backend == "onnx":
        return lambda folder: onnxruntime.ONNXRuntime(folder, runtime.precision, runtime.threads)
    return lambda folder: openvino.OpenVINO(folder, runtime.precision, runtime.batch_size, runtime.threads)


def _built(
    module: nn.Module,
    runtime: Runtime,
    pictures: Tensor | None,
    shown: Tensor,
    folder: Path,
    run: Callable[[Path], Engine],
) -> Engine:
    """Build into ``folder``, check, and keep; where int8 is too coarse, again with its sensitive layers left out."""
    if runtime.precision == "int8" and pictures is None:
        raise UserError(
            f"{runtime.name} takes its ranges of numbers from pictures, and there is no build of it for this model on "
            "this machine: run vitrail tune with labelled pictures first."
        )
    scopes = openvino.SENSITIVE if (runtime.backend, runtime.precision) == ("openvino", "int8") else ("",)
    for scope in scopes:
        shutil.rmtree(folder, ignore_errors=True)
        with new_folder(folder) as inside:
            try:
                if runtime.backend == "onnx":
                    onnxruntime.build(module, shown[:2], inside, runtime.precision == "int8")
                else:
                    ranges = pictures if runtime.precision == "int8" else None
                    openvino.build(module, shown[:2], inside, ranges, scope)
            except (UserError, OSError, MemoryError):
                raise
            except Exception as error:  # each library has its own for a model that it has no words for
                lines = [line for line in str(error).splitlines() if line.strip()]
                raise UserError(
                    f"{runtime.name} cannot be built for this model ({(lines or [type(error).__name__])[-1].strip()}): "
                    "choose another way to run it."
                ) from error
            about = {"runtime": to_dict(runtime), "processor": processor(), "versions": versions(), "sensitive": scope}
            write_json(inside / ABOUT, about)
        made = run(folder)
        try:
            check(made, module, runtime, shown)
            return made
        except Rejected:
            shutil.rmtree(folder, ignore_errors=True)
            if scope == scopes[-1]:
                raise
    raise AssertionError


def check(made: Engine, module: nn.Module, runtime: Runtime, pictures: Tensor) -> float:
    """How far an engine's features are from ``module``'s in eager fp32, over ``CHECKED`` pictures.

    Raises:
        Rejected: further than ``BOUNDS`` says, or they are no numbers.
    """
    pictures = pictures[:CHECKED]
    with torch.inference_mode():
        truth = module(pictures)
    found = made(pictures)
    apart = float(((found - truth).norm(dim=-1) / truth.norm(dim=-1).clamp(min=1e-12)).mean())
    bound = BOUNDS[runtime.precision] * (MERGED if any(runtime.merging) else 1.0)
    if not apart <= bound:
        raise Rejected(
            f"{runtime.name} gives features that are {apart:.2g} of their length from the model's own, more than the "
            f"{bound:.2g} allowed, so it is not used: choose another way to run the model on this machine."
        )
    return apart


def key(model: Model, runtime: Runtime) -> str:
    """A name for all that a build depends on: the model, what is computed how, processor and libraries."""
    about = [
        RECIPE,
        to_dict(model.config),
        runtime.backend,
        runtime.precision,
        runtime.merging,
        processor(),
        versions(),
    ]
    digest = hashlib.sha256(json.dumps(about, sort_keys=True).encode())
    for name, tensor in sorted(model.state_dict().items()):
        if not name.startswith("classifier."):
            digest.update(name.encode())
            digest.update(tensor.detach().cpu().reshape(-1).view(torch.uint8).numpy())
    return f"{runtime.backend}-{runtime.precision}-{digest.hexdigest()[:16]}"


def _noise(model: Model) -> Tensor:
    """Pictures of nothing, standardised: (2, C, H, W)."""
    config = model.config
    return torch.randn(2, config.channels, *config.image_size, generator=torch.Generator().manual_seed(0))
