"""A model and a way to run it -> an engine: built once, held against the model itself, and kept beside it."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor, nn

from vitrail.atomic import new_file, new_folder
from vitrail.cache import cache_dir
from vitrail.cost import flops
from vitrail.data.ahead import cores
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
from vitrail.weights.store import read_json, write_json

BOUNDS: dict[Precision, float] = {"fp32": 1e-3, "bf16": 0.05, "int8": 0.25}
"""Most that an engine's features may be from the model's own in fp32: mean over pictures of |a - b| / |b|."""
WORST, FURTHEST = 4.0, 0.75
"""Times as far as that, a single picture's may be, and how far at most: no features at all (1) are always too far."""
MERGED = 3.0, 0.15
"""Times as far, or so much further, the less of the two, where tokens merge: which ones do turns on small differences,
and another pair is no fault."""
CHECKED = 8
"""Pictures that this is looked at on, repeated to a full batch; the first alone as well."""
WORK = 2e12
"""Most operations of that batch, a few seconds; where they are more, it has ``CHECKED`` pictures."""
ABOUT = "build.json"
LEFT = 3600
"""Seconds after which a build that nobody finished is nobody's."""
RECIPE = 3
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

    A build that is there, whole, is taken; another is made, and kept if it gives what the model gives.

    Args:
        pictures: (n, C, H, W), preprocessed as the model's: ranges for OpenVINO's int8 are taken from them, and the
            engine is checked on them; None: on noise.
        beside: the model's folder, which keeps the build, or the cache where it cannot be written; None: none does.

    Raises:
        Rejected: the engine's features are not the model's within ``BOUNDS``.
        UserError: a library is missing, ranges are to be taken and there are neither pictures nor a build, the model's
            tokens cannot be merged, or the build cannot be written.
    """
    # As many for all of them, so that they can be compared; what another machine was tuned to may be more.
    threads = min(cores(), torch.get_num_threads() if runtime.threads is None else runtime.threads)
    runtime = replace(runtime, threads=None if runtime.threads is None else threads)
    if runtime.precision == "int8" and not isinstance(model, VisionTransformer):
        raise UserError("A CNN's convolutions are not run in int8 here: take bf16 or fp32.")
    if any(runtime.merging):
        if not isinstance(model, VisionTransformer):
            raise UserError("A CNN has no tokens to merge: run it without merging.")
        module: nn.Module = Merged(model, runtime.merging).eval()
    else:
        module = Features(model).eval()
    shown = _noise(model) if pictures is None else pictures
    full = runtime.batch_size if runtime.batch_size * flops(model.config) <= WORK else CHECKED
    if runtime.backend in ("eager", "compiled"):
        if runtime.precision == "int8":
            raise UserError("PyTorch runs no model in int8 here: take openvino:int8 or onnx:int8.")
        made = InTorch(module, runtime.precision, runtime.batch_size, threads, runtime.backend == "compiled")
        if runtime.backend == "compiled":
            with _in_words(runtime, "does not run this model"):
                check(made, module, runtime, shown, [1, full])
        return made
    if runtime.backend == "onnx" and runtime.precision == "bf16":
        raise UserError("ONNX Runtime has no bf16 on a processor: take onnx:fp32, onnx:int8 or openvino:bf16.")
    job = _Job(module, with_ranges(runtime, pictures), pictures, shown, (1, full), threads)
    if beside is not None:
        return _kept(key(model, job.runtime), job, beside)
    with tempfile.TemporaryDirectory(prefix="vitrail-build-") as folder:
        return _built(job, Path(folder) / "build")


@dataclass(frozen=True)
class _Job:
    """What is built how, what its ranges are taken from, and what it is checked on in batches of which sizes."""

    module: nn.Module
    runtime: Runtime
    pictures: Tensor | None
    shown: Tensor
    sizes: tuple[int, ...]
    threads: int


def _kept(name: str, job: _Job, beside: Path) -> Engine:
    """A whole build from the model's folder or from the cache; where there is none, a new one."""
    roots = [beside / BUILDS, Path(cache_dir()) / BUILDS]
    any_ranges = _ranged(job.runtime) and not job.runtime.ranges
    for root in roots:
        for build in sorted(root.glob(f"{name}-*")) if any_ranges else [root / name]:
            if not _whole(build, job):
                continue
            try:
                return _taken(build, job)
            except UserError:
                raise
            except Exception:  # a library may refuse what it wrote itself, and each has errors of its own for that
                continue
    folder = (roots[0] if _writable(roots[0]) else roots[1]) / name
    left = folder.parent.glob(f".{name}.*.partial") if folder.parent.is_dir() else ()
    for path in left:
        with suppress(FileNotFoundError):  # whoever was building there has finished meanwhile
            if time.time() - path.stat().st_mtime > LEFT:
                shutil.rmtree(path, ignore_errors=True)
    try:
        return _built(job, folder)
    except Rejected:
        raise
    except (UserError, OSError):
        if _whole(folder, job):  # another process was quicker
            return _taken(folder, job)
        raise


def _taken(folder: Path, job: _Job) -> Engine:
    """A build that is there, checked in batches that it was not given before."""
    made, about = _opened(folder, job), read_json(folder / ABOUT)
    new = [size for size in job.sizes if _checked(job.runtime, size) not in about["checked"]]
    if new and not (_ranged(job.runtime) and job.pictures is None):  # ranges of pictures say nothing of noise
        check(made, job.module, job.runtime, job.shown, new)
        about["checked"] += [_checked(job.runtime, size) for size in new]
        with suppress(UserError), new_file(folder / ABOUT) as path:  # where nothing can be written it is checked again
            write_json(path, about)
    return made


def _checked(runtime: Runtime, size: int) -> str:
    return f"{runtime.precision}, batches of {size}"


def _writable(root: Path) -> bool:
    where = root if root.exists() else root.parent
    return where.is_dir() and os.access(where, os.W_OK)


def _opened(folder: Path, job: _Job) -> Engine:
    made = onnxruntime.ONNXRuntime if job.runtime.backend == "onnx" else openvino.OpenVINO
    return made(folder, job.runtime.precision, job.runtime.batch_size, job.threads)


def _built(job: _Job, folder: Path) -> Engine:
    """Build, check, and keep as ``folder``; where int8 is too coarse, again with its sensitive layers left out."""
    runtime = job.runtime
    ranges = job.pictures if _ranged(runtime) else None
    if _ranged(runtime) and ranges is None:
        raise UserError(
            f"{runtime.name} takes its ranges of numbers from pictures, and there is no build of it for this model on "
            "this machine: run vitrail tune with labelled pictures first."
        )
    scopes = openvino.SENSITIVE if _ranged(runtime) else ("",)
    for scope in scopes:
        try:
            with new_folder(folder, replace=True) as inside:
                with _in_words(runtime, "cannot be built for this model", inside, _bytes(job.module)):
                    if runtime.backend == "onnx":
                        onnxruntime.build(job.module, job.shown[:2], inside, runtime.precision == "int8")
                    else:
                        openvino.build(job.module, job.shown[:2], inside, ranges, scope)
                with _in_words(runtime, "does not run this model"):
                    check(_opened(inside, job), job.module, runtime, job.shown, job.sizes)
                about = {"runtime": to_dict(runtime), "processor": processor(), "versions": versions()}
                about |= {"sensitive": scope, "ranges": _digest(ranges), "files": _files(inside)}
                about["checked"] = [_checked(runtime, size) for size in job.sizes]
                write_json(inside / ABOUT, about)
            with _in_words(runtime, "does not run this model"):
                return _opened(folder, job)
        except Rejected:
            if scope == scopes[-1]:
                raise
    raise AssertionError


def _ranged(runtime: Runtime) -> bool:
    """Whether ranges of numbers are taken from pictures, when it is built."""
    return (runtime.backend, runtime.precision) == ("openvino", "int8")


def with_ranges(runtime: Runtime, pictures: Tensor | None) -> Runtime:
    """The same, with the pictures that ranges are taken from, where it needs some and there are any."""
    if pictures is None or not _ranged(runtime):
        return runtime
    return replace(runtime, ranges=_digest(pictures)[:8])


def _bytes(module: nn.Module) -> int:
    return sum(parameter.numel() * parameter.element_size() for parameter in module.parameters())


@contextmanager
def _in_words(runtime: Runtime, what: str, inside: Path | None = None, needed: int = 0) -> Iterator[None]:
    """Turn what a library raises, each has errors of its own, into a sentence; a full disk stays one.

    That is where ``needed`` bytes do not fit: what it could not write whole a library may have removed.
    """
    try:
        yield
    except (UserError, OSError, MemoryError):
        raise
    except Exception as error:
        if inside is not None and shutil.disk_usage(inside).free < needed + 2**20:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)) from error
        lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
        said = next((line for line in lines if "error: " in line), lines[-1])  # a compiler's, among all it was told
        raise UserError(f"{runtime.name} {what} ({said}): choose another way to run it.") from error


def _whole(folder: Path, job: _Job) -> bool:
    """Whether a build is there as it was written and, where there are pictures for its ranges, was made with them."""
    try:
        about = read_json(folder / ABOUT)
        same = job.pictures is None or not _ranged(job.runtime) or about["ranges"] == _digest(job.pictures)
        return bool(same and about["files"] == _files(folder) and "checked" in about)
    except (UserError, OSError, KeyError):
        return False


def _files(folder: Path) -> dict[str, str]:
    """The files of a build and their checksums."""
    paths = sorted(path for path in folder.iterdir() if path.name != ABOUT and path.suffix != ".partial")
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}


def _digest(pictures: Tensor | None) -> str:
    return "" if pictures is None else hashlib.sha256(pictures.contiguous().numpy().tobytes()).hexdigest()


def check(made: Engine, module: nn.Module, runtime: Runtime, pictures: Tensor, sizes: Sequence[int]) -> None:
    """Hold an engine's features of ``CHECKED`` pictures against ``module``'s in eager fp32, in batches of ``sizes``.

    Raises:
        Rejected: they are further away than ``BOUNDS`` says, a picture's further than ``WORST`` and
            ``FURTHEST``, or they are no numbers.
    """
    pictures = pictures[:CHECKED]
    with torch.inference_mode():
        truth = module(pictures)
    bound = BOUNDS[runtime.precision]
    if any(runtime.merging):
        bound = min(MERGED[0] * bound, bound + MERGED[1])
    for size in sizes:
        at = torch.arange(size) % len(pictures)
        apart = (made(pictures[at]) - truth[at]).norm(dim=-1) / truth[at].norm(dim=-1).clamp(min=1e-12)
        single = min(WORST * bound, FURTHEST)
        for found, most, what in ((apart.mean(), bound, ""), (apart.max(), single, " for a picture")):
            if not found <= most:
                raise Rejected(
                    f"{runtime.name} gives features{what} that are {found:.2g} of their length from the model's own in "
                    f"batches of {size}, more than the {most:.2g} allowed, so it is not used: choose another way to "
                    "run the model on this machine."
                )


def key(model: Model, runtime: Runtime) -> str:
    """A name for all that a build depends on: the model, what is computed how, processor and libraries, and ranges."""
    numbers = "float" if runtime.backend == "openvino" and runtime.precision != "int8" else runtime.precision
    about = [
        RECIPE,
        fingerprint(model),
        runtime.backend,
        numbers,  # OpenVINO runs one graph in fp32 or bf16
        runtime.merging,
        processor(),
        versions(),
    ]
    digest = hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()[:16]
    return f"{runtime.backend}-{numbers}-{digest}{'-' if runtime.ranges else ''}{runtime.ranges}"


def fingerprint(model: Model) -> str:
    """Of all that decides a model's features: another has other weights, or is of another kind or resolution."""
    digest = hashlib.sha256(json.dumps(to_dict(model.config), sort_keys=True).encode())
    for name, tensor in sorted(model.state_dict().items()):
        if not name.startswith("classifier."):
            digest.update(name.encode())
            digest.update(tensor.detach().cpu().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()[:16]


def _noise(model: Model) -> Tensor:
    """Pictures of nothing, standardised: (``CHECKED``, C, H, W)."""
    config = model.config
    return torch.randn(CHECKED, config.channels, *config.image_size, generator=torch.Generator().manual_seed(0))
